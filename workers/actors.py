"""The actors: ids in, nothing out. All they do is billing.app.work_on_and_log.

A doubled or late message does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import dramatiq
import structlog
from redis.exceptions import RedisError

from billing.app import units, work_on_and_log
from billing.errors import ServiceUnavailable
from billing.services import dispatch
from workers import broker

dramatiq.set_broker(broker.make_broker(broker.sender_settings()))


# One queue for all charges: a worker looks into a queue that was empty only once a second, and a customer waits. Lower
# numbers go first among what it has at hand, which is nearly all, for little more than that is ever handed out.
@dramatiq.actor(queue_name="charges", max_retries=0, priority=0)
def charge_now(*attempt_ids: str) -> None:
    """Charge what a customer waits for (billing/services/charging.py)."""
    _work(dispatch.CHARGE_NOW, *attempt_ids)


@dramatiq.actor(queue_name="charges", max_retries=0, priority=10)
def charge(*attempt_ids: str) -> None:
    """Charge renewals, a group at a time."""
    _work(dispatch.CHARGE, *attempt_ids)


@dramatiq.actor(queue_name="charges", max_retries=0, priority=20)
def charge_again(*attempt_ids: str) -> None:
    """Charge what has been declined before."""
    _work(dispatch.CHARGE_AGAIN, *attempt_ids)


@dramatiq.actor(queue_name="upkeep", max_retries=0, priority=5)
def follow(kind: str, *identities: str) -> None:
    """Apply events, look up an attempt, session or refund, compare a day. In a queue of its own."""
    _work(kind, *identities)


def _work(kind: str, *identities: str) -> None:
    try:
        work_on_and_log(broker.app().parts, kind, *identities)
    except ServiceUnavailable as error:
        # The database is away. The rows are still due: they are handed out again when their leases end.
        structlog.get_logger().error("work.put_off", kind=kind, ids=identities, error=str(error))


_CHARGES = {dispatch.CHARGE_NOW: charge_now, dispatch.CHARGE: charge, dispatch.CHARGE_AGAIN: charge_again}


def send(kind: str, ids: Sequence[str]) -> None:
    """Ring the doorbell. Raises ServiceUnavailable: the rows are taken up again when their lease ends."""
    try:
        for unit in units(kind, ids, broker.charges_at_once()):
            if kind in _CHARGES:
                _CHARGES[kind].send(*unit)
            else:
                follow.send(kind, *unit)
    except (RedisError, dramatiq.errors.ConnectionError) as error:
        raise ServiceUnavailable(
            f"Redis does not answer ({error.__class__.__name__}); check BILLING_REDIS_URL. Nothing is lost:"
            " the work goes on when it is back"
        ) from None
