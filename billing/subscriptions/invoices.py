"""Invoices and their attempts: plan a try, withdraw one, hold, close. The only place that moves them by hand.

Whoever ends an attempt without a payment calls `close_if_ended` afterwards: an invoice whose subscription has been
canceled ends with its last attempt. (What a whole group of attempts becomes at once: charging/begin.py, settle.py.)
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from billing.domain.gateway import Lane
from billing.domain.lifecycle import (
    UNFINISHED,
    AttemptStatus,
    EndKind,
    HoldKind,
    InvoiceStatus,
    SubscriptionStatus,
    check_attempt_move,
    check_invoice_move,
)
from billing.parts import tell
from billing.store.models import Capture, ChargeAttempt, Invoice, Subscription, new_id

# ------------------------------------------------------------------------------------------------- attempts


def schedule_attempt(
    session: Session,
    invoice: Invoice,
    at: datetime,
    *,
    origin: str,
    payment_token_id: str | None = None,
    replaces_at: datetime | None = None,
) -> ChargeAttempt:
    """Plan one try. Its reference is made here, once; the partial UNIQUE index refuses a second unfinished one.

    Without `payment_token_id` the token is chosen when the attempt begins: the customer's first chargeable one.
    """
    taken = session.scalar(
        select(ChargeAttempt.number)
        .where(ChargeAttempt.invoice_id == invoice.id)
        .order_by(ChargeAttempt.number.desc())
        .limit(1)
    )
    identity = new_id("att")
    attempt = ChargeAttempt(
        id=identity,
        reference_id=identity,
        invoice_id=invoice.id,
        subscription_id=invoice.subscription_id,
        number=(taken or 0) + 1,
        origin=origin,
        lane=lane_of(origin),
        status=AttemptStatus.SCHEDULED,
        amount_minor=owed_minor(session, invoice),
        currency=invoice.currency,
        payment_token_id=payment_token_id,
        scheduled_at=at,
        replaces_at=replaces_at,
        created_at=at,
    )
    session.add(attempt)
    session.flush()
    return attempt


def owed_minor(session: Session, invoice: Invoice) -> int:
    """What is still to be collected. (`amount_paid_minor` also counts money that is on its way back.)"""
    paid = select(func.coalesce(func.sum(Capture.amount_minor), 0)).where(
        Capture.invoice_id == invoice.id, ~Capture.overpayment
    )
    return invoice.amount_minor - (session.scalar(paid) or 0)


def lane_of(origin: str) -> Lane:
    """Who waits for an attempt of this origin."""
    if origin in ("operator", "new_token"):
        return Lane.CUSTOMER
    return Lane.RETRY if origin == "dunning" else Lane.RENEWAL


def move_attempt(attempt: ChargeAttempt, status: AttemptStatus, now: datetime) -> None:
    """To a final status. Nothing is planned for it any more, nobody works on it, and it waits for nothing."""
    check_attempt_move(AttemptStatus(attempt.status), status, f"attempt {attempt.id}")
    attempt.status = status
    attempt.settled_at = now
    attempt.next_check_at = attempt.lease_until = None
    attempt.parked_by = None
    attempt.cancel_wanted = False


def withdraw(session: Session, attempt: ChargeAttempt, now: datetime, why: str) -> None:
    """A planned try is canceled. One that waits for the customer is canceled at Xendit first (reconciling.py), and one
    that may still move money is left to its end."""
    if attempt.status == AttemptStatus.REQUIRES_ACTION:
        attempt.cancel_wanted = True
        attempt.next_check_at = now
        return
    if attempt.status != AttemptStatus.SCHEDULED:
        return
    move_attempt(attempt, AttemptStatus.CANCELED, now)
    attempt.error = why
    session.flush()
    tell(session, attempt.subscription_id, now, "attempt.canceled", attempt=attempt.id, reason=why)


def withdraw_all(
    session: Session,
    now: datetime,
    why: str,
    *,
    subscription_id: str | None = None,
    invoice: Invoice | None = None,
    but: ChargeAttempt | None = None,
) -> None:
    """Every try of the subscription or of the invoice that can be taken back."""
    query = select(ChargeAttempt).where(
        ChargeAttempt.status.in_({AttemptStatus.SCHEDULED, AttemptStatus.REQUIRES_ACTION})
    )
    if subscription_id is not None:
        query = query.where(ChargeAttempt.subscription_id == subscription_id)
    if invoice is not None:
        query = query.where(ChargeAttempt.invoice_id == invoice.id)
    if but is not None:
        query = query.where(ChargeAttempt.id != but.id)
    # A worker may be beginning one this instant: then it is not planned any more.
    locked = query.order_by(ChargeAttempt.id).with_for_update().execution_options(populate_existing=True)
    for attempt in session.scalars(locked).all():
        withdraw(session, attempt, now, why)


def has_unfinished_attempt(session: Session, invoice_id: str) -> bool:
    query = select(ChargeAttempt.id).where(ChargeAttempt.invoice_id == invoice_id, ChargeAttempt.status.in_(UNFINISHED))
    return session.scalar(query.limit(1)) is not None


# ------------------------------------------------------------------------------------------------- invoices


def open_invoices(session: Session, subscription_id: str) -> list[Invoice]:
    """Draft and open ones, oldest first."""
    query = select(Invoice).where(
        Invoice.subscription_id == subscription_id,
        Invoice.status.in_({InvoiceStatus.DRAFT, InvoiceStatus.OPEN}),
    )
    return list(session.scalars(query.order_by(Invoice.period_index)))


def move_invoice(invoice: Invoice, status: InvoiceStatus, now: datetime) -> None:
    """Every move of an invoice's status, but those of a whole group (charging/settle.py). Raises IllegalTransition."""
    check_invoice_move(InvoiceStatus(invoice.status), status, f"invoice {invoice.number}")
    invoice.status = status
    if status == InvoiceStatus.OPEN:
        invoice.closed_at = None
        return
    invoice.closed_at = now
    invoice.grace_ends_at = None
    release_invoice(invoice)


def close_invoice(session: Session, invoice: Invoice, status: InvoiceStatus, now: datetime, *, reason: str) -> None:
    """Void or uncollectible, on purpose; what was still planned for it is taken back."""
    move_invoice(invoice, status, now)
    withdraw_all(session, now, f"the invoice is {status}", invoice=invoice)
    tell(session, invoice.subscription_id, now, f"invoice.{status}", invoice=invoice.number, reason=reason)


def hold_invoice(session: Session, invoice: Invoice, now: datetime, reason: str, kind: HoldKind) -> None:
    """No dunning, no grace running out: a person decides (`billing invoice pay`)."""
    invoice.hold_reason = reason
    invoice.hold_kind = kind
    invoice.hold_run_id = None
    tell(session, invoice.subscription_id, now, "invoice.held", invoice=invoice.number, reason=reason)


def release_invoice(invoice: Invoice) -> None:
    invoice.hold_reason = invoice.hold_kind = invoice.hold_run_id = None


def close_if_ended(session: Session, subscription: Subscription, invoices: Iterable[Invoice], now: datetime) -> None:
    """Of a canceled subscription nothing stays open: an invoice ends as soon as no attempt of it can move money."""
    if subscription.status != SubscriptionStatus.CANCELED:
        return
    for invoice in invoices:
        if invoice.status in (InvoiceStatus.DRAFT, InvoiceStatus.OPEN) and not has_unfinished_attempt(
            session, invoice.id
        ):
            close_invoice(session, invoice, _closed_as(subscription, invoice), now, reason=_why(subscription))


def _closed_as(subscription: Subscription, invoice: Invoice) -> InvoiceStatus:
    """Only a person who ends a subscription at once forgives what is open; a draft was never owed. Where a part is paid
    that part stays, and the rest is given up: of a void invoice no money is kept."""
    if invoice.status == InvoiceStatus.DRAFT:
        return InvoiceStatus.VOID
    forgiven = subscription.end_kind in (None, EndKind.NOW)  # None: ended by a release that knew no other way
    return InvoiceStatus.VOID if forgiven and invoice.amount_paid_minor == 0 else InvoiceStatus.UNCOLLECTIBLE


_REASONS = {
    EndKind.PERIOD: "subscription canceled at the end of its period",
    EndKind.DUNNING: "subscription canceled because another invoice could not be collected",
}


def _why(subscription: Subscription) -> str:
    kind = EndKind(subscription.end_kind) if subscription.end_kind else EndKind.NOW
    return _REASONS.get(kind, "subscription canceled")
