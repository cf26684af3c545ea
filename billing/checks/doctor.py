"""Checks the invariants on the live database and repairs what can be repaired safely. Called by `billing doctor`.

What is checked stands in checks/invariants.py. A repair never moves money and never guesses: it sets a look-up, a
lease or a date that was lost, withdraws what must not be charged, or hands the case to a person. Repairing twice does
nothing the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, timedelta
from typing import Any

import structlog
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from billing.charging.begin import CARD_DECLINES_A_DAY, CARD_DECLINES_IN_30_DAYS
from billing.charging.look_up import doubt_expired_submissions
from billing.charging.refunds import new_refund
from billing.charging.tokens import release_when_known
from billing.checks.invariants import CHECKS, Check, constraint_names
from billing.domain.gateway import SessionReport
from billing.domain.lifecycle import (
    BILLABLE,
    AttemptStatus,
    InvoiceStatus,
    RefundState,
    SessionStatus,
    SubscriptionStatus,
)
from billing.parts import Parts, tell
from billing.store import migrate, which_database
from billing.store.clock import real_now
from billing.store.models import (
    BillingRun,
    Capture,
    ChargeAttempt,
    Invoice,
    PaymentSession,
    PaymentToken,
    Plan,
    Refund,
    WebhookEvent,
)
from billing.store.queries import CLAIM_LEASE
from billing.subscribing.session_results import apply_session
from billing.subscriptions.invoices import (
    close_if_ended,
    close_invoice,
    has_unfinished_attempt,
    schedule_attempt,
    withdraw,
)
from billing.subscriptions.moves import calendar_of, cycles_left, end_if_over, lock_subscription, plan_next

LATE = timedelta(minutes=10)  # due work: by the clock of billing
LOST = timedelta(minutes=4)  # what a dead process held is taken up within this, in real time
EXAMPLES = 5
REPAIRED_AT_ONCE = 1_000

WHICH_DATABASE = "this_is_the_database"

Found = dict[str, Any]
log = structlog.get_logger()


def examine(parts: Parts, *, repair: bool = False) -> dict[str, Any]:
    """{"ok", "checks": [{"name", "ok", "count", "detail", "repair", "invariant"}]}.

    `repair` of a check says what can be done about it or why nothing is done by itself; with `repair=True`, what has
    been done. Its other members then show how things are afterwards.
    """
    schema = _examine_schema(parts)
    if not schema["ok"]:
        return {"ok": False, "checks": [schema]}  # the statements are for the current tables
    examined = [_examine_one(parts, check, repair=repair) for check in CHECKS.values()]
    checks = [schema, _examine_identity(parts), *examined]
    return {"ok": all(check["ok"] for check in checks), "checks": checks}


def _examine_one(parts: Parts, check: Check, *, repair: bool) -> Found:
    found = _count(parts, check)
    if found["ok"] or not repair or check.name not in REPAIRS:
        return found
    mended = REPAIRS[check.name](parts, _ids(parts, check))
    log.info("doctor.repaired", check=check.name, count=mended)
    after = _count(parts, check)
    left = f"; {after['count']} left: {check.advice}" if after["count"] else ""
    return after | {"repair": f"{mended} repaired: {check.advice}{left}"}


def _count(parts: Parts, check: Check) -> Found:
    query = text(
        f"SELECT count(*), (array_agg(id ORDER BY id))[1:{EXAMPLES}] FROM ({check.bad}) AS bad"  # noqa: S608 - ours
    )
    with parts.reading() as session:
        row = session.execute(query, _values(parts, session, check)).one()
    return _found(check, row[0], row[1] or [])


def _ids(parts: Parts, check: Check) -> list[str]:
    query = text(f"SELECT id FROM ({check.bad}) AS bad ORDER BY id LIMIT {REPAIRED_AT_ONCE}")  # noqa: S608 - ours
    with parts.reading() as session:
        return list(session.scalars(query, _values(parts, session, check)))


def _found(check: Check, count: int, examples: Sequence[str]) -> Found:
    more = ", ..." if count > len(examples) else ""
    return {
        "name": check.name,
        "ok": count == 0 or check.is_news,
        "count": count,
        "detail": f"{check.wrong}: {', '.join(examples)}{more}" if count else f"no {check.wrong}",
        "repair": check.advice if count else None,
        "invariant": check.number,
    }


def _values(parts: Parts, session: Session, check: Check) -> dict[str, Any]:
    """The statement's parameters, of which each check uses a few."""
    now, real = parts.clock.now(), real_now()
    values: dict[str, Any] = {
        "now": now,
        "late": now - LATE,
        "real_now": real,
        "real_late": real - LOST,
        "today": f"run-{now.astimezone(UTC).date().isoformat()}",
        "lease_limit": real + _longest_lease(parts) + timedelta(minutes=1),
        "cap_a_day": CARD_DECLINES_A_DAY,
        "cap_in_30_days": CARD_DECLINES_IN_30_DAYS,
    }
    if ":constraints" in check.bad:
        values["constraints"] = list(constraint_names(session.get_bind().dialect))
    return {name: value for name, value in values.items() if f":{name}" in check.bad}


def _longest_lease(parts: Parts) -> timedelta:
    return max(CLAIM_LEASE, parts.rules.submitted_lease)


def _examine_schema(parts: Parts) -> Found:
    with parts.reading() as session:
        migrated = session.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL"))
        current = session.scalar(text("SELECT version_num FROM alembic_version")) if migrated else None
    needed = migrate.newest()
    wrong = f"databases without the schema of this version, {needed}"
    schema = Check("schema_is_current", None, wrong, "", "run `billing migrate`")
    return _found(schema, int(current != needed), [f"it is at {current or 'none'}"])


def _examine_identity(parts: Parts) -> Found:
    with parts.reading() as session:
        here = which_database.standing(session)
    return {
        "name": WHICH_DATABASE,
        "ok": here.is_the_one,
        "count": int(not here.is_the_one),
        "detail": f"{here.wrong or f'it is {here}'} ({here.told_by})",
        "repair": None if here.is_the_one else "`billing adopt`, if this is the one to charge from now on",
        "invariant": None,
    }


# ------------------------------------------------------------------------------------------------- repairs


def _look_up_attempts(parts: Parts, ids: Sequence[str]) -> int:
    with parts.transaction() as session:
        session.execute(update(ChargeAttempt).where(ChargeAttempt.id.in_(ids)).values(next_check_at=parts.clock.now()))
    return len(ids)


def _apply_events(parts: Parts, ids: Sequence[str]) -> int:
    with parts.transaction() as session:
        session.execute(update(WebhookEvent).where(WebhookEvent.id.in_(ids)).values(next_try_at=parts.clock.now()))
    return len(ids)


def _look_up_sessions(parts: Parts, ids: Sequence[str]) -> int:
    """A session without Xendit's id never got as far as a link: nobody can pay through it, so it ends here."""
    now = parts.clock.now()
    for identity in ids:
        with parts.transaction() as session:
            row = session.get_one(PaymentSession, identity)
            if row.xendit_session_id is not None:
                row.next_check_at = now
            else:
                nowhere = SessionReport(row.id, row.reference_id, row.type, SessionStatus.CANCELED)
                apply_session(session, row, nowhere, now)
    return len(ids)


def _cut_leases(parts: Parts, ids: Sequence[str]) -> int:
    until = real_now() + _longest_lease(parts)
    with parts.transaction() as session:
        for table in (ChargeAttempt, WebhookEvent, Refund):
            session.execute(update(table).where(table.id.in_(ids)).values(lease_until=until))
    return len(ids)


def _doubt_submissions(parts: Parts, ids: Sequence[str]) -> int:
    """One without a lease has none that could run out: it gets one that just did."""
    over = real_now() - timedelta(seconds=1)
    with parts.transaction() as session:
        session.execute(
            update(ChargeAttempt)
            .where(
                ChargeAttempt.id.in_(ids),
                ChargeAttempt.status == AttemptStatus.SUBMITTED,
                ChargeAttempt.lease_until.is_(None),
            )
            .values(lease_until=over)
        )
    return doubt_expired_submissions(parts, REPAIRED_AT_ONCE)


def _look_up_refunds(parts: Parts, ids: Sequence[str]) -> int:
    now = parts.clock.now()
    for identity in ids:
        with parts.transaction() as session:
            refund = session.get_one(Refund, identity, with_for_update=True)
            if refund.status in (RefundState.REQUESTED, RefundState.PENDING) and refund.next_try_at is None:
                # Perhaps it was asked for: only Xendit's list can say, and it must not be asked for again.
                refund.status = RefundState.PENDING
                refund.sent_at = refund.sent_at or refund.created_at
                refund.next_try_at = now
                refund.lease_until = None
    return len(ids)


def _ask_about_tokens(parts: Parts, ids: Sequence[str]) -> int:
    for identity in ids:
        with parts.transaction() as session:
            customer_id = lock_subscription(session, identity).customer_id
            unknown = PaymentToken.customer_id == customer_id, PaymentToken.unknown_since.is_not(None)
            session.execute(update(PaymentToken).where(*unknown).values(next_check_at=parts.clock.now()))
            release_when_known(session, customer_id, parts.clock.now())
    return len(ids)


def _hold_overpayments(parts: Parts, ids: Sequence[str]) -> int:
    now = parts.clock.now()
    for identity in ids:
        with parts.transaction() as session:
            capture = session.get_one(Capture, identity)
            invoice = session.get_one(Invoice, capture.invoice_id)
            lock_subscription(session, invoice.subscription_id)
            refunded = select(func.coalesce(func.sum(Refund.amount_minor), 0)).where(Refund.capture_id == identity)
            paid = select(func.coalesce(func.sum(Capture.amount_minor), 0)).where(
                Capture.invoice_id == invoice.id, ~Capture.overpayment
            )
            too_much = max(0, (session.scalar(paid) or 0) - invoice.amount_minor)
            surplus = capture.amount_minor if capture.overpayment else min(capture.amount_minor, too_much)
            surplus -= session.scalar(refunded) or 0
            if surplus > 0:
                told = "found by billing doctor: an overpayment that nothing had answered"
                session.add(new_refund(capture, surplus, "DUPLICATE", RefundState.HELD, now, error=told))
                why = "found by billing doctor: nothing had answered it"
                tell(session, invoice.subscription_id, now, "refund.held", invoice=invoice.number, reason=why)
    return len(ids)


def _withdraw_attempts(parts: Parts, ids: Sequence[str]) -> int:
    now = parts.clock.now()
    for identity in ids:
        with parts.transaction() as session:
            attempt = session.get_one(ChargeAttempt, identity)
            lock_subscription(session, attempt.subscription_id)
            session.refresh(attempt)
            if attempt.status == AttemptStatus.SCHEDULED:
                withdraw(session, attempt, now, "its subscription or invoice takes no charge")
    return len(ids)


def _let_choose_token(parts: Parts, ids: Sequence[str]) -> int:
    with parts.transaction() as session:
        session.execute(
            update(ChargeAttempt)
            .where(ChargeAttempt.id.in_(ids), ChargeAttempt.status == AttemptStatus.SCHEDULED)
            .values(payment_token_id=None)
        )
    return len(ids)


def _end_open_invoices(parts: Parts, ids: Sequence[str]) -> int:
    now, mended = parts.clock.now(), 0
    for identity in ids:
        with parts.transaction() as session:
            invoice = session.get_one(Invoice, identity)
            subscription = lock_subscription(session, invoice.subscription_id)
            session.refresh(invoice)
            if invoice.status != InvoiceStatus.OPEN or has_unfinished_attempt(session, identity):
                continue
            mended += 1
            if subscription.status == SubscriptionStatus.CANCELED:
                close_if_ended(session, subscription, [invoice], now)
            elif subscription.status in BILLABLE:
                tried = session.scalar(select(ChargeAttempt.id).where(ChargeAttempt.invoice_id == identity).limit(1))
                schedule_attempt(session, invoice, now, origin="dunning" if tried else "schedule")
    return mended


def _void_drafts(parts: Parts, ids: Sequence[str]) -> int:
    mended = 0
    for identity in ids:
        with parts.transaction() as session:
            invoice = session.get_one(Invoice, identity)
            lock_subscription(session, invoice.subscription_id)
            session.refresh(invoice)
            if invoice.status == InvoiceStatus.DRAFT and not has_unfinished_attempt(session, identity):
                close_invoice(session, invoice, InvoiceStatus.VOID, parts.clock.now(), reason="never collected")
                mended += 1
    return mended


def _plan_again(parts: Parts, ids: Sequence[str]) -> int:
    mended = 0
    for identity in ids:
        with parts.transaction() as session:
            subscription = lock_subscription(session, identity)
            plan = session.get_one(Plan, subscription.plan_id)
            lost = subscription.next_billing_at is None and cycles_left(subscription, plan) != 0
            if lost and subscription.next_local is not None:
                calendar = calendar_of(subscription, plan.schedule)
                plan_next(subscription, calendar.at(subscription.next_index, subscription.next_local))
                mended += 1
    return mended


def _end_subscriptions(parts: Parts, ids: Sequence[str]) -> int:
    for identity in ids:
        with parts.transaction() as session:
            end_if_over(session, lock_subscription(session, identity), parts.clock.now())
    return len(ids)


def _let_go(parts: Parts, ids: Sequence[str]) -> int:
    with parts.transaction() as session:
        session.execute(update(ChargeAttempt).where(ChargeAttempt.id.in_(ids)).values(parked_by=None))
    return len(ids)


def _finish_runs(parts: Parts, ids: Sequence[str]) -> int:
    with parts.transaction() as session:
        ended = update(BillingRun).where(BillingRun.id.in_(ids), BillingRun.finished_at.is_(None))
        session.execute(ended.values(finished_at=real_now()))
    return len(ids)


REPAIRS: Mapping[str, Callable[[Parts, Sequence[str]], int]] = {
    "overpayments_are_answered": _hold_overpayments,
    "chargeable_is_planned": _plan_again,
    "ended_subscriptions_are_canceled": _end_subscriptions,
    "leases_in_bounds": _cut_leases,
    "submitted_is_followed": _doubt_submissions,
    "open_results_are_followed": _look_up_attempts,
    "sessions_are_followed": _look_up_sessions,
    "unknown_tokens_are_followed": _ask_about_tokens,
    "events_are_followed": _apply_events,
    "refunds_are_followed": _look_up_refunds,
    "planned_attempts_may_be_charged": _withdraw_attempts,
    "planned_tokens_may_be_charged": _let_choose_token,
    "parked_attempts_wait_for_something": _let_go,
    "runs_have_an_end": _finish_runs,
    "drafts_are_awaited": _void_drafts,
    "open_invoices_have_an_end": _end_open_invoices,
}
