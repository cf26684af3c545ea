"""The scheduler's loop: a job that breaks keeps neither the others from their turn nor the scheduler from its next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from billing.app import App
from billing.errors import ServiceUnavailable
from billing.store import which_database
from billing.store.clock import machine_time, real_now
from billing.store.models import Tick
from tests.world import World
from workers import scheduler
from workers.scheduler import Job, run_due_jobs


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


@pytest.fixture
def next_slot(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A second passes; or the machine's clock is put forward or back."""
    now = [real_now()]
    monkeypatch.setattr(scheduler, "real_now", lambda: now[0])

    def pass_on(**by: int) -> None:
        now[0] += timedelta(**by or {"seconds": 1})

    return pass_on


def jobs(monkeypatch: pytest.MonkeyPatch, *works: Callable[[], object]) -> None:
    made = {
        f"job{number}": Job("* * * * * *", lambda _parts, _send, work=work: work())  # type: ignore[misc]
        for number, work in enumerate(works)
    }
    monkeypatch.setattr(scheduler, "JOBS", made)


def breaks() -> None:
    raise IndexError("list index out of range")


def nobody(_kind: str, _ids: Any) -> None:
    raise AssertionError("nothing is handed out here")


def test_a_job_that_breaks_is_logged_once_with_its_traceback_and_the_others_run(
    world: World, monkeypatch: pytest.MonkeyPatch, next_slot: Callable[[], None]
) -> None:
    ran: list[str] = []
    jobs(monkeypatch, breaks, lambda: ran.append("other"))
    done: dict[str, Any] = {}

    with capture_logs() as logged:
        run_due_jobs(world.parts, nobody, done)
    next_slot()
    run_due_jobs(world.parts, nobody, done)

    assert ran == ["other", "other"]
    [line] = [line for line in logged if line["log_level"] == "error"]
    assert (line["event"], line["job"], line["error"]) == ("scheduler.job_failed", "job0", "list index out of range")
    assert line["exc_info"]


@pytest.mark.parametrize(
    "away",
    [ServiceUnavailable("Redis does not answer"), OperationalError("SELECT", {}, Exception("deadlock detected"))],
)
def test_what_is_away_is_told_to_the_loop_after_the_others_have_run(
    world: World, monkeypatch: pytest.MonkeyPatch, away: Exception
) -> None:
    ran: list[str] = []

    def work() -> None:
        raise away

    jobs(monkeypatch, work, lambda: ran.append("other"))

    with pytest.raises(type(away)):
        run_due_jobs(world.parts, nobody, {})

    assert ran == ["other"]


def test_a_clock_that_is_put_back_by_an_hour_costs_half_a_minute(
    world: World, monkeypatch: pytest.MonkeyPatch, next_slot: Callable[..., None]
) -> None:
    """An NTP correction, or a machine that began with a wrong clock: every second of the hour to come was taken."""
    ran: list[str] = []
    jobs(monkeypatch, lambda: ran.append("tick"))
    began = scheduler.real_now().replace(microsecond=0)
    with world.parts.transaction() as session:
        session.add_all(Tick(job="job0", slot=began + timedelta(seconds=second)) for second in range(3_600))

    done: dict[str, Any] = {}
    for _ in range(60):
        run_due_jobs(world.parts, nobody, done)
        next_slot()

    assert len(ran) >= 29


def test_a_scheduler_whose_clock_is_ahead_leaves_the_others_their_turns_when_it_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch, next_slot: Callable[..., None]
) -> None:
    ran: list[str] = []
    jobs(monkeypatch, lambda: ran.append("tick"))
    of_one_ahead: dict[str, Any] = {}
    next_slot(minutes=10)
    for _ in range(60):
        run_due_jobs(world.parts, nobody, of_one_ahead)
        next_slot()

    next_slot(minutes=-1)
    ran.clear()
    of_ours: dict[str, Any] = {}
    for _ in range(60):
        run_due_jobs(world.parts, nobody, of_ours)
        next_slot()

    assert len(ran) >= 29


def test_a_machine_whose_clock_is_a_day_ahead_does_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would charge everybody a day early."""
    ran: list[str] = []
    jobs(monkeypatch, lambda: ran.append("tick"))

    tomorrow = real_now() + timedelta(days=1)
    with (
        machine_time(lambda: tomorrow, time.monotonic),
        pytest.raises(ServiceUnavailable, match="nothing is billed until they agree"),
    ):
        run_due_jobs(world.parts, nobody, {})
    assert ran == []

    run_due_jobs(world.parts, nobody, {})
    assert ran == ["tick"]


def test_of_two_schedulers_whose_clocks_agree_one_acts(
    world: World, monkeypatch: pytest.MonkeyPatch, next_slot: Callable[..., None]
) -> None:
    ran: list[str] = []
    jobs(monkeypatch, lambda: ran.append("tick"))
    one: dict[str, Any] = {}
    other: dict[str, Any] = {}
    for _ in range(40):
        next_slot()
        run_due_jobs(world.parts, nobody, one)
        next_slot(seconds=-1)  # a second late
        run_due_jobs(world.parts, nobody, other)
        next_slot()

    assert len(ran) == 40 + 1


def test_the_loop_goes_on_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, turns = threading.Event(), []

    def turn(*_: object) -> None:
        turns.append(1)
        if len(turns) == 3:
            stop.set()
        raise IndexError("not even a job of ours")

    monkeypatch.setattr(scheduler, "run_due_jobs", turn)
    monkeypatch.setattr(scheduler, "lift_stop_of_another_key", lambda _parts: True)
    monkeypatch.setattr(stop, "wait", lambda _seconds: None)

    with capture_logs() as logged:
        scheduler._loop(cast(App, SimpleNamespace(parts=None)), nobody, stop)

    assert len(turns) == 3
    assert {line["event"] for line in logged} == {"scheduler.failed"}


def test_that_this_is_a_copy_is_said_once_a_minute_and_adopting_it_ends_that(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana = world.subscribe_save()
    with world.parts.transaction() as session:
        session.execute(text("UPDATE database_identity SET database_oid = 1"))
    stop, up, slot = threading.Event(), [1000.0], [real_now()]

    def pass_time(seconds: float) -> None:
        up[0] += seconds
        slot[0] += timedelta(seconds=seconds)
        if up[0] > 1170:  # almost three minutes
            stop.set()

    monkeypatch.setattr(scheduler, "uptime", lambda: up[0])
    monkeypatch.setattr(scheduler, "real_now", lambda: slot[0])
    monkeypatch.setattr(stop, "wait", pass_time)
    loop = partial(scheduler._loop, cast(App, SimpleNamespace(parts=world.parts)), world.send, stop)

    with capture_logs() as logged:
        loop()

    said = [line for line in logged if line["log_level"] == "error"]
    assert [line["event"] for line in said] == ["scheduler.copy_of_database"] * 3
    assert "`billing adopt`" in said[0]["error"]
    assert ana.invoices == []

    with world.parts.transaction() as session:
        which_database.adopt(session, real_now())
    stop.clear()
    up[0] = 1160
    loop()
    assert world.collected() == [50_000]


def test_the_exit_status_says_whether_what_was_in_hand_was_finished() -> None:
    def cannot_close() -> None:
        raise RuntimeError("a thread of ours is stuck")

    closes = cast(App, SimpleNamespace(close=lambda: None))

    assert scheduler._close(closes, closes) == 0
    with capture_logs() as logged:
        assert scheduler._close(cast(App, SimpleNamespace(close=cannot_close)), closes) == 1
    assert [line["event"] for line in logged] == ["scheduler.not_closed"]
