"""`billing token ...`, and what a run or a payment by hand says when Xendit does not know a payment method."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.terminal import Terminal, Xendit, simulated_xendit


def subscribed(shop: Terminal, xendit: Xendit, customer: str = "ana") -> dict[str, Any]:
    """The token of somebody who is due now."""
    if customer != "ana":
        person = ("--name", customer.title(), "--email", f"{customer}@example.com", "--country", "ID")
        shop.json("customer", "create", customer, *person)
    reference = f"{customer}-gold"
    session = shop.json("subscribe", customer, "gold", "--via", "save", "--reference", reference)["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    token: dict[str, Any] = shop.json("token", "list", "--customer", customer)[0]
    return token


@pytest.mark.parametrize("subscribers", [1, 6])
def test_a_run_against_another_account_blocks_nobody_and_the_next_goes_on(
    shop: Terminal, xendit: Xendit, subscribers: int
) -> None:
    """The same words for a key, at another Xendit: nothing that is ours is known there."""
    names = ["ana", *(f"c{number}" for number in range(1, subscribers))]
    for name in names:
        subscribed(shop, xendit, name)

    with simulated_xendit() as other:
        ended = shop("run", BILLING_XENDIT_BASE_URL=other.url)
        again = shop("run", BILLING_XENDIT_BASE_URL=other.url)

    for each in (ended, again):
        assert each.status == 1
        last = each.err.splitlines()[-1]
        assert "check that BILLING_XENDIT_SECRET_KEY belongs to the same account and mode" in last
    blocked = [row["blocked_reason"] for name in names for row in shop.json("token", "list", "--customer", name)]
    assert blocked == [None] * subscribers
    assert {row["status"] for row in shop.json("subscription", "list")} == {"active"}

    report = shop.json("run")
    assert report["stopped"] is None
    assert {row["status"] for row in shop.json("invoice", "list")} == {"paid"}


def test_paying_by_hand_over_nothing_is_no_success(shop: Terminal, xendit: Xendit) -> None:
    token = subscribed(shop, xendit)
    xendit.script(token["payment_token_id"], "STOLEN_CARD")
    shop("run")

    ended = shop("invoice", "pay", "ana-gold-1")
    named = shop.refused("invoice", "pay", "ana-gold-1", "--token", token["id"])

    assert ended.status == 1
    assert "was not made: no payment token that may be charged; `billing session create CUSTOMER`" in ended.err
    assert f"`billing token unblock {token['id']}` undoes that" in named
    assert f"`billing token unblock {token['id']}` undoes that" in shop("explain", "ana-gold").out


def test_unblocking_says_what_it_undid_and_what_waits_is_tried(shop: Terminal, xendit: Xendit) -> None:
    token = subscribed(shop, xendit)
    xendit.script(token["payment_token_id"], "STOLEN_CARD")
    shop("run")
    assert shop.json("token", "list", "--customer", "ana")[0]["blocked_reason"] == "STOLEN_CARD"

    ended = shop("token", "unblock", token["payment_token_id"], "--json")

    assert (ended.status, ended.document["blocked_reason"]) == (0, None)
    assert "undone: blocked after STOLEN_CARD" in ended.err
    assert shop.json("run")["succeeded"] == 1
    assert "there is nothing to undo" in shop.refused("token", "unblock", token["id"])


def test_canceling_a_method_in_use_says_who_is_left_without_one(shop: Terminal, xendit: Xendit) -> None:
    token = subscribed(shop, xendit)
    assert shop.json("subscription", "show", "ana-gold")["payment_token_id"] == token["id"]

    ended = shop("token", "cancel", token["id"], "--json")

    assert (ended.status, ended.document["status"]) == (0, "CANCELED")
    assert "no payment method is left for ana-gold; `billing session create ana` makes a link for another" in ended.err
    assert shop.json("subscription", "show", "ana-gold")["payment_token_id"] is None
    assert shop.json("subscription", "list")[0]["payment_token_id"] is None
    assert shop.json("explain", "ana-gold")["subscription"]["payment_token_id"] is None
    assert "CANCELED at Xendit, which is for good" in shop.refused("token", "unblock", token["id"])
