"""A person's hand on a run: pause, resume, abort, approve. The guards (runs/limits.py) use the same levers.

A run is stopped by its state, which begin reads for every attempt: it holds with the commit, for what is claimed and on
its way as well. Parking what has not begun comes after it; that only spares the workers the question.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import structlog
from sqlalchemy import ColumnElement, Table, insert, select, update
from sqlalchemy.orm import Session

from billing.charging import parking
from billing.domain.gateway import Lane
from billing.domain.lifecycle import BILLABLE, AttemptStatus, HoldKind, InvoiceStatus, RunKind, RunState
from billing.domain.money import Money
from billing.errors import IllegalTransition, NotFound
from billing.parts import Parts, tell
from billing.reading.views import Json
from billing.store import queries, run_queries
from billing.store.clock import real_now
from billing.store.models import BillingRun, ChargeAttempt, Fact, Invoice, Plan, Subscription
from billing.store.trouble import raise_if_databases_trouble
from billing.subscriptions import open_periods
from billing.subscriptions.invoices import has_unfinished_attempt, schedule_attempt
from billing.subscriptions.moves import calendar_of, lock_subscription, resume

AT_ONCE = 200  # attempts withdrawn, or periods approved, in one transaction

log = structlog.get_logger()


def waits_for(run_id: str) -> str:
    return f"run:{run_id}"


def aborted_reason(run_id: str) -> str:
    return f"billing run {run_id} was aborted; `billing run approve {run_id}` releases what it left"


def find_run(session: Session, run_id: str | None) -> BillingRun:
    """By id; without one the latest that is not finished, else the latest."""
    if run_id is not None:
        found = session.get(BillingRun, run_id)
        if found is None:
            raise NotFound(f"no billing run {run_id[:60]!r}; see `billing runs list`")
        return found
    latest = select(BillingRun).order_by(BillingRun.started_at.desc()).limit(1)
    found = session.scalar(latest.where(BillingRun.finished_at.is_(None))) or session.scalar(latest)
    if found is None:
        raise NotFound("no billing run yet; `billing run` makes one")
    return found


# ----------------------------------------------------------------------------------- pause, resume, abort


def pause_run(parts: Parts, run_id: str) -> None:
    """Nothing more of it begins until `resume_run`. What was sent is followed to its end."""
    reason = "paused by a person"
    with parts.transaction() as session:
        run = _unfinished(session, run_id, "paused")
        if run.state == RunState.RUNNING:
            run.state, run.reason = RunState.PAUSED, reason
    parking.hold_run(
        parts, run_id, f"billing run {run_id} is {run.state}: {run.reason}; `billing runs resume {run_id}` goes on"
    )


def resume_run(parts: Parts, run_id: str) -> None:
    """Goes on. The guard that stopped it is waived for this run: a person has looked. What waits is let go after that;
    the scheduler does it should this be cut short (guards.watch)."""
    with parts.transaction() as session:
        run = _unfinished(session, run_id, "resumed")
        if run.guard is not None and run.guard not in run.waived:
            run.waived = [*run.waived, run.guard]
        run.state, run.reason, run.guard, run.heartbeat_at = RunState.RUNNING, None, None, None
    parking.let_go(parts, waits_for(run_id))


def abort_run(parts: Parts, run_id: str) -> int:
    """For good. What has not begun is withdrawn and its invoices are held; returns how many. A second call takes up
    what a first one that was cut short has left."""
    with parts.transaction() as session:
        run = run_queries.lock_run(session, run_id)
        if run is None:
            raise NotFound(f"no billing run {run_id[:60]!r}; see `billing runs list`")
        if run.state != RunState.ABORTED:
            _refuse_finished(run, "aborted")
            run.state, run.reason, run.guard = RunState.ABORTED, "aborted by a person", None
        ends_now = run.kind == RunKind.ASKED
    withdrawn = withdraw_rest(parts, run_id)
    if ends_now:
        with parts.transaction() as session:
            run = session.get_one(BillingRun, run_id)
            run.finished_at = run.finished_at or real_now()
    return withdrawn


def stop_run(parts: Parts, run_id: str, guard: str, reason: str) -> bool:
    """By a guard. False when it is not running any more, or a person has waived this guard."""
    with parts.transaction() as session:
        run = run_queries.lock_run(session, run_id)
        stopped = run is not None and mark_stopped(run, guard, reason)
    if stopped:
        parking.hold_run(parts, run_id, stopped_error(run_id, reason))
    return stopped


def mark_stopped(run: BillingRun, guard: str, reason: str) -> bool:
    """The caller holds the row's lock."""
    if run.state != RunState.RUNNING or run.finished_at is not None or guard in run.waived:
        return False
    run.state, run.guard, run.reason = RunState.STOPPED, guard, reason
    log.error("run.stopped", run=run.id, guard=guard, reason=reason)
    return True


def stopped_error(run_id: str, reason: str) -> str:
    return f"billing run {run_id} is stopped: {reason}; `billing runs resume {run_id}` goes on"


def _unfinished(session: Session, run_id: str, wish: str) -> BillingRun:
    run = run_queries.lock_run(session, run_id)
    if run is None:
        raise NotFound(f"no billing run {run_id[:60]!r}; see `billing runs list`")
    _refuse_finished(run, wish)
    if run.state == RunState.ABORTED:
        raise IllegalTransition(
            f"billing run {run_id} cannot be {wish}: it was aborted;"
            f" `billing run approve {run_id}` releases what it left"
        )
    return run


def _refuse_finished(run: BillingRun, wish: str) -> None:
    if run.finished_at is not None and run.state == RunState.RUNNING:
        raise IllegalTransition(
            f"billing run {run.id} cannot be {wish}: it is finished; see `billing runs show {run.id}`"
        )


# ---------------------------------------------------------------------------------------------- withdrawing


def withdraw_rest(parts: Parts, run_id: str) -> int:
    """Everything of an aborted run that has not begun, a few hundred at a time."""
    withdrawn = 0
    while True:
        with parts.transaction() as session:
            subscriptions = _lock_owners(session, run_id)
            withdrawn += _withdraw(session, run_id, subscriptions, parts.clock.now())
        if not subscriptions:
            return withdrawn


def _not_begun(run_id: str) -> tuple[ColumnElement[bool], ...]:
    return (
        ChargeAttempt.run_id == run_id,
        ChargeAttempt.status == AttemptStatus.SCHEDULED,
        ChargeAttempt.lane != Lane.CUSTOMER,
    )


def _lock_owners(session: Session, run_id: str) -> list[str]:
    """Whoever moves anything under a subscription holds its lock, in the order of the ids."""
    owners = set(session.scalars(select(ChargeAttempt.subscription_id).where(*_not_begun(run_id)).limit(AT_ONCE)))
    lock = select(Subscription.id).where(Subscription.id.in_(owners)).order_by(Subscription.id)
    return list(session.scalars(lock.with_for_update(key_share=True)))


def _withdraw(session: Session, run_id: str, subscriptions: Sequence[str], now: datetime) -> int:
    reason = aborted_reason(run_id)
    mine = (*_not_begun(run_id), ChargeAttempt.subscription_id.in_(subscriptions))
    withdrawn = session.execute(
        update(ChargeAttempt)
        .where(ChargeAttempt.id.in_(queries.in_order(*mine)), *mine)
        .values(status=AttemptStatus.CANCELED, settled_at=now, lease_until=None, parked_by=None, error=reason)
        .returning(ChargeAttempt.id, ChargeAttempt.invoice_id, ChargeAttempt.subscription_id)
        .execution_options(synchronize_session=False)
    ).all()
    numbers = _hold_invoices(session, run_id, [row[1] for row in withdrawn], reason)
    told = [
        {"subscription_id": subscription_id, "at": now, "kind": kind, "detail": detail | {"reason": reason}}
        for attempt_id, invoice_id, subscription_id in withdrawn
        for kind, detail in (
            ("attempt.canceled", {"attempt": attempt_id}),
            ("invoice.held", {"invoice": numbers.get(invoice_id)}),
        )
    ]
    if told:
        session.execute(insert(cast(Table, Fact.__table__)), told)
    return len(withdrawn)


def _hold_invoices(session: Session, run_id: str, invoice_ids: Sequence[str], reason: str) -> dict[str, str]:
    """Their numbers, by id."""
    held = session.execute(
        update(Invoice)
        .where(Invoice.id.in_(invoice_ids), Invoice.status == InvoiceStatus.OPEN)
        .values(hold_reason=reason, hold_kind=HoldKind.RUN_ABORTED, hold_run_id=run_id)
        .returning(Invoice.id, Invoice.number)
        .execution_options(synchronize_session=False)
    )
    return {row[0]: row[1] for row in held}


# -------------------------------------------------------------------------------------------------- approve


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a person's yes would bill: a held subscription, or an invoice that an aborted run left."""

    subscription_id: str
    reference: str
    periods: int
    amount: Money
    reason: str
    invoice_id: str | None = None

    def view(self) -> Json:
        return {
            "subscription_id": self.subscription_id,
            "periods": self.periods,
            "amount": str(self.amount),
            "currency": self.amount.currency,
        }


def waiting_for_approval(parts: Parts, names: Sequence[str]) -> list[Waiting]:
    """Of the subscriptions and runs named; without a name every subscription that its catch-up policy holds. Raises
    NotFound or IllegalTransition for a name that waits for nothing: then nothing is approved at all."""
    now = parts.clock.now()
    if not names:
        return list(_all_held(parts, now))
    found: list[Waiting] = []
    for name in dict.fromkeys(names):
        with parts.reading() as session:
            run = session.get(BillingRun, name)
            left = _left_by_run(session, run) if run is not None else None
            held = _held_subscription(session, name) if run is None else None
        found += left or []
        if held is not None:
            found.append(_waiting_or_refused(*held, now))
    return found


def approve(parts: Parts, waiting: Iterable[Waiting]) -> list[Json]:
    """A held subscription bills what it missed, oldest first; an invoice of an aborted run is charged now. What has
    been approved or has ended meanwhile is left out, and so is one that cannot be released: it stays held."""
    now = parts.clock.now()
    approved: list[Json] = []
    for each in waiting:
        try:
            with parts.transaction() as session:
                done = _approve_one(session, each, now)
        except Exception as error:
            raise_if_databases_trouble(error)
            log.exception("approval.failed", subscription=each.subscription_id, error=open_periods.in_one_line(error))
            continue
        if done:
            approved.append(each.view())
    return approved


def _approve_one(session: Session, each: Waiting, now: datetime) -> bool:
    subscription = lock_subscription(session, each.subscription_id)
    if each.invoice_id is not None:
        return _release_invoice(session, subscription, each.invoice_id, now)
    if subscription.hold_kind != HoldKind.CATCH_UP or subscription.status not in BILLABLE:
        return False
    resume(session, subscription, session.get_one(Plan, subscription.plan_id), now)
    subscription.hold_kind = None
    return True


def _all_held(parts: Parts, now: datetime) -> Iterable[Waiting]:
    """A page at a time, looked at between the pages. One that cannot be read is told of and left held."""
    query = (
        select(Subscription, Plan)
        .join(Plan, Plan.id == Subscription.plan_id)
        .where(
            Subscription.status.in_(BILLABLE),
            Subscription.hold_reason.is_not(None),
            Subscription.hold_kind == HoldKind.CATCH_UP,
        )
        .order_by(Subscription.id)
        .limit(AT_ONCE)
    )
    page = query
    while True:
        with parts.reading() as session:
            rows = session.execute(page).all()
        for subscription, plan in rows:
            try:
                yield _waiting(subscription, plan, now)
            except Exception as error:
                log.exception("approval.failed", subscription=subscription.id, error=open_periods.in_one_line(error))
        if len(rows) < AT_ONCE:
            return
        page = query.where(Subscription.id > rows[-1][0].id)


def _held_subscription(session: Session, name: str) -> tuple[Subscription, Plan]:
    query = select(Subscription, Plan).join(Plan, Plan.id == Subscription.plan_id)
    row = session.execute(query.where((Subscription.id == name) | (Subscription.reference == name))).first()
    if row is None:
        raise NotFound(f"no subscription or billing run {name[:60]!r}; see `billing run approve` without a name")
    subscription, plan = row
    if subscription.hold_reason is None:
        raise IllegalTransition(f"{subscription.reference} waits for no approval: it is {subscription.status}")
    if subscription.hold_kind != HoldKind.CATCH_UP:
        raise IllegalTransition(
            f"{subscription.reference} waits for no approval, it is on hold: {subscription.hold_reason};"
            f" put it right, then `billing subscription resume {subscription.reference}`"
        )
    return subscription, plan


def _waiting_or_refused(subscription: Subscription, plan: Plan, now: datetime) -> Waiting:
    try:
        return _waiting(subscription, plan, now)
    except Exception as error:
        log.exception("approval.failed", subscription=subscription.id, error=open_periods.in_one_line(error))
        raise IllegalTransition(
            f"{subscription.reference} cannot be billed: {open_periods.in_one_line(error)};"
            f" see `billing explain {subscription.reference}`"
        ) from None


def _waiting(subscription: Subscription, plan: Plan, now: datetime) -> Waiting:
    """What was missed, oldest first, as far as its cycles go."""
    due = open_periods.due_periods(subscription, calendar_of(subscription, plan.schedule), now)
    count = len(due) if plan.cycles is None else min(len(due), max(0, plan.cycles - subscription.billed_cycles))
    amount = Money(count * subscription.amount_minor, subscription.currency)
    reason = subscription.hold_reason or ""
    return Waiting(subscription.id, subscription.reference, count, amount, reason)


def _left_by_run(session: Session, run: BillingRun) -> list[Waiting]:
    query = (
        select(Invoice, Subscription.reference)
        .join(Subscription, Subscription.id == Invoice.subscription_id)
        .where(
            Invoice.id.in_(select(ChargeAttempt.invoice_id).where(ChargeAttempt.run_id == run.id)),
            Invoice.status == InvoiceStatus.OPEN,
            Invoice.hold_kind == HoldKind.RUN_ABORTED,
            Invoice.hold_run_id == run.id,
        )
        .order_by(Invoice.id)
    )
    found = [
        Waiting(
            invoice.subscription_id,
            reference,
            1,
            Money(invoice.amount_minor - invoice.amount_paid_minor, invoice.currency),
            invoice.hold_reason or aborted_reason(run.id),
            invoice.id,
        )
        for invoice, reference in session.execute(query)
    ]
    if not found:
        raise IllegalTransition(f"billing run {run.id} left nothing that waits for approval: it is {state_of(run)}")
    return found


def _release_invoice(session: Session, subscription: Subscription, invoice_id: str, now: datetime) -> bool:
    invoice = session.get_one(Invoice, invoice_id, populate_existing=True)
    held = invoice.status == InvoiceStatus.OPEN and invoice.hold_kind == HoldKind.RUN_ABORTED
    if not held or subscription.status not in BILLABLE:
        return False
    if has_unfinished_attempt(session, invoice_id):
        return False
    last = session.scalars(
        select(ChargeAttempt)
        .where(ChargeAttempt.invoice_id == invoice_id, ChargeAttempt.status == AttemptStatus.CANCELED)
        .order_by(ChargeAttempt.number.desc())
        .limit(1)
    ).one()
    invoice.hold_reason = invoice.hold_kind = invoice.hold_run_id = None
    attempt = schedule_attempt(
        session, invoice, now, origin=last.origin, payment_token_id=last.payment_token_id, replaces_at=last.replaces_at
    )
    attempt.lane = Lane.CUSTOMER  # a person has said yes to it: no run, aborted or capped, withdraws it again
    tell(session, subscription.id, now, "invoice.released", invoice=invoice.number, reason="approved by a person")
    return True


def state_of(run: BillingRun) -> str:
    """As people read it."""
    return "finished" if run.finished_at is not None and run.state == RunState.RUNNING else run.state
