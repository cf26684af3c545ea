"""`billing reconcile`: look up now whatever is open at Xendit, instead of waiting for its turn on the ladder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, cast

from sqlalchemy import func, or_, select, update

from billing.charging import look_up
from billing.domain.gateway import PaymentGateway
from billing.domain.lifecycle import AttemptStatus
from billing.errors import GatewayError
from billing.parts import Parts
from billing.store.models import ChargeAttempt

BATCH = 500
OPEN = (AttemptStatus.IN_DOUBT, AttemptStatus.PENDING)


@dataclass(slots=True)
class Resolved:
    """`unanswered`: look-ups that brought no answer, `error` the last reason."""

    resolved: int = 0
    still_in_doubt: int = 0
    unanswered: int = 0
    error: str | None = None


def resolve_open(parts: Parts, progress: Callable[[int, int], None]) -> Resolved:
    """One look-up for each attempt that is in doubt or pending, whenever its next one would have been."""
    while look_up.doubt_expired_submissions(parts, BATCH) == BATCH:
        pass
    with parts.reading() as session:
        # A session's attempt without a time for a look-up waits for the customer, who may not even have begun.
        asked = or_(ChargeAttempt.origin != "session", ChargeAttempt.next_check_at.is_not(None))
        ids = list(session.scalars(select(ChargeAttempt.id).where(ChargeAttempt.status.in_(OPEN), asked)))
    outcome = Resolved()
    for done, attempt_id in enumerate(ids, start=1):
        _look_up(parts, attempt_id, outcome)
        progress(done, len(ids))
    with parts.reading() as session:
        in_doubt = select(func.count()).where(ChargeAttempt.status == AttemptStatus.IN_DOUBT)
        outcome.still_in_doubt = session.scalar(in_doubt) or 0
    return outcome


def _look_up(parts: Parts, attempt_id: str, outcome: Resolved) -> None:
    _plan_now(parts, attempt_id)
    overheard = _Overheard(parts.gateway)
    look_up.check_attempt(replace(parts, gateway=cast(PaymentGateway, overheard)), attempt_id)
    with parts.reading() as session:
        attempt = session.get_one(ChargeAttempt, attempt_id)
    if attempt.status not in OPEN:
        outcome.resolved += 1
    elif overheard.error is not None:
        outcome.unanswered += 1
        outcome.error = overheard.error


def _plan_now(parts: Parts, attempt_id: str) -> None:
    """An attempt nobody would have looked up gets its time."""
    with parts.transaction() as session:
        session.execute(
            update(ChargeAttempt)
            .where(
                ChargeAttempt.id == attempt_id, ChargeAttempt.status.in_(OPEN), ChargeAttempt.next_check_at.is_(None)
            )
            .values(next_check_at=parts.clock.now())
        )


class _Overheard:
    """The gateway, and what it last failed with: `check_attempt` swallows that, because a ladder goes on anyway; a
    person who asked wants to hear it."""

    def __init__(self, gateway: PaymentGateway) -> None:
        self._gateway = gateway
        self.error: str | None = None

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._gateway, name)

        @wraps(call)
        def overhear(*arguments: Any, **options: Any) -> Any:
            try:
                return call(*arguments, **options)
            except GatewayError as error:
                self.error = str(error)
                raise

        return overhear
