"""Far behind, and rows that nobody can read: the plan of a run and the turn of the scheduler stay short, and whoever
can be billed is billed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from billing.domain import schedule
from billing.errors import IllegalTransition
from billing.parts import Rules
from billing.reading.views import Json
from billing.runs import control, forecast, run, tick
from billing.runs import report as progress
from billing.store.models import BillingRun, Plan, Subscription
from billing.subscriptions import open_periods
from tests.world import Subscriber, World, copy_subscription

NewWorld = Callable[..., World]


def renewals(world: World, count: int, *, named: str = "customer", **wanted: Any) -> list[Subscriber]:
    return [world.subscribe_save(f"{named}{number}", start_at=world.now, **wanted) for number in range(count)]


def far_behind(world: World, count: int, *, days: int = 1_200, catch_up: str = "skip") -> None:
    """So many daily subscriptions that nobody has billed for years, made out of one."""
    first = world.subscribe_save("first", plan=world.plan("daily", every="every 1:day", catch_up=catch_up))
    world.run()
    world.waive("periods_tile")  # the copies have no invoice of their first period
    copy_subscription(world, first, count - 1)
    world.advance(days=days)


def unreadable(world: World, subscriber: Subscriber) -> None:
    """Its time zone is one that nobody knows any more."""
    with world.parts.transaction() as session:
        row = update(Subscription).where(Subscription.id == subscriber.id)
        session.execute(row.values(timezone="Nowhere/Atlantis"))


def the_run(world: World) -> BillingRun:
    return world.all(select(BillingRun).order_by(BillingRun.started_at))[-1]


def plan_of(world: World, **wanted: Any) -> Json:
    return forecast.plan_of_run(world.parts, world.now, **wanted)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The uptime that a turn reads: it stands still until a test moves it."""
    now = [0.0]
    for module in (tick, forecast):
        monkeypatch.setattr(module, "uptime", lambda: now[0])
    return now


# -------------------------------------------------------------------------------------- one row, and the others


def test_a_row_that_cannot_be_read_is_skipped_by_the_plan_and_named_by_the_dry_run(database_url: str) -> None:
    with World(database_url) as world:
        bad, _, _ = renewals(world, 3, plan=world.plan("daily", every="every 1:day"))
        world.advance(days=2)
        unreadable(world, bad)

        plan = plan_of(world)
        report = run.dry_run(world.parts, None)

        assert (plan["charges"], plan["skipped"]) == (6, 1)
        assert report["attempted"] == 6
        [line] = report["skipped"]
        assert line["subscription_id"] == bad.id
        assert line["reason"].startswith("cannot be billed: ")
        assert "Atlantis" in line["reason"]


def test_a_date_that_no_longer_fits_its_zone_stops_nobody(database_url: str) -> None:
    """The rules of a zone have changed: the stored instant is due, and its wall clock is not."""
    with World(database_url) as world:
        moved, _ = renewals(world, 2, plan=world.plan("daily", every="cron 0 9 * * *"))
        with world.parts.transaction() as session:
            session.execute(
                update(Subscription)
                .where(Subscription.id == moved.id)
                .values(
                    next_local=Subscription.next_local + timedelta(days=1),
                    catch_up_until=world.now + timedelta(days=9),
                )
            )

        assert (plan_of(world)["charges"], plan_of(world)["skipped"]) == (1, 1)
        assert run.dry_run(world.parts, None)["attempted"] == 1


def test_a_plan_with_a_schedule_nobody_can_read_is_its_subscribers_trouble_only(database_url: str) -> None:
    with World(database_url) as world:
        renewals(world, 1, plan=world.plan("odd"))
        renewals(world, 2, plan=world.plan("even"), named="other")
        with world.parts.transaction() as session:
            session.execute(update(Plan).where(Plan.code == "odd").values(schedule="every now and then"))

        assert (plan_of(world)["charges"], plan_of(world)["skipped"]) == (2, 1)


def test_one_held_row_that_cannot_be_read_keeps_no_other_from_approval(database_url: str) -> None:
    with World(database_url) as world:
        plan = world.plan("held", catch_up="hold")
        bad, good = renewals(world, 2, plan=plan)
        world.run()
        world.advance(days=95)
        world.run()
        unreadable(world, bad)

        waiting = control.waiting_for_approval(world.parts, ())

        assert [each.subscription_id for each in waiting] == [good.id]
        with pytest.raises(IllegalTransition, match=r"cannot be billed: .*Atlantis"):
            control.waiting_for_approval(world.parts, [bad.id])
        assert len(control.approve(world.parts, waiting)) == 1


def test_one_that_cannot_be_released_keeps_no_other_from_approval(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(database_url) as world:
        bad, good = renewals(world, 2, plan=world.plan("held", catch_up="hold"))
        world.run()
        world.advance(days=95)
        world.run()
        waiting = control.waiting_for_approval(world.parts, ())
        release = control.resume

        def breaks(session: Any, subscription: Subscription, *rest: Any) -> None:
            if subscription.id == bad.id:
                raise IndexError("list index out of range")
            release(session, subscription, *rest)

        monkeypatch.setattr(control, "resume", breaks)

        approved = control.approve(world.parts, waiting)

        assert [line["subscription_id"] for line in approved] == [good.id]
        assert bad.subscription.hold_reason is not None


def test_an_approval_goes_as_far_as_its_cycles(database_url: str) -> None:
    with World(database_url) as world:
        (ana,) = renewals(world, 1, plan=world.plan("short", catch_up="hold", cycles=3))
        world.run()
        world.advance(days=150)
        world.run()

        [waiting] = control.waiting_for_approval(world.parts, [ana.id])

        assert (waiting.periods, str(waiting.amount)) == (2, "100000")


# ----------------------------------------------------------------------------------------------- pages, bounds


def test_a_plan_is_read_in_pages_and_counts_each_row_once(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "ROWS_AT_ONCE", 2)
    with World(database_url) as world:
        far_behind(world, 7, days=3, catch_up="all")

        assert plan_of(world)["charges"] == 7 * 3
        report = run.dry_run(world.parts, None)
        assert (report["attempted"], len(report["planned"])) == (21, 21)


def test_no_transaction_is_open_while_rows_are_looked_at(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with World(database_url) as world:
        far_behind(world, 5, catch_up="hold")
        open_connections: list[int] = []
        look = schedule.next_period

        def watched(*values: Any) -> Any:
            open_connections.append(world.engine.pool.checkedout())  # type: ignore[attr-defined]
            return look(*values)

        monkeypatch.setattr(schedule, "next_period", watched)

        plan_of(world)
        run.dry_run(world.parts, None)

        assert set(open_connections) == {0}


def test_counting_looks_at_no_more_periods_of_a_row_than_it_needs(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(database_url) as world:
        far_behind(world, 4, catch_up="all")
        looked: list[int] = []
        look = schedule.next_period
        monkeypatch.setattr(schedule, "next_period", lambda *values: looked.append(1) or look(*values))

        plan = plan_of(world)

        assert (plan["charges"], plan["held"]) == (4 * 12, 4)
        assert len(looked) <= 4 * forecast.ENOUGH


@pytest.mark.parametrize(
    ("catch_up", "charges", "held"), [("all", 12, 1), ("latest", 1, 0), ("skip", 0, 0), ("hold", 0, 1)]
)
def test_what_is_counted_so_is_what_a_run_does(database_url: str, catch_up: str, charges: int, held: int) -> None:
    with World(database_url) as world:
        far_behind(world, 1, days=40, catch_up=catch_up)

        plan = plan_of(world)

        assert (plan["charges"], plan["held"], plan["skipped"]) == (charges, held, 1)
        assert world.run()["attempted"] == charges


def test_a_plan_for_which_there_is_no_time_is_compared_with_nothing(
    database_url: str, seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "ROWS_AT_ONCE", 2)
    rules = Rules(run_forecast_share=0.1, run_decline_sample=1)
    with World(database_url, rules=rules) as world:
        far_behind(world, 6, days=2, catch_up="all")
        count = forecast._count_one

        def slowly(*values: Any) -> None:
            seconds[0] += 2
            count(*values)

        monkeypatch.setattr(forecast, "_count_one", slowly)

        world.tick()
        world.settle_down()

        day = the_run(world)
        assert day.plan is not None
        assert (day.plan["complete"], day.state) == (False, "running")
        assert day.plan["charges"] < 12
        assert len(world.collected()) == 1 + 12
        with world.parts.reading() as session:
            assert progress.run_view(session, day, world.now, rules)["against_plan"] is None


def test_a_plan_that_breaks_keeps_nobody_from_being_billed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with World(database_url) as world:
        renewals(world, 2)
        monkeypatch.setattr(forecast, "count_due", lambda *_, **__: 1 // 0)

        world.tick()

        assert (the_run(world).state, the_run(world).plan) == ("running", None)
        assert world.collected() == [50_000] * 2


def test_a_turn_begins_no_batch_after_its_time_and_the_next_turn_goes_on(
    database_url: str, seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tick, "BATCH", 2)
    with World(database_url) as world:
        renewals(world, 12)
        open_batch, begun = tick._open_batch, []

        def slowly(*values: Any, **how: Any) -> Any:
            begun.append(seconds[0])
            seconds[0] += tick.TICK_SECONDS * 0.6
            return open_batch(*values, **how)

        monkeypatch.setattr(tick, "_open_batch", slowly)

        turns = 0
        while tick.look(world.parts).subscriptions:
            start, known = seconds[0], len(begun)
            tick.tick(world.parts, lambda _kind, _ids: None)
            assert begun[known:], "what is due gets done, however slowly"
            assert all(at - start < tick.TICK_SECONDS for at in begun[known:])
            turns += 1

        assert turns == 3
        assert len(world.all_attempts()) == 12


def test_a_turn_that_has_no_time_left_opens_one_batch_all_the_same(world: World, seconds: list[float]) -> None:
    renewals(world, 3)

    batches = list(tick.opening(world.parts, world.now, until=seconds[0] - 1))

    assert sum(batch.invoices for batch in batches) == 3


def test_whoever_is_due_now_does_not_wait_behind_those_that_are_years_behind(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction has time for one of them; there are forty, and one subscriber of today."""
    with World(database_url) as world:
        far_behind(world, 40)
        (ana,) = renewals(world, 1, named="ana")
        monkeypatch.setattr(open_periods, "LONGEST_SECONDS", 0.0)
        monkeypatch.setattr(tick, "MAX_BATCHES", 2)

        tick.tick(world.parts, world.send)

        assert [invoice.status for invoice in ana.invoices] == ["paid"]
        assert tick.look(world.parts).subscriptions, "the others are not through yet"
