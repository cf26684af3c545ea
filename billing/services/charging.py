"""The path of a charge, and the only code that moves money states. Read it top down.

    charge            one attempt from `scheduled` to whatever Xendit says; called by a worker or by `billing run`
      (a retry asks Xendit first whether the failed try before it has turned into money)
      begin_attempt   scheduled -> submitted; everything that could forbid the charge is checked again   commit
      gateway.charge  POST /v3/payment_requests                                        no transaction open
      settle_attempt  what Xendit said -> attempt, invoice, subscription, next try, story               commit

The synchronous answer, the webhook and reconciliation all end in `settle_attempt`. It may be called any number of
times, in any order. When nobody knows whether money moved the attempt is `in_doubt`, which blocks every other attempt
for its invoice until the truth is found (services/reconciling.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import update
from sqlalchemy.orm import Session

from billing.domain import channels
from billing.domain.declines import Classified, DeclineClass, classify
from billing.domain.gateway import CHARGE_ENDPOINT, ChargeReport, ChargeRequest, ChargeStatus
from billing.domain.lifecycle import (
    BILLABLE,
    AttemptStatus,
    InvoiceStatus,
    SubscriptionStatus,
    attempt_may_become,
)
from billing.domain.money import Money
from billing.errors import (
    GatewayError,
    InvalidMoney,
    NotFound,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    RequestRejected,
    Unavailable,
)
from billing.services import refunding, retrying
from billing.services.parts import Parts, Rules, tell
from billing.services.subscriptions import close_invoice, invoice_number, prepaid_first_period, recurring_terms
from billing.services.tokens import verify_for_charge
from billing.store import queries
from billing.store.clock import real_now, uptime
from billing.store.models import (
    Capture,
    ChargeAttempt,
    Invoice,
    PaymentToken,
    new_id,
)

CHANNEL_LIMIT_WAIT = timedelta(minutes=5)
NOT_SENT_WAIT = timedelta(minutes=1)
ASK_AGAIN = timedelta(minutes=10)
OPEN_AT_GATEWAY = frozenset({ChargeStatus.PENDING, ChargeStatus.REQUIRES_ACTION})
VERIFY_AGAIN = timedelta(hours=1)  # Xendit itself says the token is not usable yet

log = structlog.get_logger()


# ---------------------------------------------------------------------------------------------- one charge


def charge(parts: Parts, attempt_id: str) -> None:
    """One attempt, once: a doubled or late message finds it no longer `scheduled` and does nothing.

    Nothing here repeats a call. Raises nothing for a decline or a gateway error: both are recorded.
    """
    if not parts.quota.acquire(CHARGE_ENDPOINT, wait_seconds=5):
        with parts.transaction() as session:
            queries.release_lease(session, attempt_id)
        return
    begun = _ask_and_begin(parts, attempt_id)
    if begun is not None:
        _send_and_settle(parts, begun)


def _ask_and_begin(parts: Parts, attempt_id: str) -> Begun | None:
    """Begin, once Xendit has been asked what must be asked first. What it cannot say now makes the charge wait."""
    now = parts.clock.now()
    asked: set[str] = set()
    while True:
        with parts.transaction() as session:
            begun = begin_attempt(session, attempt_id, now, parts.rules, asked_before="earlier" in asked)
            if isinstance(begun, UnverifiedToken) and begun.payment_token_id in asked:
                queries.postpone(
                    session, attempt_id, now + VERIFY_AGAIN, error="Xendit says the token is not usable yet"
                )
                return None
        wait: Wait | None = None
        match begun:
            case EarlierTries():
                wait = _ask_about(parts, begun, now)
                asked.add("earlier")
            case UnverifiedToken(payment_token_id=payment_token_id):
                if not verify_for_charge(parts, payment_token_id):
                    wait = Wait(NOT_SENT_WAIT, "Xendit could not be asked about the token")
                asked.add(payment_token_id)
            case _:
                return begun
        if wait is not None:
            with parts.transaction() as session:
                queries.postpone(session, attempt_id, now + wait.time, error=wait.reason)
            return None


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a charge is not begun now, and for how long."""

    time: timedelta
    reason: str


def _ask_about(parts: Parts, earlier: EarlierTries, now: datetime) -> Wait | None:
    """Money that came after all is settled, which withdraws the retry. A try that is open again at Xendit makes the
    retry wait, until the settlement window of that try is over."""
    for attempt_id, payment_request_id, sent_at in earlier.tries:
        try:
            report = parts.gateway.get_charge(payment_request_id)
        except NotFound:
            continue
        except GatewayError as error:
            return Wait(ASK_AGAIN, f"waits until Xendit can be asked about the try before it: {error}")
        if report.status == ChargeStatus.SUCCEEDED:
            _settle(parts, attempt_id, report, source="lookup")
        elif report.status in OPEN_AT_GATEWAY and now < sent_at + parts.rules.settlement_window:
            return Wait(VERIFY_AGAIN, "waits for the try before it, which is open again at Xendit")
    return None


def _send_and_settle(parts: Parts, begun: Begun) -> None:
    """Between begin and settle: one HTTP request, no transaction. Every way it can end has its own line."""
    attempt_id = begun.attempt_id
    try:
        if uptime() > begun.send_before:
            raise NotSent("this worker was stopped too long before sending")
        report = parts.gateway.charge(begun.request)
    except NotSent as error:
        _set_back(parts, begun, NOT_SENT_WAIT, str(error))
    except RateLimited as error:
        channel_limit = error.error_code == "PAYMENT_REQUEST_RATE_LIMITED"
        wait = CHANNEL_LIMIT_WAIT if channel_limit else timedelta(seconds=error.retry_after_seconds)
        _set_back(parts, begun, wait, str(error))
    except Unavailable as error:
        refused = ChargeReport(ChargeStatus.FAILED, failure_code=error.error_code or "CHANNEL_UNAVAILABLE")
        _settle(parts, attempt_id, refused, source="answer")
    except OutcomeUnknown as error:
        with parts.transaction() as session:
            doubt_attempt(session, attempt_id, parts.clock.now(), str(error), rules=parts.rules)
    except RequestRejected as error:
        with parts.transaction() as session:
            _reject(session, attempt_id, error, parts.clock.now())
    else:
        _settle(parts, attempt_id, report, source="answer")


def _settle(parts: Parts, attempt_id: str, report: ChargeReport, *, source: str) -> None:
    with parts.transaction() as session:
        settle_attempt(session, attempt_id, report, parts.clock.now(), parts.rules, source=source)


# ---------------------------------------------------------------------------------------------------- begin


@dataclass(frozen=True, slots=True)
class Begun:
    """The attempt is written down as submitted; this is what to send, and until when it may be sent."""

    attempt_id: str
    request: ChargeRequest
    lease_id: str
    lease_until: datetime  # real time
    send_before: float  # uptime in seconds


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """The token has never been seen ACTIVE at Xendit (an import, a late activation): ask first."""

    payment_token_id: str


@dataclass(frozen=True, slots=True)
class EarlierTries:
    """This is a retry: a failure Xendit reported may have turned into money, and its webhook may be lost. Ask first."""

    tries: Sequence[tuple[str, str, datetime]]  # attempt id, Xendit's payment request id, sent at


def begin_attempt(
    session: Session, attempt_id: str, now: datetime, rules: Rules, *, asked_before: bool = False
) -> Begun | UnverifiedToken | EarlierTries | None:
    """scheduled -> submitted, or None when there is nothing to do or the charge is no longer allowed.

    Checked here, whatever was true when the attempt was planned: still scheduled and due, subscription chargeable,
    invoice open, amount unchanged, token ACTIVE, network caps, channel limits, no stop of the whole account.

    The move itself is one UPDATE that names the expected old state, so it is won once (D6). Whoever withdraws a
    planned attempt (cancel, pause, another payment) changes the same row: one of the two finds it changed.
    """
    found = queries.attempt_with_tokens(session, attempt_id, now)
    if found is None or found.attempt.status != AttemptStatus.SCHEDULED or found.attempt.scheduled_at > now:
        return None
    token = _chargeable_token(found)
    if token is None:
        # Something forbids the charge. What follows moves more than this row: look again, under the lock.
        queries.lock_subscription_of_attempt(session, attempt_id)
        return _refuse(session, attempt_id, now)
    if found.attempt.number > 1 and not asked_before:
        earlier = queries.failed_at_gateway(session, found.invoice.id)
        if earlier:
            return EarlierTries(earlier)
    begun = _prepare(found, token, now, rules)
    return begun if queries.submit(session, begun.attempt_id, token, begun.lease_id, now, begun.lease_until) else None


def _chargeable_token(found: queries.FoundWithTokens) -> PaymentToken | None:
    """The token to charge when every check is passed, else None."""
    if found.charging_stopped or _why_not_chargeable(found):
        return None
    token = retrying.choose_token(found, by_hand=found.attempt.origin == "operator").token
    return None if token is None or _beyond_channel_limits(found, token) else token


def _refuse(session: Session, attempt_id: str, now: datetime) -> UnverifiedToken | None:
    """Why the charge must not be made now, and what becomes of the attempt."""
    found = queries.attempt_with_tokens(session, attempt_id, now)
    if found is None or found.attempt.status != AttemptStatus.SCHEDULED:
        return None
    attempt = found.attempt
    choice = retrying.choose_token(found, by_hand=attempt.origin == "operator")
    refusal = _why_not_chargeable(found)
    if found.charging_stopped:
        attempt.lease_until = None
    elif refusal:
        _withdraw(session, attempt, now, refusal)
    elif choice.unverified is not None:
        return UnverifiedToken(choice.unverified.payment_token_id)
    elif choice.token is None:
        retrying.without_token(session, found, choice, now)
    else:
        limit = _beyond_channel_limits(found, choice.token)
        if limit is None:
            attempt.lease_until = None  # what forbade it is gone since the first look: the next claim takes it
        else:
            _withdraw(session, attempt, now, limit)
            retrying.hold_invoice(session, found.invoice, now, limit)
    return None


def _why_not_chargeable(found: queries.FoundWithTokens) -> str | None:
    attempt, invoice, subscription = found.attempt, found.invoice, found.subscription
    if subscription.status not in BILLABLE:
        return f"the subscription is {subscription.status}"
    if invoice.status != InvoiceStatus.OPEN:
        return f"the invoice is {invoice.status}"
    if attempt.amount_minor != invoice.amount_minor - invoice.amount_paid_minor:
        return "the amount due has changed"
    return None


def _beyond_channel_limits(found: queries.FoundWithTokens, token: PaymentToken) -> str | None:
    amount = Money(found.attempt.amount_minor, found.attempt.currency)
    try:
        channels.check_amount(found.customer.country, token.channel_code, amount)
    except InvalidMoney as error:
        return str(error)
    return None


def _prepare(found: queries.FoundWithTokens, token: PaymentToken, now: datetime, rules: Rules) -> Begun:
    attempt, plan = found.attempt, found.plan
    request = ChargeRequest(
        reference_id=attempt.reference_id,
        payment_token_id=token.payment_token_id,
        channel_code=token.channel_code,
        amount=Money(attempt.amount_minor, attempt.currency),
        country=found.customer.country,
        description=f"{plan.name}, {found.invoice.number}",
        metadata={
            "subscription_id": attempt.subscription_id,
            "invoice_id": attempt.invoice_id,
            "attempt_id": attempt.id,
        },
        recurring=recurring_terms(plan, now.date()),
        return_url=rules.return_base,
    )
    return Begun(
        attempt.id,
        request,
        lease_id=new_id("lease"),
        # The lease outlives the longest call by a wide margin; what has not left by then must not leave at all.
        lease_until=real_now() + rules.submitted_lease,
        send_before=uptime() + rules.call_limit.total_seconds(),
    )


def _withdraw(session: Session, attempt: ChargeAttempt, now: datetime, why: str) -> None:
    attempt.status = AttemptStatus.CANCELED
    attempt.settled_at = now
    attempt.lease_until = None
    attempt.error = why
    tell(session, attempt.subscription_id, now, "attempt.canceled", attempt=attempt.id, reason=why)


# -------------------------------------------------------------------------------- when no result was brought


def _set_back(parts: Parts, begun: Begun, wait: timedelta, error: str) -> None:
    """Nothing was accepted: scheduled again under the same reference. Not a decline, not counted.

    Only while the lease of this very begin stands: a worker that woke up too late changes nothing.
    """
    now = parts.clock.now()
    with parts.transaction() as session:
        session.execute(
            update(ChargeAttempt)
            .where(
                ChargeAttempt.id == begun.attempt_id,
                ChargeAttempt.status == AttemptStatus.SUBMITTED,
                ChargeAttempt.lease_id == begun.lease_id,
            )
            .values(
                status=AttemptStatus.SCHEDULED,
                scheduled_at=now + wait,
                lease_until=None,
                submitted_at=None,
                error=error,
            )
        )
    log.info("charge.set_back", attempt=begun.attempt_id, error=error)


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
    attempt.next_check_at = retrying.next_look_up(attempt, now, rules)
    attempt.error = error
    tell(session, attempt.subscription_id, now, "attempt.in_doubt", attempt=attempt.id, reason=error)
    log.warning("charge.in_doubt", attempt=attempt.id, error=error)


def _reject(session: Session, attempt_id: str, error: RequestRejected, now: datetime) -> None:
    """Our request or our account is at fault: no dunning. Hold the invoice; a refused account stops everything."""
    subscription_id = queries.lock_subscription_of_attempt(session, attempt_id)
    attempt = session.get_one(ChargeAttempt, attempt_id, populate_existing=True)
    if subscription_id is None or attempt.status != AttemptStatus.SUBMITTED:
        return
    attempt.lease_until = None
    attempt.error = str(error)
    if error.stops_account:
        # Refused before anything was looked at: the same attempt goes on when a person has put it right.
        attempt.status = AttemptStatus.SCHEDULED
        attempt.submitted_at = None
        queries.stop_charging(session, str(error), now)
        tell(session, subscription_id, now, "charging.stopped", reason=str(error))
        log.error("charging.stopped", error=str(error))
        return
    attempt.status = AttemptStatus.FAILED
    attempt.failure_code = error.error_code
    attempt.decline_class = DeclineClass.OUR_FAULT
    attempt.settled_at = now
    invoice = session.get_one(Invoice, attempt.invoice_id)
    retrying.hold_invoice(session, invoice, now, str(error))
    log.error("charge.rejected", attempt=attempt.id, error=str(error))


# --------------------------------------------------------------------------------------------------- settle


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
        _captured_again(session, found, known, report, now, rules)
        return
    capture = _record_capture(session, found, report, now)
    _note_ids_and_codes(attempt, report)
    late = attempt.status in (AttemptStatus.FAILED, AttemptStatus.CANCELED)
    attempt.status = AttemptStatus.SUCCEEDED
    attempt.submitted_at = attempt.submitted_at or now  # Xendit has it, even if we took it back as not sent
    attempt.settled_at = now
    attempt.next_check_at = attempt.lease_until = None
    attempt.cancel_wanted = False
    attempt.decline_class = None
    invoice.amount_paid_minor += capture.amount_minor
    if capture.overpayment:
        refunding.give_back(session, found, capture, capture.amount_minor, now, rules)
        if invoice.status == InvoiceStatus.DRAFT:
            close_invoice(session, invoice, InvoiceStatus.VOID, now, reason="subscription canceled")
        return
    if attempt.origin == "session" and subscription.status == SubscriptionStatus.INCOMPLETE:
        _begin_prepaid(session, found, now)
    if invoice.amount_paid_minor >= invoice.amount_minor:
        invoice.status = InvoiceStatus.PAID
        invoice.closed_at = now
        invoice.grace_ends_at = invoice.hold_reason = None
    else:
        retrying.hold_invoice(session, invoice, now, "captured less than the amount due")
    surplus = invoice.amount_paid_minor - invoice.amount_minor
    if surplus > 0:
        refunding.give_back(session, found, capture, surplus, now, rules)
    tell(
        session,
        subscription.id,
        now,
        "invoice.paid",
        invoice=invoice.number,
        attempt=attempt.id,
        amount=str(Money(capture.amount_minor, capture.currency)),
        source=source,
        **({"late": True} if late else {}),
    )
    if late or invoice.first_failed_at is not None:
        retrying.withdraw_other_attempts(session, invoice, attempt, now)
    retrying.recover_subscription(session, subscription, now)


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


def _captured_again(
    session: Session, found: queries.Found, known: Capture, report: ChargeReport, now: datetime, rules: Rules
) -> None:
    """The same payment, now with more money than before: Xendit captured it once more."""
    total = report.amount
    if total is None or total.currency != known.currency or total.amount_minor <= known.amount_minor:
        return
    extra = total.amount_minor - known.amount_minor
    known.amount_minor += extra
    found.invoice.amount_paid_minor += extra
    refunding.give_back(session, found, known, extra, now, rules)


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
        overpayment=_is_not_owed(found),
        captured_at=report.captured_at or now,
    )
    session.add(capture)
    found.captures.append(capture)
    return capture


def _is_not_owed(found: queries.Found) -> bool:
    """Paid already, or nothing is owed any more: a customer paid through the link of a canceled subscription."""
    paid = any(not known.overpayment for known in found.captures)
    ended = found.attempt.origin == "session" and found.subscription.status == SubscriptionStatus.CANCELED
    return paid or ended or found.invoice.status in (InvoiceStatus.PAID, InvoiceStatus.VOID)


def _begin_prepaid(session: Session, found: queries.Found, now: datetime) -> None:
    """The payment session collected the first period: it runs from here on, whatever the session's own fate."""
    period = prepaid_first_period(session, found.subscription, found.plan, now)
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
    if verdict.cls == DeclineClass.UNKNOWN_FIRST and not retrying.window_is_over(attempt, now, rules):
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
    attempt.status = AttemptStatus.FAILED
    attempt.submitted_at = attempt.submitted_at or now
    attempt.failure_code = code
    attempt.decline_class = verdict.cls
    attempt.settled_at = now
    attempt.next_check_at = attempt.lease_until = None
    session.flush()
    upcoming = retrying.after_failure(session, found, verdict, now)
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
    retrying.revise_plan(session, found, verdict, now)


def _canceled(session: Session, found: queries.Found, report: ChargeReport, now: datetime) -> None:
    attempt, invoice, subscription = found.attempt, found.invoice, found.subscription
    if not attempt_may_become(AttemptStatus(attempt.status), AttemptStatus.CANCELED):
        return
    _note_ids_and_codes(attempt, report)
    attempt.status = AttemptStatus.CANCELED
    attempt.settled_at = now
    attempt.next_check_at = attempt.lease_until = None
    attempt.cancel_wanted = False
    session.flush()
    tell(session, subscription.id, now, "attempt.canceled", attempt=attempt.id, reason="canceled at Xendit")
    if subscription.status == SubscriptionStatus.CANCELED:
        close_invoice(session, invoice, InvoiceStatus.VOID, now, reason="subscription canceled")
    elif attempt.origin != "session":
        needs_customer = classify(failure_code="AUTHENTICATION_FAILED")
        retrying.after_failure(session, found, needs_customer, now)


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
    attempt.next_check_at = retrying.next_look_up(attempt, now, rules)
    tell(session, attempt.subscription_id, now, f"attempt.{status}", attempt=attempt.id, action_url=report.action_url)
    if status == AttemptStatus.REQUIRES_ACTION:
        retrying.mark_past_due(session, found.subscription, now)


def _note_ids_and_codes(attempt: ChargeAttempt, report: ChargeReport) -> None:
    attempt.payment_request_id = report.payment_request_id or attempt.payment_request_id
    attempt.payment_id = report.payment_id or attempt.payment_id
    attempt.failure_code = report.failure_code or attempt.failure_code
    attempt.network_code = report.network_code or attempt.network_code
    attempt.advice_code = report.advice_code or attempt.advice_code
