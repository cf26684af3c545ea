"""Giving back what was collected twice. A refund is asked for once, under its own reference, and followed to its end.

requested  to be asked for         pending  asked for: Xendit has it, or nobody knows yet (no id of Xendit's)
succeeded, failed                  held     a person decides: by the merchant's choice, or no trace of it was found
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from billing.charging.tokens import RIGHT_KEY
from billing.domain.gateway import RefundReport, RefundStatus
from billing.domain.lifecycle import InvoiceStatus, RefundState
from billing.domain.money import Money, format_money
from billing.errors import GatewayError, NotSent, OutcomeUnknown, RateLimited, Unavailable
from billing.parts import Parts, Rules, tell
from billing.store import queries, which_database
from billing.store.models import Capture, ChargeAttempt, Invoice, Refund, new_id
from billing.subscriptions.moves import lock_subscription

TRY_AGAIN = timedelta(minutes=10)
ASK_AGAIN_UNKNOWN = timedelta(hours=6)
NOT_FOUND = 404
# How many settlement windows a 404 is not taken at its word: Xendit gave us that payment itself, so our key may be
# another account's.
WINDOWS_OF_A_WRONG_KEY = 7
FIRST_LOOK_UP = timedelta(hours=1)  # its webhook normally tells within minutes

log = structlog.get_logger()


def new_refund(
    capture: Capture, amount_minor: int, reason: str, status: RefundState, now: datetime, *, error: str | None = None
) -> Refund:
    """Asked for at once when `status` is requested. `reason` is Xendit's word; `error` says why it is held."""
    return Refund(
        id=new_id("ref"),
        reference_id=new_id("ref"),
        capture_id=capture.id,
        amount_minor=amount_minor,
        currency=capture.currency,
        reason=reason,
        status=status,
        next_try_at=now if status == RefundState.REQUESTED else None,
        error=error,
        created_at=now,
    )


def give_back(
    session: Session, found: queries.Found, capture: Capture, amount_minor: int, now: datetime, rules: Rules
) -> None:
    """More was captured than is owed: recorded, shown, and given back (or held for a person). Never hidden."""
    duplicate = found.invoice.status == InvoiceStatus.PAID
    status = RefundState.REQUESTED if rules.refund_overpayments else RefundState.HELD
    refund = new_refund(capture, amount_minor, "DUPLICATE" if duplicate else "CANCELLATION", status, now)
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


def keep_for_a_person(
    session: Session, found: queries.Found, capture: Capture, amount_minor: int, now: datetime, reason: str
) -> None:
    """Money that is recorded and shown, and given back only by a person's word."""
    session.flush()
    what_to_do = f"{reason}; look in Xendit's dashboard what happened, and give it back there"
    session.add(new_refund(capture, amount_minor, "CANCELLATION", RefundState.HELD, now, error=what_to_do))
    tell(session, found.subscription.id, now, "refund.held", invoice=found.invoice.number, reason=reason)
    log.error("refund.held", invoice=found.invoice.id, attempt=found.attempt.id, reason=reason)


def keep_as_much(session: Session, capture: Capture) -> None:
    """More (or less) of the money that a person decides about: the held refund is over all of it."""
    held = update(Refund).where(Refund.capture_id == capture.id, Refund.status == RefundState.HELD)
    session.execute(held.values(amount_minor=capture.amount_minor))


def give_back_less(session: Session, capture: Capture) -> None:
    """Less was captured than we had believed: what has not been asked for yet is not more than there is."""
    session.execute(
        update(Refund)
        .where(
            Refund.capture_id == capture.id,
            Refund.status.in_({RefundState.REQUESTED, RefundState.HELD}),
            Refund.amount_minor > capture.amount_minor,
        )
        .values(amount_minor=capture.amount_minor)
    )


def follow_refund(parts: Parts, refund_id: str) -> None:
    """The next step of one refund: ask for it, or look up what became of it."""
    with parts.reading() as session:
        refund = session.get(Refund, refund_id)
    if refund is None or refund.next_try_at is None:
        return
    if refund.status == RefundState.REQUESTED:
        _send(parts, refund_id)
    elif refund.status == RefundState.PENDING:
        _look_up(parts, refund)
    else:
        # Its end was written by a process of the first release, which left the date.
        with parts.transaction() as session:
            refund = session.get_one(Refund, refund_id, with_for_update=True)
            if refund.status not in (RefundState.REQUESTED, RefundState.PENDING):
                refund.next_try_at = refund.lease_until = None


def _send(parts: Parts, refund_id: str) -> None:
    """Committed as pending before the call, so it is asked for once: should nobody hear the answer, it is looked up.
    Only a definite "not accepted" may ask again."""
    with parts.transaction() as session:
        refund = session.get_one(Refund, refund_id, with_for_update=True)
        if refund.status != RefundState.REQUESTED:
            return
        which_database.refuse_a_copy(session)
        capture = session.get_one(Capture, refund.capture_id)
        request_id = capture.payment_request_id
        if request_id is None:
            _hold(refund, "Xendit's payment request of this capture is not known; refund it in the dashboard")
            return
        refund.status = RefundState.PENDING
        refund.sent_at = parts.clock.now()
        refund.next_try_at = refund.sent_at + parts.rules.submitted_lease
        amount = Money(refund.amount_minor, refund.currency)
        reference, reason = refund.reference_id, refund.reason
    try:
        report = parts.gateway.refund(
            reference_id=reference, payment_request_id=request_id, amount=amount, reason=reason
        )
    except GatewayError as error:
        with parts.transaction() as session:
            refund = session.get_one(Refund, refund_id, with_for_update=True)
            if _nobody_knows(refund):
                _not_accepted(refund, error, parts.clock.now(), parts.rules)
    else:
        with parts.transaction() as session:
            _record(session, session.get_one(Refund, refund_id), report, parts.clock.now())


def _not_accepted(refund: Refund, error: GatewayError, now: datetime, rules: Rules) -> None:
    match error:
        case OutcomeUnknown():
            refund.error, refund.lease_until = str(error), None
        case NotSent() | RateLimited() | Unavailable():
            _ask_again(refund, now + TRY_AGAIN, str(error))
        case _ if error.http_status == NOT_FOUND and now < refund.created_at + _of_a_wrong_key(rules):
            _ask_again(refund, now + ASK_AGAIN_UNKNOWN, f"{error}; {RIGHT_KEY}")
        case _:
            _hold(refund, f"{error}; refund it in the dashboard")


def _of_a_wrong_key(rules: Rules) -> timedelta:
    return rules.settlement_window * WINDOWS_OF_A_WRONG_KEY


def _ask_again(refund: Refund, at: datetime, error: str) -> None:
    refund.status, refund.sent_at = RefundState.REQUESTED, None
    refund.next_try_at = at
    refund.error, refund.lease_until = error, None


def _nobody_knows(refund: Refund) -> bool:
    """Asked for, and Xendit has not told of it by any way yet."""
    return refund.status == RefundState.PENDING and refund.xendit_refund_id is None


def _look_up(parts: Parts, known: Refund) -> None:
    """Its webhook is late, or nobody heard whether it was accepted: Xendit's list knows it by our reference."""
    try:
        rows = parts.gateway.find_refunds(known.reference_id)
    except GatewayError as error:
        with parts.transaction() as session:
            refund = session.get_one(Refund, known.id, with_for_update=True)
            refund.lease_until, refund.error = None, str(error)
            if refund.next_try_at is not None:
                refund.next_try_at = parts.clock.now() + TRY_AGAIN
        return
    row = next(iter(rows), None)
    now = parts.clock.now()
    with parts.transaction() as session:
        refund = session.get_one(Refund, known.id)
        if row is not None:
            report = RefundReport(row.payment_id or known.id, _STATUS_OF_ROW.get(row.status, RefundStatus.PENDING))
            _record(session, refund, report, now)
        session.refresh(refund, with_for_update=True)
        refund.lease_until = None
        if refund.status != RefundState.PENDING:
            return
        since = refund.sent_at or refund.created_at
        if _nobody_knows(refund) and now >= since + parts.rules.settlement_window:
            look = f"look in the dashboard whether {refund.reference_id} exists before refunding by hand"
            _hold(refund, f"no trace at Xendit {parts.rules.settlement_window} after it was asked for; {look}")
            return
        refund.next_try_at = now + max(TRY_AGAIN, (now - since) / 2)


_STATUS_OF_ROW = {
    "SUCCESS": RefundStatus.SUCCEEDED,
    "FAILED": RefundStatus.FAILED,
    "VOIDED": RefundStatus.FAILED,
    "REVERSED": RefundStatus.FAILED,
}


def apply_refund(session: Session, report: RefundReport, now: datetime) -> str | None:
    """What Xendit says of a refund, ours or one that a person has made elsewhere. Returns the subscription it belongs
    to; None when it is of no payment of ours, or none that we know yet."""
    refund = find_refund(session, report.refund_id, report.reference_id)
    if refund is not None:
        capture = session.get_one(Capture, refund.capture_id)
    else:
        found = _capture_of(session, report)
        if found is None:
            return None
        capture = found
    subscription_id = session.get_one(ChargeAttempt, capture.attempt_id).subscription_id
    if refund is None:
        lock_subscription(session, subscription_id)
        known = find_refund(session, report.refund_id, report.reference_id)
        refund = known or _made_elsewhere(session, capture, report, now)
    _record(session, refund, report, now)
    return subscription_id


def find_refund(session: Session, refund_id: str, reference_id: str | None) -> Refund | None:
    """By Xendit's id; one of ours whose answer we have not heard yet by our reference."""
    refund = session.scalar(select(Refund).where(Refund.xendit_refund_id == refund_id))
    if refund is None and reference_id is not None:
        refund = session.scalar(select(Refund).where(Refund.reference_id == reference_id))
    return refund


def _capture_of(session: Session, report: RefundReport) -> Capture | None:
    if report.payment_id is not None:
        capture = session.scalar(select(Capture).where(Capture.payment_id == report.payment_id))
        if capture is not None:
            return capture
    if report.payment_request_id is None:
        return None
    query = select(Capture).where(Capture.payment_request_id == report.payment_request_id)
    return session.scalar(query.order_by(Capture.captured_at, Capture.id).limit(1))


def _made_elsewhere(session: Session, capture: Capture, report: RefundReport, now: datetime) -> Refund:
    """In Xendit's dashboard, by a person. One of ours of which nobody knows whether it arrived is that, if it names no
    other reference."""
    amount = report.amount or Money(capture.amount_minor, capture.currency)
    not_told_of = select(Refund).where(
        Refund.capture_id == capture.id, Refund.xendit_refund_id.is_(None), Refund.currency == amount.currency
    )
    same = Refund.amount_minor == amount.amount_minor
    if report.reference_id is None:
        ours = session.scalar(not_told_of.where(same, Refund.status == RefundState.PENDING).limit(1))
        if ours is not None:
            return ours
    refund = None
    if report.status not in (RefundStatus.FAILED, RefundStatus.CANCELLED):
        refund = _in_place_of_ours(session, not_told_of.order_by(~same, Refund.id), amount)
    if refund is None:
        refund = new_refund(capture, amount.amount_minor, "REQUESTED_BY_CUSTOMER", RefundState.PENDING, now)
        refund.currency = amount.currency
        session.add(refund)
    refund.made_elsewhere = True
    refund.xendit_refund_id = report.refund_id
    session.flush()
    log.warning("refund.made_elsewhere", refund=refund.id, capture=capture.id, xendit_refund_id=report.refund_id)
    return refund


def _in_place_of_ours(session: Session, waiting: Select[Refund], amount: Money) -> Refund | None:
    """Where we have told a person to give it back (held), or were about to do it ourselves, so much need not be given
    back any more. Where nothing is left of it, it is that refund."""
    not_sent = Refund.status.in_({RefundState.HELD, RefundState.REQUESTED})
    locked = waiting.where(not_sent).limit(1).with_for_update().execution_options(populate_existing=True)
    ours = session.scalar(locked)
    if ours is None or ours.amount_minor > amount.amount_minor:
        if ours is not None:
            ours.amount_minor -= amount.amount_minor
        return None
    ours.amount_minor = amount.amount_minor
    return ours


def _record(session: Session, refund: Refund, report: RefundReport, now: datetime) -> None:
    capture = session.get_one(Capture, refund.capture_id)
    attempt = session.get_one(ChargeAttempt, capture.attempt_id)
    lock_subscription(session, attempt.subscription_id)
    session.refresh(refund, with_for_update=True)
    refund.lease_until = None
    refund.xendit_refund_id = refund.xendit_refund_id or report.refund_id
    if refund.status in (RefundState.SUCCEEDED, RefundState.FAILED):
        return
    match report.status:
        case RefundStatus.SUCCEEDED:
            refund.status = RefundState.SUCCEEDED
            refund.next_try_at = refund.error = None
            invoice = session.get_one(Invoice, capture.invoice_id, populate_existing=True)
            if refund.currency == invoice.currency:  # money of another currency was never counted as paid
                invoice.amount_paid_minor -= refund.amount_minor
            _tell_success(session, attempt.subscription_id, refund, invoice, now)
        case RefundStatus.FAILED | RefundStatus.CANCELLED:
            refund.status = RefundState.FAILED
            refund.next_try_at = None
            refund.error = report.failure_code or "Xendit gives no reason"
            tell(session, attempt.subscription_id, now, "refund.failed", reason=refund.error)
            log.error("refund.failed", refund=refund.id, reason=refund.error)
        case RefundStatus.PENDING:
            refund.status = RefundState.PENDING
            refund.next_try_at = now + FIRST_LOOK_UP
            refund.error = None


def _tell_success(session: Session, subscription_id: str, refund: Refund, invoice: Invoice, now: datetime) -> None:
    if not refund.made_elsewhere:
        tell(session, subscription_id, now, "refund.succeeded", invoice=invoice.number)
        return
    amount = format_money(Money(refund.amount_minor, refund.currency))
    made = {"invoice": invoice.number, "given_back": amount, "refund": refund.xendit_refund_id}
    tell(session, subscription_id, now, "refund.made_elsewhere", **made)


def _hold(refund: Refund, reason: str) -> None:
    refund.status = RefundState.HELD
    refund.error = reason
    refund.next_try_at = refund.lease_until = None
    log.error("refund.held", refund=refund.id, reason=reason)
