"""What commands say in cases that are rare, and that several of them have to say alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from billing.parts import Acquaintance
from tests.cli.terminal import Terminal, Xendit
from tests.typing_in_a_world import typed
from tests.world import World


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


@pytest.fixture
def ana(shop: Terminal, xendit: Xendit) -> Terminal:
    """Ana has subscribed and saved a card; her first period is due."""
    session = shop.json("subscribe", "ana", "gold", "--via", "save", "--reference", "ana-gold")["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    return shop


# Holds that end by themselves


def test_a_payment_method_that_is_unknown_for_a_time_is_told_as_what_it_is(world: World) -> None:
    her = world.subscribe_save()
    world.parts = replace(world.parts, acquaintance=Acquaintance())
    with world.another_accounts_key():
        world.run()
    name = her.subscription.reference
    with typed(world) as billing:
        during = billing.json("explain", name)["next"]
        assert during["what"] == "person"
        assert f"`billing token refresh {her.tokens[0].id}`" in during["why"]
        assert "nothing needs to be done" not in during["why"]
        assert her.subscription.customer_id not in during["why"]

        billing.json("token", "refresh", her.tokens[0].id)
        (released,) = (event for event in billing.json("explain", name)["events"] if event["kind"].endswith("released"))
        assert "released by itself" in released["what"]
        assert "by a person" not in released["what"]


# Cancellations


def test_after_a_planned_cancellation_no_command_promises_another_billing(ana: Terminal) -> None:
    ana.json("run")
    ends_at = ana.json("subscription", "cancel", "ana-gold")["ends_at"]
    (listed,) = ana.json("subscription", "list")
    story = ana.json("explain", "ana-gold")
    for view in (listed, ana.json("subscription", "show", "ana-gold"), story["subscription"]):
        assert (view["next_billing_at"], view["ends_at"]) == (None, ends_at)
    assert (story["next"]["what"], story["next"]["at"]) == ("end", ends_at)
    assert ana.json("subscription", "uncancel", "ana-gold")["next_billing_at"] == ends_at


def test_what_is_due_before_the_planned_end_is_still_told(ana: Terminal) -> None:
    """It has begun and nobody has opened it: it is owed."""
    due = ana.json("subscription", "show", "ana-gold")["next_billing_at"]
    assert ana.json("subscription", "cancel", "ana-gold")["next_billing_at"] == due


def test_a_paused_subscription_that_is_uncanceled_does_not_go_on(ana: Terminal) -> None:
    ana.json("run")
    ana.json("subscription", "cancel", "ana-gold")
    ana.json("subscription", "pause", "ana-gold")
    said = " ".join(ana("subscription", "uncancel", "ana-gold").out.split())
    assert said == "ana-gold does not end any more. It is paused; `billing subscription resume ana-gold` goes on."
    assert "None" not in ana("explain", "ana-gold").out


# Days and runs


def test_a_day_that_has_not_begun_is_not_compared(ana: Terminal) -> None:
    assert "that day has not begun" in ana.refused("reconcile", "--date", "2199-12-31", status=2)


def test_a_run_that_a_stop_of_charging_holds_up_says_so(ana: Terminal) -> None:
    ana.json("charging", "stop", "--reason", "bank holiday")
    ana("run")
    assert ana.json("runs", "show")["charging_stopped"] == "by an operator: bank holiday"
    told = ana("runs", "show").out
    assert "All charging is stopped: by an operator: bank holiday" in told
    assert "`billing charging resume`" in told
    ana.json("charging", "resume")
    ana.json("run")
    assert ana.json("runs", "show")["charging_stopped"] is None


# Values


def test_an_invoice_shows_what_was_given_back_like_its_other_amounts(ana: Terminal) -> None:
    ana.json("run")
    lines = ana("invoice", "show", "ana-gold-1").out.splitlines()
    assert ["refunded", "IDR", "0"] in [line.split() for line in lines]


def test_an_empty_mobile_number_removes_it(shop: Terminal) -> None:
    assert shop.json("customer", "update", "ana", "--mobile", "+628123456789")["mobile"] == "+628123456789"
    assert shop.json("customer", "update", "ana", "--mobile", "")["mobile"] is None


@pytest.mark.parametrize("cron", ["0 9 1 * */1", "0 9 1 */1 *", "0 9 1 */1 */1"])
def test_a_star_that_is_written_out_is_shown_as_a_star(billing: Terminal, cron: str) -> None:
    words = ("--name", "P", "--amount", "50000", "--currency", "IDR", "--cron", cron)
    assert billing.json("plan", "create", "p", *words)["schedule"] == "cron 0 9 1 * *"
