"""A primary fails over under processes that are at work: all of them go on with the new one by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from billing.app import App
from billing.work import InProcess
from tests.databases.replicated import Pair, primary_and_standby
from tests.test_web import Web, capture
from tests.world import World, copy_subscription
from workers import scheduler

LONGEST_SECONDS = 60  # within which everybody is to work with the new primary
TEN = [50_000] * 10


@pytest.fixture
def pair(short_folder: Path) -> Iterator[Pair]:
    with primary_and_standby(short_folder) as running:
        yield running


@contextmanager
def scheduler_at_work(world: World, web: Web) -> Iterator[None]:
    """The scheduler's own loop, which does the work itself."""
    stop = threading.Event()
    here = InProcess(world.parts, 4)
    loop = threading.Thread(target=scheduler._loop, args=(App(web.settings, world.engine, world.parts), here, stop))
    loop.start()
    try:
        yield
    finally:
        stop.set()
        loop.join(LONGEST_SECONDS)
        here.close()


def all_paid(world: World, months: int) -> Callable[[], bool]:
    """At Xendit, and settled here."""
    return lambda: world.collected() == TEN * months and {each.status for each in world.all_attempts()} == {"succeeded"}


def soon(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LONGEST_SECONDS
    while not done():
        assert time.monotonic() < give_up, f"not within {LONGEST_SECONDS} s"
        time.sleep(0.05)


def test_an_old_primary_that_stays_up_read_only_is_left_by_all(pair: Pair) -> None:
    with World(pair.url) as world:
        copy_subscription(world, world.subscribe_save(), 9)
        web = Web(pair.url, world)
        assert web.post(capture()).status_code == 200
        with scheduler_at_work(world, web):
            soon(all_paid(world, 1))

            pair.make_old_read_only()
            world.advance(days=31)
            soon(lambda: web.get("/readyz").status_code == 503)
            assert "takes no writes" in web.get("/readyz").json()["problems"][0]
            assert web.post(capture(payment_id="py-2")).status_code == 503

            pair.promote_standby()
            pair.move_address()
            soon(all_paid(world, 2))
            soon(lambda: web.get("/readyz").status_code == 200)
            assert web.post(capture(payment_id="py-2")).status_code == 200

        world.advance(days=31)
        assert world.run()["succeeded"] == 10
        world.deliver_webhooks()
        assert world.collected() == TEN * 3
        web.app.engine.dispose()


def test_a_primary_that_dies_is_followed_to_the_other_host_of_the_url(pair: Pair) -> None:
    with World(pair.both) as world:
        copy_subscription(world, world.subscribe_save(), 9)
        web = Web(pair.both, world)
        with scheduler_at_work(world, web):
            soon(all_paid(world, 1))

            pair.stop_old()
            world.advance(days=31)
            assert web.get("/readyz").json() == {"ok": False, "problems": ["the database does not answer"]}

            pair.promote_standby()
            soon(all_paid(world, 2))
            assert web.get("/readyz").json() == {"ok": True, "problems": []}
            assert web.post(capture()).status_code == 200

        world.deliver_webhooks()
        assert world.collected() == TEN * 2
        web.app.engine.dispose()
