"""The statements of the charge path: open, begin, settle, confirm, for a group at a time. Callers own the transaction.

Plain SQL and plain rows: this is where a run spends its time (docs/performance.md). Everything rarer goes through the
mapped classes in charging/charge.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.domain.gateway import Lane
from billing.domain.money import Money

# ------------------------------------------------------------------------------------------------ open


@dataclass(frozen=True, slots=True)
class NewInvoice:
    """An open invoice of one line, and its first attempt, due at once."""

    invoice_id: str
    attempt_id: str
    number: str
    subscription_id: str
    period_key: str
    period_index: int
    period_start: datetime
    period_end: datetime
    amount_minor: int
    currency: str
    description: str
    lane: Lane


@dataclass(frozen=True, slots=True)
class Move:
    """A subscription moves on to its next period."""

    subscription_id: str
    status: str
    next_index: int
    next_local: datetime
    next_billing_at: datetime | None
    ends_at: datetime | None
    period_start: datetime
    period_end: datetime
    billed: int


_OPEN = text(
    """
    WITH new AS (
        SELECT * FROM unnest(CAST(:invoices AS text[]), CAST(:attempts AS text[]), CAST(:numbers AS text[]),
            CAST(:subscriptions AS text[]), CAST(:keys AS text[]), CAST(:indexes AS int[]),
            CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]), CAST(:amounts AS bigint[]),
            CAST(:currencies AS text[]), CAST(:descriptions AS text[]), CAST(:lanes AS smallint[]))
            AS x (invoice_id, attempt_id, number, subscription_id, period_key, period_index, period_start, period_end,
                amount_minor, currency, description, lane)
    ), invoices AS (
        INSERT INTO invoices (id, number, subscription_id, period_key, period_index, period_start, period_end,
            amount_minor, currency, status, opened_at)
        SELECT invoice_id, number, subscription_id, period_key, period_index, period_start, period_end, amount_minor,
            currency, 'open', :now FROM new
    ), lines AS (
        INSERT INTO invoice_lines (invoice_id, description, amount_minor)
        SELECT invoice_id, description, amount_minor FROM new
    )
    INSERT INTO charge_attempts (id, reference_id, invoice_id, subscription_id, number, origin, lane, status,
        amount_minor, currency, scheduled_at, run_id, created_at)
    SELECT attempt_id, attempt_id, invoice_id, subscription_id, 1, 'schedule', lane, 'scheduled',
        amount_minor, currency, :now, :run_id, :now FROM new
    """
)


def open_periods(session: Session, rows: Sequence[NewInvoice], now: datetime, run_id: str | None) -> None:
    """Writes what a batch of due subscriptions becomes: invoices, each with its line and its first attempt.

    One statement for all of them: an order of magnitude faster than one a row. Raises IntegrityError when a period has
    an invoice already (uq_invoices_subscription_period).
    """
    if not rows:
        return
    values = {
        "invoices": [row.invoice_id for row in rows],
        "attempts": [row.attempt_id for row in rows],
        "numbers": [row.number for row in rows],
        "subscriptions": [row.subscription_id for row in rows],
        "keys": [row.period_key for row in rows],
        "indexes": [row.period_index for row in rows],
        "starts": [row.period_start for row in rows],
        "ends": [row.period_end for row in rows],
        "amounts": [row.amount_minor for row in rows],
        "currencies": [row.currency for row in rows],
        "descriptions": [row.description for row in rows],
        "lanes": [int(row.lane) for row in rows],
        "now": now,
        "run_id": run_id,
    }
    session.execute(_OPEN, values)


_MOVE_ON = text(
    """
    UPDATE subscriptions s
    SET status = m.status, next_index = m.next_index, next_local = m.next_local, next_billing_at = m.next_billing_at,
        ends_at = m.ends_at, current_period_start = m.period_start, current_period_end = m.period_end,
        billed_cycles = s.billed_cycles + m.billed
    FROM unnest(CAST(:ids AS text[]), CAST(:statuses AS text[]), CAST(:indexes AS int[]), CAST(:locals AS timestamp[]),
        CAST(:instants AS timestamptz[]), CAST(:ends_at AS timestamptz[]), CAST(:starts AS timestamptz[]),
        CAST(:ends AS timestamptz[]), CAST(:billed AS int[]))
        AS m (id, status, next_index, next_local, next_billing_at, ends_at, period_start, period_end, billed)
    WHERE s.id = m.id
    """
)


def move_on(session: Session, moves: Sequence[Move]) -> None:
    """The rows are locked by the claim that found them due."""
    if not moves:
        return
    values = {
        "ids": [each.subscription_id for each in moves],
        "statuses": [each.status for each in moves],
        "indexes": [each.next_index for each in moves],
        "locals": [each.next_local for each in moves],
        "instants": [each.next_billing_at for each in moves],
        "ends_at": [each.ends_at for each in moves],
        "starts": [each.period_start for each in moves],
        "ends": [each.period_end for each in moves],
        "billed": [each.billed for each in moves],
    }
    session.execute(_MOVE_ON, values)


# ----------------------------------------------------------------------------------------------- begin


@dataclass(frozen=True, slots=True)
class TokenWithDeclines:
    """A token and what the network caps count: declines of its card, over all invoices and here since yesterday."""

    id: str
    payment_token_id: str
    status: str
    channel_code: str
    fingerprint: str | None
    rank: int
    blocked_reason: str | None
    unknown: bool  # Xendit says that it has no such token
    replaced: bool  # it was declined, and the customer has saved another since
    created_at: datetime
    declines_in_a_day: int
    declines_in_30_days: int
    declined_here_today: bool


@dataclass(frozen=True, slots=True)
class ToBegin:
    """A planned attempt and everything that could forbid it."""

    attempt_id: str
    reference_id: str
    subscription_id: str
    invoice_id: str
    number: int
    origin: str
    status: str
    scheduled_at: datetime
    amount_minor: int
    currency: str
    named_token: str | None
    run_id: str | None
    lane: int
    parked_by: str | None
    lease_until: datetime | None
    invoice_number: str
    invoice_status: str
    due_minor: int
    subscription_status: str
    own_token: str | None
    customer_id: str
    country: str
    plan_name: str
    plan_schedule: str
    run_state: str | None
    charging_stopped: bool
    invoice_opened_at: datetime
    tokens: list[TokenWithDeclines] = field(default_factory=list)


_DECLINES = """(SELECT count(*) FROM charge_attempts o WHERE o.fingerprint = t.fingerprint AND o.status = 'failed'
        AND (o.decline_class IS NULL OR o.decline_class NOT IN ('our_fault', 'not_sent')) AND o.settled_at >"""

_TO_BEGIN = text(
    f"""
    SELECT a.id, a.reference_id, a.subscription_id, a.invoice_id, a.number, a.origin, a.status, a.scheduled_at,
        a.amount_minor, a.currency, a.payment_token_id, a.run_id, a.lane, a.parked_by, a.lease_until,
        i.number, i.status, i.amount_minor - (SELECT coalesce(sum(k.amount_minor), 0) FROM captures k
            WHERE k.invoice_id = i.id AND NOT k.overpayment), s.status, s.payment_token_id,
        c.id, c.country, p.name, p.schedule, r.state, EXISTS (SELECT FROM charging_stop),
        i.opened_at, t.id, t.payment_token_id, t.status, t.channel_code, t.fingerprint, t.rank, t.blocked_reason,
        t.unknown_since IS NOT NULL, t.replaced_at IS NOT NULL, t.created_at,
        {_DECLINES} :a_day_ago), {_DECLINES} :a_month_ago),
        EXISTS (SELECT FROM charge_attempts h WHERE h.subscription_id = a.subscription_id
            AND h.fingerprint = t.fingerprint AND h.status = 'failed' AND h.settled_at > :a_day_ago
            AND h.decline_class IN ('retry_later', 'needs_customer', 'dead_token', 'unknown_first'))
    FROM charge_attempts a
    JOIN invoices i ON i.id = a.invoice_id
    JOIN subscriptions s ON s.id = a.subscription_id
    JOIN plans p ON p.id = s.plan_id
    JOIN customers c ON c.id = s.customer_id
    LEFT JOIN billing_runs r ON r.id = a.run_id
    LEFT JOIN payment_tokens t ON t.customer_id = c.id
    WHERE a.id = ANY(CAST(:ids AS text[]))
    """  # noqa: S608 - our own statement, twice
)


def to_begin(session: Session, ids: Sequence[str], now: datetime) -> list[ToBegin]:
    """The attempts, their surroundings and the customers' tokens with their declines, in one statement."""
    values = {"ids": list(ids), "a_day_ago": now - timedelta(days=1), "a_month_ago": now - timedelta(days=30)}
    found: dict[str, ToBegin] = {}
    for row in session.execute(_TO_BEGIN, values):
        each = found.get(row[0])
        if each is None:
            each = found[row[0]] = ToBegin(*row[:27])
        if row[27] is not None:
            each.tokens.append(TokenWithDeclines(*row[27:]))
    return [found[identity] for identity in ids if identity in found]


# Locked in the order of their ids, as everybody does who takes several.
_SUBMIT = text(
    """
    WITH mine AS MATERIALIZED (
        SELECT id FROM charge_attempts WHERE id = ANY(CAST(:ids AS text[])) AND status = 'scheduled'
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE charge_attempts a
    SET status = 'submitted', submitted_at = :now, payment_token_id = n.token, fingerprint = n.card,
        lease_until = :until, lease_id = :lease, error = NULL
    FROM mine JOIN unnest(CAST(:ids AS text[]), CAST(:tokens AS text[]), CAST(:cards AS text[])) AS n (id, token, card)
        ON n.id = mine.id
    WHERE a.id = mine.id AND a.status = 'scheduled' AND a.parked_by IS NULL
    RETURNING a.id
    """
)


def submit(
    session: Session,
    chosen: Sequence[tuple[str, TokenWithDeclines]],
    *,
    lease_id: str,
    now: datetime,
    lease_until: datetime,
) -> set[str]:
    """scheduled -> submitted, for (attempt id, token to charge). Returns those that the caller has won (D6)."""
    values = {
        "ids": [attempt_id for attempt_id, _ in chosen],
        "tokens": [token.id for _, token in chosen],
        "cards": [token.fingerprint for _, token in chosen],
        "lease": lease_id,
        "now": now,
        "until": lease_until,
    }
    return set(session.scalars(_SUBMIT, values))


_RENEW = text(
    """
    WITH mine AS MATERIALIZED (
        SELECT a.id FROM charge_attempts a
        JOIN unnest(CAST(:ids AS text[]), CAST(:leases AS text[])) AS n (id, lease)
            ON n.id = a.id AND n.lease = a.lease_id
        WHERE a.status = 'submitted' ORDER BY a.id FOR NO KEY UPDATE OF a
    )
    UPDATE charge_attempts a SET lease_until = :until FROM mine WHERE a.id = mine.id
    """
)


def renew(session: Session, held: Sequence[tuple[str, str]], until: datetime) -> None:
    """The leases of (attempt id, lease id), where they still stand."""
    values = {"ids": [attempt_id for attempt_id, _ in held], "leases": [lease_id for _, lease_id in held]}
    session.execute(_RENEW, values | {"until": until})


@dataclass(frozen=True, slots=True)
class Paid:
    """What Xendit's answer said of an attempt that took exactly what it asked for."""

    attempt_id: str
    subscription_id: str
    capture_id: str
    payment_request_id: str | None
    payment_id: str | None
    captured_at: datetime
    amount: str  # for the story
    amount_known: bool  # the answer says what was captured, not only what was asked for


_LOCK_ALL = text("SELECT id FROM subscriptions WHERE id = ANY(CAST(:ids AS text[])) ORDER BY id FOR NO KEY UPDATE")
# Under the locks, so that what `ready` finds stays true for the rest of the statement.
_PAY = text(
    """
    WITH said AS (
        SELECT * FROM unnest(CAST(:attempts AS text[]), CAST(:captures AS text[]), CAST(:requests AS text[]),
            CAST(:payments AS text[]), CAST(:captured AS timestamptz[]), CAST(:amounts AS text[]),
            CAST(:known AS boolean[]))
            AS x (attempt_id, capture_id, payment_request_id, payment_id, captured_at, amount, amount_known)
    ), ready AS (
        SELECT said.*, a.invoice_id, a.subscription_id, a.amount_minor, a.currency, i.number
        FROM said
        JOIN charge_attempts a ON a.id = said.attempt_id
        JOIN invoices i ON i.id = a.invoice_id
        JOIN subscriptions s ON s.id = a.subscription_id
        WHERE a.status = 'submitted' AND a.origin <> 'session' AND NOT a.cancel_wanted
            AND i.status = 'open' AND i.amount_minor = a.amount_minor AND i.amount_paid_minor = 0
            AND i.first_failed_at IS NULL AND s.status = 'active' AND NOT s.calendar_over
            AND (s.ends_at IS NULL OR s.ends_at > :now)
            AND NOT EXISTS (SELECT FROM captures c WHERE c.invoice_id = i.id)
    ), attempts AS (
        UPDATE charge_attempts a SET status = 'succeeded', settled_at = :now, lease_until = NULL,
            next_check_at = NULL, decline_class = NULL, payment_request_id = r.payment_request_id,
            payment_id = r.payment_id
        FROM ready r WHERE a.id = r.attempt_id
    ), invoices AS (
        UPDATE invoices i SET status = 'paid', closed_at = :now, amount_paid_minor = i.amount_minor,
            grace_ends_at = NULL, hold_reason = NULL, hold_kind = NULL, hold_run_id = NULL
        FROM ready r WHERE i.id = r.invoice_id
    ), captured AS (
        INSERT INTO captures (id, payment_id, payment_request_id, invoice_id, attempt_id, amount_minor, currency,
            overpayment, amount_known, captured_at)
        SELECT capture_id, payment_id, payment_request_id, invoice_id, attempt_id, amount_minor, currency, false,
            amount_known, captured_at FROM ready
    ), told AS (
        INSERT INTO facts (subscription_id, at, kind, detail)
        SELECT subscription_id, :now, 'invoice.paid', jsonb_build_object(
            'invoice', number, 'attempt', attempt_id, 'amount', amount, 'source', 'answer') FROM ready
    )
    SELECT attempt_id FROM ready
    """
)


def pay(session: Session, paid: Sequence[Paid], now: datetime) -> set[str]:
    """submitted -> succeeded, and the invoice paid: the ordinary case, where nothing else moves. Returns the attempts
    for which that was the case; the others are untouched, and `settle_attempt` is for them."""
    session.execute(_LOCK_ALL, {"ids": sorted({each.subscription_id for each in paid})})
    values = {
        "attempts": [each.attempt_id for each in paid],
        "captures": [each.capture_id for each in paid],
        "requests": [each.payment_request_id for each in paid],
        "payments": [each.payment_id for each in paid],
        "captured": [each.captured_at for each in paid],
        "amounts": [each.amount for each in paid],
        "known": [each.amount_known for each in paid],
        "now": now,
    }
    return set(session.scalars(_PAY, values))


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A stored event that says: this payment has succeeded, and so much was captured (None: it does not say)."""

    event_id: str
    payment_id: str
    amount: Money | None


_CONFIRM = text(
    """
    WITH known AS (
        SELECT said.event_id, c.id AS capture_id, c.amount_known, said.amount_minor, a.subscription_id
        FROM unnest(CAST(:events AS text[]), CAST(:payments AS text[]), CAST(:amounts AS bigint[]),
            CAST(:currencies AS text[])) AS said (event_id, payment_id, amount_minor, currency)
        JOIN captures c ON c.payment_id = said.payment_id
        JOIN charge_attempts a ON a.id = c.attempt_id
        WHERE a.status = 'succeeded' AND (said.amount_minor IS NULL
            OR (said.amount_minor = c.amount_minor AND said.currency = c.currency))
    ), captured AS (
        UPDATE captures c SET amount_known = true FROM known
        WHERE c.id = known.capture_id AND NOT known.amount_known AND known.amount_minor IS NOT NULL
    )
    UPDATE webhook_events e
    SET state = 'applied', applied_at = :now, next_try_at = NULL, lease_until = NULL, error = NULL,
        tries = e.tries + 1, subscription_id = known.subscription_id
    FROM known WHERE e.id = known.event_id AND e.state = 'received'
    RETURNING e.id
    """
)


def confirm(session: Session, confirmations: Sequence[Confirmation], now: datetime) -> set[str]:
    """Marks as applied what tells nothing new: the capture is known, and it is as much as the event says, which is
    certain from then on. Returns those events; the others are untouched."""
    values = {
        "events": [each.event_id for each in confirmations],
        "payments": [each.payment_id for each in confirmations],
        "amounts": [each.amount.amount_minor if each.amount else None for each in confirmations],
        "currencies": [each.amount.currency if each.amount else None for each in confirmations],
        "now": now,
    }
    return set(session.scalars(_CONFIRM, values))
