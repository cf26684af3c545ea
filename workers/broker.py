"""The broker: Redis or Valkey, with explicit middleware. Redis is the doorbell: losing it, or every message in it,
costs latency and nothing else, because due work is a row with a lease."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TypeVar

import dramatiq
import structlog
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AgeLimit, Middleware, Retries
from redis.exceptions import RedisError

from billing.app import App, build_process
from billing.charging.key import lift_stop_of_another_key
from billing.errors import BillingError
from billing.settings import Settings, load_settings
from billing.store import queries
from billing.store.clock import real_now

NAMESPACE = "billing"
Loaded = TypeVar("Loaded")
# Of a message, in milliseconds. What it names is handed out again when its lease ends, so an older one tells nothing
# new. Twice the lease, because the clocks of two machines differ.
LONGEST_LIFE = int(2 * queries.CLAIM_LEASE.total_seconds() * 1_000)
REDIS_GONE_SECONDS = 5  # of a worker that has been told to end
DEAD_LETTERS_LIFE = 60 * 60 * 1_000  # dramatiq would keep what was dropped for a week, in memory


class ForThisProcess(Middleware):
    """Names the message in every log line, and closes the process's connections when the worker stops."""

    def __init__(self) -> None:
        self._in_hand = 0
        self._lock = threading.Lock()

    def after_process_boot(self, broker: dramatiq.Broker) -> None:
        app()

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        structlog.contextvars.bind_contextvars(message_id=message.message_id)
        with self._lock:
            self._in_hand += 1

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        structlog.contextvars.clear_contextvars()
        with self._lock:
            self._in_hand -= 1

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        if app.cache_info().currsize:
            app().parts.stopping.set()
        if isinstance(broker, RedisBroker):
            threading.Thread(target=self._end_without_redis, args=(broker,), daemon=True).start()

    def _end_without_redis(self, broker: RedisBroker) -> None:
        """Before it ends, dramatiq tells Redis what is done, and tries that for as long as Redis is away. What is done
        is in the database, so a message that comes again does nothing: there is nothing to wait for."""
        failed = 0
        while failed < REDIS_GONE_SECONDS:
            time.sleep(1)
            try:
                broker.client.ping()
                failed = 0
            except RedisError:
                failed = 0 if self._in_hand else failed + 1
        structlog.get_logger().warning("worker.ended_without_redis")
        os._exit(0)

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        if app.cache_info().currsize:
            app().close()


def make_broker(settings: Settings) -> dramatiq.Broker:
    # No TimeLimit: it would raise inside a charge, between the answer and its settling. Retries only to state zero:
    # a retry of delivery belongs to the lease, a retry of money to dunning.
    middleware = [AgeLimit(max_age=LONGEST_LIFE), Retries(max_retries=0), ForThisProcess()]
    if not settings.redis:
        # The scheduler works without Redis and never sends; a worker is refused when it boots (`app`).
        return StubBroker(middleware=middleware)
    return RedisBroker(  # type: ignore[no-untyped-call]
        url=settings.redis, namespace=NAMESPACE, middleware=middleware, dead_message_ttl=DEAD_LETTERS_LIFE
    )


@dataclass(frozen=True, slots=True)
class Backlog:
    """What lies in a queue and nobody has fetched: how many messages, and how old the oldest is."""

    messages: int
    oldest: timedelta


def backlog(redis_broker: RedisBroker, queue: str) -> Backlog:
    """One question to Redis while workers keep up, two when they do not. Raises RedisError."""
    name = f"{NAMESPACE}:{queue}"
    with redis_broker.client.pipeline(transaction=False) as asked:
        asked.llen(name)
        asked.lindex(name, 0)
        messages, first = asked.execute()
    data = redis_broker.client.hget(f"{name}.msgs", first) if first is not None else None
    if not isinstance(data, bytes):  # fetched meanwhile
        return Backlog(messages, timedelta(0))
    sent_at = datetime.fromtimestamp(dramatiq.Message.decode(data).message_timestamp / 1_000, UTC)
    return Backlog(messages, real_now() - sent_at)


def or_exit(load: Callable[[], Loaded]) -> Loaded:
    """A bad or missing setting stops the process with one line, exit status 2."""
    try:
        return load()
    except BillingError as error:
        print(f"billing: {error}", file=sys.stderr, flush=True)  # noqa: T201 - before any log is set up
        raise SystemExit(error.exit_status) from None


def sender_settings() -> Settings:
    """All that declaring the actors and sending needs: the web process hands on events without Xendit's key."""
    return or_exit(load_settings)


@cache
def charges_at_once() -> int:
    return sender_settings().charges_at_once


@cache
def max_in_flight() -> int:
    return sender_settings().max_in_flight


@cache
def app() -> App:
    """One engine and one gateway a process. A worker builds it when it starts; a mere sender never does."""
    built = or_exit(lambda: build_process(load_settings("database_url", "redis_url", "xendit_secret_key")))
    lift_stop_of_another_key(built.parts)
    return built
