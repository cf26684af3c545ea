"""Every claim, lock and hot SELECT as a named function. Callers own the transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, cast

from sqlalchemy import (
    Boolean,
    ColumnElement,
    CursorResult,
    Select,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased, load_only, object_session

from billing.domain.gateway import Lane
from billing.domain.lifecycle import (
    BILLABLE,
    LIVE,
    UNFINISHED,
    AttemptStatus,
    InvoiceStatus,
    RunKind,
    RunState,
    TokenStatus,
)
from billing.store.models import (
    Base,
    BillingRun,
    Capture,
    ChargeAttempt,
    ChargingStop,
    ComparedDay,
    DeniedTokens,
    Invoice,
    PaymentSession,
    PaymentToken,
    Plan,
    Refund,
    Subscription,
    Tick,
    WebhookEvent,
    sql_list,
)

# A claimed row nobody began: the message was lost or its worker died. Taken up again after this, in real time.
CLAIM_LEASE = timedelta(seconds=120)
PARKED_AT_ONCE = 1_000  # attempts parked or let go in one transaction
_IS_SCHEDULED = ChargeAttempt.status == AttemptStatus.SCHEDULED


@dataclass(slots=True)
class Found:
    """An attempt with all it belongs to."""

    attempt: ChargeAttempt
    invoice: Invoice
    subscription: Subscription
    captures: list[Capture]
    plan_read: Plan | None

    @property
    def plan(self) -> Plan:
        """Read when it is asked for: a charge that succeeds needs it only to begin."""
        if self.plan_read is not None:
            return self.plan_read
        session = object_session(self.subscription)
        assert session is not None  # noqa: S101 - found in one, used in the same
        return session.get_one(Plan, self.subscription.plan_id)


# ---------------------------------------------------------------------------------------------------- locks


# The statements of the charge path are built once: building them costs as much as running them.

_attempts = cast(Table, ChargeAttempt.__table__)
_tokens = cast(Table, PaymentToken.__table__)
_OWNER = select(ChargeAttempt.subscription_id).where(ChargeAttempt.id == bindparam("attempt_id")).scalar_subquery()
_LOCK = select(Subscription.id).where(Subscription.id == _OWNER).with_for_update(key_share=True)


def lock_subscription_of_attempt(session: Session, attempt_id: str) -> str | None:
    """The one lock under which everything of a subscription moves. FOR NO KEY UPDATE: inserts that merely refer
    to the subscription need not wait."""
    return session.scalar(_LOCK, {"attempt_id": attempt_id})


# What the charge path reads of each row. Anything else is read when it is asked for: every column has its price.
_SUBSCRIPTION = load_only(
    Subscription.status,
    Subscription.reference,
    Subscription.customer_id,
    Subscription.plan_id,
    Subscription.payment_token_id,
    Subscription.cancel_at_period_end,
    Subscription.ends_at,
    Subscription.next_billing_at,
    Subscription.hold_reason,
)


_WITH_INVOICE = (
    select(ChargeAttempt, Invoice, Subscription, Capture)
    .join(Invoice, Invoice.id == ChargeAttempt.invoice_id)
    .join(Subscription, Subscription.id == ChargeAttempt.subscription_id)
    .outerjoin(Capture, Capture.invoice_id == Invoice.id)
    .where(ChargeAttempt.id == bindparam("attempt_id"))
    .options(_SUBSCRIPTION)
    .execution_options(populate_existing=True)
)


def attempt_with_invoice(session: Session, attempt_id: str) -> Found:
    """The attempt, its surroundings and the captures its invoice has, fresh."""
    rows = session.execute(_WITH_INVOICE, {"attempt_id": attempt_id}).all()
    attempt, invoice, subscription, _ = rows[0]
    return Found(attempt, invoice, subscription, [*filter(None, (row[3] for row in rows))], plan_read=None)


# --------------------------------------------------------------------------------------------------- claims


@dataclass(frozen=True, slots=True)
class Due:
    """Which kinds of work are due: one cheap question before eight dearer ones, most of which find nothing."""

    anything: bool

    subscriptions: bool
    attempts: bool
    checks: bool
    session_checks: bool
    events: bool
    refunds: bool
    expired_submissions: bool
    overdue_invoices: bool
    ends: bool
    probes: bool
    token_checks: bool


FREE = "(lease_until IS NULL OR lease_until < :real_now)"


# Is the first one due? Written so that only the partial index can answer: asked whether *any* row is earlier than some
# instant, a plan made without knowing the instant expects a third of the table and reads it from its beginning.
_DUE = text(f"""
SELECT
    coalesce((SELECT next_billing_at <= :now FROM subscriptions WHERE next_billing_at IS NOT NULL
        AND status IN ({sql_list(BILLABLE)}) AND hold_reason IS NULL ORDER BY next_billing_at LIMIT 1), false),
    coalesce((SELECT bool_or(oldest.is_due) FROM (VALUES (0), (1), (2)) AS lanes (number) CROSS JOIN LATERAL (
        SELECT scheduled_at <= :now AS is_due FROM charge_attempts WHERE status = 'scheduled' AND parked_by IS NULL
        AND lane = lanes.number AND {FREE} ORDER BY scheduled_at LIMIT 1) AS oldest), false),
    coalesce((SELECT next_check_at <= :now FROM charge_attempts
        WHERE next_check_at IS NOT NULL AND {FREE} ORDER BY next_check_at LIMIT 1), false),
    coalesce((SELECT next_check_at <= :now FROM payment_sessions
        WHERE next_check_at IS NOT NULL ORDER BY next_check_at LIMIT 1), false),
    coalesce((SELECT next_try_at <= :now FROM webhook_events
        WHERE next_try_at IS NOT NULL AND {FREE} ORDER BY next_try_at LIMIT 1), false),
    coalesce((SELECT next_try_at <= :now FROM refunds
        WHERE next_try_at IS NOT NULL AND {FREE} ORDER BY next_try_at LIMIT 1), false),
    EXISTS (SELECT FROM charge_attempts WHERE status = 'submitted' AND lease_until < :real_now),
    coalesce((SELECT grace_ends_at <= :now FROM invoices WHERE grace_ends_at IS NOT NULL
        AND status = 'open' AND hold_reason IS NULL ORDER BY grace_ends_at LIMIT 1), false),
    coalesce((SELECT ends_at <= :now FROM subscriptions WHERE ends_at IS NOT NULL AND NOT calendar_over
        AND status IN ({sql_list(BILLABLE)}, 'paused') ORDER BY ends_at LIMIT 1), false),
    EXISTS (SELECT FROM channel_breakers b WHERE b.probe_at <= :now
        AND EXISTS (SELECT FROM charge_attempts WHERE parked_by = 'channel:' || b.channel_code)),
    coalesce((SELECT next_check_at <= :now FROM payment_tokens
        WHERE next_check_at IS NOT NULL ORDER BY next_check_at LIMIT 1), false)
""")  # noqa: S608 - our own status names


def what_is_due(session: Session, now: datetime, real_now: datetime) -> Due:
    kinds = session.execute(_DUE, {"now": now, "real_now": real_now}).one()
    return Due(any(kinds), *kinds)


_DUE_SUBSCRIPTIONS = (
    select(Subscription, Plan)
    .join(Plan, Plan.id == Subscription.plan_id)
    .where(
        Subscription.next_billing_at <= bindparam("now"),
        Subscription.status.in_(BILLABLE),
        Subscription.hold_reason.is_(None),
    )
    .limit(bindparam("most"))
    .options(
        load_only(
            Subscription.reference,
            Subscription.status,
            Subscription.amount_minor,
            Subscription.currency,
            Subscription.timezone,
            Subscription.start_at,
            Subscription.anchor_local,
            Subscription.anchor_day,
            Subscription.next_index,
            Subscription.next_local,
            Subscription.billed_cycles,
            Subscription.cancel_at_period_end,
            Subscription.ends_at,
            Subscription.current_period_end,
            Subscription.catch_up_until,
        ),
        load_only(Plan.name, Plan.schedule, Plan.cycles, Plan.catch_up, Plan.trial_days),
    )
    .with_for_update(of=Subscription, skip_locked=True, key_share=True)
    .execution_options(populate_existing=True)
)


_OLDEST_DUE = _DUE_SUBSCRIPTIONS.order_by(Subscription.next_billing_at)
_NEWEST_DUE = _DUE_SUBSCRIPTIONS.order_by(Subscription.next_billing_at.desc())


def claim_due_subscriptions(
    session: Session, now: datetime, limit: int, *, newest_first: bool = False
) -> list[tuple[Subscription, Plan]]:
    """Due = next_billing_at <= now, never "today equals the anchor" (M1). Rows stay locked until the commit."""
    claim = _NEWEST_DUE if newest_first else _OLDEST_DUE
    return [(row[0], row[1]) for row in session.execute(claim, {"now": now, "most": limit})]


_OVER = (
    Subscription.ends_at <= bindparam("now"),
    ~Subscription.calendar_over,
    Subscription.status.in_(LIVE),
)


def subscriptions_over(session: Session, now: datetime, after: str, limit: int) -> list[str]:
    """Those whose end has come and was not acted upon yet, by id, beginning after `after`."""
    query = select(Subscription.id).where(*_OVER, Subscription.id > after).order_by(Subscription.id).limit(limit)
    return list(session.scalars(query, {"now": now}))


def _lease(table: type[Base], due: Select[Any], **values: Any) -> Update:
    """A claim: the rows that `due` finds, taken under a lease; it returns their ids only. Core, and built once."""
    rows = cast(Table, table.__table__)
    return (
        update(rows)
        .where(rows.c.id.in_(select(due.cte("due").c.id)))
        .values({"lease_until": bindparam("until")} | values)
        .returning(rows.c.id)
    )


def _free(lease_until: ColumnElement[Any]) -> ColumnElement[bool]:
    return or_(lease_until.is_(None), lease_until < bindparam("real_now"))


def _due_attempts() -> Select[Any]:
    due, older = _attempts, _attempts.alias("older")
    waits_for_older = exists().where(
        older.c.subscription_id == due.c.subscription_id,
        older.c.id < due.c.id,
        or_(
            older.c.status == AttemptStatus.SUBMITTED,
            and_(older.c.status == AttemptStatus.SCHEDULED, older.c.scheduled_at <= bindparam("now")),
        ),
    )
    return (
        select(due.c.id)
        .where(
            due.c.status == AttemptStatus.SCHEDULED,
            due.c.parked_by.is_(None),
            due.c.lane == bindparam("in_lane"),
            due.c.scheduled_at <= bindparam("now"),
            _free(due.c.lease_until),
            ~waits_for_older,
            ~exists().where(ChargingStop.id == 1),
        )
        .order_by(due.c.scheduled_at)
        .limit(bindparam("most"))
        .with_for_update(skip_locked=True)
    )


def _due_rows(table: type[Base], column: str) -> Select[Any]:
    rows = cast(Table, table.__table__)
    return (
        select(rows.c.id)
        .where(rows.c[column] <= bindparam("now"), _free(rows.c.lease_until))
        .order_by(rows.c[column])
        .limit(bindparam("most"))
        .with_for_update(skip_locked=True)
    )


def _run_of_claim() -> ColumnElement[Any]:
    """The run that claims owns the attempt, unless it belongs to another that was asked for and goes on. The
    scheduler's own run takes only what belongs to none."""
    owner = aliased(BillingRun)
    goes_on = or_(owner.finished_at.is_(None), owner.state == RunState.ABORTED)  # what was aborted stays aborted
    taken = exists().where(owner.id == _attempts.c.run_id, owner.kind == RunKind.ASKED, goes_on)
    keeps = or_(taken, and_(_attempts.c.run_id.is_not(None), bindparam("only_free", type_=Boolean)))
    return case((keeps, _attempts.c.run_id), else_=bindparam("run", type_=Text))


_CLAIM_ATTEMPTS = _lease(ChargeAttempt, _due_attempts())
_CLAIM_ATTEMPTS_OF_RUN = _lease(ChargeAttempt, _due_attempts(), run_id=_run_of_claim())
_CLAIM_CHECKS = _lease(ChargeAttempt, _due_rows(ChargeAttempt, "next_check_at"))
_CLAIM_REFUNDS = _lease(Refund, _due_rows(Refund, "next_try_at"))
_CLAIM_EVENTS = _lease(WebhookEvent, _due_rows(WebhookEvent, "next_try_at"))


def _claim(session: Session, claim: Update, now: datetime, real_now: datetime, limit: int, **more: Any) -> list[str]:
    values = {"now": now, "real_now": real_now, "until": real_now + CLAIM_LEASE, "most": limit}
    return list(session.scalars(claim, values | more))


def claim_due_attempts(
    session: Session,
    now: datetime,
    real_now: datetime,
    limit: int,
    *,
    lane: Lane,
    run_id: str | None = None,
    only_free: bool = False,
) -> list[str]:
    """Take due attempts of a lane under a lease; ids only. A row with a live lease is not taken again (D15), and a
    subscription that owes several periods is charged for one at a time, the oldest first (M5).

    They become those of the run `run_id`; with `only_free` only if they belong to none yet.
    """
    if run_id is None:
        return _claim(session, _CLAIM_ATTEMPTS, now, real_now, limit, in_lane=lane)
    more = {"in_lane": lane, "run": run_id, "only_free": only_free}
    return _claim(session, _CLAIM_ATTEMPTS_OF_RUN, now, real_now, limit, **more)


def claim_due_checks(session: Session, now: datetime, real_now: datetime, limit: int) -> list[str]:
    """Attempts that are pending, wait for the customer or are in doubt, and whose next look-up is due."""
    return _claim(session, _CLAIM_CHECKS, now, real_now, limit)


def claim_due_refunds(session: Session, now: datetime, real_now: datetime, limit: int) -> list[str]:
    return _claim(session, _CLAIM_REFUNDS, now, real_now, limit)


def claim_due_events(session: Session, now: datetime, real_now: datetime, limit: int) -> list[str]:
    """Stored events that were not applied yet (a lost message, a dead process) or wait for their parent."""
    return _claim(session, _CLAIM_EVENTS, now, real_now, limit)


def _claim_by_date(table: type[Base], *which: ColumnElement[bool]) -> Update:
    """For what has no lease: the claim moves `next_check_at` on, so that no other process asks too."""
    rows = cast(Table, table.__table__)
    due = (
        select(rows.c.id)
        .where(rows.c.next_check_at <= bindparam("now"), *which)
        .order_by(rows.c.next_check_at)
        .limit(bindparam("most"))
        .with_for_update(skip_locked=True)
    )
    return (
        update(rows)
        .where(rows.c.id.in_(select(due.cte("due").c.id)))
        .values(next_check_at=bindparam("again"))
        .returning(rows.c.id)
    )


_CLAIM_SESSIONS = _claim_by_date(PaymentSession)
_CLAIM_UNKNOWN_TOKENS = _claim_by_date(PaymentToken, _tokens.c.unknown_since.is_not(None))
_CLAIM_UNVERIFIED_TOKENS = _claim_by_date(
    PaymentToken, _tokens.c.unknown_since.is_(None), ~exists().where(ChargingStop.id == 1)
)


def claim_due_session_checks(session: Session, now: datetime, _real_now: datetime, limit: int) -> list[str]:
    """Payment sessions whose webhook is late."""
    return list(session.scalars(_CLAIM_SESSIONS, {"now": now, "again": now + timedelta(minutes=5), "most": limit}))


def claim_due_token_checks(session: Session, now: datetime, _real_now: datetime, limit: int) -> list[str]:
    """Tokens that Xendit did not know when it was asked last. Should it not answer now, it is asked in an hour."""
    return _claim_tokens(session, _CLAIM_UNKNOWN_TOKENS, now, limit)


def claim_unverified_tokens(session: Session, now: datetime, limit: int) -> list[str]:
    """Imported ones about which Xendit was not asked yet; while charging is stopped, perhaps because it refuses the
    key, it is not. Their dates keep the order in which they are first due (subscribing/import_rows.py)."""
    return _claim_tokens(session, _CLAIM_UNVERIFIED_TOKENS, now, limit)


def _claim_tokens(session: Session, claim: Update, now: datetime, limit: int) -> list[str]:
    return list(session.scalars(claim, {"now": now, "again": now + timedelta(hours=1), "most": limit}))


_IN_FLIGHT = (
    select(ChargeAttempt.status, func.count())
    .where(
        ChargeAttempt.status.in_({AttemptStatus.SCHEDULED, AttemptStatus.SUBMITTED}),
        ChargeAttempt.lease_until.is_not(None),
        ChargeAttempt.lease_until >= bindparam("real_now"),
    )
    .group_by(ChargeAttempt.status)
)


_CUSTOMERS_IN_FLIGHT = select(func.count()).where(
    ChargeAttempt.status.in_({AttemptStatus.SCHEDULED, AttemptStatus.SUBMITTED}),
    ChargeAttempt.lease_until.is_not(None),
    ChargeAttempt.lease_until >= bindparam("real_now"),
    ChargeAttempt.lane == Lane.CUSTOMER,
)


def count_in_flight(session: Session, real_now: datetime) -> tuple[int, int]:
    """Attempts handed out: (not begun yet, sent and not answered). What keeps claims from running ahead."""
    counted = {row[0]: row[1] for row in session.execute(_IN_FLIGHT, {"real_now": real_now})}
    return counted.get(AttemptStatus.SCHEDULED, 0), counted.get(AttemptStatus.SUBMITTED, 0)


def count_customers_in_flight(session: Session, real_now: datetime) -> int:
    """Of these, the attempts that a customer waits for."""
    return session.scalar(_CUSTOMERS_IN_FLIGHT, {"real_now": real_now}) or 0


def failed_at_gateway(session: Session, invoice_id: str) -> list[tuple[str, str, datetime]]:
    """(attempt, payment request, sent at) of the tries of an invoice that Xendit knows and has called failed."""
    query = select(ChargeAttempt.id, ChargeAttempt.payment_request_id, ChargeAttempt.submitted_at).where(
        ChargeAttempt.invoice_id == invoice_id, ChargeAttempt.status == AttemptStatus.FAILED
    )
    return [(row[0], row[1], row[2]) for row in session.execute(query) if row[1] is not None and row[2] is not None]


def in_order(*which: ColumnElement[bool]) -> Select[Any]:
    """The ids of these attempts, locked in their order, as by all who take several: nobody waits in a circle."""
    rows = select(ChargeAttempt.id).where(*which).order_by(ChargeAttempt.id).with_for_update(key_share=True)
    return select(rows.cte("mine").c.id)


def lock_attempts(session: Session, ids: Collection[str]) -> None:
    """Before several of them are moved by several statements."""
    session.execute(in_order(ChargeAttempt.id.in_(ids))).all()


def release_leases(session: Session, attempt_ids: Sequence[str]) -> None:
    """Claimed and not begun: whoever claims next takes them."""
    session.execute(
        update(ChargeAttempt)
        .where(ChargeAttempt.id.in_(in_order(ChargeAttempt.id.in_(attempt_ids))), _IS_SCHEDULED)
        .values(lease_until=None)
        .execution_options(synchronize_session=False)
    )


def postpone(session: Session, attempt_id: str, until: datetime, *, error: str | None = None) -> None:
    """Not before `until`; what has been planned for later meanwhile stays later. `error` says why it waits."""
    session.execute(
        update(ChargeAttempt)
        .where(ChargeAttempt.id == attempt_id, ChargeAttempt.status == AttemptStatus.SCHEDULED)
        .values(lease_until=None, scheduled_at=func.greatest(ChargeAttempt.scheduled_at, until), error=error)
        .execution_options(synchronize_session=False)
    )


def park_attempts(session: Session, ids: Sequence[str], waits_for: str, error: str) -> None:
    """Not claimed again until `unpark`: they keep their time and their place. `waits_for` is `run:ID`, `channel:CODE`
    or `token:CUSTOMER`; `error` says it in words."""
    session.execute(
        update(ChargeAttempt)
        .where(ChargeAttempt.id.in_(in_order(ChargeAttempt.id.in_(ids))), _IS_SCHEDULED)
        .values(parked_by=waits_for, lease_until=None, error=error)
        .execution_options(synchronize_session=False)
    )


def unpark(session: Session, waited_for: str) -> int:
    """A portion of what waited for this may be claimed again. Returns how many: fewer than `PARKED_AT_ONCE`, and that
    was all (charging/parking.py)."""
    waits = ChargeAttempt.parked_by == waited_for
    some = select(ChargeAttempt.id).where(waits).limit(PARKED_AT_ONCE)
    statement = (
        update(ChargeAttempt)
        .where(ChargeAttempt.id.in_(in_order(ChargeAttempt.id.in_(some), waits)))
        # One that was withdrawn meanwhile keeps the reason of that.
        .values(parked_by=None, error=case((_IS_SCHEDULED, None), else_=ChargeAttempt.error))
        .execution_options(synchronize_session=False)
    )
    return cast("CursorResult[Any]", session.execute(statement)).rowcount


def expired_submissions(session: Session, real_now: datetime, limit: int) -> list[str]:
    """Submitted, and the lease is over: the process that sent it is gone, so nobody knows the outcome."""
    query = (
        select(ChargeAttempt.id)
        .where(ChargeAttempt.status == AttemptStatus.SUBMITTED, ChargeAttempt.lease_until < real_now)
        .limit(limit)
    )
    return list(session.scalars(query))


def may_be_charged(token: type[PaymentToken]) -> ColumnElement[bool]:
    """A payment method that is charged by itself, if Xendit calls it ACTIVE (again) by then."""
    return and_(
        token.status.in_({TokenStatus.ACTIVE, TokenStatus.PENDING}),
        token.blocked_reason.is_(None),
        token.unknown_since.is_(None),
        token.replaced_at.is_(None),
    )


def token_to_charge() -> ColumnElement[str | None]:
    """Of a subscription: the id of the payment method that would be charged now (charging/begin.py, without the
    network caps). NULL when there is none."""
    return (
        select(PaymentToken.id)
        .where(PaymentToken.customer_id == Subscription.customer_id, may_be_charged(PaymentToken))
        .order_by(
            PaymentToken.status != TokenStatus.ACTIVE,
            PaymentToken.id.is_distinct_from(Subscription.payment_token_id),
            PaymentToken.rank,
        )
        .limit(1)
        .correlate(Subscription)
        .scalar_subquery()
    )


def without_token(session: Session, customer_id: str) -> list[str]:
    """References of a customer's subscriptions that are billed, now or after a pause, and have nothing to charge."""
    query = select(Subscription.reference).where(
        Subscription.customer_id == customer_id,
        Subscription.status.in_(LIVE),
        token_to_charge().is_(None),
    )
    return list(session.scalars(query.order_by(Subscription.id)))


def last_charged_token(session: Session, *, but: str) -> str | None:
    """Xendit's id of the payment method that was charged last."""
    query = (
        select(PaymentToken.payment_token_id)
        .join(ChargeAttempt, ChargeAttempt.payment_token_id == PaymentToken.id)
        .where(
            ChargeAttempt.status == AttemptStatus.SUCCEEDED,
            PaymentToken.unknown_since.is_(None),
            PaymentToken.payment_token_id != but,
        )
        .order_by(ChargeAttempt.id.desc())
        .limit(1)
    )
    return session.scalar(query)


def denied_tokens(session: Session, key: str | None) -> list[str]:
    """Xendit's ids of the payment methods that it denied to the key with this fingerprint."""
    query = select(DeniedTokens.payment_token_ids).where(DeniedTokens.key_fingerprint == (key or ""))
    return session.scalar(query) or []


_NOTE_DENIED = text(
    """
    INSERT INTO denied_tokens AS known (key_fingerprint, payment_token_ids) VALUES (:key, ARRAY[:token])
    ON CONFLICT (key_fingerprint) DO UPDATE SET payment_token_ids =
        array_remove(known.payment_token_ids, :token) || CAST(:token AS text)
    RETURNING cardinality(payment_token_ids)
    """
)


def note_denied(session: Session, key: str | None, payment_token_id: str) -> int:
    """One more; returns how many different ones there are. The row of the key makes those wait who count at once."""
    return int(session.execute(_NOTE_DENIED, {"key": key or "", "token": payment_token_id}).scalar_one())


def forget_denied(session: Session, key: str | None) -> None:
    session.execute(delete(DeniedTokens).where(DeniedTokens.key_fingerprint == (key or "")))


def ask_unknown_tokens_now(session: Session, now: datetime, *, key: str | None = None) -> int:
    """Those that Xendit did not know are asked about at once; with a `key` only those that another key did not know."""
    later = [PaymentToken.unknown_since.is_not(None), PaymentToken.next_check_at > now]
    if key is not None:
        later.append(PaymentToken.unknown_to_key.is_distinct_from(key))
    asked = update(PaymentToken).where(*later).values(next_check_at=now)
    result = session.execute(asked.execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", result).rowcount


def take_tick(session: Session, job: str, slot: datetime) -> bool:
    """Whoever inserts the row does the job of that slot, in the same transaction (D11)."""
    query = insert(Tick).values(job=job, slot=slot).on_conflict_do_nothing().returning(Tick.job)
    return session.scalar(query) is not None


def forget_ticks(session: Session, before: datetime) -> None:
    session.execute(text("DELETE FROM ticks WHERE slot < :before"), {"before": before})


def forget_ticks_to_come(session: Session, job: str, after: datetime) -> None:
    """Taken by a clock that was ahead: nobody would do the job until ours has come that far."""
    session.execute(text("DELETE FROM ticks WHERE job = :job AND slot > :after"), {"job": job, "after": after})


def days_to_compare(session: Session, since: datetime, now: datetime) -> list[date]:
    """Days (UTC) that are over and not noted as compared, from `since` or the first plan on; the latest first."""
    query = text(
        "SELECT each.day::date FROM generate_series("
        " (SELECT greatest(min(created_at), :since) AT TIME ZONE 'UTC' FROM plans)::date,"
        " (:now AT TIME ZONE 'UTC')::date - 1, interval '1 day') AS each(day)"
        " WHERE NOT EXISTS (SELECT FROM compared_days c WHERE c.day = each.day::date) ORDER BY 1 DESC"
    )
    return list(session.scalars(query, {"since": since, "now": now}))


def note_compared(session: Session, day: date, at: datetime) -> None:
    session.execute(insert(ComparedDay).values(day=day, compared_at=at).on_conflict_do_nothing())


# ------------------------------------------------------------------------------------------------- the rest


def overdue_invoices(session: Session, now: datetime, after: str, limit: int) -> list[tuple[str, str]]:
    """(invoice, subscription) of open invoices whose grace is over and which have no attempt under way, by id."""
    unfinished = exists().where(and_(ChargeAttempt.invoice_id == Invoice.id, ChargeAttempt.status.in_(UNFINISHED)))
    query = (
        select(Invoice.id, Invoice.subscription_id)
        .where(
            Invoice.status == InvoiceStatus.OPEN,
            Invoice.grace_ends_at <= now,
            Invoice.hold_reason.is_(None),
            Invoice.id > after,
            ~unfinished,
        )
        .order_by(Invoice.id)
        .limit(limit)
    )
    return [(row[0], row[1]) for row in session.execute(query)]


def stop_charging(session: Session, reason: str, now: datetime, *, refused_key: str | None = None) -> None:
    """`refused_key`: fingerprint of the key that Xendit refused; None when a person stops it. The first one stays."""
    stop = insert(ChargingStop).values(id=1, reason=reason, at=now, refused_key=refused_key)
    session.execute(stop.on_conflict_do_nothing())


def has_waited_for_another_key(session: Session, key: str) -> bool:
    """Whether anything waits because of a key that was not this: all charging, which Xendit refused it (a stop by a
    person has no key), or what was unknown to it."""
    stopped = exists().where(ChargingStop.refused_key != key)
    unknown = exists().where(
        PaymentToken.next_check_at.is_not(None),
        PaymentToken.unknown_since.is_not(None),
        PaymentToken.unknown_to_key.is_distinct_from(key),
    )
    return bool(session.scalar(select(or_(stopped, unknown))))


def lift_stop_of_another_key(session: Session, key: str) -> str | None:
    """Lifts such a stop; returns its reason."""
    another = ChargingStop.refused_key != key  # NULL, which a person's stop has, is never unequal
    return session.scalar(delete(ChargingStop).where(another).returning(ChargingStop.reason))


def lift_charging_stop(session: Session) -> bool:
    result = session.execute(text("DELETE FROM charging_stop"))
    return isinstance(result, CursorResult) and result.rowcount > 0
