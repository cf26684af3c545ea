"""From a due subscription to an invoice and its first attempt; `next_billing_at` moves in the same transaction.

Done in batches: the cost of opening grows with what is due. A subscription that cannot be opened, for whatever reason,
is put on hold with that reason; the rest of the batch goes on. A batch ends after a second, because a transaction that
computes for long is ended by the database.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.domain import catch_up
from billing.domain.gateway import Lane
from billing.domain.lifecycle import HoldKind, SubscriptionStatus
from billing.domain.schedule import Calendar, Period
from billing.errors import BillingError
from billing.parts import tell
from billing.store import queries
from billing.store.clock import uptime
from billing.store.models import Plan, Subscription, new_id
from billing.store.trouble import raise_if_databases_trouble
from billing.subscriptions.moves import (
    NEAR_THE_END,
    PERIOD_OVER,
    calendar_of,
    cycles_left,
    end_if_over,
    invoice_number,
    no_more_periods,
    plan_next,
    record_skipped,
)

BATCH = 500
CATCH_UP_LIMIT = 12  # periods of one subscription and run; more than that is a person's decision
DUE_LIMIT = 1_000  # periods looked at at once
LONGEST_SECONDS = 1.0  # of computing in one transaction

log = structlog.get_logger()


@dataclass(slots=True)
class Opened:
    """What one batch did. `more` says that there may be more to open."""

    invoices: int = 0
    more: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (subscription id, reason)


@dataclass(frozen=True, slots=True)
class _NewInvoice:
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
class _Move:
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


@dataclass(slots=True)
class _Rows:
    """What a batch writes, in three statements whatever its size."""

    invoices: list[_NewInvoice] = field(default_factory=list)
    moves: list[_Move] = field(default_factory=list)


def open_due_invoices(
    session: Session, now: datetime, *, run_id: str | None = None, limit: int = BATCH, newest_first: bool = False
) -> Opened:
    """Open what is due, at most `limit` subscriptions. Call again while `more`."""
    claimed = queries.claim_due_subscriptions(session, now, limit, newest_first=newest_first)
    opened = Opened(more=len(claimed) == limit)
    if not claimed:
        return opened
    until = uptime() + LONGEST_SECONDS
    try:
        with session.begin_nested():
            _open_all(session, claimed, now, run_id, opened, until)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one row's
        # One of them cannot be opened, and nobody else may suffer for it (M3): one by one, the bad one is held.
        raise_if_databases_trouble(error)
        opened, until = Opened(more=len(claimed) == limit), uptime() + LONGEST_SECONDS
        for number, each in enumerate(claimed):
            if number and uptime() > until:
                opened.more = True
                break
            _open_or_hold(session, each, now, run_id, opened)
    return opened


def _open_or_hold(
    session: Session, each: tuple[Subscription, Plan], now: datetime, run_id: str | None, opened: Opened
) -> None:
    subscription, _ = each
    try:
        with session.begin_nested():
            _open_all(session, [each], now, run_id, opened)
    except Exception as error:  # noqa: BLE001 - it holds this row, with its words
        raise_if_databases_trouble(error)
        reason = in_one_line(error)
        hold_subscription(session, subscription, now, reason, HoldKind.ERROR)
        subscription.open_error = reason
        opened.skipped.append((subscription.id, reason))
        log.error("subscription.held", subscription=subscription.id, error=reason)


def in_one_line(error: Exception) -> str:
    """What went wrong with one row, for people. Refusals of ours are sentences; anything else is named by its kind."""
    words = (str(error).splitlines() or [""])[0][:200]
    return words if isinstance(error, BillingError) else f"{error.__class__.__name__}: {words}".removesuffix(": ")


def open_one(session: Session, subscription: Subscription, plan: Plan, now: datetime) -> None:
    """What is due of one subscription, whose row is locked; or it is held with the reason."""
    _open_or_hold(session, (subscription, plan), now, None, Opened())


def _open_all(
    session: Session,
    claimed: Sequence[tuple[Subscription, Plan]],
    now: datetime,
    run_id: str | None,
    opened: Opened,
    until: float = math.inf,
) -> None:
    rows = _Rows()
    for number, (subscription, plan) in enumerate(claimed):
        if number and uptime() > until:
            opened.more = True  # the rest is free again with the commit
            break
        _open_one(session, subscription, plan, now, run_id, rows, opened)
    session.flush()
    _write_invoices(session, rows.invoices, now, run_id)
    _move_on(session, rows.moves)
    opened.invoices += len(rows.invoices)


def _open_one(
    session: Session,
    subscription: Subscription,
    plan: Plan,
    now: datetime,
    run_id: str | None,
    rows: _Rows,
    opened: Opened,
) -> None:
    if ends_before_next(subscription):
        subscription.ends_at = subscription.ends_at or subscription.next_billing_at
        subscription.next_billing_at = None
        end_if_over(session, subscription, now)
        opened.skipped.append((subscription.id, PERIOD_OVER))
        return
    if cycles_left(subscription, plan) == 0:
        # Left by a release that planned one more date: nothing is due, and what is owed is followed.
        no_more_periods(subscription, subscription.current_period_end or now)
        return
    calendar = calendar_of(subscription, plan.schedule)
    due, upcoming = _due_and_next(subscription, calendar, now)
    if not due:
        # The rules of its zone have changed since this date was stored: planned again from the wall clock.
        plan_next(subscription, upcoming)
        return
    decision = decide(subscription, plan, due, more=upcoming.start <= now)
    rows.invoices += [_new_invoice(subscription, plan, period) for period in decision.bill]
    if decision.skip:
        reason = f"missed; catch-up policy {plan.catch_up}"
        record_skipped(session, subscription.id, decision.skip, reason, now, run_id)
        tell(session, subscription.id, now, "periods.skipped", count=len(decision.skip), reason=reason)
        opened.skipped.append((subscription.id, f"{len(decision.skip)} period(s): {reason}"))
    if decision.hold is not None:
        hold_subscription(session, subscription, now, decision.hold, HoldKind.CATCH_UP)
        opened.skipped.append((subscription.id, decision.hold))
    passed = (*decision.bill, *decision.skip)
    if passed:
        last = passed[0] if len(passed) == 1 else max(passed, key=lambda period: period.index)
        following = upcoming if last.index + 1 == upcoming.index else calendar.after(last)
        rows.moves.append(_move(subscription, plan, last, following, decision))


def ends_before_next(subscription: Subscription) -> bool:
    """Whether the period that is due begins after the end somebody has asked for. (A release before stored no end: it
    meant the next date.)"""
    due_at = subscription.next_billing_at
    ends_at = subscription.ends_at or (due_at if subscription.cancel_at_period_end else None)
    return ends_at is not None and due_at is not None and due_at > ends_at - NEAR_THE_END


def hold_subscription(session: Session, subscription: Subscription, now: datetime, reason: str, kind: HoldKind) -> None:
    """Nothing more is opened for it until the hold ends; nobody else is held up."""
    subscription.hold_reason, subscription.hold_kind = reason, kind
    tell(session, subscription.id, now, "subscription.held", reason=reason)


def decide(subscription: Subscription, plan: Plan, due: Sequence[Period], *, more: bool = False) -> catch_up.Decision:
    """What the plan's policy says of all due periods, and of those to be billed as many as the subscription has cycles
    left. Those that were due when a person approved them are billed first. `more`: others are due after these."""
    until = subscription.catch_up_until
    approved = [period for period in due if until is not None and period.start <= until]
    policy = catch_up.CatchUp.ALL if approved else catch_up.CatchUp(plan.catch_up)
    due = approved or due
    left = cycles_left(subscription, plan)
    if policy == catch_up.CatchUp.ALL and left is not None:
        due, more = due[:left], more and left > len(due)
    if more and policy == catch_up.CatchUp.LATEST:
        return catch_up.Decision(skip=tuple(due))  # the latest of all is not among them
    return catch_up.decide(policy, due, limit=CATCH_UP_LIMIT)


def due_periods(subscription: Subscription, calendar: Calendar, now: datetime, limit: int = DUE_LIMIT) -> list[Period]:
    """As `decide` wants them: oldest first, at most `limit`."""
    return _due_and_next(subscription, calendar, now, limit)[0]


def _due_and_next(
    subscription: Subscription, calendar: Calendar, now: datetime, limit: int = DUE_LIMIT
) -> tuple[list[Period], Period]:
    """What is due, and the first period that is not (or that is one too many to look at at once). None begins at or
    after the end of the subscription."""
    assert subscription.next_local is not None  # noqa: S101 - set together with next_billing_at
    due: list[Period] = []
    period = calendar.at(subscription.next_index, subscription.next_local)
    last = now if subscription.ends_at is None else min(now, subscription.ends_at - NEAR_THE_END)
    while period.start <= last and len(due) < limit:
        due.append(period)
        period = calendar.after(period)
    return due, period


def _move(
    subscription: Subscription, plan: Plan, last: Period, following: Period, decision: catch_up.Decision
) -> _Move:
    billed = len(decision.bill)
    trial_is_over = subscription.status == SubscriptionStatus.TRIALING and billed > 0
    was_last = plan.cycles is not None and subscription.billed_cycles + billed >= plan.cycles
    return _Move(
        subscription.id,
        status=SubscriptionStatus.ACTIVE if trial_is_over else subscription.status,
        next_index=following.index,
        next_local=following.start_local,
        next_billing_at=None if was_last else following.start,
        ends_at=min(subscription.ends_at or last.end, last.end) if was_last else subscription.ends_at,
        period_start=last.start,
        period_end=last.end,
        billed=billed,
    )


def _new_invoice(subscription: Subscription, plan: Plan, period: Period) -> _NewInvoice:
    return _NewInvoice(
        new_id("inv"),
        new_id("att"),
        invoice_number(subscription, period),
        subscription.id,
        period_key=period.key,
        period_index=period.index,
        period_start=period.start,
        period_end=period.end,
        amount_minor=subscription.amount_minor,
        currency=subscription.currency,
        description=plan.name,
        lane=_lane(subscription, plan, period),
    )


def _lane(subscription: Subscription, plan: Plan, period: Period) -> Lane:
    """Who has just subscribed without a trial and without a date waits for the first charge to go through."""
    first = period.index == 0 and plan.trial_days == 0 and subscription.start_at is None
    return Lane.CUSTOMER if first else Lane.RENEWAL


def skipped_ids(opened: Sequence[Opened]) -> list[dict[str, str]]:
    """For the report of a run."""
    return [{"subscription_id": s, "reason": r} for batch in opened for s, r in batch.skipped]


# ------------------------------------------------------------------------------------------- the statements

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


def _write_invoices(session: Session, rows: Sequence[_NewInvoice], now: datetime, run_id: str | None) -> None:
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


def _move_on(session: Session, moves: Sequence[_Move]) -> None:
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
