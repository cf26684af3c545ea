"""Workers or Redis down for days: the queue stays bounded, nothing is lost, and the first minute after is ordinary."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from billing.charging import look_up
from billing.errors import ServiceUnavailable
from billing.runs import tick
from billing.settings import load_settings
from billing.store.clock import real_now
from tests.workers.conftest import Site
from tests.world import World
from workers import actors, broker

SUBSCRIBERS = 30
DAYS = 3


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url, start=real_now()) as world:
        yield world


@pytest.fixture
def queues(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """The actors send to a Valkey of this test's own."""
    to_valkey = broker.make_broker(load_settings(redis_url=redis_url))
    assert isinstance(to_valkey, RedisBroker)
    for actor in (actors.charge, actors.charge_now, actors.charge_again, actors.follow):
        monkeypatch.setattr(actor, "broker", to_valkey)
        to_valkey.declare_actor(actor)
    yield to_valkey.client
    to_valkey.close()


def later(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Real time has moved: leases have run out, and what lies in Valkey has become old."""
    for room in ("workers.broker", "billing.runs.tick"):
        monkeypatch.setattr(f"{room}.real_now", lambda: real_now() + by)


def waiting(queues: redis.Redis) -> dict[str, int]:
    return {queue: int(queues.hlen(f"billing:{queue}.msgs")) for queue in ("charges", "upkeep")}  # type: ignore[arg-type]


def test_days_without_workers_do_not_fill_the_queue(
    world: World, queues: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(SUBSCRIBERS):
        world.subscribe_save(f"c{number}", start_at=world.now)
    world.advance(seconds=5)
    tick.tick(world.parts, actors.send)
    first = waiting(queues)
    assert 0 < first["charges"] <= SUBSCRIBERS

    for hours in range(1, DAYS * 24):  # beyond every lease
        later(monkeypatch, timedelta(hours=hours))
        tick.tick(world.parts, actors.send)
        if hours % 24 == 0:
            tick.hand_out_days(world.parts, actors.send)

    grown = waiting(queues)
    assert grown["charges"] == first["charges"], "the same rows again are of no use"
    assert grown["upkeep"] <= first["upkeep"] + DAYS * look_up.DAYS_COMPARED_AGAIN


def test_what_nobody_is_told_of_is_not_leased(
    world: World, queues: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever comes back finds it free."""
    world.waive("leases_in_bounds")  # this test's machine is five hours ahead of the doctor's
    world.subscribe_save("first", start_at=world.now)
    world.advance(seconds=5)
    tick.tick(world.parts, actors.send)
    later(monkeypatch, timedelta(hours=5))
    ana = world.subscribe_save("ana", start_at=world.now)
    world.advance(seconds=5)

    tick.tick(world.parts, actors.send)

    assert ana.attempt.status == "scheduled", "opened"
    assert ana.attempt.lease_until is None, "and not handed out"

    queues.flushdb()  # as workers do that come back
    assert tick.tick(world.parts, actors.send).handed_out == 2


@pytest.mark.usefixtures("queues")
@pytest.mark.parametrize("kind", [tick.CHARGE, tick.EVENT, tick.CHECK, tick.DAY])
def test_a_queue_takes_so_many_at_most(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(actors, "MOST_UPKEEP", 5)
    monkeypatch.setattr(broker, "max_in_flight", lambda: 5)
    sent = 0
    while actors.send.takes_more(kind):
        actors.send(kind, [f"id-{sent}"])
        sent += 1
    assert sent == 5


def test_without_redis_periods_are_opened_and_nothing_is_leased(
    world: World, queues: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana = world.subscribe_save("ana", start_at=world.now)
    world.advance(seconds=5)

    def away(*_arguments: object) -> None:
        raise redis.ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(broker, "backlog", away)
        with pytest.raises(ServiceUnavailable, match="Redis does not answer"):
            tick.tick(world.parts, actors.send)
    assert ana.attempt.status == "scheduled"
    assert ana.attempt.lease_until is None
    assert waiting(queues)["charges"] == 0

    with monkeypatch.context() as patch:  # it goes away between the question and the message
        patch.setattr(actors.charge, "send", away)
        patch.setattr(actors.charge_now, "send", away)
        with pytest.raises(ServiceUnavailable):
            tick.tick(world.parts, actors.send)
    assert ana.attempt.lease_until is None, "handed back"

    assert tick.tick(world.parts, actors.send).handed_out == 1


@pytest.mark.usefixtures("queues")
def test_a_wrapped_sender_is_asked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """`billing run` watches what is sent through a function of its own."""
    from billing.runs.run import _Run

    run = SimpleNamespace(goes_on=lambda: True, look=lambda: None)
    monkeypatch.setattr(broker, "max_in_flight", lambda: 0)
    assert not tick.takes_more(_Run.sending(run, actors.send), tick.CHARGE)  # type: ignore[arg-type]


def test_workers_that_come_back_to_an_old_queue_drop_it_and_begin_at_once(site: Site) -> None:
    """As an older release left it: the same rows many times over, and leases that have run out."""
    site.subscribers(6)
    with redis.Redis.from_url(site.environment["BILLING_REDIS_URL"]) as client:
        old_broker = RedisBroker(client=client, namespace=broker.NAMESPACE)  # type: ignore[no-untyped-call]
        long_ago = int((real_now() - timedelta(days=2)).timestamp() * 1_000)
        for number in range(60):
            old_broker.enqueue(
                dramatiq.Message(
                    queue_name="charges",
                    actor_name="charge",
                    args=(f"att-{number}",),
                    kwargs={},
                    options={},
                    message_id=f"old-{number}",
                    message_timestamp=long_ago,
                )
            )
        workers, scheduler = site.start_workers(), site.start_scheduler()
        site.wait_until(lambda: site.statuses() == ["succeeded"] * 6)
        site.wait_until(lambda: client.hlen("billing:charges.msgs") == 0)
    assert [scheduler.stop(), workers.stop()] == [0, 0]
    assert site.charges() == 6
    assert "Traceback" not in workers.output
