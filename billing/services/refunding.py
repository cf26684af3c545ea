"""Giving back what was collected twice. A refund is requested once, under its own reference, and followed."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.domain.gateway import RefundReport, RefundStatus
from billing.domain.lifecycle import InvoiceStatus, RefundState
from billing.domain.money import Money
from billing.errors import GatewayError, NotSent, RateLimited, Unavailable
from billing.services.parts import Parts, Rules, tell
from billing.services.subscriptions import lock_subscription
from billing.store import queries
from billing.store.models import Capture, ChargeAttempt, Invoice, Refund, new_id

TRY_AGAIN = timedelta(minutes=10)

log = structlog.get_logger()


def give_back(
    session: Session, found: queries.Found, capture: Capture, amount_minor: int, now: datetime, rules: Rules
) -> None:
    """More was captured than is owed: recorded, shown, and given back (or held for a person). Never hidden."""
    duplicate = found.invoice.status == InvoiceStatus.PAID
    refund = Refund(
        id=new_id("ref"),
        reference_id=new_id("ref"),
        capture_id=capture.id,
        amount_minor=amount_minor,
        currency=capture.currency,
        reason="DUPLICATE" if duplicate else "CANCELLATION",
        status=RefundState.REQUESTED if rules.refund_overpayments else RefundState.HELD,
        next_try_at=now if rules.refund_overpayments else None,
        created_at=now,
    )
    session.flush()
    session.add(refund)
    tell(
        session,
        found.subscription.id,
        now,
        "invoice.overpaid",
        invoice=found.invoice.number,
        attempt=found.attempt.id,
        amount=str(Money(amount_minor, capture.currency)),
        refund=refund.status,
    )
    log.error("invoice.overpaid", invoice=found.invoice.id, attempt=found.attempt.id)


def send_refund(parts: Parts, refund_id: str) -> None:
    """Ask Xendit for one refund. When nobody knows whether it was accepted, a person is asked: never sent twice."""
    with parts.transaction() as session:
        refund = session.get(Refund, refund_id, with_for_update=True)
        if refund is None or refund.status != RefundState.REQUESTED or refund.next_try_at is None:
            return
        capture = session.get_one(Capture, refund.capture_id)
        request_id = capture.payment_request_id
        refund.next_try_at = None  # from here on only a definite "not accepted" may send it again
        amount = Money(refund.amount_minor, refund.currency)
        reference, reason = refund.reference_id, refund.reason
    if request_id is None:
        _hold(parts, refund_id, "Xendit's payment request of this capture is not known; refund it in the dashboard")
        return
    try:
        report = parts.gateway.refund(
            reference_id=reference, payment_request_id=request_id, amount=amount, reason=reason
        )
    except (NotSent, RateLimited, Unavailable) as error:
        with parts.transaction() as session:
            refund = session.get_one(Refund, refund_id)
            refund.next_try_at = parts.clock.now() + TRY_AGAIN
            refund.error = str(error)
            refund.lease_until = None
    except GatewayError as error:
        _hold(parts, refund_id, f"{error}; look in the dashboard whether {reference} exists before refunding by hand")
    else:
        with parts.transaction() as session:
            _record(session, session.get_one(Refund, refund_id), report, parts.clock.now())


def apply_refund(session: Session, report: RefundReport, now: datetime) -> bool:
    """A refund event. False when it is none of ours (a person refunded in the dashboard)."""
    query = select(Refund).where(Refund.xendit_refund_id == report.refund_id)
    refund = session.scalar(query)
    if refund is None and report.reference_id is not None:
        refund = session.scalar(select(Refund).where(Refund.reference_id == report.reference_id))
    if refund is None:
        return False
    _record(session, refund, report, now)
    return True


def _record(session: Session, refund: Refund, report: RefundReport, now: datetime) -> None:
    capture = session.get_one(Capture, refund.capture_id)
    attempt = session.get_one(ChargeAttempt, capture.attempt_id)
    lock_subscription(session, attempt.subscription_id)
    session.refresh(refund)
    refund.lease_until = None
    refund.xendit_refund_id = refund.xendit_refund_id or report.refund_id
    if refund.status in (RefundState.SUCCEEDED, RefundState.FAILED):
        return
    match report.status:
        case RefundStatus.SUCCEEDED:
            refund.status = RefundState.SUCCEEDED
            invoice = session.get_one(Invoice, capture.invoice_id, populate_existing=True)
            invoice.amount_paid_minor -= refund.amount_minor
            tell(session, attempt.subscription_id, now, "refund.succeeded", invoice=invoice.number)
        case RefundStatus.FAILED | RefundStatus.CANCELLED:
            refund.status = RefundState.FAILED
            refund.error = report.failure_code or "Xendit gives no reason"
            tell(session, attempt.subscription_id, now, "refund.failed", reason=refund.error)
            log.error("refund.failed", refund=refund.id, reason=refund.error)
        case RefundStatus.PENDING:
            refund.status = RefundState.PENDING


def _hold(parts: Parts, refund_id: str, reason: str) -> None:
    with parts.transaction() as session:
        refund = session.get_one(Refund, refund_id)
        refund.status = RefundState.HELD
        refund.error = reason
        refund.lease_until = None
    log.error("refund.held", refund=refund_id, reason=reason)
