"""The actors: an id in, nothing out. All they do is billing.app.work_on_and_log.

A doubled or late message does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import dramatiq
import structlog
from redis.exceptions import RedisError

from billing.app import work_on_and_log
from billing.errors import ServiceUnavailable
from billing.services import dispatch
from workers import broker

dramatiq.set_broker(broker.make_broker(broker.sender_settings()))


@dramatiq.actor(queue_name="charges", max_retries=0)
def charge(attempt_id: str) -> None:
    """Charge one attempt (billing/services/charging.py)."""
    _work(dispatch.CHARGE, attempt_id)


@dramatiq.actor(queue_name="upkeep", max_retries=0)
def follow(kind: str, identity: str) -> None:
    """Apply an event, look up an attempt, session or refund, compare a day. In a queue of its own."""
    _work(kind, identity)


def _work(kind: str, identity: str) -> None:
    try:
        work_on_and_log(broker.app().parts, kind, identity)
    except ServiceUnavailable as error:
        # The database is away. The row is still due: it is handed out again when its lease ends.
        structlog.get_logger().error("work.put_off", kind=kind, id=identity, error=str(error))


def send(kind: str, ids: Sequence[str]) -> None:
    """Ring the doorbell for each id. Raises ServiceUnavailable: the rows are taken up again when their lease ends."""
    try:
        for identity in ids:
            if kind == dispatch.CHARGE:
                charge.send(identity)
            else:
                follow.send(kind, identity)
    except (RedisError, dramatiq.errors.ConnectionError) as error:
        raise ServiceUnavailable(
            f"Redis does not answer ({error.__class__.__name__}); check BILLING_REDIS_URL. Nothing is lost:"
            " the work goes on when it is back"
        ) from None
