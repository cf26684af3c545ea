"""An end stops the opening of periods, never the collection of what is owed (docs/decisions/0022)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing.errors import RateLimited
from billing.runs import control
from billing.store import queries
from tests.world import Subscriber, World

DECLINED = "INSUFFICIENT_BALANCE"


def statuses(who: Subscriber) -> list[str]:
    return [invoice.status for invoice in who.invoices]


def stop(world: World) -> None:
    with world.parts.transaction() as session:
        queries.stop_charging(session, "a person stopped it", world.now)


def lift(world: World) -> None:
    with world.parts.transaction() as session:
        queries.lift_charging_stop(session)


# ------------------------------------------------------------------------------------------------ cycles


@pytest.mark.parametrize("cycles", [3, 4, 12])
def test_periods_missed_in_an_outage_are_billed_as_far_as_the_cycles_go(world: World, cycles: int) -> None:
    ana = world.subscribe_save(plan=world.plan(cycles=cycles))
    world.run()
    world.advance(days=100)  # three more have begun
    world.run()

    assert statuses(ana) == ["paid"] * min(4, cycles)
    assert ana.status == ("canceled" if cycles == 3 else "active")


def test_after_the_last_period_it_is_canceled_and_nothing_more_is_due(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(cycles=2))
    world.live(days=40)

    assert statuses(ana) == ["paid", "paid"]
    assert (ana.status, ana.subscription.next_billing_at) == ("active", None)
    assert ana.subscription.ends_at == ana.subscription.current_period_end

    world.live(days=300)

    assert (ana.status, ana.subscription.end_kind) == ("canceled", "cycles")
    assert ana.subscription.canceled_at == ana.subscription.ends_at
    assert world.collected() == [50_000, 50_000]


@pytest.mark.parametrize("late_payer", [True, False])
def test_the_last_charge_is_retried_to_the_end_of_its_ladder(world: World, late_payer: bool) -> None:
    """Weekly, while the ladder takes two weeks: the end of the last period comes first."""
    ana = world.subscribe_save(plan=world.plan("weekly", every="every 1:week", cycles=2))
    ana.script("SUCCEEDED", *[DECLINED] * 5, "SUCCEEDED" if late_payer else DECLINED)
    world.live(days=20)  # the second period was over on day 14

    assert (ana.status, statuses(ana)) == ("past_due", ["paid", "open"])

    world.live(days=40)

    assert ana.status == "canceled"
    assert statuses(ana) == ["paid", "paid" if late_payer else "uncollectible"]
    assert len(ana.attempts) == 1 + 6


@pytest.mark.parametrize(("dunning", "ends_as"), [("gentle", "canceled"), ("none", "canceled"), ("pause", "canceled")])
def test_what_the_policy_says_of_the_last_period_is_waited_for(world: World, dunning: str, ends_as: str) -> None:
    ana = world.subscribe_save(plan=world.plan(every="every 1:week", cycles=2, dunning=dunning))
    ana.script("SUCCEEDED", *[DECLINED] * 20)
    world.live(days=90)

    assert (ana.status, statuses(ana)) == (ends_as, ["paid", "uncollectible"])


def test_a_stop_of_charging_forgives_nothing(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(every="every 1:week", cycles=3))
    world.live(days=13)
    stop(world)
    world.live(days=20)

    assert (ana.status, statuses(ana)) == ("active", ["paid", "paid", "open"])

    lift(world)
    world.live(days=2)

    assert (ana.status, statuses(ana)) == ("canceled", ["paid"] * 3)


def test_one_that_is_paused_over_its_end_is_still_collected(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(every="every 1:week", cycles=2))
    ana.script("SUCCEEDED", DECLINED, "SUCCEEDED")
    world.live(days=7, hours=1)
    ana.pause()
    world.live(days=30)
    ana.resume()
    world.live(days=2)

    assert (ana.status, statuses(ana)) == ("canceled", ["paid", "paid"])


@pytest.mark.parametrize(
    ("policy", "billed", "skipped"), [("latest", ["01-31", "04-30"], 2), ("skip", ["01-31", "05-31"], 3)]
)
def test_the_catch_up_policy_decides_in_the_last_cycle_too(
    world: World, policy: str, billed: list[str], skipped: int
) -> None:
    """Three due dates are missed with one cycle left: those that are skipped are no cycles."""
    ana = world.subscribe_save(plan=world.plan(catch_up=policy, cycles=2))
    world.run()
    world.advance(days=100)
    world.run()
    world.live(days=40)

    assert [invoice.period_key[5:10] for invoice in ana.invoices] == billed
    assert statuses(ana) == ["paid", "paid"]
    assert len(ana.skipped) == skipped


def test_one_that_is_held_bills_what_it_missed_when_a_person_says_so(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(catch_up="hold", cycles=3))
    world.run()
    world.advance(days=150)  # four are due, two cycles are left
    world.run()
    assert (ana.subscription.hold_kind, statuses(ana)) == ("catch_up", ["paid"])

    control.approve(world.parts, control.waiting_for_approval(world.parts, [ana.subscription.reference]))
    world.live(days=1)

    assert [invoice.period_key[5:10] for invoice in ana.invoices] == ["01-31", "02-28", "03-31"]
    assert (ana.status, statuses(ana)) == ("canceled", ["paid"] * 3)


def test_a_plan_of_one_cycle_paid_on_the_page_is_over_after_it(world: World) -> None:
    ana = world.subscribe_pay(plan=world.plan(cycles=1))
    assert (ana.status, ana.subscription.next_billing_at) == ("active", None)

    world.live(days=40)

    assert (ana.status, world.collected()) == ("canceled", [50_000])


# ------------------------------------------------------------------------------- canceled for the period's end


def test_a_cancellation_for_the_periods_end_stops_retries_when_the_period_ends(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(every="every 1:week"))
    ana.script("SUCCEEDED", *[DECLINED] * 20)
    world.live(days=8)
    ana.cancel()
    world.live(days=5)
    assert (ana.status, statuses(ana)) == ("past_due", ["paid", "open"])  # day 13: still retried

    world.live(days=30)

    assert (ana.status, statuses(ana)) == ("canceled", ["paid", "uncollectible"])
    assert all(attempt.submitted_at < ana.subscription.ends_at for attempt in ana.attempts if attempt.submitted_at)


def test_one_that_is_held_ends_too_and_says_what_was_not_billed(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(catch_up="hold"))
    world.run()
    world.advance(days=70)
    world.run()
    assert ana.subscription.hold_reason is not None
    ana.cancel()
    world.live(days=200)

    assert (ana.status, statuses(ana)) == ("canceled", ["paid"])
    assert [period.period_key[5:10] for period in ana.skipped] == ["02-28", "03-31"]
    assert all("canceled before it was billed" in period.reason for period in ana.skipped)


def test_a_period_that_is_due_when_somebody_cancels_is_billed_first(world: World) -> None:
    """The scheduler was down; the period that runs was agreed to."""
    ana = world.subscribe_save()
    world.run()
    world.advance(days=40)
    ana.cancel()
    world.live(days=60)

    assert (ana.status, statuses(ana)) == ("canceled", ["paid", "paid"])


def test_even_when_its_end_passes_before_anybody_looks(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    world.advance(days=40)
    ana.cancel()
    world.advance(days=40)
    world.live(days=1)

    assert (ana.status, statuses(ana), len(ana.skipped)) == ("canceled", ["paid", "paid"], 0)


def test_the_end_wins_over_a_trial(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(trial_days=14))
    ana.cancel()
    world.live(days=30)

    assert (ana.status, ana.invoices) == ("canceled", [])


# --------------------------------------------------------------------------------------------- canceled now


def test_only_a_person_who_ends_it_now_forgives_what_is_open(world: World) -> None:
    ana = world.subscribe_save()
    ana.script(DECLINED)
    world.run()
    ana.cancel(at_once=True)

    assert (ana.status, statuses(ana)) == ("canceled", ["void"])


def test_canceled_while_the_charge_gets_a_429_leaves_nothing_open(world: World) -> None:
    ana = world.subscribe_save()
    charge = world.gateway.charge

    def refused(_request: object) -> None:
        ana.cancel(at_once=True)
        raise RateLimited("too many", retry_after_seconds=1)

    world.gateway.charge = refused  # type: ignore[method-assign, assignment]
    world.run()
    world.gateway.charge = charge  # type: ignore[method-assign]

    assert (ana.status, statuses(ana), ana.outcomes) == ("canceled", ["void"], ["canceled"])


def test_the_dunning_policys_end_gives_up_the_other_invoices_with_their_reason(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(every="every 1:week"))
    ana.script(*[DECLINED] * 50)
    world.live(days=30)

    assert ana.status == "canceled"
    assert set(statuses(ana)) == {"uncollectible"}
    assert world.now - timedelta(days=30) < ana.subscription.canceled_at


def test_periods_due_and_not_opened_are_recorded_when_it_ends(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    world.advance(days=100)
    ana.cancel(at_once=True)

    assert [period.period_key[5:10] for period in ana.skipped] == ["02-28", "03-31", "04-30"]
