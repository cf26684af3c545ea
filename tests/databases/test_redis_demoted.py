"""Redis becomes a read-only replica: everybody says so, and goes on by himself when it is a primary again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from billing.errors import ServiceUnavailable
from billing.sandbox import embedded
from tests.test_web import Web
from tests.world import World
from workers import actors


@pytest.fixture
def own_redis() -> Iterator[str]:
    """One that nobody shares: it is demoted as a whole."""
    with embedded.valkey() as server:
        yield server.url


def test_readyz_says_that_nothing_can_be_handed_on(database_url: str, own_redis: str) -> None:
    with World(database_url) as world, redis.Redis.from_url(own_redis) as client:
        web = Web(database_url, world, redis_url=own_redis)
        assert web.get("/readyz").status_code == 200

        client.replicaof("127.0.0.1", "1")
        demoted = web.get("/readyz")
        client.replicaof("NO", "ONE")
        promoted = web.get("/readyz")
        web.app.engine.dispose()

    assert (demoted.status_code, demoted.json()["problems"]) == (503, ["Redis takes no writes (ReadOnlyError)"])
    assert promoted.status_code == 200


def test_whoever_sends_is_told_in_one_line(own_redis: str) -> None:
    with redis.Redis.from_url(own_redis) as client:
        client.replicaof("127.0.0.1", "1")
        with pytest.raises(ServiceUnavailable, match="it is a replica"), actors._redis_errors_in_one_line():
            client.set("a", "message")
