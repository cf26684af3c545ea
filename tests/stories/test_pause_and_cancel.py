"""The end of billing, for a while or for good: nothing is charged after it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from billing.domain.gateway import SessionType
from billing.domain.lifecycle import AttemptStatus
from billing.errors import IllegalTransition
from billing.subscribing import session_results
from tests.world import CHARGE, World


def test_paused_nothing_is_charged_and_the_periods_have_a_record(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    world.advance(days=10)
    ana.pause()

    world.live(days=75)
    assert world.collected() == [50_000]
    ana.resume()

    assert ana.status == "active"
    assert [period.period_key[:10] for period in ana.skipped] == ["2026-02-28", "2026-03-31"]
    assert {period.reason for period in ana.skipped} == {"paused"}
    assert ana.subscription.next_billing_at == datetime(2026, 4, 30, 2, 0, tzinfo=UTC)
    world.live(days=10)
    assert world.collected() == [50_000, 50_000]


def test_a_pause_ends_the_retry_ladder(world: World) -> None:
    """U2: charges must not go on after the customer stopped."""
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE", "SUCCEEDED")
    world.run()

    ana.pause()
    assert ana.outcomes == ["failed", "canceled"], "in the same transaction, not when it comes due"
    world.live(days=15)

    assert world.calls(CHARGE) == 1


def test_a_resume_collects_what_was_still_owed(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE", "SUCCEEDED")
    world.run()
    ana.pause()
    world.advance(days=5)

    ana.resume()
    assert ana.status == "past_due"
    world.live(hours=1)

    assert (ana.status, ana.invoice.status) == ("active", "paid")
    assert world.collected() == [50_000]


def test_a_pause_between_claim_and_begin_stops_the_charge(world: World) -> None:
    """The subscription is looked at once more before anything is sent."""
    ana = world.subscribe_save()
    world.tick_with_workers_that_die()

    ana.pause()
    world.leases_run_out()
    world.send("charge", [ana.attempt.id])

    assert world.calls(CHARGE) == 0
    assert ana.outcomes == ["canceled"]


def test_a_cancel_between_claim_and_begin_stops_the_charge(world: World) -> None:
    ana = world.subscribe_save()
    world.tick_with_workers_that_die()

    ana.cancel(at_once=True)
    world.send("charge", [ana.attempt.id])

    assert world.calls(CHARGE) == 0


def test_canceled_at_the_end_of_the_period_what_was_paid_lasts(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    ana.cancel()

    world.live(days=20)
    assert ana.status == "active"
    world.live(days=30)

    assert ana.status == "canceled"
    assert world.collected() == [50_000]
    assert len(ana.invoices) == 1


def test_canceled_at_once_nothing_more_is_charged(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE", "SUCCEEDED")
    world.run()

    ana.cancel(at_once=True)
    world.live(days=90)

    assert (ana.status, ana.invoice.status) == ("canceled", "void")
    assert ana.outcomes == ["failed", "canceled"]
    assert world.collected() == []


def test_canceled_is_for_ever(world: World) -> None:
    ana = world.subscribe_save()
    ana.cancel(at_once=True)

    for again in (ana.resume, ana.pause, ana.cancel):
        with pytest.raises(IllegalTransition):
            again()
    ana.adds_card()
    world.live(days=60)

    assert ana.status == "canceled"
    assert world.calls(CHARGE) == 0


def test_a_new_card_does_not_wake_a_paused_subscription(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE")
    world.run()
    ana.pause()

    ana.adds_card()
    world.live(days=10)

    assert ana.status == "paused"
    assert world.calls(CHARGE) == 1


def test_what_waits_for_the_customer_is_canceled_at_xendit_too(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("REQUIRES_ACTION")
    world.run()

    ana.cancel(at_once=True)
    world.live(hours=1)

    assert world.calls("POST /v3/payment_requests/{id}/cancel") == 1
    assert ana.outcomes == [AttemptStatus.CANCELED]
    assert ana.invoice.status == "void"


def test_the_link_of_a_canceled_subscription_is_closed(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    ana.cancel(at_once=True)
    session_results.cancel_open_sessions(world.parts, ana.id)

    assert ana.session.status == "CANCELED"
    assert ana.invoice.status == "void"
    with pytest.raises(AssertionError, match="CANCELED"):
        ana.completes_session()


def test_money_through_the_link_of_a_canceled_subscription_is_given_back(world: World) -> None:
    """The link could not be closed in time."""
    ana = world.subscribe(via=SessionType.PAY)
    ana.cancel(at_once=True)
    ana.completes_session()
    world.live(hours=2)

    assert ana.status == "canceled"
    assert world.collected() == []
    assert [refund.status for refund in ana.refunds] == ["succeeded"]


def test_a_trial_that_is_canceled_costs_nothing(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(trial_days=14))
    ana.cancel()

    world.live(days=60)

    assert ana.status == "canceled"
    assert world.collected() == []


# A planned cancellation is taken back


def test_uncanceled_it_goes_on_as_if_nothing_had_been_said(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    before = ana.subscription
    ana.cancel()
    world.live(days=10)

    ana.uncancel()

    after = ana.subscription
    assert (after.cancel_at_period_end, after.ends_at, after.status) == (False, None, "active")
    assert after.next_billing_at == before.next_billing_at
    assert ana.next.what == "charge"
    world.live(days=30)
    assert world.collected() == [50_000, 50_000]


def test_with_an_end_by_cycles_that_end_is_back(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(cycles=1))
    world.run()
    end = ana.subscription.ends_at
    ana.cancel()
    ana.uncancel()

    assert (ana.subscription.ends_at, ana.subscription.next_billing_at) == (end, None)
    world.live(days=60)
    assert (ana.status, ana.subscription.end_kind) == ("canceled", "cycles")
    assert world.collected() == [50_000]


def test_retries_go_on_over_the_end_that_was_taken_back(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(every="every 1:week"))
    ana.script(*["INSUFFICIENT_BALANCE"] * 4, "SUCCEEDED")  # the fifth try, on day 7, comes with the second period
    world.run()
    ana.cancel()
    assert ana.outcomes == ["failed", "scheduled"]
    ana.uncancel()
    world.live(days=8)

    assert (ana.status, [invoice.status for invoice in ana.invoices]) == ("active", ["paid", "paid"])


def test_a_trial_whose_cancellation_is_taken_back_is_charged_at_its_end(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(trial_days=14))
    ana.cancel()
    world.live(days=13)
    ana.uncancel()
    assert ana.status == "trialing"
    world.live(days=2)
    assert (ana.status, world.collected()) == ("active", [50_000])


def test_canceled_paused_and_resumed_it_still_ends_and_says_so(world: World) -> None:
    """A pause does not take a cancellation back; only `uncancel` does, paused or not."""
    ana = world.subscribe_save()
    world.run()
    ana.cancel()
    with pytest.raises(IllegalTransition, match="`billing subscription uncancel "):
        ana.resume()
    ana.pause()
    world.live(days=5)
    ana.resume()
    assert (ana.next.what, ana.next.at) == ("end", ana.subscription.ends_at)

    ana.pause()
    ana.uncancel()
    assert (ana.status, ana.subscription.next_billing_at, ana.subscription.ends_at) == ("paused", None, None)
    ana.resume()
    assert ana.next.what == "charge"
    assert ana.next.at == ana.subscription.next_billing_at == ana.subscription.current_period_end


def test_on_hold_it_stays_on_hold_and_bills_what_it_missed(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(catch_up="hold"))
    world.run()
    world.advance(days=100)
    world.run()
    ana.cancel()
    ana.uncancel()
    assert ana.subscription.hold_kind == "catch_up"
    ana.resume()
    world.live(hours=1)
    assert len(world.collected()) == 4


def test_what_cannot_be_taken_back(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    with pytest.raises(IllegalTransition, match="no cancellation is planned"):
        ana.uncancel()
    ana.cancel()
    world.advance(days=40)  # nobody has looked since
    with pytest.raises(IllegalTransition, match="was over"):
        ana.uncancel()
    world.tick()
    with pytest.raises(IllegalTransition, match="it has ended, for good"):
        ana.uncancel()
