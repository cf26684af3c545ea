"""What the steps are handed: built once per process by billing/app.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Table, insert
from sqlalchemy.orm import Session

from billing.domain.gateway import PaymentGateway, Quota
from billing.store.clock import Clock
from billing.store.engine import Sessions
from billing.store.models import Fact


@dataclass(frozen=True, slots=True)
class Rules:
    """The merchant's choices, out of the settings."""

    settlement_window: timedelta = timedelta(hours=26)
    hold_in_doubt: bool = False
    refund_overpayments: bool = True
    call_limit: timedelta = timedelta(seconds=30)  # BILLING_XENDIT_TIMEOUT_SECONDS
    return_base: str | None = None
    components_origins: Sequence[str] = ()
    max_in_flight: int = 500

    @property
    def submitted_lease(self) -> timedelta:
        """Longer than any call can take: connecting, sending and reading are limited one by one."""
        return 3 * self.call_limit + timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Parts:
    sessions: Sessions
    clock: Clock
    gateway: PaymentGateway
    quota: Quota
    rules: Rules

    def transaction(self) -> AbstractContextManager[Session]:
        """One short transaction: committed at the end of the block, rolled back on an error."""
        return self.sessions.begin()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Looks, and writes nothing. Ended with a commit all the same: at a rollback psycopg forgets every statement
        it has prepared, and a connection would parse and plan all of them again."""
        with self.sessions() as session:
            yield session
            session.expunge_all()
            session.commit()


Send = Callable[[str, Sequence[str]], None]
"""Hands ids to whoever does the work: send("charge", attempt_ids). May lose, double or delay them."""


_TELL = insert(cast(Table, Fact.__table__))  # the table, not the class: no ORM bulk machinery for one row


def tell(session: Session, subscription_id: str, at: datetime, kind: str, /, **detail: Any) -> None:
    """Write one line of the subscription's story, in the transaction that makes it true."""
    session.execute(_TELL, {"subscription_id": subscription_id, "at": at, "kind": kind, "detail": detail})
