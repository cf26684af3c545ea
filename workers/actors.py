"""The actors: ids in, nothing out. All they do is billing.work.work_on_and_log.

A doubled or late message does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dramatiq
import structlog
from dramatiq.brokers.redis import RedisBroker
from redis.exceptions import RedisError, ResponseError

from billing.errors import ServiceUnavailable
from billing.runs import tick
from billing.store import queries
from billing.work import units, work_on_and_log
from workers import broker

dramatiq.set_broker(broker.make_broker(broker.sender_settings()))


# One queue for all charges: a worker looks into a queue that was empty only once a second, and a customer waits. Lower
# numbers go first among what it has at hand, which is nearly all, for little more than that is ever handed out.
@dramatiq.actor(queue_name="charges", max_retries=0, priority=0)
def charge_now(*attempt_ids: str) -> None:
    """Charge what a customer waits for (billing/charging/begin.py)."""
    _work(tick.CHARGE_NOW, *attempt_ids)


@dramatiq.actor(queue_name="charges", max_retries=0, priority=10)
def charge(*attempt_ids: str) -> None:
    """Charge renewals, a group at a time."""
    _work(tick.CHARGE, *attempt_ids)


@dramatiq.actor(queue_name="charges", max_retries=0, priority=20)
def charge_again(*attempt_ids: str) -> None:
    """Charge what has been declined before."""
    _work(tick.CHARGE_AGAIN, *attempt_ids)


@dramatiq.actor(queue_name="upkeep", max_retries=0, priority=5)
def follow(kind: str, *identities: str) -> None:
    """Apply events, look up an attempt, session or refund, compare a day. In a queue of its own."""
    _work(kind, *identities)
    if kind == tick.DAY and broker.app().parts.stopping.is_set():
        send(kind, identities)  # interrupted between two pages: whoever comes next compares it


def _work(kind: str, *identities: str) -> None:
    try:
        work_on_and_log(broker.app().parts, kind, *identities)
    except ServiceUnavailable as error:
        # The database is away. The rows are still due: they are handed out again when their leases end.
        structlog.get_logger().error("work.put_off", kind=kind, ids=identities, error=str(error))


_CHARGES = {tick.CHARGE_NOW: charge_now, tick.CHARGE: charge, tick.CHARGE_AGAIN: charge_again}
MOST_UPKEEP = 1_000  # messages that wait
A_DAY = 24 * 60 * 60 * 1_000
PATIENCE = 4  # parts of a lease: a message that nobody fetches for one of them says that nobody is at work


class _ToWorkers:
    """Rings the doorbell. Raises ServiceUnavailable: the rows are taken up again when their lease ends."""

    def __call__(self, kind: str, ids: Sequence[str]) -> None:
        with _redis_errors_in_one_line():
            for unit in units(kind, ids, broker.charges_at_once()):
                if kind in _CHARGES:
                    _CHARGES[kind].send(*unit)
                elif kind == tick.DAY:
                    # Three a day, of no row and without a lease: nobody would send it again before tomorrow.
                    follow.send_with_options(args=(kind, *unit), max_age=A_DAY)
                else:
                    follow.send(kind, *unit)

    def takes_more(self, kind: str) -> bool:
        """Whether another message is of any use. While nobody fetches what lies there, sending more would only fill
        Redis: the same rows again at the end of every lease, for as long as workers are down."""
        actor, most = (charge, broker.max_in_flight()) if kind in _CHARGES else (follow, MOST_UPKEEP)
        if not isinstance(actor.broker, RedisBroker):
            return True
        with _redis_errors_in_one_line():
            waits = broker.backlog(actor.broker, actor.queue_name)
        return waits.messages < most and (kind == tick.DAY or waits.oldest < queries.CLAIM_LEASE / PATIENCE)


@contextmanager
def _redis_errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except ResponseError as error:
        raise ServiceUnavailable(
            f"Redis takes no writes ({error.__class__.__name__}): it is a replica, or full; BILLING_REDIS_URL has to"
            " lead to the primary. Nothing is lost: the work goes on when it does"
        ) from None
    except (RedisError, dramatiq.errors.BrokerConnectionError) as error:
        raise ServiceUnavailable(
            f"Redis does not answer ({error.__class__.__name__}); check BILLING_REDIS_URL. Nothing is lost:"
            " the work goes on when it is back"
        ) from None


send = _ToWorkers()
