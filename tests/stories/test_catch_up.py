"""Nobody ran for three months: what becomes of the missed periods is the plan's choice, and on record."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from billing.runs import run
from tests.world import CHARGE, Subscriber, World


def after_an_outage(world: World, catch_up: str, *, days: int = 95, **plan: Any) -> Subscriber:
    ana = world.subscribe_save(plan=world.plan(catch_up=catch_up, **plan))
    world.run()
    world.deliver_webhooks()
    world.advance(days=days)
    return ana


def test_all_bills_every_missed_period_oldest_first(world: World) -> None:
    """M1: an outage costs time, not periods."""
    ana = after_an_outage(world, "all")

    world.live(days=5)

    assert months_billed(ana) == ["01-31", "02-28", "03-31", "04-30"]
    assert world.collected() == [50_000] * 4
    assert ana.skipped == []


def test_latest_bills_only_the_running_period(world: World) -> None:
    ana = after_an_outage(world, "latest")

    world.live(days=5)

    assert months_billed(ana) == ["01-31", "04-30"]
    assert [period.period_key[:10] for period in ana.skipped] == ["2026-02-28", "2026-03-31"]
    assert all("latest" in period.reason for period in ana.skipped)


def test_skip_charges_nothing_until_the_next_due_date(world: World) -> None:
    ana = after_an_outage(world, "skip")

    world.live(days=5)
    assert months_billed(ana) == ["01-31"]
    assert len(ana.skipped) == 3
    world.live(days=30)

    assert months_billed(ana) == ["01-31", "05-31"]


def test_hold_charges_nothing_and_asks(world: World) -> None:
    ana = after_an_outage(world, "hold")

    report = world.run()

    assert [line["subscription_id"] for line in report["skipped"]] == [ana.id]
    assert ana.subscription.hold_reason
    assert world.collected() == [50_000]

    ana.resume()
    world.live(days=3)

    assert world.collected() == [50_000] * 4, "a person said yes: the missed ones are billed after all"


def test_one_late_period_is_simply_billed(world: World) -> None:
    for catch_up in ("all", "latest", "skip", "hold"):
        world.subscribe_save(catch_up, plan=world.plan(catch_up, catch_up=catch_up))
    world.advance(days=10)

    world.live(days=1)

    assert world.collected() == [50_000] * 4


def test_at_most_twelve_periods_then_a_person_decides(world: World) -> None:
    """M5: too much catch-up is as wrong as none."""
    ana = after_an_outage(world, "all", days=200, every="every 1:week")

    world.live(days=1)

    assert len(ana.invoices) == 1 + 12
    assert ana.subscription.hold_reason
    assert world.collected() == [50_000] * 13

    while ana.subscription.hold_reason:
        ana.resume()
        world.live(hours=1)
    assert world.collected() == [50_000] * 29, "a person said yes, twelve at a time"


def test_the_dry_run_shows_it_first_and_does_nothing(world: World) -> None:
    ana = after_an_outage(world, "latest")
    before = (ana.subscription.next_billing_at, len(ana.invoices), ana.story)

    shown = run.dry_run(world.parts, None)

    assert [(line["amount"], line["period_start"]) for line in shown["planned"]] == [("50000", "2026-04-30T02:00:00Z")]
    assert shown["skipped"]
    assert (ana.subscription.next_billing_at, len(ana.invoices), ana.story) == before
    assert world.calls(CHARGE) == 1


@pytest.mark.parametrize("catch_up", ["all", "latest", "skip", "hold"])
def test_no_period_goes_missing_without_a_word(world: World, catch_up: str) -> None:
    ana = after_an_outage(world, catch_up)
    world.live(days=40)
    if catch_up == "hold":
        ana.resume()
        world.live(days=5)

    keys = [invoice.period_key for invoice in ana.invoices] + [period.period_key for period in ana.skipped]
    assert len(set(keys)) == len(keys), "no period is on record twice"
    periods = [(row.period_start, row.period_end) for row in ana.invoices]
    periods += [(row.period_start, row.period_end) for row in ana.skipped]
    assert all(before[1] == after[0] for before, after in pairwise(sorted(periods))), "they tile the calendar"


def test_a_dead_gateway_delays_and_loses_nothing(world: World) -> None:
    """M4: once faults stop, every due period reaches an end."""
    ana = world.subscribe_save()
    world.break_calls("HTTP:503:CHANNEL_UNAVAILABLE", count=3)

    world.live(days=3)

    assert ana.invoice.status == "paid"
    assert ana.invoice.closed_at is not None
    assert ana.invoice.closed_at - ana.invoice.opened_at > timedelta(hours=1)


def months_billed(subscriber: Subscriber) -> list[str]:
    return [invoice.period_key[5:10] for invoice in subscriber.invoices]
