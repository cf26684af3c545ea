"""What the steps are handed: built once per process by billing/app.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

import structlog
from sqlalchemy import Table, insert
from sqlalchemy.orm import Session

from billing.domain.gateway import ChargeReport, Lane, PaymentGateway, Quota
from billing.errors import GatewayError, NotSent, OutcomeUnknown
from billing.store import which_database
from billing.store.breaker import Breakers
from billing.store.clock import Clock
from billing.store.engine import Sessions
from billing.store.models import Fact

TELL_OF_STRANGERS_AFTER = 5  # answers in a row

log = structlog.get_logger()


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
    charges_at_once: int = 1  # attempts that are begun, sent and settled together
    requests_per_minute: float | None = None  # the gateway's quota as set; None = no limit
    # The guards of a billing run (runs/limits.py). Amounts by currency, in minor units; 0 = off.
    run_spending_cap: Mapping[str, int] = field(default_factory=dict)
    subscriber_daily_cap: Mapping[str, int] = field(default_factory=dict)
    run_decline_jump: float = 0.4
    run_decline_sample: int = 100
    run_forecast_share: float = 0.0

    @property
    def submitted_lease(self) -> timedelta:
        """Longer than any call can take: connecting, sending and reading are limited one by one."""
        return 3 * self.call_limit + timedelta(seconds=30)


class Acquaintance:
    """Whether Xendit's account and ours know each other, as far as this process has seen (charging/accounts.py). A key
    belongs to one account for ever, so once it is made it stays."""

    def __init__(self) -> None:
        self.is_made = False

    def make(self) -> bool:
        """True the first time: what was denied before is to be forgotten (queries.forget_denied)."""
        is_news = not self.is_made
        self.is_made = True
        return is_news


class Strangers:
    """How many charges of this process in a row were answered by something that is not Xendit.

    A proxy or a firewall that answers for Xendit leaves each charge in doubt, which is looked up and costs a day. One
    is an accident. Some in a row are a fault of the network or of a setting, and somebody should look: said once, in
    one line."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._lock = threading.Lock()

    def note(self, answer: ChargeReport | GatewayError) -> None:
        if isinstance(answer, NotSent) or (isinstance(answer, OutcomeUnknown) and answer.http_status is None):
            return  # nobody answered
        with self._lock:
            stranger = isinstance(answer, OutcomeUnknown) and answer.from_stranger
            self._in_a_row = self._in_a_row + 1 if stranger else 0
            tell = self._in_a_row == TELL_OF_STRANGERS_AFTER
        if tell:
            log.error(
                "charges.answered_by_a_stranger",
                in_a_row=TELL_OF_STRANGERS_AFTER,
                error=str(answer),
                check="BILLING_XENDIT_BASE_URL, and any proxy or firewall between this machine and Xendit",
            )


@dataclass(frozen=True, slots=True)
class Parts:
    sessions: Sessions
    clock: Clock
    gateway: PaymentGateway
    quota: Quota
    rules: Rules
    breakers: Breakers = field(default_factory=Breakers, kw_only=True)
    strangers: Strangers = field(default_factory=Strangers, kw_only=True)
    acquaintance: Acquaintance = field(default_factory=Acquaintance, kw_only=True)
    key_fingerprint: str | None = field(default=None, kw_only=True)  # of Xendit's secret key, never the key
    # Set when the process is told to end: what takes long and can be done another time ends, too.
    stopping: threading.Event = field(default_factory=threading.Event, kw_only=True)
    # Runs of which this process knows that Xendit has answered a charge (runs/tick.py).
    answered_runs: set[str] = field(default_factory=set, kw_only=True)
    callers: Executor | None = field(
        default=None, kw_only=True
    )  # threads that call Xendit for a group of charges; None: one after the other
    # One short transaction: committed at the end of the block, rolled back on an error.
    transaction: Callable[[], AbstractContextManager[Session]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "transaction", self.sessions.begin)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Looks, and writes nothing. Ended with a commit all the same: at a rollback psycopg forgets every statement
        it has prepared, and a connection would parse and plan all of them again."""
        with self.sessions() as session:
            yield session
            session.expunge_all()
            session.commit()

    def refuse_a_copy(self) -> None:
        """Before work that reaches outside begins. Raises CopyOfDatabase."""
        with self.reading() as session:
            which_database.refuse_a_copy(session)


_lane: ContextVar[Lane] = ContextVar("lane", default=Lane.CUSTOMER)


def lane_of_this_work() -> Lane:
    """For whom the requests of this thread are made. Unless somebody has said otherwise, a person waits."""
    return _lane.get()


@contextmanager
def in_lane(lane: Lane) -> Iterator[None]:
    token = _lane.set(lane)
    try:
        yield
    finally:
        _lane.reset(token)


@dataclass(slots=True)
class Tally:
    """The attempts that one command has begun, could not send, or had to withdraw, whichever of its threads did it."""

    begun: set[str] = field(default_factory=set)
    unsent: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)


_tally: ContextVar[Tally | None] = ContextVar("tally", default=None)


@contextmanager
def tallied(tally: Tally) -> Iterator[None]:
    """The work of this block, and of threads that are handed its context, is noted there."""
    token = _tally.set(tally)
    try:
        yield
    finally:
        _tally.reset(token)


def note_begun(attempt_ids: Sequence[str]) -> None:
    tally = _tally.get()
    if tally is not None:
        tally.unsent.difference_update(attempt_ids)
        tally.begun.update(attempt_ids)


def note_unsent(attempt_id: str) -> None:
    """It has moved nothing, and is planned as before; its row says why."""
    tally = _tally.get()
    if tally is not None:
        tally.begun.discard(attempt_id)
        tally.unsent.add(attempt_id)


def note_withdrawn(attempt_id: str) -> None:
    """It could not be charged, and its row says why."""
    tally = _tally.get()
    if tally is not None:
        tally.withdrawn.add(attempt_id)


Send = Callable[[str, Sequence[str]], None]
"""Hands ids to whoever does the work: send("charge", attempt_ids). May lose, double or delay them."""


_TELL = insert(cast(Table, Fact.__table__))  # the table, not the class: no ORM bulk machinery for one row


def tell(session: Session, subscription_id: str, at: datetime, kind: str, /, **detail: Any) -> None:
    """Write one line of the subscription's story, in the transaction that makes it true."""
    session.execute(_TELL, {"subscription_id": subscription_id, "at": at, "kind": kind, "detail": detail})
