"""The tables. Each "never twice" of the design is a named constraint here, with its reason.

Instants are timestamptz; amounts are integers of the smallest unit in use (billing/domain/money.py). Statuses are
text checked against billing/domain/lifecycle.py, so that a new status is a migration one can read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from enum import StrEnum
from typing import Any, ClassVar

import uuid_utils
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Date,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from billing.domain.lifecycle import (
    BILLABLE,
    LIVE,
    UNFINISHED,
    AttemptStatus,
    EventState,
    InvoiceStatus,
    RefundState,
    SessionStatus,
    SubscriptionStatus,
)

Instant = TIMESTAMP(timezone=True)
LocalTime = TIMESTAMP(timezone=False)  # wall clock in the subscription's zone, on purpose without offset


def _uuid7() -> str:
    return uuid_utils.uuid7().hex


_unique: Callable[[], str] = _uuid7


def new_id(prefix: str) -> str:
    """`sub-0199...`: sortable by time of creation. No `_` in it: Xendit adds `_suffix` to session references."""
    return f"{prefix}-{_unique()}"


@contextmanager
def ids_from(source: Callable[[], str]) -> Iterator[None]:
    """For the time of the block ids come from `source`: a seeded simulation makes the same ones again."""
    global _unique  # noqa: PLW0603 - the one source of the process
    before, _unique = _unique, source
    try:
        yield
    finally:
        _unique = before


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(str(v)) for v in values)})"


def sql_list(values: frozenset[Any]) -> str:
    """'a', 'b': for SQL written by hand, from our own names only."""
    return ", ".join(sorted(repr(str(v)) for v in values))


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: Instant, str: Text}


class Plan(Base):
    __tablename__ = "plans"

    id: Mapped[str] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    amount_minor: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    schedule: Mapped[str]  # "every 1:month" or "cron 0 9 1 * *"
    timezone: Mapped[str]
    trial_days: Mapped[int] = mapped_column(Integer)
    cycles: Mapped[int | None] = mapped_column(Integer)  # billed periods in all; NULL = until canceled
    catch_up: Mapped[str]
    dunning: Mapped[str]
    created_at: Mapped[datetime]

    __table_args__ = (CheckConstraint("amount_minor > 0", name="amount_positive"),)


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    email: Mapped[str]
    country: Mapped[str]
    mobile: Mapped[str | None]
    timezone: Mapped[str]
    xendit_customer_id: Mapped[str | None] = mapped_column(unique=True)  # created there once, reused for ever
    created_at: Mapped[datetime]


class PaymentToken(Base):
    """A saved payment method. Only `ACTIVE` is charged; what we have not seen confirmed yet is `PENDING`."""

    __tablename__ = "payment_tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    payment_token_id: Mapped[str] = mapped_column(unique=True)
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id"), index=True)
    status: Mapped[str]
    channel_code: Mapped[str]
    card_last4: Mapped[str | None]
    card_expiry: Mapped[str | None]
    network: Mapped[str | None]
    card_type: Mapped[str | None]
    issuer: Mapped[str | None]
    fingerprint: Mapped[str | None]
    rank: Mapped[int] = mapped_column(Integer)  # the lowest is charged first
    failure_code: Mapped[str | None]
    # A code such as STOLEN_CARD or MAC 03: this card is never tried again by us, whatever Xendit says of the token.
    blocked_reason: Mapped[str | None]
    gateway_updated_at: Mapped[datetime | None]  # orders Xendit's events: older ones never undo newer ones
    # Since when Xendit says that it does not know it, which may be our wrong key: not charged, and not dead by that.
    unknown_since: Mapped[datetime | None]
    unknown_to_key: Mapped[str | None]  # fingerprint of the key in use then: a process with another asks at once
    next_check_at: Mapped[datetime | None]  # when Xendit is asked again
    # Since when the customer has replaced it, after it was declined: not charged again by itself.
    replaced_at: Mapped[datetime | None]
    created_at: Mapped[datetime]

    __table_args__ = (
        Index("ix_payment_tokens_fingerprint", "fingerprint"),
        Index("ix_payment_tokens_check", "next_check_at", postgresql_where=text("next_check_at IS NOT NULL")),
    )


class Subscription(Base):
    __tablename__ = "subscriptions"

    id: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(unique=True)
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id"), index=True)
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"), index=True)
    status: Mapped[str]
    amount_minor: Mapped[int] = mapped_column(BigInteger)  # copied from the plan: its price never changes under us
    currency: Mapped[str]
    timezone: Mapped[str]
    payment_token_id: Mapped[str | None] = mapped_column(ForeignKey("payment_tokens.id"))
    start_at: Mapped[datetime | None]  # as asked for; NULL = when the token arrives
    # The original anchor: every date is computed from it, never from the date before (31 Jan, 28 Feb, 31 Mar).
    anchor_local: Mapped[datetime | None] = mapped_column(LocalTime)
    anchor_day: Mapped[int | None] = mapped_column(SmallInteger)
    # The next period to open: its number, its local start and the instant it is due.
    next_index: Mapped[int] = mapped_column(Integer, server_default="0")
    next_local: Mapped[datetime | None] = mapped_column(LocalTime)
    next_billing_at: Mapped[datetime | None]
    billed_cycles: Mapped[int] = mapped_column(Integer, server_default="0")
    current_period_start: Mapped[datetime | None]
    current_period_end: Mapped[datetime | None]
    cancel_at_period_end: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    # No period that starts at or after this instant is opened: the end of the last cycle, or of the period that was
    # running when somebody canceled. What is owed is still collected then; `calendar_over` says that only this is left.
    ends_at: Mapped[datetime | None]
    calendar_over: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    canceled_at: Mapped[datetime | None]
    end_kind: Mapped[str | None]  # EndKind: what becomes of open invoices depends on who ended it
    paused_at: Mapped[datetime | None]
    # Set = billing waits for this one; the text says why to people, the kind (HoldKind) to the software.
    hold_reason: Mapped[str | None]
    hold_kind: Mapped[str | None]
    catch_up_until: Mapped[datetime | None]  # a person approved billing what was missed up to here
    open_failures: Mapped[int] = mapped_column(Integer, server_default="0")
    open_error: Mapped[str | None]
    created_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint(_one_of("status", SubscriptionStatus), name="status_known"),
        CheckConstraint("anchor_day BETWEEN 1 AND 31", name="anchor_day_range"),
        # The planner's question "who is due?" costs what is due, not what exists.
        Index(
            "ix_subscriptions_due",
            "next_billing_at",
            postgresql_where=text(f"status IN ({sql_list(BILLABLE)}) AND hold_reason IS NULL"),
        ),
        Index(
            "ix_subscriptions_ends",
            "ends_at",
            postgresql_where=text(f"ends_at IS NOT NULL AND NOT calendar_over AND status IN ({sql_list(LIVE)})"),
        ),
    )


class PaymentSession(Base):
    __tablename__ = "payment_sessions"

    id: Mapped[str] = mapped_column(primary_key=True)
    reference_id: Mapped[str] = mapped_column(unique=True)  # always fresh; committed before the call
    xendit_session_id: Mapped[str | None] = mapped_column(unique=True)
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id"), index=True)
    subscription_id: Mapped[str | None] = mapped_column(ForeignKey("subscriptions.id"), index=True)
    type: Mapped[str]
    mode: Mapped[str]
    status: Mapped[str]
    amount_minor: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    payment_link_url: Mapped[str | None]
    components_sdk_key: Mapped[str | None]  # for one checkout; needed by the page that embeds it
    payment_token_id: Mapped[str | None]  # Xendit's pt-..., as the completed session names it
    payment_request_id: Mapped[str | None]
    payment_id: Mapped[str | None]
    expires_at: Mapped[datetime]
    next_check_at: Mapped[datetime | None]  # when to ask Xendit, should the webhook be lost
    created_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint(_one_of("status", SessionStatus), name="status_known"),
        Index("ix_payment_sessions_check", "next_check_at", postgresql_where=text("next_check_at IS NOT NULL")),
    )


class Invoice(Base):
    __tablename__ = "invoices"

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(unique=True)  # reference + period: no counter that all workers wait for
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"))
    # The *local* start of the period: a repeated hour, or a day that begins earlier in UTC, is still one period.
    period_key: Mapped[str]
    period_index: Mapped[int] = mapped_column(Integer)
    period_start: Mapped[datetime]
    period_end: Mapped[datetime]
    amount_minor: Mapped[int] = mapped_column(BigInteger)
    amount_paid_minor: Mapped[int] = mapped_column(BigInteger, server_default="0")  # captures minus refunds
    currency: Mapped[str]
    status: Mapped[str]
    # Dunning counts scheduled steps, not rows: what a person tries by hand never uses up the ladder.
    dunning_step: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    technical_step: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    first_failed_at: Mapped[datetime | None]
    grace_ends_at: Mapped[datetime | None]  # waits for the customer until then
    hold_reason: Mapped[str | None]  # our fault or an anomaly: a person decides
    hold_kind: Mapped[str | None]  # HoldKind
    hold_run_id: Mapped[str | None]  # the aborted run that left it
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        # D2, D10: one invoice per subscription and period, however many runs, schedulers or restarts there are.
        UniqueConstraint("subscription_id", "period_key", name="uq_invoices_subscription_period"),
        CheckConstraint(_one_of("status", InvoiceStatus), name="status_known"),
        CheckConstraint("amount_minor > 0", name="amount_positive"),
        CheckConstraint("period_start < period_end", name="period_forward"),
        Index("ix_invoices_unpaid", "subscription_id", postgresql_where=text("status IN ('draft', 'open')")),
        Index(
            "ix_invoices_grace",
            "grace_ends_at",
            postgresql_where=text("status = 'open' AND grace_ends_at IS NOT NULL AND hold_reason IS NULL"),
        ),
    )


class InvoiceLine(Base):
    __tablename__ = "invoice_lines"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    invoice_id: Mapped[str] = mapped_column(ForeignKey("invoices.id"), index=True)
    description: Mapped[str]
    amount_minor: Mapped[int] = mapped_column(BigInteger)


class ChargeAttempt(Base):
    """One try at one invoice. `reference_id` is its name at Xendit for ever; committed before the call."""

    __tablename__ = "charge_attempts"

    id: Mapped[str] = mapped_column(primary_key=True)
    reference_id: Mapped[str] = mapped_column(unique=True)
    invoice_id: Mapped[str] = mapped_column(ForeignKey("invoices.id"))
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"))
    number: Mapped[int] = mapped_column(SmallInteger)
    origin: Mapped[str]  # schedule, dunning, operator, session, new_token
    # Who goes first when the gateway's quota is short (domain/gateway.py: Lane).
    lane: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))
    # `run:ID` or `channel:CODE`: what this attempt waits for, beside its time. Nobody claims it until that is over.
    parked_by: Mapped[str | None]
    status: Mapped[str]
    amount_minor: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    payment_token_id: Mapped[str | None] = mapped_column(ForeignKey("payment_tokens.id"))
    fingerprint: Mapped[str | None]  # of the card that was tried: network caps count per card, not per token
    payment_request_id: Mapped[str | None]
    payment_id: Mapped[str | None]
    failure_code: Mapped[str | None]
    network_code: Mapped[str | None]
    advice_code: Mapped[str | None]
    decline_class: Mapped[str | None]
    error: Mapped[str | None]  # what kept the call from ending in an answer, in one line
    # The planned try an operator's extra attempt took the place of: planned again should the extra one fail.
    replaces_at: Mapped[datetime | None]
    action_url: Mapped[str | None]
    scheduled_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    settled_at: Mapped[datetime | None]
    # Looking up what is pending, waits for the customer or is in doubt: in the clock's time.
    doubt_since: Mapped[datetime | None]
    next_check_at: Mapped[datetime | None]
    checks: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    cancel_wanted: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    # The right to work on this row, in real time: a dead process's rows are taken up again when it ends.
    lease_until: Mapped[datetime | None]
    lease_id: Mapped[str | None]
    run_id: Mapped[str | None]
    created_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("invoice_id", "number", name="uq_charge_attempts_number"),
        # D3: never a new attempt while another could still move money, whoever asks for it.
        Index(
            "uq_charge_attempts_unfinished",
            "invoice_id",
            unique=True,
            postgresql_where=text(f"status IN ({sql_list(UNFINISHED)})"),
        ),
        CheckConstraint(_one_of("status", AttemptStatus), name="status_known"),
        CheckConstraint("amount_minor > 0", name="amount_positive"),
        CheckConstraint(
            "status IN ('scheduled', 'canceled') OR submitted_at IS NOT NULL OR origin = 'session'",
            name="submitted_is_dated",
        ),
        Index("ix_charge_attempts_due", "scheduled_at", postgresql_where=text("status = 'scheduled'")),
        Index(
            "ix_charge_attempts_lanes",
            "lane",
            "scheduled_at",
            postgresql_where=text("status = 'scheduled' AND parked_by IS NULL"),
        ),
        Index("ix_charge_attempts_parked", "parked_by", postgresql_where=text("parked_by IS NOT NULL")),
        Index(
            "ix_charge_attempts_leases",
            "lease_until",
            postgresql_where=text("status IN ('scheduled', 'submitted') AND lease_until IS NOT NULL"),
        ),
        Index("ix_charge_attempts_checks", "next_check_at", postgresql_where=text("next_check_at IS NOT NULL")),
        Index("ix_charge_attempts_payment_request_id", "payment_request_id"),
        Index("ix_charge_attempts_subscription_id", "subscription_id"),
        Index("ix_charge_attempts_run_id", "run_id", postgresql_where=text("run_id IS NOT NULL")),
        Index(
            "ix_charge_attempts_declines",
            "fingerprint",
            "settled_at",
            postgresql_where=text("status = 'failed' AND fingerprint IS NOT NULL"),
        ),
    )


class Capture(Base):
    """Money Xendit says it collected. It pays its invoice, in whole or in part, or is an overpayment, never hidden."""

    __tablename__ = "captures"

    id: Mapped[str] = mapped_column(primary_key=True)
    # A synchronous answer may not name it; the webhook or a look-up fills it in.
    payment_id: Mapped[str | None] = mapped_column(unique=True)
    payment_request_id: Mapped[str | None]
    invoice_id: Mapped[str] = mapped_column(ForeignKey("invoices.id"), index=True)
    attempt_id: Mapped[str] = mapped_column(ForeignKey("charge_attempts.id"))
    amount_minor: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    overpayment: Mapped[bool] = mapped_column(Boolean)
    # False: booked as asked for, because the answer to a charge does not say what was captured. Its event does.
    amount_known: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    captured_at: Mapped[datetime]

    __table_args__ = (
        # One attempt pays once. (An invoice may be paid by several, each for a part.)
        Index(
            "uq_captures_paying_attempt",
            "attempt_id",
            unique=True,
            postgresql_where=text("NOT overpayment"),
        ),
        Index("ix_captures_captured_at", "captured_at"),
    )


class Refund(Base):
    __tablename__ = "refunds"

    id: Mapped[str] = mapped_column(primary_key=True)
    reference_id: Mapped[str] = mapped_column(unique=True)
    capture_id: Mapped[str] = mapped_column(ForeignKey("captures.id"), index=True)
    xendit_refund_id: Mapped[str | None] = mapped_column(unique=True)
    amount_minor: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    reason: Mapped[str]
    status: Mapped[str]
    error: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    next_try_at: Mapped[datetime | None]  # requested: when to ask for it; pending: when to look it up
    sent_at: Mapped[datetime | None]
    made_elsewhere: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))  # not by us: Xendit's dashboard
    created_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint(_one_of("status", RefundState), name="status_known"),
        Index("ix_refunds_due", "next_try_at", postgresql_where=text("next_try_at IS NOT NULL")),
    )


class SkippedPeriod(Base):
    """A period that was not billed, and why: the calendar has no silent gap."""

    __tablename__ = "skipped_periods"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"))
    period_key: Mapped[str]
    period_index: Mapped[int] = mapped_column(Integer)
    period_start: Mapped[datetime]
    period_end: Mapped[datetime]
    reason: Mapped[str]
    run_id: Mapped[str | None]
    created_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("subscription_id", "period_key", name="uq_skipped_periods_subscription_period"),)


class WebhookEvent(Base):
    """One fact Xendit told us, stored once as received (masked), applied once, kept for replay."""

    __tablename__ = "webhook_events"

    id: Mapped[str] = mapped_column(primary_key=True)
    dedupe_key: Mapped[str] = mapped_column(unique=True)
    event: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    state: Mapped[str]
    deliveries: Mapped[int] = mapped_column(Integer, server_default="1")
    tries: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    error: Mapped[str | None]
    subscription_id: Mapped[str | None]
    received_at: Mapped[datetime]
    applied_at: Mapped[datetime | None]
    next_try_at: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(_one_of("state", EventState), name="state_known"),
        Index("ix_webhook_events_due", "next_try_at", postgresql_where=text("next_try_at IS NOT NULL")),
        Index("ix_webhook_events_unmatched", "received_at", postgresql_where=text("state IN ('unmatched', 'parked')")),
    )


class Fact(Base):
    """What happened to a subscription, in one line each, written in the transaction that made it true.

    The story `billing explain` tells, and the outbox from which a merchant's system can be told.
    """

    __tablename__ = "facts"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"))
    at: Mapped[datetime]
    kind: Mapped[str]
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB)

    __table_args__ = (Index("ix_facts_subscription_id", "subscription_id", "id"),)


class BillingRun(Base):
    """One pass over what is due: asked for by `billing run`, or the scheduler's, one a day (runs/run.py)."""

    __tablename__ = "billing_runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(server_default="asked")
    at: Mapped[datetime]
    started_at: Mapped[datetime]  # real time, as are the next two
    heartbeat_at: Mapped[datetime | None]  # of the process that drives it: a run whose heart stopped is taken over
    finished_at: Mapped[datetime | None]
    state: Mapped[str] = mapped_column(server_default="running")
    reason: Mapped[str | None]  # why it is not running, in one line
    guard: Mapped[str | None]  # the guard that stopped it; to resume the run is to waive this guard for it
    waived: Mapped[list[str]] = mapped_column(JSONB, server_default=text("'[]'"))
    plan: Mapped[dict[str, Any] | None] = mapped_column(JSONB)  # what it was to charge, as counted when it began
    opened: Mapped[int] = mapped_column(Integer, server_default="0")

    __table_args__ = (Index("ix_billing_runs_unfinished", "started_at", postgresql_where=text("finished_at IS NULL")),)


class Tick(Base):
    """One scheduled job at one slot: whoever inserts the row does the work, so any number of schedulers may run."""

    __tablename__ = "ticks"

    job: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[datetime] = mapped_column(primary_key=True)


class TestClock(Base):
    """One row: how far the clock of billing is ahead of real time. Read only with BILLING_TEST_CLOCK=true."""

    __tablename__ = "test_clock"
    __test__ = False  # not a pytest class

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    offset_microseconds: Mapped[int] = mapped_column(BigInteger)


class DatabaseIdentity(Base):
    """One row: which database this is. A copy or a restored backup has the row of the one it was made from."""

    __tablename__ = "database_identity"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    system_identifier: Mapped[str]  # of the cluster, as pg_control_system() says
    database_oid: Mapped[int] = mapped_column(BigInteger)
    noted_at: Mapped[datetime]


class ComparedDay(Base):
    """A day (UTC) whose captures have been compared with Xendit's list, whole, after it was over."""

    __tablename__ = "compared_days"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    compared_at: Mapped[datetime]


class ChargingStop(Base):
    """One row while the account itself is refused (401, 403): nothing is charged until a person lifts it."""

    __tablename__ = "charging_stop"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    reason: Mapped[str]
    at: Mapped[datetime]
    # Fingerprint of the secret key that was refused; NULL when a person stopped charging. Another key lifts the stop.
    refused_key: Mapped[str | None]


class DeniedTokens(Base):
    """The payment methods of ours that Xendit denied to a key before it knew any with it (charging/accounts.py)."""

    __tablename__ = "denied_tokens"

    key_fingerprint: Mapped[str] = mapped_column(primary_key=True)
    payment_token_ids: Mapped[list[str]] = mapped_column(ARRAY(Text))  # Xendit's, each once; a handful at most


class QuotaBudget(Base):
    """An endpoint's budget: the row that whoever takes permits locks."""

    __tablename__ = "quota_budgets"

    endpoint: Mapped[str] = mapped_column(primary_key=True)
    next_slot: Mapped[datetime]  # the earliest instant the next permit may be for
    paused_until: Mapped[datetime | None]  # a 429 told us to wait
    learned_limit: Mapped[int | None] = mapped_column(Integer)  # as the gateway's own headers say
    learned_at: Mapped[datetime | None]
    # When each lane has had its guaranteed share up to: a lane behind it goes before those that are ahead.
    lanes: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))


class QuotaSlot(Base):
    """Requests sent (or about to be) per endpoint and tenth of a second: the window that all processes share."""

    __tablename__ = "quota_slots"

    endpoint: Mapped[str] = mapped_column(primary_key=True)
    tenth: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    sent: Mapped[int] = mapped_column(Integer)
    at_once: Mapped[int] = mapped_column(Integer)  # of them: those that were not paced


class ChannelBreaker(Base):
    """A channel that fails for technical reasons. Rows exist for channels in trouble only (store/breaker.py)."""

    __tablename__ = "channel_breakers"

    channel_code: Mapped[str] = mapped_column(primary_key=True)
    failures: Mapped[int] = mapped_column(Integer)  # in a row
    reason: Mapped[str]
    failed_at: Mapped[datetime]
    opened_at: Mapped[datetime | None]  # NULL: failures are counted, charges still go out
    probe_at: Mapped[datetime | None]  # when one charge is let through to see whether it is back
    probes: Mapped[int] = mapped_column(Integer, server_default="0")


class QuotaBucket(Base):
    """The window of release 0.1, which its workers still use while they are being replaced."""

    __tablename__ = "quota_buckets"

    endpoint: Mapped[str] = mapped_column(primary_key=True)
    second: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    sent: Mapped[int] = mapped_column(Integer)


class QuotaPause(Base):
    """As above."""

    __tablename__ = "quota_pauses"

    endpoint: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[datetime]
