"""Settle: what Xendit said of an attempt -> attempt, invoice, subscription, next try, story. In one transaction.

The synchronous answer (send.py), the webhook (inbox/apply.py) and the look-up (look_up.py) all end in
`settle_attempt`. Any number of times, in any order: saying it twice changes nothing, and `succeeded` never moves. An
answer that took exactly what it asked for, while nothing else has happened, is settled for a whole group by one
statement that does the same (`settle_together`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from billing.charging import after_failure, refunds
from billing.charging.begin import Begun
from billing.domain.declines import Classified, DeclineClass, classify
from billing.domain.gateway import ChargeReport, ChargeStatus
from billing.domain.lifecycle import (
    AttemptStatus,
    HoldKind,
    InvoiceStatus,
    SessionStatus,
    SubscriptionStatus,
    attempt_may_become,
)
from billing.domain.money import Money, format_money
from billing.errors import GatewayError
from billing.parts import Parts, Rules, tell
from billing.store import queries
from billing.store.models import Capture, ChargeAttempt, PaymentSession, new_id
from billing.subscriptions.invoices import close_if_ended, hold_invoice, move_attempt, move_invoice, withdraw_all
from billing.subscriptions.moves import end_if_over, invoice_number, prepaid_first_period

CLOCKS_DIFFER = timedelta(hours=1)  # at most, ours and Xendit's

Answered = tuple[Begun, ChargeReport | GatewayError]

log = structlog.get_logger()


# ------------------------------------------------------------------------------ exactly what was asked for


@dataclass(frozen=True, slots=True)
class _Paid:
    """What Xendit's answer said of an attempt that took exactly what it asked for."""

    attempt_id: str
    subscription_id: str
    capture_id: str
    payment_request_id: str | None
    payment_id: str | None
    captured_at: datetime
    amount: str  # for the story
    amount_known: bool  # the answer says what was captured, not only what was asked for


def settle_together(parts: Parts, answered: Sequence[Answered]) -> set[str]:
    """Most answers say that exactly what was asked for is paid: submitted -> succeeded, and the invoice paid, for
    all of them in one statement. Returns the attempts that are settled by it; `settle_attempt` is for the others, where
    more has to move or has happened."""
    now = parts.clock.now()
    paid = [each for begun, answer in answered if (each := _as_asked(begun, answer, now)) is not None]
    if not paid:
        return set()
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
    try:
        with parts.transaction() as session:
            session.execute(_LOCK_ALL, {"ids": sorted({each.subscription_id for each in paid})})
            return set(session.scalars(_PAY, values))
    except IntegrityError:
        return set()  # one of them is known under another attempt: each by itself


def _as_asked(begun: Begun, answer: ChargeReport | GatewayError, now: datetime) -> _Paid | None:
    request = begun.request
    if not isinstance(answer, ChargeReport) or answer.status != ChargeStatus.SUCCEEDED:
        return None
    if answer.failure_code or answer.network_code or answer.advice_code:
        return None
    if answer.amount is not None and answer.amount != request.amount:
        return None
    return _Paid(
        begun.attempt_id,
        begun.subscription_id,
        new_id("cap"),
        answer.payment_request_id,
        answer.payment_id,
        answer.captured_at or now,
        str(request.amount),
        answer.amount_is_captured,
    )


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


# ------------------------------------------------------------------------------------------ whatever it says


def settle_alone(parts: Parts, attempt_id: str, report: ChargeReport, *, source: str) -> None:
    with parts.transaction() as session:
        settle_attempt(session, attempt_id, report, parts.clock.now(), parts.rules, source=source)


def settle_attempt(
    session: Session,
    attempt_id: str,
    report: ChargeReport,
    now: datetime,
    rules: Rules,
    *,
    source: str,
) -> None:
    """Record what Xendit said of an attempt and let it ripple. Saying it twice changes nothing.

    `source` is answer, webhook or lookup; it is kept in the story as evidence.
    """
    if queries.lock_subscription_of_attempt(session, attempt_id) is None:
        return
    found = queries.attempt_with_invoice(session, attempt_id)
    match report.status:
        case ChargeStatus.SUCCEEDED:
            _succeeded(session, found, report, now, rules, source)
        case ChargeStatus.FAILED | ChargeStatus.EXPIRED:
            _failed(session, found, report, now, rules, source)
        case ChargeStatus.CANCELED:
            _canceled(session, found, report, now)
        case ChargeStatus.PENDING:
            _waiting(session, found, report, now, rules, AttemptStatus.PENDING)
        case ChargeStatus.REQUIRES_ACTION:
            _waiting(session, found, report, now, rules, AttemptStatus.REQUIRES_ACTION)


def _succeeded(
    session: Session, found: queries.Found, report: ChargeReport, now: datetime, rules: Rules, source: str
) -> None:
    attempt, invoice, subscription = found.attempt, found.invoice, found.subscription
    known = _known_capture(found, report)
    if known is not None:
        _told_again(session, found, known, report, now, rules)
        return
    capture = _record_capture(session, found, report, now)
    _note_ids_and_codes(attempt, report)
    late = attempt.status in (AttemptStatus.FAILED, AttemptStatus.CANCELED)
    if attempt.status != AttemptStatus.SUCCEEDED:  # else another payment under the same reference
        move_attempt(attempt, AttemptStatus.SUCCEEDED, now)
    attempt.submitted_at = attempt.submitted_at or now  # Xendit has it, even if we took it back as not sent
    attempt.decline_class = None
    if capture.overpayment:
        if capture.currency == invoice.currency:
            invoice.amount_paid_minor += capture.amount_minor
            refunds.give_back(session, found, capture, capture.amount_minor, now, rules)
        else:
            _other_currency(session, found, capture, now)
        close_if_ended(session, subscription, [invoice], now)
        return
    if attempt.origin == "session" and subscription.status == SubscriptionStatus.INCOMPLETE:
        _begin_prepaid(session, found, capture, now)
    tell(
        session,
        subscription.id,
        now,
        "invoice.paid" if _paid(found) >= invoice.amount_minor else "invoice.paid_in_part",
        invoice=invoice.number,
        attempt=attempt.id,
        amount=str(Money(capture.amount_minor, capture.currency)),
        source=source,
        **({"late": True} if late else {}),
    )
    _book(session, found, capture, capture.amount_minor, now, rules, others_planned=late or attempt.number > 1)


def _paid(found: queries.Found) -> int:
    """What counts for the invoice: not what is on its way back."""
    return sum(known.amount_minor for known in found.captures if not known.overpayment)


def _book(
    session: Session,
    found: queries.Found,
    capture: Capture,
    change: int,
    now: datetime,
    rules: Rules,
    *,
    others_planned: bool,
) -> None:
    """The capture pays, by so much more than before (less, when a report corrects the one before)."""
    attempt, invoice, subscription = found.attempt, found.invoice, found.subscription
    invoice.amount_paid_minor += change
    paid = _paid(found)
    if paid < invoice.amount_minor:
        _paid_in_part(session, found, now)
        return
    is_news = invoice.status != InvoiceStatus.PAID
    if is_news:
        move_invoice(invoice, InvoiceStatus.PAID, now)
    surplus = min(change, paid - invoice.amount_minor)
    if surplus > 0:
        refunds.give_back(session, found, capture, surplus, now, rules)
    if is_news:
        if others_planned or invoice.first_failed_at is not None:
            withdraw_all(session, now, "the invoice is paid", invoice=invoice, but=attempt)
        after_failure.recover_subscription(session, subscription, now)
        end_if_over(session, subscription, now)


def _paid_in_part(session: Session, found: queries.Found, now: datetime) -> None:
    """Less was captured than asked for: the rest is owed, and a person decides whether to charge it."""
    invoice, subscription = found.invoice, found.subscription
    if invoice.status == InvoiceStatus.UNCOLLECTIBLE and subscription.status == SubscriptionStatus.CANCELED:
        return  # it was given up with its subscription; what has come in stays booked
    if invoice.status != InvoiceStatus.OPEN:
        move_invoice(invoice, InvoiceStatus.OPEN, now)
    paid, asked = (Money(minor, invoice.currency) for minor in (_paid(found), invoice.amount_minor))
    reason = f"{format_money(paid)} of {format_money(asked)} were captured"
    hold_invoice(session, invoice, now, reason, HoldKind.AMOUNT)
    withdraw_all(session, now, reason, invoice=invoice, but=found.attempt)
    close_if_ended(session, subscription, [invoice], now)


def _other_currency(session: Session, found: queries.Found, capture: Capture, now: datetime) -> None:
    """It pays nothing here and is given back by nobody but a person: what happened at Xendit is not for us to guess."""
    invoice = found.invoice
    reason = f"{format_money(Money(capture.amount_minor, capture.currency))} were captured, owed is {invoice.currency}"
    refunds.keep_for_a_person(session, found, capture, capture.amount_minor, now, reason)
    if invoice.status == InvoiceStatus.DRAFT:
        return  # its session may still collect it, or a saved method does
    if invoice.status in (InvoiceStatus.OPEN, InvoiceStatus.PAID) and _paid(found) < invoice.amount_minor:
        if invoice.status == InvoiceStatus.PAID:
            move_invoice(invoice, InvoiceStatus.OPEN, now)
        hold_invoice(session, invoice, now, reason, HoldKind.CURRENCY)
        withdraw_all(session, now, reason, invoice=invoice, but=found.attempt)


def _known_capture(found: queries.Found, report: ChargeReport) -> Capture | None:
    """The capture we have of this payment. One attempt has one payment; another payment id under the same reference
    is a second capture. A capture without an id (synchronous answer) and one with it are the same."""
    for known in found.captures:
        if known.attempt_id == found.attempt.id and (
            known.payment_id is None or report.payment_id is None or known.payment_id == report.payment_id
        ):
            if known.payment_id is None and report.payment_id is not None:
                known.payment_id = found.attempt.payment_id = report.payment_id
            return known
    return None


def _told_again(
    session: Session, found: queries.Found, known: Capture, report: ChargeReport, now: datetime, rules: Rules
) -> None:
    """The same payment once more. Only what was captured is news: the first time whatever it is (until then we had
    booked what we asked for), afterwards only if it is more. An event that says less is an older one."""
    total = report.amount
    if total is None or not report.amount_is_captured:
        return
    first_time, known.amount_known = not known.amount_known, True
    if total.currency != known.currency:
        if first_time and not known.overpayment:
            _was_other_money(session, found, known, total, now)
        return
    change = total.amount_minor - known.amount_minor
    if change == 0 or (change < 0 and not first_time):
        return
    known.amount_minor += change
    if known.overpayment and known.currency != found.invoice.currency:
        refunds.keep_as_much(session, known)
        return
    if known.overpayment:
        found.invoice.amount_paid_minor += change
        if change > 0:
            refunds.give_back(session, found, known, change, now, rules)
        else:
            refunds.give_back_less(session, known)
    else:
        if change < 0:
            refunds.give_back_less(session, known)
        _book(session, found, known, change, now, rules, others_planned=True)


def _was_other_money(session: Session, found: queries.Found, known: Capture, total: Money, now: datetime) -> None:
    """The answer let us believe that it was paid; it was, in another currency."""
    found.invoice.amount_paid_minor -= known.amount_minor
    known.amount_minor, known.currency, known.overpayment = total.amount_minor, total.currency, True
    _other_currency(session, found, known, now)
    close_if_ended(session, found.subscription, [found.invoice], now)


def _record_capture(session: Session, found: queries.Found, report: ChargeReport, now: datetime) -> Capture:
    attempt, invoice = found.attempt, found.invoice
    amount = report.amount or Money(attempt.amount_minor, attempt.currency)
    capture = Capture(
        id=new_id("cap"),
        payment_id=report.payment_id,
        payment_request_id=report.payment_request_id or attempt.payment_request_id,
        invoice_id=invoice.id,
        attempt_id=attempt.id,
        amount_minor=amount.amount_minor,
        currency=amount.currency,
        overpayment=_is_not_owed(found, amount.currency),
        amount_known=report.amount_is_captured,
        captured_at=report.captured_at or now,
    )
    session.add(capture)
    found.captures.append(capture)
    return capture


def _is_not_owed(found: queries.Found, currency: str) -> bool:
    """Other money than is owed; or nothing is owed (any more): it is paid already, void, or a customer paid through the
    link of a canceled subscription; or this attempt has paid before."""
    invoice = found.invoice
    ended = found.attempt.origin == "session" and found.subscription.status == SubscriptionStatus.CANCELED
    paid_before = any(known.attempt_id == found.attempt.id and not known.overpayment for known in found.captures)
    nothing_owed = invoice.status in (InvoiceStatus.PAID, InvoiceStatus.VOID) or _paid(found) >= invoice.amount_minor
    return currency != invoice.currency or ended or paid_before or nothing_owed


def _begin_prepaid(session: Session, found: queries.Found, capture: Capture, now: datetime) -> None:
    """The payment session collected the first period: it runs from the capture on, whatever the session's own fate.
    Xendit's clock and ours may differ a little; a time that is far from what can be true is not taken as it is."""
    opened = found.attempt.created_at
    possible = opened - CLOCKS_DIFFER <= capture.captured_at <= now + CLOCKS_DIFFER
    begins = capture.captured_at if possible else max(min(capture.captured_at, now), opened)
    period = prepaid_first_period(session, found.subscription, found.plan, begins, now)
    # Other links to pay the same period are of no use any more: they are ended as soon as somebody looks (sessions.py).
    session.execute(
        update(PaymentSession)
        .where(
            PaymentSession.subscription_id == found.subscription.id,
            PaymentSession.status == SessionStatus.ACTIVE,
            PaymentSession.reference_id != found.attempt.reference_id,
        )
        .values(next_check_at=now)
    )
    found.invoice.number = invoice_number(found.subscription, period)
    found.invoice.period_key = period.key
    found.invoice.period_index = period.index
    found.invoice.period_start, found.invoice.period_end = period.start, period.end


def _failed(
    session: Session, found: queries.Found, report: ChargeReport, now: datetime, rules: Rules, source: str
) -> None:
    attempt = found.attempt
    code = report.failure_code or (
        "PAYMENT_REQUEST_EXPIRED" if report.status == ChargeStatus.EXPIRED else "FAILURE_DETAILS_UNAVAILABLE"
    )
    verdict = classify(failure_code=code, network_code=report.network_code, advice_code=report.advice_code)
    if attempt.origin == "session":
        # A failed try on the hosted page: the session stays open and the customer may try again.
        tell(session, attempt.subscription_id, now, "session.try_failed", failure_code=code)
        return
    if attempt.status == AttemptStatus.FAILED:
        _learn_codes(session, found, report, now)
        return
    if not attempt_may_become(AttemptStatus(attempt.status), AttemptStatus.FAILED):
        return
    if verdict.cls == DeclineClass.UNKNOWN_FIRST and not after_failure.window_is_over(attempt, now, rules):
        if attempt.status != AttemptStatus.IN_DOUBT:
            reason = f"Xendit reports {code}, which can still turn into money"
            doubt_attempt(session, attempt.id, now, reason, rules=rules, report=report)
        return
    fail_attempt(session, found, verdict, report, code, now, source)


def fail_attempt(
    session: Session,
    found: queries.Found,
    verdict: Classified,
    report: ChargeReport,
    code: str,
    now: datetime,
    source: str,
) -> None:
    """The definite end of one attempt; what comes next is the dunning policy's to say."""
    attempt = found.attempt
    _note_ids_and_codes(attempt, report)
    move_attempt(attempt, AttemptStatus.FAILED, now)
    attempt.submitted_at = attempt.submitted_at or now
    attempt.failure_code = code
    attempt.decline_class = verdict.cls
    session.flush()
    upcoming = after_failure.after_failure(session, found, verdict, now)
    tell(
        session,
        attempt.subscription_id,
        now,
        "attempt.failed",
        attempt=attempt.id,
        invoice=found.invoice.number,
        failure_code=code,
        decline_class=verdict.cls,
        source=source,
        next=upcoming,
    )


def _learn_codes(session: Session, found: queries.Found, report: ChargeReport, now: datetime) -> None:
    """The synchronous answer has only the failure code; the webhook brings the network's and the scheme's advice.
    A planned retry gives way to what they say."""
    attempt = found.attempt
    if (report.network_code, report.advice_code) == (None, None):
        return
    if (report.network_code, report.advice_code) == (attempt.network_code, attempt.advice_code):
        return
    _note_ids_and_codes(attempt, report)
    verdict = classify(
        failure_code=attempt.failure_code, network_code=attempt.network_code, advice_code=attempt.advice_code
    )
    attempt.decline_class = verdict.cls
    session.flush()
    after_failure.revise_plan(session, found, verdict, now)


def _canceled(session: Session, found: queries.Found, report: ChargeReport, now: datetime) -> None:
    attempt, invoice, subscription = found.attempt, found.invoice, found.subscription
    if not attempt_may_become(AttemptStatus(attempt.status), AttemptStatus.CANCELED):
        return
    _note_ids_and_codes(attempt, report)
    move_attempt(attempt, AttemptStatus.CANCELED, now)
    session.flush()
    tell(session, subscription.id, now, "attempt.canceled", attempt=attempt.id, reason="canceled at Xendit")
    if subscription.status == SubscriptionStatus.CANCELED:
        close_if_ended(session, subscription, [invoice], now)
    elif attempt.origin != "session":
        needs_customer = classify(failure_code="AUTHENTICATION_FAILED")
        after_failure.after_failure(session, found, needs_customer, now)


def _waiting(
    session: Session,
    found: queries.Found,
    report: ChargeReport,
    now: datetime,
    rules: Rules,
    status: AttemptStatus,
) -> None:
    attempt = found.attempt
    if attempt.status == status or not attempt_may_become(AttemptStatus(attempt.status), status):
        return
    _note_ids_and_codes(attempt, report)
    attempt.status = status
    attempt.action_url = report.action_url
    attempt.lease_until = None
    attempt.checks = 0
    attempt.next_check_at = after_failure.next_look_up(attempt, now, rules)
    tell(session, attempt.subscription_id, now, f"attempt.{status}", attempt=attempt.id, action_url=report.action_url)
    if status == AttemptStatus.REQUIRES_ACTION:
        after_failure.mark_past_due(session, found.subscription, now)


def _note_ids_and_codes(attempt: ChargeAttempt, report: ChargeReport) -> None:
    attempt.payment_request_id = report.payment_request_id or attempt.payment_request_id
    attempt.payment_id = report.payment_id or attempt.payment_id
    attempt.failure_code = report.failure_code or attempt.failure_code
    attempt.network_code = report.network_code or attempt.network_code
    attempt.advice_code = report.advice_code or attempt.advice_code


def doubt_attempt(
    session: Session,
    attempt_id: str,
    now: datetime,
    error: str,
    *,
    rules: Rules,
    report: ChargeReport | None = None,
) -> None:
    """Nobody knows whether money moved. Looked up on a ladder; until then nothing else may charge this invoice."""
    if queries.lock_subscription_of_attempt(session, attempt_id) is None:
        return
    attempt = session.get_one(ChargeAttempt, attempt_id, populate_existing=True)
    if not attempt_may_become(AttemptStatus(attempt.status), AttemptStatus.IN_DOUBT):
        return
    if report is not None:
        _note_ids_and_codes(attempt, report)
    attempt.status = AttemptStatus.IN_DOUBT
    attempt.doubt_since = now
    attempt.lease_until = None
    attempt.checks = 0
    attempt.next_check_at = after_failure.next_look_up(attempt, now, rules)
    attempt.error = error
    tell(session, attempt.subscription_id, now, "attempt.in_doubt", attempt=attempt.id, reason=error)
    log.warning("charge.in_doubt", attempt=attempt.id, error=error)
