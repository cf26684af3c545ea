"""Finding the truth: attempts that are pending, wait for the customer or are in doubt, and a day against Xendit's list.

`check_attempt` asks Xendit and ends in the same `settle_attempt` as everything else. It never sends a charge again.
Silence proves nothing at first; only after the settlement window it means that the request never arrived.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from hashlib import blake2b
from itertools import chain

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from billing.charging import after_failure
from billing.charging import refunds as refunding
from billing.charging.matching import references_of
from billing.charging.settle import doubt_attempt, settle_attempt
from billing.domain.gateway import ChargeReport, ChargeStatus, RefundStatus, TransactionPage, TransactionRow
from billing.domain.lifecycle import AttemptStatus, HoldKind
from billing.domain.money import Money
from billing.errors import GatewayError, NotFound, NotSent, RateLimited, ServiceUnavailable, Unavailable
from billing.parts import Parts, tell
from billing.store import queries
from billing.store.clock import real_now
from billing.store.models import Capture, ChargeAttempt, Invoice, PaymentToken, Refund
from billing.subscriptions.invoices import hold_invoice, move_attempt

NEVER_ARRIVED = "NOT_FOUND_AT_GATEWAY"
ASK_AGAIN = timedelta(minutes=1)
ASK_AGAIN_AT_MOST = timedelta(hours=1)  # a gateway that is down for a day is not asked every minute
PAGE_WAITS_SECONDS = (5.0, 15.0, 60.0)  # before a page of the list is asked for again
CAPTURES_AT_ONCE = 500
PRESUME_LOST = "`BILLING_IN_DOUBT_POLICY=presume_lost billing reconcile` takes it for lost, and it is charged again"
MADE_NO_MONEY = frozenset({"FAILED", "VOIDED", "REVERSED"})
# Xendit may list a payment late: a day counts as compared when that was done so long after it.
DAYS_COMPARED_AGAIN = 3


# ------------------------------------------------------------------------------------------- one attempt


def check_attempt(parts: Parts, attempt_id: str) -> None:
    """One look-up of one attempt; what it brings is settled. Raises nothing for a gateway error: asked again later."""
    with parts.reading() as session:
        attempt = session.get(ChargeAttempt, attempt_id)
    if attempt is None or attempt.next_check_at is None:
        return
    report: ChargeReport | None = None
    denied: str | None = None
    try:
        report = _ask(parts, attempt)
    except NotFound as error:
        denied = str(error)
    except GatewayError as error:
        with parts.transaction() as session:
            _ask_again(session, attempt_id, parts, str(error))
        return
    now = parts.clock.now()
    with parts.transaction() as session:
        if report is not None:
            settle_attempt(session, attempt_id, report, now, parts.rules, source="lookup")
        _conclude(session, attempt_id, parts, now, found=report is not None, denied=denied)


def _ask(parts: Parts, attempt: ChargeAttempt) -> ChargeReport | None:
    """What Xendit knows of the attempt: by its own id when we have it, else by our reference in its list.

    Raises NotFound when Xendit denies an id that it gave us: the key is another account's, and nothing follows from it.
    """
    if attempt.payment_request_id is None:
        report = _by_reference(parts, attempt)
        if report is None and after_failure.window_is_over(attempt, parts.clock.now(), parts.rules):
            _ask_for_its_token(parts, attempt)
        return report
    try:
        if attempt.cancel_wanted:
            return parts.gateway.cancel_charge(attempt.payment_request_id)
        return find_charge(parts, attempt.payment_request_id)
    except NotFound:
        listed = _by_reference(parts, attempt)
        if listed is None:
            raise
        return listed


def _ask_for_its_token(parts: Parts, attempt: ChargeAttempt) -> None:
    """Before silence is taken for "it never arrived": is this the account we charged with? Another one's list has no
    trace of ours either. Raises NotFound when it does not know the payment method, GatewayError."""
    with parts.reading() as session:
        token = session.get(PaymentToken, attempt.payment_token_id) if attempt.payment_token_id else None
    if token is not None:
        parts.gateway.get_token(token.payment_token_id)


def _by_reference(parts: Parts, attempt: ChargeAttempt) -> ChargeReport | None:
    """`GET /transactions?reference_id=`: the one documented way when the answer to the call was lost."""
    rows = [row for row in parts.gateway.find_transactions(attempt.reference_id) if row.type == "PAYMENT"]
    money = [row for row in rows if row.status == "SUCCESS"]
    for row in money or rows:
        if row.payment_id is None:
            continue
        try:
            return parts.gateway.get_payment(row.payment_id)
        except NotFound:
            continue
    # A trace that cannot be read yet, or that is still open there, is a trace: it must never be presumed lost.
    return ChargeReport(ChargeStatus.PENDING) if rows else None


def _with_payment(parts: Parts, report: ChargeReport) -> ChargeReport:
    """The payment request has only the failure code and what was asked for; its payment has the network's codes and
    what was captured."""
    if report.payment_id is None or report.status not in (ChargeStatus.FAILED, ChargeStatus.SUCCEEDED):
        return report
    try:
        payment = parts.gateway.get_payment(report.payment_id)
    except NotFound:
        return report
    except GatewayError:
        if report.status == ChargeStatus.FAILED:
            raise  # without the codes it would be tried again too soon: ask again later
        return report  # it is paid; how much, its event or the daily comparison will say
    if report.status == ChargeStatus.FAILED:
        return replace(report, network_code=payment.network_code, advice_code=payment.advice_code)
    if not payment.amount_is_captured:
        return report
    return replace(report, amount=payment.amount, amount_is_captured=True, captured_at=payment.captured_at)


def find_charge(parts: Parts, payment_request_id: str) -> ChargeReport:
    """A charge by Xendit's own id, with what its payment adds. Raises NotFound, GatewayError."""
    return _with_payment(parts, parts.gateway.get_charge(payment_request_id))


def _conclude(
    session: Session, attempt_id: str, parts: Parts, now: datetime, *, found: bool, denied: str | None
) -> None:
    """Still open after the look-up: plan the next one, or draw the conclusion that the time allows. None is drawn when
    Xendit has `denied` what it knew before."""
    if queries.lock_subscription_of_attempt(session, attempt_id) is None:
        return
    attempt = session.get_one(ChargeAttempt, attempt_id, populate_existing=True)
    attempt.lease_until = None
    if attempt.next_check_at is None:
        return
    attempt.checks += 1
    if denied is not None:
        attempt.error = denied
        attempt.next_check_at = after_failure.next_look_up(attempt, now, parts.rules)
        return
    waited = attempt.submitted_at is not None and now >= attempt.submitted_at + after_failure.ACTION_WINDOW
    if attempt.status == AttemptStatus.REQUIRES_ACTION and waited:
        attempt.cancel_wanted = True
    in_doubt = attempt.status == AttemptStatus.IN_DOUBT
    if in_doubt and not found and after_failure.window_is_over(attempt, now, parts.rules):
        _presume_lost(session, attempt, parts, now)
        return
    if attempt.status not in (AttemptStatus.PENDING, AttemptStatus.REQUIRES_ACTION, AttemptStatus.IN_DOUBT):
        attempt.next_check_at = None
        return
    if attempt.status == AttemptStatus.PENDING:
        after_failure.hold_if_pending_for_long(session, attempt, now)
    attempt.next_check_at = (
        now + ASK_AGAIN if attempt.cancel_wanted else after_failure.next_look_up(attempt, now, parts.rules)
    )


def _presume_lost(session: Session, attempt: ChargeAttempt, parts: Parts, now: datetime) -> None:
    """No trace in any look-up, and the settlement window is over: the request never arrived. No decline, so the same
    step is tried again under a new reference. A merchant may have it held for a person instead."""
    if parts.rules.hold_in_doubt:
        attempt.next_check_at = after_failure.next_look_up(attempt, now, parts.rules)
        invoice = session.get_one(Invoice, attempt.invoice_id)
        if invoice.hold_reason is None:
            reason = f"an attempt is in doubt beyond the settlement window; {PRESUME_LOST}"
            hold_invoice(session, invoice, now, reason, HoldKind.DOUBT)
        return
    found = queries.attempt_with_invoice(session, attempt.id)
    move_attempt(attempt, AttemptStatus.FAILED, now)
    attempt.failure_code = attempt.failure_code or NEVER_ARRIVED
    attempt.decline_class = "not_sent"
    attempt.error = f"no trace at Xendit {parts.rules.settlement_window} after it was sent: it never arrived"
    session.flush()
    tell(session, attempt.subscription_id, now, "attempt.never_arrived", attempt=attempt.id, look_ups=attempt.checks)
    after_failure.try_again_uncounted(session, found, now)


def _ask_again(session: Session, attempt_id: str, parts: Parts, error: str) -> None:
    now = parts.clock.now()
    attempt = session.get_one(ChargeAttempt, attempt_id, with_for_update=True)
    attempt.lease_until = None
    attempt.error = error
    if attempt.next_check_at is not None:
        attempt.next_check_at = now + min(ASK_AGAIN * 2 ** min(attempt.checks, 6), ASK_AGAIN_AT_MOST)
        attempt.checks += 1


def doubt_expired_submissions(parts: Parts, limit: int) -> int:
    """Submitted, and its lease is over: whoever sent it is gone, so nobody knows the outcome."""
    with parts.reading() as session:
        expired = queries.expired_submissions(session, real_now(), limit)
    for attempt_id in expired:
        with parts.transaction() as session:
            if queries.lock_subscription_of_attempt(session, attempt_id) is None:
                continue
            attempt = session.get_one(ChargeAttempt, attempt_id, populate_existing=True)
            if attempt.lease_until is not None and attempt.lease_until < real_now():
                reason = "the process that sent it ended before it had the answer"
                doubt_attempt(session, attempt_id, parts.clock.now(), reason, rules=parts.rules)
    return len(expired)


# ------------------------------------------------------------------------------------------------ one day


@dataclass(frozen=True, slots=True)
class Difference:
    kind: str  # missing_here, missing_there, amount, status, unknown_payment, refund_elsewhere, unknown_refund
    payment_id: str | None
    reference_id: str | None
    ours: str | None
    theirs: str | None
    explanation: str


class Unread(Difference):
    """What Xendit's list has could not be read one by one: the day is compared again."""


class Interrupted(ServiceUnavailable):
    """The process is told to end; the day is compared again another time, which is safe to repeat."""


def compare_day(parts: Parts, day: date) -> list[Difference]:
    return list(differences_of_day(parts, day))


def differences_of_day(parts: Parts, day: date) -> Iterator[Difference]:
    """Our captures of a day (UTC) against Xendit's list of that day. What the list knows and we do not is settled if
    it belongs to an attempt of ours; everything that differs is told with an explanation, as it is found.

    Of a day of any size no more is held than a page and eight bytes for each payment. Between pages it ends when the
    process is told to (raises Interrupted). Late enough after the day, it is noted as compared when all of it has been
    read."""
    began = parts.clock.now()
    start = datetime.combine(day, time.min, tzinfo=UTC)
    end = start + timedelta(days=1)
    listed = _Listed()
    all_read = True
    for rows in _pages_of_list(parts, start, end):
        theirs = [row for row in rows if row.type == "PAYMENT" and row.payment_id]
        listed.add(str(row.payment_id) for row in theirs)
        refunds = [row for row in rows if row.type == "REFUND" and row.payment_id]
        for difference in chain(_compare_rows(parts, theirs), _refunds_elsewhere(parts, refunds)):
            all_read = all_read and not isinstance(difference, Unread)
            yield difference
    yield from _missing_there(parts, start, end, listed)
    if all_read and began >= end + timedelta(days=DAYS_COMPARED_AGAIN - 1):
        with parts.transaction() as session:
            queries.note_compared(session, day, began)


class _Listed:
    """Which payments Xendit's list has. Eight bytes of a digest for each: two of a million payments have the same
    once in forty million days, and one that is missing would then not be told of."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._sorted = True

    def add(self, payment_ids: Iterable[str]) -> None:
        self._digests.extend(_digest(payment_id) for payment_id in payment_ids)
        self._sorted = False

    def __contains__(self, payment_id: str | None) -> bool:
        if payment_id is None:
            return False
        if not self._sorted:
            self._digests = array("Q", sorted(self._digests))
            self._sorted = True
        wanted = _digest(payment_id)
        place = bisect_left(self._digests, wanted)
        return place < len(self._digests) and self._digests[place] == wanted


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _pages_of_list(parts: Parts, start: datetime, end: datetime) -> Iterator[Sequence[TransactionRow]]:
    after: str | None = None
    begun: set[int] = set()
    while True:
        _end_if_told(parts)
        page = _one_page(parts, start, end, after)
        yield page.rows
        after = page.next_after
        if after is None:
            return
        if _digest(after) in begun:  # no day is so large: the list goes round in circles
            raise Unavailable(f"Xendit's list of {start.date()} repeats itself; ask Xendit")
        begun.add(_digest(after))


def _one_page(parts: Parts, start: datetime, end: datetime, after: str | None) -> TransactionPage:
    """A page in the middle is asked for again: an hour's work must not be lost to one answer."""
    for wait in (*PAGE_WAITS_SECONDS, None):
        try:
            return parts.gateway.transactions_page(created_from=start, created_to=end, after=after)
        except (NotSent, RateLimited, Unavailable):
            if after is None or wait is None:
                raise
        parts.stopping.wait(wait)
        _end_if_told(parts)
    raise AssertionError("the last try returns or raises")


def _end_if_told(parts: Parts) -> None:
    if parts.stopping.is_set():
        raise Interrupted("the comparison of a day was interrupted; it is done again another time")


def _compare_rows(parts: Parts, rows: Sequence[TransactionRow]) -> list[Difference]:
    """A page of the list against what we have of it, in two statements."""
    references = {reference for row in rows for reference in references_of(row.reference_id)}
    with parts.reading() as session:
        found = session.scalars(select(Capture).where(Capture.payment_id.in_([row.payment_id for row in rows])))
        captures = {capture.payment_id: capture for capture in found}
        known = session.scalars(select(ChargeAttempt).where(ChargeAttempt.reference_id.in_(references)))
        attempts = {attempt.reference_id: attempt for attempt in known}
    compared = (_compare_row(parts, row, captures.get(row.payment_id), attempts) for row in rows)
    return [difference for difference in compared if difference is not None]


def _compare_row(
    parts: Parts, row: TransactionRow, capture: Capture | None, attempts: Mapping[str, ChargeAttempt]
) -> Difference | None:
    theirs = f"{row.amount.currency} {row.amount}" if row.amount else None
    names = references_of(row.reference_id)
    attempt = next((attempts[reference] for reference in names if reference in attempts), None)
    if row.status == "SUCCESS" and capture is None:
        if attempt is None:
            why = "no attempt of ours has this reference: charged outside this software, or another system's key"
            return Difference("unknown_payment", row.payment_id, row.reference_id, None, theirs, why)
        try:
            _settle_from_list(parts, attempt.id, row)
        except (NotFound, GatewayError) as error:
            why = f"Xendit lists it, and it cannot be read now: {error}"
            return Unread("missing_here", row.payment_id, row.reference_id, None, theirs, why)
        why = f"Xendit collected it, our attempt was {attempt.status}; it is settled now"
        return Difference("missing_here", row.payment_id, row.reference_id, None, theirs, why)
    if capture is None:
        return None
    ours = Money(capture.amount_minor, capture.currency)
    if row.status in MADE_NO_MONEY:
        why = f"we count it as collected, Xendit lists it as {row.status}: ask Xendit"
        return Difference("status", row.payment_id, row.reference_id, str(ours), theirs, why)
    if not capture.amount_known and attempt is not None and row.status == "SUCCESS":
        return _correct_from_payment(parts, attempt.id, row, ours)
    if row.amount is not None and row.amount != ours:
        return _unless_payment_agrees(parts, row, ours, theirs)
    return None


def _refunds_elsewhere(parts: Parts, rows: Sequence[TransactionRow]) -> Iterator[Difference]:
    """Money that went back and that we did not send back: recorded if it is of a payment of ours, and told of."""
    for row in rows:
        if row.status != "SUCCESS" or row.payment_id is None:
            continue
        with parts.reading() as session:
            refund = refunding.find_refund(session, row.payment_id, row.reference_id)
        found, why = Difference, "it is of no payment of ours: charged outside this software, or not told of yet"
        if refund is None:
            try:
                refund = _record_from_list(parts, row)
            except (NotFound, GatewayError) as error:
                found = Unread
                why = f"it cannot be read now, look in Xendit's dashboard of which payment it is: {error}"
        theirs = f"{row.amount.currency} {row.amount}" if row.amount else None
        if refund is None:
            yield found("unknown_refund", None, row.reference_id, None, theirs, f"refund {row.payment_id}: {why}")
            continue
        if not refund.made_elsewhere:
            continue
        with parts.reading() as session:
            capture = session.get_one(Capture, refund.capture_id)
            number = session.get_one(Invoice, capture.invoice_id).number
        ours = str(Money(refund.amount_minor, refund.currency))
        why = f"refund {row.payment_id} was made outside this software, of invoice {number}; it is recorded there"
        yield Difference("refund_elsewhere", capture.payment_id, row.reference_id, ours, theirs, why)


def _record_from_list(parts: Parts, row: TransactionRow) -> Refund | None:
    """Its event was lost. The list does not say of which payment it is; Xendit's record of the refund does."""
    refund_id = str(row.payment_id)
    report = parts.gateway.get_refund(refund_id)
    with parts.transaction() as session:
        if report.status == RefundStatus.PENDING or refunding.apply_refund(session, report, parts.clock.now()) is None:
            return None
        return refunding.find_refund(session, refund_id, report.reference_id)


def _unless_payment_agrees(parts: Parts, row: TransactionRow, ours: Money, theirs: str | None) -> Difference | None:
    """Whether the list has what was asked for or what was captured is not documented; the payment says what was."""
    assert row.payment_id is not None  # noqa: S101 - rows without one are not compared
    try:
        payment = parts.gateway.get_payment(row.payment_id)
    except (NotFound, GatewayError) as error:
        why = f"the amounts differ, and the payment cannot be read now: {error}"
        return Unread("amount", row.payment_id, row.reference_id, str(ours), theirs, why)
    if payment.amount_is_captured and payment.amount == ours:
        return None
    why = "the amounts differ: ask Xendit"
    return Difference("amount", row.payment_id, row.reference_id, str(ours), theirs, why)


def _correct_from_payment(parts: Parts, attempt_id: str, row: TransactionRow, ours: Money) -> Difference | None:
    """We have booked what we asked for, and the event that says what was captured has not come: the payment says it."""
    try:
        captured = _settle_from_list(parts, attempt_id, row).amount
    except (NotFound, GatewayError) as error:
        why = f"what was captured is not known, and the payment cannot be read now: {error}"
        return Unread("amount", row.payment_id, row.reference_id, str(ours), None, why)
    if captured is None or captured == ours:
        return None
    why = "we had booked what was asked for; what was captured is booked now"
    theirs = f"{captured.currency} {captured}"
    return Difference("amount", row.payment_id, row.reference_id, str(ours), theirs, why)


def _settle_from_list(parts: Parts, attempt_id: str, row: TransactionRow) -> ChargeReport:
    assert row.payment_id is not None  # noqa: S101 - rows without one are not compared
    report = parts.gateway.get_payment(row.payment_id)
    with parts.transaction() as session:
        settle_attempt(session, attempt_id, report, parts.clock.now(), parts.rules, source="lookup")
    return report


def _missing_there(parts: Parts, start: datetime, end: datetime, listed: _Listed) -> Iterator[Difference]:
    """Captures of that day which the list of that day lacks. Near midnight the two may disagree about the day, so a
    capture is looked up by its reference before it is called missing."""
    for capture, reference in _captures_between(parts, start, end):
        if capture.payment_id in listed:
            continue
        _end_if_told(parts)
        elsewhere = [row for row in parts.gateway.find_transactions(reference) if row.status == "SUCCESS"]
        if not elsewhere:
            amount = str(Money(capture.amount_minor, capture.currency))
            why = "we count it as collected, Xendit's list does not have it: ask Xendit"
            yield Difference("missing_there", capture.payment_id, reference, amount, None, why)


def _captures_between(parts: Parts, start: datetime, end: datetime) -> Iterator[tuple[Capture, str]]:
    """In pages, each a read of its own: what is done between them may take long."""
    query = (
        select(Capture, ChargeAttempt.reference_id)
        .join(ChargeAttempt, ChargeAttempt.id == Capture.attempt_id)
        .where(Capture.captured_at >= start, Capture.captured_at < end)
        .order_by(Capture.captured_at, Capture.id)
        .limit(CAPTURES_AT_ONCE)
    )
    page = query
    while True:
        with parts.reading() as session:
            rows = [(row[0], row[1]) for row in session.execute(page)]
        yield from rows
        if len(rows) < CAPTURES_AT_ONCE:
            return
        last = rows[-1][0]
        page = query.where(tuple_(Capture.captured_at, Capture.id) > (last.captured_at, last.id))
