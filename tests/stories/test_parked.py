"""Many parked attempts: released and parked in bounded portions, none is lost, and no two transactions wait for each
other for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, select, text, update

from billing.charging import begin, send
from billing.domain.gateway import ChargeReport, ChargeStatus
from billing.runs import control, limits, tick
from billing.store import queries
from billing.store.models import BillingRun, ChannelBreaker, ChargeAttempt
from tests.world import World, copy_subscription

DOWN = "channel:OVO"


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


def opened_for_the_day(world: World, count: int) -> str:
    """So many charges, planned for the scheduler's run of today; its id."""
    copy_subscription(world, world.subscribe_save("ana", start_at=world.now, channel="OVO"), count - 1)
    with world.parts.transaction() as session:
        day, _ = tick.take_daily_run(session, world.now)
    tick.open_all_due(world.parts, world.now, run_id=day)
    return day


def park_all(world: World, cause: str = DOWN) -> None:
    with world.parts.transaction() as session:
        session.execute(update(ChargeAttempt).values(parked_by=cause, error="waits"))


def parked(world: World) -> list[ChargeAttempt]:
    return world.all(select(ChargeAttempt).where(ChargeAttempt.parked_by.is_not(None)))


def portions(world: World) -> list[int]:
    """How many attempts each transaction moves, of those that move any."""
    moved: list[int] = []

    def note(_connection: Any, cursor: Any, statement: str, *_rest: Any) -> None:
        if "UPDATE charge_attempts SET" in statement and cursor.rowcount > 0:
            moved.append(cursor.rowcount)

    event.listen(world.engine, "after_cursor_execute", note)
    return moved


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "PARKED_AT_ONCE", 4)


@pytest.mark.usefixtures("few_at_once")
def test_a_channel_that_answers_releases_what_waits_in_portions(world: World) -> None:
    opened_for_the_day(world, 10)
    park_all(world)
    with world.parts.transaction() as session:
        session.add(ChannelBreaker(channel_code="OVO", reason="down", failures=9, failed_at=world.now))
    moved = portions(world)

    send._note_channel(world.parts, "OVO", ChargeReport(ChargeStatus.SUCCEEDED))

    assert moved == [4, 4, 2]
    assert parked(world) == []
    assert world.all(select(ChannelBreaker)) == []


@pytest.mark.usefixtures("few_at_once")
def test_the_watch_lets_go_in_portions_what_is_parked_after_the_channel_was_back(world: World) -> None:
    opened_for_the_day(world, 10)
    park_all(world)
    moved = portions(world)

    limits.watch(world.parts)

    assert moved == [4, 4, 2]
    assert parked(world) == []


def test_a_run_without_a_scheduler_lets_go_of_it_as_well(world: World) -> None:
    opened_for_the_day(world, 3)
    park_all(world)

    assert world.run()["succeeded"] == 3


@pytest.mark.usefixtures("few_at_once")
def test_a_run_is_paused_and_resumed_in_portions(world: World) -> None:
    day = opened_for_the_day(world, 10)
    moved = portions(world)

    control.pause_run(world.parts, day)
    assert (moved, len(parked(world))) == ([4, 4, 2], 10)
    moved.clear()
    control.resume_run(world.parts, day)

    assert (moved, parked(world)) == ([4, 4, 2], [])


@pytest.mark.usefixtures("few_at_once")
def test_a_resume_that_was_cut_short_is_finished_by_the_watch(world: World) -> None:
    day = opened_for_the_day(world, 10)
    control.pause_run(world.parts, day)
    with world.parts.transaction() as session:
        session.execute(update(BillingRun).where(BillingRun.id == day).values(state="running", reason=None))

    limits.watch(world.parts)

    assert parked(world) == []


def test_what_is_parked_at_begin_is_locked_in_the_order_of_the_ids(world: World) -> None:
    """As everybody locks who takes several: whoever holds a later one never waits for an earlier one."""
    day = opened_for_the_day(world, 6)
    with world.parts.transaction() as session:
        session.execute(update(BillingRun).where(BillingRun.id == day).values(state="paused"))
    ids = [attempt.id for attempt in world.all_attempts()]
    locked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "FOR NO KEY UPDATE" in statement and "charge_attempts" in statement:
            locked.append(statement)

    event.listen(world.engine, "before_cursor_execute", note)
    with world.parts.transaction() as session:
        begin.begin_attempts(session, list(reversed(ids)), world.now, world.parts.rules)

    assert "ORDER BY charge_attempts.id" in locked[0]
    assert "UPDATE charge_attempts SET" not in locked[0], "all are taken before the first is moved"
    assert {attempt.parked_by for attempt in world.all_attempts()} == {f"run:{day}"}


def test_parking_at_begin_an_abort_and_a_release_never_end_in_a_deadlock(world: World) -> None:
    day = opened_for_the_day(world, 24)
    ids = [attempt.id for attempt in world.all_attempts()]
    errors: list[BaseException] = []
    start = threading.Barrier(5)

    def again_and_again(work: Callable[[], object]) -> None:
        start.wait()
        try:
            for _ in range(15):
                work()
        except BaseException as error:  # noqa: BLE001 - carried over to the test's own thread
            errors.append(error)

    def begin(order: list[str]) -> Callable[[], object]:
        def work() -> None:
            with world.parts.sessions() as session:
                begin.begin_attempts(session, order, world.now, world.parts.rules)
                session.rollback()
            with world.parts.transaction() as session:
                queries.park_attempts(session, order, f"run:{day}", "waits")

        return work

    def state(value: str) -> None:
        with world.parts.transaction() as session:
            session.execute(update(BillingRun).where(BillingRun.id == day).values(state=value))

    def pause_and_resume() -> None:
        state("running")
        control.pause_run(world.parts, day)
        control.resume_run(world.parts, day)

    def abort() -> None:
        state("aborted")
        control.withdraw_rest(world.parts, day)
        with world.parts.transaction() as session:
            session.execute(text("SELECT id FROM charge_attempts ORDER BY id FOR UPDATE"))
            session.execute(update(ChargeAttempt).values(status="scheduled", settled_at=None))

    works = [begin(ids), begin(ids[::-1]), begin(ids[12:] + ids[:12]), pause_and_resume, abort]
    threads = [threading.Thread(target=again_and_again, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not [error for error in errors if "deadlock" in str(error)]
