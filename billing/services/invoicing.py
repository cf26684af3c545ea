"""From a due subscription to an invoice and its first attempt; `next_billing_at` moves in the same transaction.

Done in batches: the cost of opening grows with what is due. A subscription that cannot be opened is put on hold with
the reason; the rest of the batch goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from billing.domain import catch_up
from billing.domain.gateway import Lane
from billing.domain.lifecycle import HoldKind, SubscriptionStatus
from billing.domain.schedule import Period
from billing.errors import BillingError
from billing.services.parts import tell
from billing.services.subscriptions import (
    Calendar,
    calendar_of,
    end,
    invoice_number,
    record_skipped,
)
from billing.store import opening, queries
from billing.store.models import Plan, Subscription, new_id
from billing.store.opening import Move, NewInvoice

BATCH = 500
CATCH_UP_LIMIT = 12  # periods of one subscription and run; more than that is a person's decision
DUE_LIMIT = 1_000  # periods looked at at once

log = structlog.get_logger()


@dataclass(slots=True)
class Opened:
    """What one batch did. `more` says that there may be more to open."""

    invoices: int = 0
    more: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (subscription id, reason)


@dataclass(slots=True)
class _Rows:
    """What a batch writes, in three statements whatever its size."""

    invoices: list[NewInvoice] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


def open_due_invoices(session: Session, now: datetime, *, run_id: str | None = None, limit: int = BATCH) -> Opened:
    """Open what is due, at most `limit` subscriptions. Call again while `more`."""
    claimed = queries.claim_due_subscriptions(session, now, limit)
    opened = Opened(more=len(claimed) == limit)
    try:
        with session.begin_nested():
            _open_all(session, claimed, now, run_id, opened)
    except (BillingError, IntegrityError, ValueError):
        # One of them cannot be opened, and nobody else may suffer for it (M3): one by one, the bad one is held.
        opened = Opened(more=len(claimed) == limit)
        for each in claimed:
            _open_or_hold(session, each, now, run_id, opened)
    return opened


def _open_or_hold(
    session: Session, each: tuple[Subscription, Plan], now: datetime, run_id: str | None, opened: Opened
) -> None:
    subscription, _ = each
    try:
        with session.begin_nested():
            _open_all(session, [each], now, run_id, opened)
    except (BillingError, IntegrityError, ValueError) as error:
        reason = str(error).splitlines()[0]
        subscription.hold_reason = subscription.open_error = reason
        opened.skipped.append((subscription.id, reason))
        tell(session, subscription.id, now, "subscription.held", reason=reason)
        log.error("subscription.held", subscription=subscription.id, error=reason)


def _open_all(
    session: Session, claimed: Sequence[tuple[Subscription, Plan]], now: datetime, run_id: str | None, opened: Opened
) -> None:
    rows = _Rows()
    for subscription, plan in claimed:
        _open_one(session, subscription, plan, now, run_id, rows, opened)
    session.flush()
    opening.insert(session, rows.invoices, now, run_id)
    opening.move(session, rows.moves)
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
    if subscription.cancel_at_period_end or _all_cycles_billed(subscription, plan):
        reason = "the period it was canceled for is over" if subscription.cancel_at_period_end else "all cycles billed"
        end(session, subscription, now, reason=reason)
        opened.skipped.append((subscription.id, reason))
        return
    calendar = calendar_of(subscription, plan.schedule)
    due, upcoming = _due_and_next(subscription, plan, calendar, now)
    decision = decide(subscription, plan, due)
    rows.invoices += [_new_invoice(subscription, plan, period) for period in decision.bill]
    if decision.skip:
        reason = f"missed; catch-up policy {plan.catch_up}"
        record_skipped(session, subscription.id, decision.skip, reason, now, run_id)
        tell(session, subscription.id, now, "periods.skipped", count=len(decision.skip), reason=reason)
        opened.skipped.append((subscription.id, f"{len(decision.skip)} period(s): {reason}"))
    if decision.hold is not None:
        subscription.hold_reason, subscription.hold_kind = decision.hold, HoldKind.CATCH_UP
        tell(session, subscription.id, now, "subscription.held", reason=decision.hold)
        opened.skipped.append((subscription.id, decision.hold))
    passed = (*decision.bill, *decision.skip)
    if passed:
        last = passed[0] if len(passed) == 1 else max(passed, key=lambda period: period.index)
        following = upcoming if last.index + 1 == upcoming.index else calendar.after(last)
        rows.moves.append(_move(subscription, last, following, billed=len(decision.bill)))


def decide(subscription: Subscription, plan: Plan, due: Sequence[Period]) -> catch_up.Decision:
    """What the plan's policy says of the due periods; those a person has released from a hold are billed."""
    approved = subscription.catch_up_until is not None and due[0].start <= subscription.catch_up_until
    policy = catch_up.CatchUp.ALL if approved else catch_up.CatchUp(plan.catch_up)
    return catch_up.decide(policy, due, limit=CATCH_UP_LIMIT)


def due_periods(
    subscription: Subscription, plan: Plan, calendar: Calendar, now: datetime, limit: int = DUE_LIMIT
) -> list[Period]:
    """Oldest first, at most `limit`."""
    return _due_and_next(subscription, plan, calendar, now, limit)[0]


def _due_and_next(
    subscription: Subscription, plan: Plan, calendar: Calendar, now: datetime, limit: int = DUE_LIMIT
) -> tuple[list[Period], Period]:
    """What is due, and the first period that is not (or that is one too many to look at at once)."""
    assert subscription.next_local is not None  # noqa: S101 - set together with next_billing_at
    due: list[Period] = []
    left = limit if plan.cycles is None else min(limit, plan.cycles - subscription.billed_cycles)
    period = calendar.at(subscription.next_index, subscription.next_local)
    while period.start <= now and len(due) < left:
        due.append(period)
        period = calendar.after(period)
    return due, period


def _move(subscription: Subscription, last: Period, following: Period, *, billed: int) -> Move:
    trial_is_over = subscription.status == SubscriptionStatus.TRIALING and billed > 0
    return Move(
        subscription.id,
        status=SubscriptionStatus.ACTIVE if trial_is_over else subscription.status,
        next_index=following.index,
        next_local=following.start_local,
        next_billing_at=following.start,
        period_start=last.start,
        period_end=last.end,
        billed=billed,
    )


def _all_cycles_billed(subscription: Subscription, plan: Plan) -> bool:
    return plan.cycles is not None and subscription.billed_cycles >= plan.cycles


def _new_invoice(subscription: Subscription, plan: Plan, period: Period) -> NewInvoice:
    return NewInvoice(
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
