"""The first charges of a run are few: an account that is refused is found out by them, and not by all that is due."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, select

from billing.parts import Parts, Rules
from billing.runs import run, tick
from billing.store import queries
from billing.store.models import ChargingStop
from billing.work import InProcess
from tests.world import CHARGE, Subscriber, World, copy_subscription

FIRST_WAVE = 8
REFUSED = "HTTP:401:INVALID_API_KEY"
Hand = Callable[[str, Sequence[str]], None]


def renewals(world: World, count: int, *, named: str = "customer", waits: bool = False) -> Subscriber:
    """So many subscriptions that are due, made out of one."""
    model = world.subscribe_save(named, start_at=None if waits else world.now)
    copy_subscription(world, model, count - 1)
    return model


def newcomers(world: World, count: int, *, named: str = "newcomer") -> Subscriber:
    """Each waits for the first charge to go through."""
    return renewals(world, count, named=named, waits=True)


def statuses(world: World) -> set[str]:
    return {attempt.status for attempt in world.all_attempts()}


def run_in_threads(parts: Parts) -> dict[str, Any]:
    pool = InProcess(parts, 16)
    try:
        return run.run_here(parts, pool, None, lambda _totals: None)
    finally:
        pool.close()


def waves_of(world: World) -> tuple[list[int], Hand]:
    """How many charges each wave had, and a `send` that does them."""
    waves: list[int] = []

    def send(kind: str, ids: Sequence[str]) -> None:
        if kind.startswith("charge"):
            waves.append(len(ids))
        world.send(kind, ids)

    return waves, send


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


@pytest.fixture
def in_groups(world: World) -> Iterator[Parts]:
    """As a process with a large quota: sixteen charges are begun, sent and settled together."""
    with ThreadPoolExecutor(32) as callers:
        yield replace(world.parts, callers=callers, rules=Rules(charges_at_once=16))


def test_a_refused_account_is_asked_a_few_times_and_not_by_all_that_is_due(world: World, in_groups: Parts) -> None:
    renewals(world, 200)
    world.break_calls(REFUSED, count=FIRST_WAVE)

    report = run_in_threads(in_groups)

    assert 1 <= world.calls(CHARGE) <= FIRST_WAVE
    assert report["stopped"] is not None
    assert world.all(select(ChargingStop))
    assert (len(world.all_attempts()), statuses(world)) == (200, {"scheduled"})
    with world.parts.transaction() as session:
        assert queries.lift_charging_stop(session)
    assert run_in_threads(in_groups)["succeeded"] == 200
    assert world.collected() == [50_000] * 200


@pytest.mark.parametrize("due", [renewals, newcomers])
def test_each_by_itself_in_threads_is_no_different(world: World, due: Callable[[World, int], Subscriber]) -> None:
    due(world, 30)
    world.break_calls(REFUSED, count=1_000)

    run_in_threads(world.parts)

    assert 1 <= world.calls(CHARGE) <= FIRST_WAVE


def test_workers_are_handed_a_few_until_one_is_answered(world: World) -> None:
    renewals(world, 30)
    handed: list[str] = []

    def workers(_kind: str, ids: Sequence[str]) -> None:
        handed.extend(ids)

    for _ in range(3):
        tick.tick(world.parts, workers)
    assert len(handed) == FIRST_WAVE

    world.send("charge", handed[:1])
    tick.tick(world.parts, workers)

    assert len(handed) == 30


@pytest.mark.parametrize("answer", ["SUCCEEDED", "INSUFFICIENT_BALANCE", "PENDING", "REQUIRES_ACTION"])
def test_any_answer_about_a_charge_shows_that_the_account_works(world: World, answer: str) -> None:
    renewals(world, 20).script(*[answer] * 20)
    waves, send = waves_of(world)

    tick.tick(world.parts, send)

    assert waves == [FIRST_WAVE, 20 - FIRST_WAVE], "one wave more than it would be"


@pytest.mark.parametrize("answer", ["TIMEOUT_BEFORE", "429", "HTTP:400:API_VALIDATION_ERROR"])
def test_what_says_nothing_of_the_account_lets_nothing_more_out(world: World, answer: str) -> None:
    renewals(world, 20)
    world.break_calls(answer, count=100)
    waves, send = waves_of(world)

    tick.tick(world.parts, send)

    assert waves == [8, 8, 4]


def test_a_customer_is_not_kept_waiting_by_the_first_wave(world: World) -> None:
    renewals(world, 20)
    handed: list[tuple[str, int]] = []
    tick.tick(world.parts, lambda kind, ids: handed.append((kind, len(ids))))
    newcomers(world, 1)

    tick.tick(world.parts, lambda kind, ids: handed.append((kind, len(ids))))

    assert handed == [("charge", FIRST_WAVE), ("charge_now", 1)]


def test_a_run_that_is_answered_proves_the_account_to_the_day_as_well(world: World) -> None:
    """The scheduler hands out what `billing run` has opened and left."""
    renewals(world, 30)
    left: list[str] = []
    run.run_on_workers(world.parts, lambda _kind, ids: left.extend(ids), None, lambda _totals: None, wait=False)
    world.send("charge", left)
    waves, send = waves_of(world)

    tick.tick(world.parts, send)

    assert waves == [30 - FIRST_WAVE]


def test_once_answered_it_is_not_asked_again(world: World) -> None:
    renewals(world, 3)
    world.tick()
    renewals(world, 12, named="later")
    asked: list[str] = []
    event.listen(world.engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    waves, send = waves_of(world)

    tick.tick(world.parts, send)

    assert waves == [12]
    assert not [statement for statement in asked if "answered_lately" in statement]
