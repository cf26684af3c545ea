"""The guards of a billing run: off unless set, silent without enough to compare with, told of, and over by themselves
where they can be. And what happens while all charging is stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
import simplejson
from sqlalchemy import select, text, update

from billing.checks import doctor
from billing.domain.lifecycle import HoldKind
from billing.parts import Rules
from billing.reading.views import Json
from billing.runs import control, limits, tick
from billing.runs import run as runs
from billing.settings import Settings
from billing.store import queries
from billing.store.models import BillingRun, Subscription
from billing.subscribing import import_rows
from tests.world import CHARGE, Subscriber, World

NewWorld = Callable[..., World]
RESULTS_NEEDED = 500  # of the last 60 days


def renewals(world: World, count: int, *, named: str = "customer", **wanted: Any) -> list[Subscriber]:
    """Subscribers whose period is due and nobody waits for it; with wallets, which no card network caps."""
    wanted = {"start_at": world.now, "channel": "OVO"} | wanted
    return [world.subscribe_save(f"{named}{number}", **wanted) for number in range(count)]


def import_due(world: World, count: int, *, named: str = "old") -> None:
    """Subscribers of another system, due in two hours."""
    world.plan()
    due = (world.now + timedelta(hours=2)).isoformat()
    rows = []
    for number in range(count):
        token = world.control("POST", "/tokens", {})["payment_token_id"]
        row = {"customer_reference": f"{named}{number}", "name": "Old", "email": "old@example.com", "country": "ID"}
        row |= {"plan": "gold", "subscription_reference": f"{named}{number}", "payment_token_id": token}
        rows.append(simplejson.dumps(row | {"channel_code": "CARDS", "next_billing_at": due}))
    report = import_rows.import_rows(world.parts, rows, dry_run=False, verify_with_gateway=False)
    assert report["created"] == count


def past_results(world: World, count: int, *, declined: int = 0, days_ago: float = 1) -> None:
    """So many charges of an earlier run, out of one that a first customer had, as rows."""
    (model,) = renewals(world, 1, named=f"model{days_ago}-{declined}-")
    earlier = world.run()["run_id"]
    assert model.outcomes == ["succeeded"]
    world.waive("captures_have_their_attempt", "lines_add_up", "paid_stays_paid", "payments_add_up", "periods_tile")
    with world.parts.transaction() as session:
        for table, columns in (
            ("invoices", "'id', t.id || '-' || g, 'number', t.number || '-' || g, 'period_key', t.period_key || g"),
            (
                "charge_attempts",
                "'id', t.id || '-' || g, 'reference_id', t.id || '-' || g, 'invoice_id', t.invoice_id || '-' || g,"
                " 'payment_request_id', NULL, 'payment_id', NULL",
            ),
        ):
            session.execute(
                text(
                    f"INSERT INTO {table} SELECT (x).* FROM (SELECT jsonb_populate_record(t, jsonb_build_object("
                    f"{columns})) AS x FROM {table} t, generate_series(1, :more) g WHERE t.subscription_id = :id) q"
                ),
                {"more": count - 1, "id": model.id},
            )
        session.execute(
            text(
                "UPDATE charge_attempts SET status = 'failed', decline_class = 'retry_later' WHERE id IN ("
                "SELECT id FROM charge_attempts WHERE subscription_id = :id ORDER BY id DESC LIMIT :declined)"
            ),
            {"id": model.id, "declined": declined},
        )
        session.execute(
            text(
                "UPDATE charge_attempts SET settled_at = settled_at - make_interval(secs => :ago) WHERE run_id = :run"
            ),
            {"ago": days_ago * 86_400, "run": earlier},
        )
        session.execute(
            update(BillingRun)
            .where(BillingRun.id == earlier)
            .values(
                at=world.now - timedelta(days=days_ago), started_at=BillingRun.started_at - timedelta(days=days_ago)
            )
        )


def all_declined(world: World, count: int, *, named: str = "declined") -> list[Subscriber]:
    subscribers = renewals(world, count, named=named)
    for one in subscribers:
        one.script("INSUFFICIENT_BALANCE")
    return subscribers


def the_run(world: World) -> BillingRun:
    return world.all(select(BillingRun).order_by(BillingRun.started_at))[-1]


def told(world: World, name: str) -> Json:
    return {check["name"]: check for check in doctor.examine(world.parts)["checks"]}[name]


def stop_charging(world: World, reason: str = "the key was refused") -> None:
    with world.parts.transaction() as session:
        queries.stop_charging(session, reason, world.now)


def resume_charging(world: World) -> None:
    with world.parts.transaction() as session:
        assert queries.lift_charging_stop(session)


# ------------------------------------------------------------------------------------------- off unless set


def test_nothing_but_the_decline_guard_is_on_unless_it_is_set() -> None:
    settings, rules = Settings(), Rules()
    assert (settings.run_spending_cap, settings.subscriber_daily_cap, settings.run_forecast_share) == ("", "", 0)
    assert (rules.run_spending_cap, rules.subscriber_daily_cap, rules.run_forecast_share) == ({}, {}, 0)


def test_the_first_import_of_a_new_merchant_is_charged(database_url: str) -> None:
    """One subscriber was billed in the morning; at noon the whole base is imported, and is due the same day."""
    with World(database_url) as world:
        world.subscribe_save("ana", start_at=world.now)
        world.settle_down()
        import_due(world, 120)
        world.advance(hours=2, minutes=1)

        world.tick_with_workers_that_die()
        limits.watch(world.parts)
        world.leases_run_out()
        world.settle_down()

        assert the_run(world).state == "running"
        assert len(world.collected()) == 121


def test_what_is_expected_is_compared_without_a_setting_too(world: World) -> None:
    renewals(world, 4)

    refused = runs.run_here(world.parts, world.send, None, lambda _totals: None, expect={"IDR": 100_000})
    begun = runs.run_here(world.parts, world.send, None, lambda _totals: None, expect={"IDR": 140_000})

    assert (refused["state"], refused["opened"]) == ("stopped", 0)
    assert "more than 50% apart" in refused["reason"]
    assert begun["succeeded"] == 4


def test_what_is_expected_is_compared_within_the_share_that_is_set(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_forecast_share=0.1))
    renewals(world, 4)

    refused = runs.run_here(world.parts, world.send, None, lambda _totals: None, expect={"IDR": 170_000})

    assert "more than 10% apart" in refused["reason"]
    dry = runs.dry_run(world.parts, None, expect={"IDR": 170_000})
    assert [found["guard"] for found in dry["guards"]] == ["forecast"]


# --------------------------------------------------------------------------------------- the decline guard


def test_without_enough_results_of_the_last_60_days_declines_stop_nothing(database_url: str) -> None:
    with World(database_url, rules=Rules(run_decline_sample=5, max_in_flight=5)) as world:
        past_results(world, RESULTS_NEEDED - 1)
        past_results(world, 200, days_ago=61)
        all_declined(world, 15)

        report = world.run()

        assert (report["guard"], report["failed"]) == (None, 15)


def test_with_500_results_a_jump_of_declines_stops_the_run(database_url: str) -> None:
    with World(database_url, rules=Rules(run_decline_sample=5, max_in_flight=5)) as world:
        past_results(world, RESULTS_NEEDED, declined=50, days_ago=59)
        all_declined(world, 15)

        report = world.run()

        assert (report["state"], report["guard"]) == ("stopped", "decline_jump")
        assert "declined, and 10% is usual" in report["reason"]
        assert report["failed"] < 15


def test_a_day_of_retries_is_not_judged_by_first_tries(database_url: str) -> None:
    """What was declined yesterday is declined more often than what is charged for the first time."""
    with World(database_url, rules=Rules(run_decline_sample=5, max_in_flight=5)) as world:
        past_results(world, RESULTS_NEEDED)
        for one in renewals(world, 12):
            one.script("INSUFFICIENT_BALANCE", "INSUFFICIENT_BALANCE", "SUCCEEDED")
        with world.parts.transaction() as session:
            session.execute(text("UPDATE charge_attempts SET settled_at = settled_at - interval '1 day'"))
        first = world.run()
        if first["state"] == "stopped":
            control.resume_run(world.parts, first["run_id"])
            world.run()
        world.advance(days=1)

        report = world.run()

        assert (report["guard"], report["failed"]) == (None, 12)


def test_a_run_with_nothing_left_to_send_is_not_stopped(database_url: str) -> None:
    """A person would be asked to let go on what has ended."""
    with World(database_url, rules=Rules(run_decline_sample=5)) as world:
        past_results(world, RESULTS_NEEDED)
        all_declined(world, 8)

        report = world.run()

        assert (report["state"], report["guard"]) == ("finished", None)


def test_the_watch_stops_a_run_that_only_workers_drive(database_url: str) -> None:
    with World(database_url, rules=Rules(run_decline_sample=3)) as world:
        past_results(world, RESULTS_NEEDED)
        declined, waiting = all_declined(world, 3), renewals(world, 2, named="waiting")
        world.tick_with_workers_that_die()
        world.send("charge", [one.attempt.id for one in declined])

        limits.watch(world.parts)

        day = the_run(world)
        assert (day.kind, day.state, day.guard) == ("daily", "stopped", "decline_jump")
        assert {one.attempt.parked_by for one in waiting} == {f"run:{day.id}"}


# -------------------------------------------------------------------------------------- the forecast guard


FORECAST = Rules(run_decline_sample=5, run_forecast_share=0.5)


def test_what_is_imported_after_a_run_began_is_no_deviation(database_url: str) -> None:
    with World(database_url, rules=FORECAST) as world:
        renewals(world, 2)
        world.settle_down()
        import_due(world, 30)
        world.advance(hours=2, minutes=1)

        world.tick_with_workers_that_die()
        limits.watch(world.parts)

        assert the_run(world).state == "running"


def test_who_subscribes_after_a_run_began_is_no_deviation(database_url: str) -> None:
    """With a link that was sent before it began, and followed after the date that was agreed."""
    with World(database_url, rules=FORECAST) as world:
        waiting = [world.subscribe(f"late{number}", start_at=world.now + timedelta(hours=1)) for number in range(12)]
        renewals(world, 2)
        world.settle_down()
        world.advance(hours=2)
        for one in waiting:
            one.completes_session()
        world.deliver_webhooks()

        world.tick_with_workers_that_die()
        limits.watch(world.parts)

        assert len(world.all_attempts()) == 14
        assert the_run(world).state == "running"


def test_what_a_person_approves_is_no_deviation(database_url: str) -> None:
    with World(database_url, rules=FORECAST) as world:
        held = renewals(world, 3, plan=world.plan("held", catch_up="hold"))
        world.run()
        world.advance(days=200)
        renewals(world, 1, named="today")
        world.settle_down()
        assert {one.subscription.hold_kind for one in held} == {HoldKind.CATCH_UP}

        control.approve(world.parts, control.waiting_for_approval(world.parts, ()))
        world.tick_with_workers_that_die()
        limits.watch(world.parts)

        assert len(world.all_attempts()) > 15
        assert the_run(world).state == "running"


def test_who_is_charged_more_than_was_planned_stops_the_run(database_url: str) -> None:
    with World(database_url, rules=FORECAST) as world:
        for one in renewals(world, 10):
            with world.parts.transaction() as session:
                later = world.now + timedelta(hours=1)
                session.execute(update(Subscription).where(Subscription.id == one.id).values(next_billing_at=later))
        renewals(world, 2, named="now")
        world.tick_with_workers_that_die()
        with world.parts.transaction() as session:
            session.execute(update(Subscription).values(amount_minor=90_000))
            session.execute(update(Subscription).values(next_billing_at=world.now))

        world.tick_with_workers_that_die()
        limits.watch(world.parts)

        stopped = the_run(world)
        assert (stopped.state, stopped.guard) == ("stopped", "forecast")
        assert "were planned" in (stopped.reason or "")


# --------------------------------------------------------------------------- told of, and over by themselves


@pytest.mark.parametrize("state", ["paused", "stopped"])
def test_a_run_that_waits_for_a_person_is_a_finding_of_the_doctor(database_url: str, state: str) -> None:
    with World(database_url) as world:
        renewals(world, 3)
        world.tick_with_workers_that_die()
        assert told(world, "no_run_is_stopped")["ok"]

        if state == "paused":
            control.pause_run(world.parts, the_run(world).id)
        else:
            control.stop_run(world.parts, the_run(world).id, "forecast", "more than was planned")

        found = told(world, "no_run_is_stopped")
        assert (found["ok"], found["count"]) == (False, 1)
        assert the_run(world).id in found["detail"]
        assert "billing runs resume" in found["repair"]
        control.resume_run(world.parts, the_run(world).id)
        assert told(world, "no_run_is_stopped")["ok"]


def test_a_run_that_was_not_begun_is_over_when_another_has_begun(world: World) -> None:
    renewals(world, 4)
    refused = runs.run_here(world.parts, world.send, None, lambda _totals: None, expect={"IDR": 100})
    assert not told(world, "no_run_is_stopped")["ok"]

    world.run()

    assert told(world, "no_run_is_stopped")["ok"]
    assert {run.id: run.state for run in world.all(select(BillingRun))}[refused["run_id"]] == "aborted"


def test_a_stopped_run_of_which_nothing_is_left_is_over(database_url: str) -> None:
    with World(database_url, rules=Rules(run_spending_cap={"IDR": 50_000})) as world:
        first, second = renewals(world, 2)
        world.settle_down()
        assert the_run(world).state == "stopped"
        first.cancel(at_once=True)
        second.cancel(at_once=True)
        limits.watch(world.parts)
        assert not told(world, "no_run_is_stopped")["ok"], "its day may bring more"

        world.advance(days=1)
        limits.watch(world.parts)

        assert the_run(world).finished_at is not None
        assert told(world, "no_run_is_stopped")["ok"]


# -------------------------------------------------------------------------------------- charging is stopped


def test_while_charging_is_stopped_a_run_opens_and_charges_nothing(world: World) -> None:
    subscribers = renewals(world, 3)
    stop_charging(world)

    report = world.run()

    assert (report["opened"], report["attempted"], report["stopped"]) == (3, 0, "the key was refused")
    assert world.calls(CHARGE) == 0
    assert {one.attempt.status for one in subscribers} == {"scheduled"}
    again = world.run()
    assert (again["run_id"], again["whole_run"]["opened"]) == (report["run_id"], 3), "the same run goes on"
    assert again["opened"] == 0, "by the first command"
    resume_charging(world)
    assert world.run()["succeeded"] == 3


def test_while_charging_is_stopped_nobody_waits_for_workers(world: World) -> None:
    renewals(world, 3)
    stop_charging(world)
    handed: list[str] = []

    def workers(_kind: str, ids: Sequence[str]) -> None:
        handed.extend(ids)

    report = runs.run_on_workers(world.parts, workers, None, lambda _totals: None, wait=True)

    assert (report["opened"], report["stopped"], handed) == (3, "the key was refused", [])


def test_a_stop_in_the_middle_ends_the_wait(world: World) -> None:
    renewals(world, 3)

    def stop(_kind: str, _ids: Sequence[str]) -> None:
        stop_charging(world)

    report = runs.run_on_workers(world.parts, stop, None, lambda _totals: None, wait=True, poll_seconds=0)

    assert report["stopped"] == "the key was refused"


def test_the_scheduler_opens_while_charging_is_stopped(world: World) -> None:
    renewals(world, 3)
    stop_charging(world)

    done = tick.tick(world.parts, world.send)

    assert (done.opened, done.handed_out) == (3, 0)
    assert not told(world, "charging_is_allowed")["ok"]
