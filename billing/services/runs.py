"""The billing run: one pass over what is due, with a record. Without Redis it does the work and returns when nothing
is due; with Redis it hands the work to the workers and may wait for them. Safe to start twice at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from billing.domain.lifecycle import BILLABLE, AttemptStatus, InvoiceStatus, TokenStatus
from billing.domain.money import Money
from billing.errors import ServiceUnavailable
from billing.services import dispatch, invoicing
from billing.services.parts import Parts, Send
from billing.services.subscriptions import calendar_of
from billing.services.views import Json, instant
from billing.store import queries
from billing.store.clock import real_now
from billing.store.models import (
    BillingRun,
    ChargeAttempt,
    ChargingStop,
    Customer,
    Invoice,
    PaymentToken,
    Plan,
    Subscription,
    new_id,
)

POLL_SECONDS = 0.2
STALLED_SECONDS = 600  # --wait gives up when workers show no progress for so long

Progress = Callable[[Json], None]


@dataclass(frozen=True, slots=True)
class Run:
    id: str
    at: datetime


def run_here(parts: Parts, send: Send, at: datetime | None, progress: Progress) -> Json:
    """Everything due, done in this process: left-over events, openings, charges, look-ups, until nothing is due."""
    run, skipped = _start(parts, at)
    while True:
        moved = dispatch.hand_out_checks(parts, send, dispatch.look(parts))
        dispatch.retire(parts)
        moved += _open(parts, run, skipped)
        moved += dispatch.hand_out_charges(parts, send, run_id=run.id, now=_as_of(parts, at))
        progress(_totals(parts, run))
        if not moved:
            return _finish(parts, run, skipped)


def run_on_workers(
    parts: Parts,
    send: Send,
    at: datetime | None,
    progress: Progress,
    *,
    wait: bool,
    poll_seconds: float = POLL_SECONDS,
) -> Json:
    """Open here, charge there. Without `wait` the scheduler (or the next run) hands out what does not fit at once."""
    run, skipped = _start(parts, at)
    _open(parts, run, skipped)
    dispatch.hand_out_checks(parts, send, dispatch.look(parts))
    dispatch.retire(parts)
    dispatch.hand_out_charges(parts, send, run_id=run.id, now=_as_of(parts, at))
    if not wait:
        return _report(parts, run, skipped)
    last, moved_at = _totals(parts, run), time.monotonic()
    while _work_left(parts, _as_of(parts, at)):
        time.sleep(poll_seconds)
        _open(parts, run, skipped)
        dispatch.retire(parts)
        dispatch.hand_out_charges(parts, send, run_id=run.id, now=_as_of(parts, at))
        dispatch.hand_out_checks(parts, send, dispatch.look(parts))
        totals = _totals(parts, run)
        progress(totals)
        if totals != last:
            last, moved_at = totals, time.monotonic()
        elif time.monotonic() - moved_at > STALLED_SECONDS:
            raise ServiceUnavailable(
                f"run {run.id} makes no progress: no worker answers; start `dramatiq workers`,"
                " nothing is lost and the run goes on by itself"
            )
    return _finish(parts, run, skipped)


def _as_of(parts: Parts, at: datetime | None) -> datetime:
    return at or parts.clock.now()


def _start(parts: Parts, at: datetime | None) -> tuple[Run, list[dict[str, str]]]:
    run = Run(new_id("run"), _as_of(parts, at))
    with parts.transaction() as session:
        session.add(BillingRun(id=run.id, at=run.at, started_at=real_now(), opened=0))
        skipped = [
            {"subscription_id": identity, "reason": f"on hold: {reason}"}
            for identity, reason in session.execute(_held(run.at))
        ]
        stop = session.scalar(select(ChargingStop.reason))
    if stop is not None:
        raise ServiceUnavailable(f"charging is stopped: {stop}; put it right, then `billing charging resume`")
    return run, skipped


def _held(at: datetime) -> Any:
    return select(Subscription.id, Subscription.hold_reason).where(
        Subscription.next_billing_at <= at,
        Subscription.status.in_(BILLABLE),
        Subscription.hold_reason.is_not(None),
    )


def _open(parts: Parts, run: Run, skipped: list[dict[str, str]]) -> int:
    batches = dispatch.open_all_due(parts, run.at, run_id=run.id)
    skipped.extend(invoicing.skipped_ids(batches))
    opened = sum(batch.invoices for batch in batches)
    if opened:
        with parts.transaction() as session:
            row = session.get_one(BillingRun, run.id)
            row.opened += opened
    return opened


def _work_left(parts: Parts, at: datetime) -> bool:
    """Attempts that are due or in a worker's hands."""
    with parts.reading() as session:
        query = select(ChargeAttempt.id).where(
            ((ChargeAttempt.status == AttemptStatus.SCHEDULED) & (ChargeAttempt.scheduled_at <= at))
            | (ChargeAttempt.status == AttemptStatus.SUBMITTED)
        )
        stopped = session.scalar(select(ChargingStop.id)) is not None
        return not stopped and session.scalar(query.limit(1)) is not None


def _totals(parts: Parts, run: Run) -> Json:
    with parts.reading() as session:
        counted = session.execute(
            select(ChargeAttempt.status, func.count())
            .where(ChargeAttempt.run_id == run.id)
            .group_by(ChargeAttempt.status)
        )
        by_status: dict[str, int] = {row[0]: row[1] for row in counted}
        opened = session.scalar(select(BillingRun.opened).where(BillingRun.id == run.id)) or 0
    waiting = by_status.get(AttemptStatus.SCHEDULED, 0)
    return {
        "opened": opened,
        "attempted": sum(by_status.values()) - waiting - by_status.get(AttemptStatus.CANCELED, 0),
        "succeeded": by_status.get(AttemptStatus.SUCCEEDED, 0),
        "failed": by_status.get(AttemptStatus.FAILED, 0),
        "in_doubt": by_status.get(AttemptStatus.IN_DOUBT, 0),
        "pending": sum(
            by_status.get(status, 0)
            for status in (AttemptStatus.PENDING, AttemptStatus.REQUIRES_ACTION, AttemptStatus.SUBMITTED)
        ),
        "waiting": waiting,
    }


def _finish(parts: Parts, run: Run, skipped: list[dict[str, str]]) -> Json:
    with parts.transaction() as session:
        session.get_one(BillingRun, run.id).finished_at = real_now()
    return _report(parts, run, skipped)


def _report(parts: Parts, run: Run, skipped: list[dict[str, str]]) -> Json:
    """With `stopped` (the account was refused) and `not_sent` (why charges of this run still wait), if any."""
    with parts.reading() as session:
        stop = session.scalar(select(ChargingStop.reason))
        not_sent = session.scalar(
            select(ChargeAttempt.error).where(
                ChargeAttempt.run_id == run.id,
                ChargeAttempt.status == AttemptStatus.SCHEDULED,
                ChargeAttempt.error.is_not(None),
            )
        )
    outcome = {"skipped": skipped, "stopped": stop, "not_sent": not_sent}
    return {"run_id": run.id, "at": instant(run.at)} | _totals(parts, run) | outcome


# -------------------------------------------------------------------------------------------------- dry run


def dry_run(parts: Parts, at: datetime | None, limit: int = 10_000) -> Json:
    """Who would be charged, how much, with which token, and who is skipped and why. Writes nothing, asks nobody."""
    now = _as_of(parts, at)
    planned: list[Json] = []
    with parts.reading() as session:
        skipped = [
            {"subscription_id": identity, "reason": f"on hold: {reason}"}
            for identity, reason in session.execute(_held(now))
        ]
        _plan_openings(session, now, limit, planned, skipped)
        opened = len(planned)
        _plan_retries(session, now, planned)
    totals: dict[str, Money] = {}
    for line in planned:
        money = Money.parse(line["amount"], line["currency"])
        totals[money.currency] = totals.get(money.currency, Money.zero(money.currency)) + money
    return {
        "run_id": None,
        "at": instant(now),
        "opened": opened,
        "attempted": len(planned),
        "succeeded": 0,
        "failed": 0,
        "in_doubt": 0,
        "pending": 0,
        "skipped": skipped,
        "planned": planned,
        "totals": {currency: str(total) for currency, total in totals.items()},
        "dry_run": True,
    }


def _plan_openings(
    session: Session, now: datetime, limit: int, planned: list[Json], skipped: list[dict[str, str]]
) -> None:
    query = (
        select(Subscription, Plan, Customer)
        .join(Plan, Plan.id == Subscription.plan_id)
        .join(Customer, Customer.id == Subscription.customer_id)
        .where(
            Subscription.next_billing_at <= now,
            Subscription.status.in_(BILLABLE),
            Subscription.hold_reason.is_(None),
        )
        .order_by(Subscription.next_billing_at)
        .limit(limit)
    )
    for subscription, plan, customer in session.execute(query):
        if subscription.cancel_at_period_end:
            skipped.append({"subscription_id": subscription.id, "reason": "the period it was canceled for is over"})
            continue
        calendar = calendar_of(subscription, plan.schedule)
        due = invoicing.due_periods(subscription, plan, calendar, now)
        if not due:
            skipped.append({"subscription_id": subscription.id, "reason": "all cycles billed"})
            continue
        decision = invoicing.decide(subscription, plan, due)
        token = _first_token(session, subscription)
        for period in decision.bill:
            amount = Money(subscription.amount_minor, subscription.currency)
            planned.append(_line(subscription, customer.reference, amount, instant(period.start), token))
        if decision.skip:
            reason = f"{len(decision.skip)} missed period(s); catch-up policy {plan.catch_up}"
            skipped.append({"subscription_id": subscription.id, "reason": reason})
        if decision.hold:
            skipped.append({"subscription_id": subscription.id, "reason": decision.hold})


def _plan_retries(session: Session, now: datetime, planned: list[Json]) -> None:
    query = (
        select(ChargeAttempt, Subscription, Customer.reference, Invoice.period_start)
        .join(Invoice, Invoice.id == ChargeAttempt.invoice_id)
        .join(Subscription, Subscription.id == ChargeAttempt.subscription_id)
        .join(Customer, Customer.id == Subscription.customer_id)
        .where(
            ChargeAttempt.status == AttemptStatus.SCHEDULED,
            ChargeAttempt.scheduled_at <= now,
            Invoice.status == InvoiceStatus.OPEN,
        )
    )
    for attempt, subscription, reference, start in session.execute(query):
        amount = Money(attempt.amount_minor, attempt.currency)
        token = _first_token(session, subscription)
        planned.append(_line(subscription, reference, amount, instant(start), token) | {"attempt": attempt.number})


def _first_token(session: Session, subscription: Subscription) -> PaymentToken | None:
    query = (
        select(PaymentToken)
        .where(
            PaymentToken.customer_id == subscription.customer_id,
            PaymentToken.status.in_({TokenStatus.ACTIVE, TokenStatus.PENDING}),
            PaymentToken.blocked_reason.is_(None),
        )
        .order_by((PaymentToken.id == subscription.payment_token_id).desc(), PaymentToken.rank)
    )
    return session.scalar(query.limit(1))


def _line(
    subscription: Subscription, customer: str, amount: Money, period_start: str | None, token: PaymentToken | None
) -> Json:
    return {
        "subscription_id": subscription.id,
        "customer": customer,
        "amount": str(amount),
        "currency": amount.currency,
        "period_start": period_start,
        "payment_token_id": token.payment_token_id if token else None,
        "channel_code": token.channel_code if token else None,
        "note": None if token else "no payment token that may be charged: the customer would be asked",
    }


def forget_old_ticks(parts: Parts) -> None:
    with parts.transaction() as session:
        queries.forget_ticks(session, real_now() - timedelta(days=1))
