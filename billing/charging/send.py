"""Send: a group of attempts from `scheduled` to whatever Xendit says. Called by a worker or `billing run`.

    charge              once for each attempt that was handed out
      begin_attempts    scheduled -> submitted, if there is no reason not to charge (begin.py)          commit
      gateway.charge    POST /v3/payment_requests, one for each                          no transaction open
      settle            what Xendit said -> attempt, invoice, subscription, next try (settle.py)        commit

A retry asks Xendit first whether the failed try before it has turned into money. When nobody knows whether money moved
the attempt is `in_doubt`, which blocks every other attempt for its invoice until the truth is found (look_up.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from billing.charging import accounts, look_up, parking
from billing.charging.accounts import Denied
from billing.charging.begin import (
    EARLIER,
    Begun,
    EarlierTries,
    Question,
    Reason,
    Started,
    Then,
    Unsendable,
    begin_attempts,
    park,
    refuse,
    to_begin,
    token_or_reason,
)
from billing.charging.settle import Answered, doubt_attempt, settle_alone, settle_together
from billing.charging.tokens import RIGHT_KEY, apply_token, verify_for_charge, waits_for_token
from billing.domain.declines import DeclineClass, classify
from billing.domain.gateway import CHARGE_ENDPOINT, ChargeReport, ChargeStatus, Lane, TokenReport
from billing.domain.lifecycle import BILLABLE, AttemptStatus, HoldKind, InvoiceStatus, SubscriptionStatus, TokenStatus
from billing.errors import (
    CopyOfDatabase,
    GatewayError,
    NotFound,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    RequestRejected,
    Unavailable,
)
from billing.parts import Parts, note_begun, note_unsent, note_withdrawn, tell
from billing.store import breaker, queries
from billing.store.breaker import Trouble
from billing.store.clock import real_now, uptime
from billing.store.models import Customer
from billing.store.trouble import raise_if_databases_trouble, repeat_conflicts
from billing.subscriptions.invoices import close_if_ended, hold_invoice, move_attempt, withdraw
from billing.subscriptions.moves import lock_subscriptions_of
from billing.subscriptions.open_periods import in_one_line

CHANNEL_LIMIT_WAIT = timedelta(minutes=5)
NOT_SENT_WAIT = timedelta(minutes=1)
ASK_AGAIN = timedelta(minutes=10)
OPEN_AT_GATEWAY = frozenset({ChargeStatus.PENDING, ChargeStatus.REQUIRES_ACTION})
OPEN_AGAIN = timedelta(hours=1)
QUOTA_WAIT_SECONDS = 5
GATHER_SECONDS = 0.02  # answers that come together are settled together
NOT_OURS = "INVALID_TOKEN"
NOT_FOUND = 404

log = structlog.get_logger()


# ----------------------------------------------------------------------------------------------- the charge


def charge(parts: Parts, attempt_ids: Sequence[str], lane: Lane = Lane.RENEWAL) -> None:
    """Each attempt once: a doubled or late message finds it no longer `scheduled` and does nothing.

    Nothing here repeats a call. Raises nothing for a decline or a gateway error: both are recorded.
    """
    waiting = _not_behind_a_breaker(parts, attempt_ids, parts.breakers.known(parts.sessions))
    while waiting:
        permits = parts.quota.acquire(CHARGE_ENDPOINT, lane, len(waiting), wait_seconds=QUOTA_WAIT_SECONDS)
        if permits == 0:
            _hand_back(parts, waiting)
            return
        group, waiting = waiting[:permits], waiting[permits:]
        for question in _charge_group(parts, group):
            _ask_and_charge(parts, question, lane)


def _charge_group(parts: Parts, group: Sequence[str], asked: Collection[str] = ()) -> list[Question]:
    """Permits are there. Returns what Xendit must be asked before those attempts may begin."""
    now = parts.clock.now()
    started = _begin_group(parts, group, now, asked)
    if len(started.begun) < len(group):
        parts.quota.give_back(CHARGE_ENDPOINT, len(group) - len(started.begun))
    note_begun([begun.attempt_id for begun in started.begun])
    # What has begun goes out first: nothing that happens to the others may keep it.
    _send_and_settle(parts, started.begun)
    for unsendable in started.unsendable:
        _put_off(parts, unsendable, now)
    for attempt_id in started.refused:
        question = refuse(parts, attempt_id, now, asked)
        if question is not None:
            started.questions.append(question)
    return started.questions


def _begin_group(parts: Parts, group: Sequence[str], now: datetime, asked: Collection[str]) -> Started:
    """One that cannot be begun, for whatever reason, holds its invoice with that reason; the others go on."""
    troubles = parts.breakers.known(parts.sessions)
    try:
        with parts.transaction() as session:
            return begin_attempts(
                session, group, now, parts.rules, prepare=parts.gateway.prepare, asked=asked, troubles=troubles
            )
    except CopyOfDatabase:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one row's
        raise_if_databases_trouble(error)
        if len(group) == 1:
            _hold_unreadable(parts, group[0], now, error)
            return Started()
    alone = [_begin_group(parts, [attempt_id], now, asked) for attempt_id in group]
    return Started(
        [begun for each in alone for begun in each.begun],
        [question for each in alone for question in each.questions],
        [refused for each in alone for refused in each.refused],
        [unsendable for each in alone for unsendable in each.unsendable],
    )


def _hold_unreadable(parts: Parts, attempt_id: str, now: datetime, error: Exception) -> None:
    with parts.transaction() as session:
        if queries.lock_subscription_of_attempt(session, attempt_id) is None:
            return
        found = queries.attempt_with_invoice(session, attempt_id)
        reason = f"it cannot be charged: {in_one_line(error)}"
        withdraw(session, found.attempt, now, reason)
        if found.invoice.status == InvoiceStatus.OPEN:
            hold_invoice(session, found.invoice, now, reason, HoldKind.ERROR)
    note_withdrawn(attempt_id)
    log.exception("charge.held", attempt=attempt_id, error=reason)


def _put_off(parts: Parts, unsendable: Unsendable, now: datetime) -> None:
    """It could not leave this machine, so it has not begun: planned as before, a little later."""
    _postpone(parts, unsendable.attempt_id, now + NOT_SENT_WAIT, unsendable.reason)
    log.error("charge.not_begun", attempt=unsendable.attempt_id, error=unsendable.reason)


def _postpone(parts: Parts, attempt_id: str, until: datetime, reason: str) -> None:
    with parts.transaction() as session:
        queries.postpone(session, attempt_id, until, error=reason)
    note_unsent(attempt_id)


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a charge is not begun now, and for how long."""

    time: timedelta
    reason: str


def _ask_and_charge(parts: Parts, question: Question, lane: Lane) -> None:
    """What Xendit cannot say now makes the charge wait. No permit is kept while it is asked."""
    asked: set[str] = set()
    questions = [question]
    while questions:
        question = questions[0]
        answer = _ask(parts, question)
        if answer is not None:
            _postpone(parts, question.attempt_id, parts.clock.now() + answer.time, answer.reason)
            return
        asked.add(question.subject)
        if not parts.quota.acquire(CHARGE_ENDPOINT, lane, wait_seconds=QUOTA_WAIT_SECONDS):
            _hand_back(parts, [question.attempt_id])
            return
        questions = _charge_group(parts, [question.attempt_id], asked)


def _ask(parts: Parts, question: Question) -> Wait | None:
    if isinstance(question, EarlierTries):
        return _ask_about(parts, question, parts.clock.now())
    token = verify_for_charge(parts, question.payment_token_id)
    if token is None:
        return Wait(NOT_SENT_WAIT, "Xendit could not be asked about the token")
    if token.unknown_since is not None:
        accounts.note_unknown(parts, token.payment_token_id)
    return None


def _ask_about(parts: Parts, earlier: EarlierTries, now: datetime) -> Wait | None:
    """Money that came after all is settled, which withdraws the retry. A try that is open again at Xendit makes the
    retry wait, until the settlement window of that try is over."""
    for attempt_id, payment_request_id, sent_at in earlier.tries:
        try:
            report = look_up.find_charge(parts, payment_request_id)
        except NotFound as error:
            # Xendit knew it once, so the key may be another account's. Money that comes late has come by then.
            if now < sent_at + parts.rules.settlement_window:
                return Wait(OPEN_AGAIN, f"waits for the try before it: {error}")
            continue
        except GatewayError as error:
            return Wait(ASK_AGAIN, f"waits until Xendit can be asked about the try before it: {error}")
        if report.status == ChargeStatus.SUCCEEDED:
            settle_alone(parts, attempt_id, report, source="lookup")
        elif report.status in OPEN_AT_GATEWAY and now < sent_at + parts.rules.settlement_window:
            return Wait(OPEN_AGAIN, "waits for the try before it, which is open again at Xendit")
    return None


def _hand_back(parts: Parts, attempt_ids: Sequence[str]) -> None:
    """No quota: whoever claims them next tries again."""
    with parts.transaction() as session:
        queries.release_leases(session, attempt_ids)


def _not_behind_a_breaker(parts: Parts, attempt_ids: Sequence[str], troubles: Mapping[str, Trouble]) -> list[str]:
    """While a channel is down, its attempts are parked before they take a permit from others."""
    if not troubles:
        return list(attempt_ids)
    now = parts.clock.now()
    down = {
        code: trouble for code, trouble in troubles.items() if trouble.probe_at is not None and trouble.probe_at > now
    }
    if not down:
        return list(attempt_ids)
    with parts.transaction() as session:
        verdicts = {
            found.attempt_id: token_or_reason(session, found, now, parts.rules, asked=(EARLIER,), troubles=down)
            for found in to_begin(session, attempt_ids, now)
        }
        behind = {key: it for key, it in verdicts.items() if isinstance(it, Reason) and it.then == Then.PARK}
        park(session, behind)
    return [identity for identity in attempt_ids if identity not in behind]


# ------------------------------------------------------------------------------------------- send and settle


def _send_and_settle(parts: Parts, begun: Sequence[Begun]) -> None:
    """Between begin and settle: one HTTP request each, no transaction. Whoever is answered first is settled first:
    nobody waits for a slow one, nor for what Xendit must be asked about an answer, which is done last."""
    refused: list[Answered] = []
    if parts.callers is None or len(begun) <= 1:
        for each in begun:
            _raise_first(_settle_answers(parts, [(each, _call(parts, each))], refused))
        _raise_first(_settle_refused(parts, refused))
        return
    under_way: dict[Future[ChargeReport | GatewayError], Begun] = {
        parts.callers.submit(_call, parts, each): each for each in begun
    }
    broken: list[BaseException] = []
    while under_way:
        wait(under_way, return_when=FIRST_COMPLETED)
        done, _ = wait(under_way, timeout=GATHER_SECONDS)
        answered = []
        for future in done:
            each = under_way.pop(future)
            error = future.exception()
            if error is None:
                answered.append((each, future.result()))
            else:
                broken.append(error)
        broken += _settle_answers(parts, answered, refused)
    broken += _settle_refused(parts, refused)
    _raise_first(broken)


def _raise_first(broken: Sequence[BaseException]) -> None:
    """A lost database, or a bug of ours: those attempts stay submitted and are looked up when their lease ends."""
    if broken:
        raise broken[0]


def _call(parts: Parts, begun: Begun) -> ChargeReport | GatewayError:
    """The request. What brought no report is returned, not raised: every way it can end has its line below."""
    try:
        if uptime() > begun.send_before:
            raise NotSent("this worker was stopped too long before sending")
        return parts.gateway.charge(begun.request)
    except GatewayError as error:
        return error


def _settle_answers(parts: Parts, answered: Sequence[Answered], refused: list[Answered]) -> list[Exception]:
    """Returns what went wrong: one that cannot be settled must not keep the others from it. `refused` gets those of
    which Xendit must be asked first whether they may be taken at their word."""
    broken: list[Exception] = []
    paid: set[str] = set()
    is_news = (
        not parts.acquaintance.is_made
        and any(_knows_us(answer) for _, answer in answered)
        and parts.acquaintance.make()
    )
    try:
        paid = settle_together(parts, answered)
    except SQLAlchemyError as error:
        broken.append(error)
    for begun, answer in answered:
        try:
            if _denies_token(answer):
                refused.append((begun, answer))
            elif begun.attempt_id not in paid:
                repeat_conflicts(partial(_settle_one, parts, begun, answer, None))
            _note_channel(parts, begun.request.channel_code, answer)
        except Exception as error:  # noqa: BLE001 - handed on, after the others had their turn
            broken.append(error)
        parts.strangers.note(answer)
    if is_news:
        _forget_denied(parts, broken)
    return broken


def _knows_us(answer: ChargeReport | GatewayError) -> bool:
    """Xendit has taken the charge up, so it knows the payment method, whatever came of it."""
    return isinstance(answer, ChargeReport) and answer.payment_request_id is not None


def _denies_token(answer: ChargeReport | GatewayError) -> bool:
    """Nothing was created at Xendit, because it has no such payment method, or has it no more."""
    if isinstance(answer, ChargeReport):
        refused = answer.status == ChargeStatus.FAILED and answer.payment_request_id is None
        return refused and answer.failure_code == NOT_OURS
    return isinstance(answer, RequestRejected) and answer.http_status == NOT_FOUND


def _settle_refused(parts: Parts, refused: Sequence[Answered]) -> list[Exception]:
    """Before each question the leases of all that wait for it are renewed: the questions may take longer than they do.
    Xendit is asked once, outside the transactions that a conflict repeats."""
    broken: list[Exception] = []
    for place, (begun, answer) in enumerate(refused):
        waiting = [each for each, _ in refused[place:]]
        try:
            renew = partial(repeat_conflicts, partial(_renew, parts, waiting))
            denied = accounts.is_in_doubt(parts, begun.request.payment_token_id, renew)
            repeat_conflicts(partial(_settle_one, parts, begun, answer, denied))
        except Exception as error:  # noqa: BLE001 - handed on, after the others had their turn
            broken.append(error)
    return broken


_RENEW = text(
    """
    WITH mine AS MATERIALIZED (
        SELECT a.id FROM charge_attempts a
        JOIN unnest(CAST(:ids AS text[]), CAST(:leases AS text[])) AS n (id, lease)
            ON n.id = a.id AND n.lease = a.lease_id
        WHERE a.status = 'submitted' ORDER BY a.id FOR NO KEY UPDATE OF a
    )
    UPDATE charge_attempts a SET lease_until = :until FROM mine WHERE a.id = mine.id
    """
)


def _renew(parts: Parts, waiting: Sequence[Begun]) -> None:
    until = real_now() + parts.rules.submitted_lease
    with parts.transaction() as session:
        session.execute(
            _RENEW,
            {
                "ids": [each.attempt_id for each in waiting],
                "leases": [each.lease_id for each in waiting],
                "until": until,
            },
        )


def _forget_denied(parts: Parts, broken: list[Exception]) -> None:
    """The account knows us. Written when all answers are settled: nothing of theirs waits for it."""
    try:
        with parts.transaction() as session:
            queries.forget_denied(session, parts.key_fingerprint)
    except SQLAlchemyError as error:
        broken.append(error)


def _settle_one(parts: Parts, begun: Begun, answer: ChargeReport | GatewayError, denied: Denied | None) -> None:
    attempt_id = begun.attempt_id
    if denied is not None:
        _set_aside(parts, begun, denied)
        return
    match answer:
        case ChargeReport():
            settle_alone(parts, attempt_id, answer, source="answer")
        case NotSent():
            _set_back(parts, begun, NOT_SENT_WAIT, str(answer))
        case RateLimited():
            wait = CHANNEL_LIMIT_WAIT if _is_channel_limit(answer) else timedelta(seconds=answer.retry_after_seconds)
            _set_back(parts, begun, wait, str(answer))
        case Unavailable():
            refused = ChargeReport(ChargeStatus.FAILED, failure_code=answer.error_code or "CHANNEL_UNAVAILABLE")
            settle_alone(parts, attempt_id, refused, source="answer")
        case OutcomeUnknown():
            with parts.transaction() as session:
                doubt_attempt(session, attempt_id, parts.clock.now(), str(answer), rules=parts.rules)
        case RequestRejected():
            with parts.transaction() as session:
                _reject(session, attempt_id, answer, parts.clock.now(), refused_key=parts.key_fingerprint)
        case _:
            raise answer


def _is_channel_limit(error: RateLimited) -> bool:
    return error.error_code == "PAYMENT_REQUEST_RATE_LIMITED"


def _note_channel(parts: Parts, channel_code: str, answer: ChargeReport | GatewayError) -> None:
    """For the channel's breaker. Without trouble, before and now, there is nothing to write."""
    failed = _technical_failure(answer)
    if failed is None:
        if isinstance(answer, ChargeReport) and channel_code in parts.breakers.known(parts.sessions):
            with parts.transaction() as session:
                breaker.note_answer(session, channel_code)
            parts.breakers.forget()
            released = parking.let_go(parts, breaker.waits_for(channel_code))
            log.info("channel.answers", channel=channel_code, released=released)
        return
    opens = isinstance(answer, RateLimited)
    with parts.transaction() as session:
        breaker.note_failure(session, channel_code, failed, parts.clock.now(), opens=opens)
    parts.breakers.forget()


def _technical_failure(answer: ChargeReport | GatewayError) -> str | None:
    """Why this answer says that the channel is in trouble, not the customer."""
    match answer:
        case ChargeReport(status=ChargeStatus.FAILED, failure_code=code) if code is not None:
            return code if classify(failure_code=code).cls == DeclineClass.RETRY_AFTER else None
        case RateLimited() if _is_channel_limit(answer):
            return "its own limit of requests is reached"
        case Unavailable():
            return answer.error_code or "CHANNEL_UNAVAILABLE"
        case OutcomeUnknown():
            return "no answer"
        case _:
            return None


# -------------------------------------------------------------------------------- when no result was brought


def _set_back(parts: Parts, begun: Begun, wait: timedelta, error: str) -> None:
    """Nothing was accepted: scheduled again under the same reference. Not a decline, not counted.

    Only while the lease of this very begin stands: a worker that woke up too late changes nothing.
    """
    now = parts.clock.now()
    with parts.transaction() as session:
        if queries.lock_subscription_of_attempt(session, begun.attempt_id) is None:
            return
        found = queries.attempt_with_invoice(session, begun.attempt_id)
        if found.attempt.status == AttemptStatus.SUBMITTED and found.attempt.lease_id == begun.lease_id:
            _schedule_again(session, found, now + wait, now, error)
            note_unsent(begun.attempt_id)
    log.info("charge.set_back", attempt=begun.attempt_id, error=error)


def _set_aside(parts: Parts, begun: Begun, denied: Denied) -> None:
    """Nothing was created at Xendit, and our key may be at fault: scheduled again under the same reference, and not
    counted. One whose payment method Xendit does not know at all waits until it does, or the customer has another."""
    now = parts.clock.now()
    reason = f"{denied.value}; {RIGHT_KEY}"
    with parts.transaction() as session:
        lock_subscriptions_of(session, begun.customer_id)
        if queries.lock_subscription_of_attempt(session, begun.attempt_id) is None:
            return
        found = queries.attempt_with_invoice(session, begun.attempt_id)
        attempt, subscription = found.attempt, found.subscription
        if attempt.status != AttemptStatus.SUBMITTED or attempt.lease_id != begun.lease_id:
            return
        at = attempt.scheduled_at if denied == Denied.UNKNOWN else now + NOT_SENT_WAIT
        _schedule_again(session, found, at, now, reason)
        note_unsent(attempt.id)
        session.flush()
        if denied == Denied.UNKNOWN:
            unknown = TokenReport(begun.request.payment_token_id, TokenStatus.PENDING, unknown=True)
            customer = session.get_one(Customer, begun.customer_id)
            apply_token(session, customer, unknown, now, asked=True, key=parts.key_fingerprint)
            if subscription.hold_kind == HoldKind.TOKEN_UNKNOWN:
                why = subscription.hold_reason or reason
                queries.park_attempts(session, [attempt.id], waits_for_token(begun.customer_id), why)
    log.warning("charge.set_aside", attempt=begun.attempt_id, error=reason)


def _schedule_again(session: Session, found: queries.Found, at: datetime, now: datetime, error: str) -> None:
    """The same attempt, which has moved nothing; unless its subscription was paused or has ended meanwhile."""
    attempt, subscription = found.attempt, found.subscription
    attempt.status = AttemptStatus.SCHEDULED
    attempt.scheduled_at = at
    attempt.submitted_at = attempt.lease_until = None
    attempt.error = error
    if subscription.status not in BILLABLE:
        withdraw(session, attempt, now, f"the subscription is {subscription.status}")
        close_if_ended(session, subscription, [found.invoice], now)


def _reject(
    session: Session, attempt_id: str, error: RequestRejected, now: datetime, *, refused_key: str | None
) -> None:
    """Our request or our account is at fault: no dunning. Hold the invoice; a refused account stops everything."""
    subscription_id = queries.lock_subscription_of_attempt(session, attempt_id)
    if subscription_id is None:
        return
    found = queries.attempt_with_invoice(session, attempt_id)
    attempt = found.attempt
    if attempt.status != AttemptStatus.SUBMITTED:
        return
    if error.stops_account:
        # Refused before anything was looked at: the same attempt goes on when a person has put it right.
        _schedule_again(session, found, attempt.scheduled_at, now, str(error))
        note_unsent(attempt_id)
        queries.stop_charging(session, str(error), now, refused_key=refused_key)
        tell(session, subscription_id, now, "charging.stopped", reason=str(error))
        log.error("charging.stopped", error=str(error))
        return
    move_attempt(attempt, AttemptStatus.FAILED, now)
    attempt.error = str(error)
    attempt.failure_code = error.error_code
    attempt.decline_class = DeclineClass.OUR_FAULT
    session.flush()
    if found.subscription.status == SubscriptionStatus.CANCELED:
        close_if_ended(session, found.subscription, [found.invoice], now)
    else:
        hold_invoice(session, found.invoice, now, str(error), HoldKind.REJECTED)
    log.error("charge.rejected", attempt=attempt.id, error=str(error))
