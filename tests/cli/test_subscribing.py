"""From `subscribe` to a token that can be charged: sessions and tokens."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.terminal import Terminal, Xendit

SUBSCRIBE = ("subscribe", "ana", "gold", "--reference", "ana-gold", "--via")


def test_save_starts_when_the_customer_has_saved_a_card(shop: Terminal, xendit: Xendit) -> None:
    document = shop.json(*SUBSCRIBE, "save")
    subscription, session = document["subscription"], document["session"]
    assert (subscription["status"], subscription["customer"], subscription["plan"]) == ("incomplete", "ana", "gold")
    assert (session["type"], session["mode"], session["status"]) == ("SAVE", "PAYMENT_LINK", "ACTIVE")
    assert session["payment_link_url"].startswith("http")
    assert session["subscription_id"] == subscription["id"]

    xendit.complete(session)
    assert shop.json("session", "refresh", session["id"])["status"] == "COMPLETED"
    started = shop.json("subscription", "show", "ana-gold")
    assert started["status"] == "active"
    [token] = shop.json("token", "list", "--customer", "ana")
    assert token["status"] == "ACTIVE"
    assert token["id"] == started["payment_token_id"]
    assert shop.json("customer", "show", "ana")["tokens"] == [token]
    assert shop.json("customer", "list")[0]["tokens"] == [token]


def test_pay_collects_the_first_period_at_once(shop: Terminal, xendit: Xendit) -> None:
    session = shop.json(*SUBSCRIBE, "pay")["session"]
    assert (session["type"], session["amount"]) == ("PAY", "99000")
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    shop("reconcile")
    [invoice] = shop.json("invoice", "list", "--subscription", "ana-gold")
    assert invoice["status"] == "paid"
    assert shop.json("run")["opened"] == 0


def test_components_give_a_key_and_say_where_the_form_is(shop: Terminal) -> None:
    words = (*SUBSCRIBE, "save", "--mode", "components")
    session = shop.json(*words)["session"]
    assert session["mode"] == "COMPONENTS"
    assert session["components_sdk_key"]
    other = shop("session", "create", "ana", "--mode", "components")
    assert "https://shop.example.com/checkout/ses-" in other.out


def test_components_need_an_https_page(shop: Terminal) -> None:
    words = (*SUBSCRIBE, "save", "--mode", "components")
    line = shop.refused(*words, status=2, BILLING_PUBLIC_URL="http://localhost:8000")
    assert line.startswith("BILLING_COMPONENTS_ORIGINS: not set")
    ended = shop(*words, BILLING_PUBLIC_URL="http://localhost:8000", BILLING_COMPONENTS_ORIGINS="https://shop.test")
    assert ended.status == 0


def test_without_https_return_urls_are_left_out_and_a_warning_says_so(shop: Terminal) -> None:
    ended = shop(*SUBSCRIBE, "save", "--json", BILLING_PUBLIC_URL="http://localhost:8000")
    assert ended.document["session"]["status"] == "ACTIVE"
    assert ended.err.startswith("warning: BILLING_PUBLIC_URL is not https")
    assert ended.err.count("\n") == 1


def test_start_at_is_an_instant_with_offset(shop: Terminal, xendit: Xendit) -> None:
    assert "has no offset" in shop.refused(*SUBSCRIBE, "save", "--start-at", "2030-01-31T09:00:00", status=2)
    session = shop.json(*SUBSCRIBE, "save", "--start-at", "2030-01-31T09:00:00+07:00")["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    assert shop.json("subscription", "show", "ana-gold")["next_billing_at"] == "2030-01-31T02:00:00Z"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("subscribe", "bea", "gold", "--via", "save"), "no customer 'bea'"),
        (("subscribe", "ana", "silver", "--via", "save"), "no plan 'silver'"),
        (("subscribe", "ana", "gold", "--via", "save", "--reference", "two words"), "no blanks"),
    ],
)
def test_a_subscribe_that_is_refused_leaves_nothing(shop: Terminal, words: tuple[str, ...], reason: str) -> None:
    assert reason in shop.refused(*words)
    assert shop.json("subscription", "list") == []
    assert shop.json("session", "list") == []


def test_a_reference_is_used_once(shop: Terminal) -> None:
    shop.json(*SUBSCRIBE, "save")
    assert "in use" in shop.refused(*SUBSCRIBE, "save")


def test_a_plan_twice_is_refused_unless_again(shop: Terminal) -> None:
    shop.json(*SUBSCRIBE, "save")
    line = shop.refused("subscribe", "ana", "gold", "--via", "pay")
    assert "ana is about to have plan gold: subscription ana-gold waits for payment session ses-" in line
    assert line.endswith("--again makes another one all the same")
    assert len(shop.json("subscription", "list")) == len(shop.json("session", "list")) == 1
    assert shop.json("subscribe", "ana", "gold", "--via", "pay", "--again")["subscription"]["status"] == "incomplete"


def test_on_a_saved_method_it_starts_without_a_page(shop: Terminal, two_cards: list[dict[str, Any]]) -> None:
    silver = (
        "plan",
        "create",
        "silver",
        "--name",
        "Silver",
        "--amount",
        "5000",
        "--currency",
        "IDR",
        "--every",
        "week",
    )
    shop.json(*silver)
    words = ("subscribe", "ana", "silver", "--reference", "ana-silver", "--token", two_cards[1]["payment_token_id"])
    document = shop.json(*words, BILLING_XENDIT_SECRET_KEY="")
    assert document["session"] is None
    assert (document["subscription"]["status"], document["subscription"]["payment_token_id"]) == (
        "active",
        two_cards[1]["id"],
    )
    shop.json("run")
    [invoice] = shop.json("invoice", "list", "--subscription", "ana-silver")
    assert (invoice["status"], invoice["attempts"][0]["payment_token_id"]) == ("paid", two_cards[1]["id"])
    assert "subscribed to plan silver with a payment method saved before" in shop("explain", "ana-silver").out
    assert "has plan silver already" in shop.refused(*words[:3], *words[5:])


def test_a_beginning_is_named_once(shop: Terminal) -> None:
    assert "--token" in shop.refused("subscribe", "ana", "gold", status=2)
    assert "exclude each other" in shop.refused(*SUBSCRIBE, "save", "--token", "pt-1", status=2)
    assert "no token 'pt-1'" in shop.refused("subscribe", "ana", "gold", "--token", "pt-1")


def test_a_country_in_which_nothing_could_be_charged_is_refused(shop: Terminal) -> None:
    shop.json(*SUBSCRIBE, "save")
    assert "charged in IDR" in shop.refused("customer", "update", "ana", "--country", "PH")
    ended = shop("customer", "update", "ana", "--name", "Ana P.")
    assert "keeps the name, mail and mobile number it was made with" in ended.err
    assert shop.json("customer", "show", "ana")["name"] == "Ana P."


def test_a_canceled_session_can_be_followed_by_a_new_one(shop: Terminal, xendit: Xendit) -> None:
    first = shop.json(*SUBSCRIBE, "save")["session"]
    again = ("session", "create", "ana", "--subscription", "ana-gold")
    assert "still open" in shop.refused(*again)
    assert shop.json("session", "cancel", first["xendit_session_id"])["status"] == "CANCELED"
    assert "only an ACTIVE session" in shop.refused("session", "cancel", first["id"])
    second = shop.json(*again)
    assert second["subscription_id"] == first["subscription_id"]
    xendit.complete(second)
    shop.json("session", "refresh", second["reference_id"])
    assert shop.json("subscription", "show", "ana-gold")["status"] == "active"
    assert [row["status"] for row in shop.json("session", "list", "--customer", "ana")] == ["CANCELED", "COMPLETED"]


def test_people_are_told_what_to_do_with_the_link(shop: Terminal) -> None:
    ended = shop(*SUBSCRIBE, "save")
    [session] = shop.json("session", "list", "--subscription", "ana-gold")
    assert f"Send the customer this link:\n  {session['payment_link_url']}\n" in ended.out
    assert f"billing session refresh {session['id']}" in ended.out


# ---------------------------------------------------------------------------------------------------- tokens


@pytest.fixture
def two_cards(shop: Terminal, xendit: Xendit) -> list[dict[str, Any]]:
    """Ana's tokens, in the order in which they are charged."""
    for words in ((*SUBSCRIBE, "save"), ("session", "create", "ana")):
        document = shop.json(*words)
        session = document.get("session", document)
        xendit.complete(session)
        shop.json("session", "refresh", session["id"])
    tokens = shop.json("token", "list", "--customer", "ana")
    assert len(tokens) == 2
    return list(tokens)


def test_prefer_puts_a_token_first(shop: Terminal, two_cards: list[dict[str, Any]]) -> None:
    first, second = (token["id"] for token in two_cards)
    assert shop.json("subscription", "show", "ana-gold")["payment_token_id"] == first
    shop.json("token", "prefer", second)
    assert [token["id"] for token in shop.json("token", "list", "--customer", "ana")] == [second, first]
    assert shop.json("subscription", "show", "ana-gold")["payment_token_id"] == second


def test_a_canceled_token_is_dead_here_and_at_xendit(shop: Terminal, two_cards: list[dict[str, Any]]) -> None:
    name = two_cards[0]["payment_token_id"]
    assert shop.json("token", "cancel", name)["status"] == "CANCELED"
    assert shop.json("token", "refresh", name)["status"] == "CANCELED"
    assert "nothing to cancel" in shop.refused("token", "cancel", name)
    assert "only an ACTIVE token" in shop.refused("token", "prefer", name)


def test_refresh_learns_what_happened_at_xendit(
    shop: Terminal, xendit: Xendit, two_cards: list[dict[str, Any]]
) -> None:
    xendit.client.post(f"/_simulator/tokens/{two_cards[1]['payment_token_id']}/expire").raise_for_status()
    assert shop.json("token", "refresh", two_cards[1]["id"])["status"] == "EXPIRED"


def test_a_token_nobody_knows(shop: Terminal) -> None:
    assert "no token 'pt-nope'" in shop.refused("token", "refresh", "pt-nope")
