"""The path of a charge. Read it top down.

    charge            a group of attempts from `scheduled` to whatever Xendit says; called by a worker or `billing run`
      (a retry asks Xendit first whether the failed try before it has turned into money)
      begin_attempts  scheduled -> submitted; everything that could forbid a charge is checked again, and that it can
                      be sent from here                                                commit
      gateway.charge  POST /v3/payment_requests, one for each                          no transaction open
      settle          what Xendit said -> attempt, invoice, subscription, next try, story               commit

The synchronous answer, the webhook and reconciliation all end in `settle_attempt` (charging/settle.py). An answer
that took exactly what it asked for, while nothing else has happened, is settled for the whole group by one statement
that does the same (store/charge_path.py). When nobody knows whether money moved the attempt is `in_doubt`, which blocks
every other attempt for its invoice until the truth is found (charging/look_up.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType

import structlog
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from billing.charging import accounts, after_failure, caps, look_up, parking
from billing.charging.accounts import Denied
from billing.charging.settle import doubt_attempt, settle_attempt
from billing.charging.tokens import RIGHT_KEY, apply_token, hold_while_unknown, verify_for_charge, waits_for_token
from billing.domain import channels
from billing.domain.declines import DeclineClass, classify
from billing.domain.gateway import CHARGE_ENDPOINT, ChargeReport, ChargeRequest, ChargeStatus, Lane, TokenReport
from billing.domain.lifecycle import (
    BILLABLE,
    AttemptStatus,
    HoldKind,
    InvoiceStatus,
    RunState,
    SubscriptionStatus,
    TokenStatus,
)
from billing.domain.money import Money
from billing.errors import (
    CopyOfDatabase,
    GatewayError,
    InvalidMoney,
    NotFound,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    RequestRejected,
    Unavailable,
)
from billing.parts import Parts, Rules, note_begun, note_unsent, note_withdrawn, tell
from billing.store import breaker, charge_path, queries, which_database
from billing.store.breaker import Trouble
from billing.store.charge_path import Paid, ToBegin, TokenWithDeclines
from billing.store.clock import real_now, uptime
from billing.store.models import Customer, new_id
from billing.store.trouble import raise_if_databases_trouble, repeat_conflicts
from billing.subscriptions.invoices import close_if_ended, hold_invoice, move_attempt, schedule_attempt, withdraw
from billing.subscriptions.moves import lock_subscriptions_of, recurring_terms
from billing.subscriptions.open_periods import in_one_line

CHANNEL_LIMIT_WAIT = timedelta(minutes=5)
NOT_SENT_WAIT = timedelta(minutes=1)
ASK_AGAIN = timedelta(minutes=10)
OPEN_AT_GATEWAY = frozenset({ChargeStatus.PENDING, ChargeStatus.REQUIRES_ACTION})
OPEN_AGAIN = timedelta(hours=1)
QUOTA_WAIT_SECONDS = 5
GATHER_SECONDS = 0.02  # answers that come together are settled together

log = structlog.get_logger()


# ----------------------------------------------------------------------------------------------- the charge


def charge(parts: Parts, attempt_ids: Sequence[str], lane: Lane = Lane.RENEWAL) -> None:
    """Each attempt once: a doubled or late message finds it no longer `scheduled` and does nothing.

    Nothing here repeats a call. Raises nothing for a decline or a gateway error: both are recorded.
    """
    waiting = _not_behind_a_breaker(parts, attempt_ids)
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
    parts.quota.give_back(CHARGE_ENDPOINT, len(group) - len(started.begun))
    note_begun([begun.attempt_id for begun in started.begun])
    # What has begun goes out first: nothing that happens to the others may keep it.
    _send_and_settle(parts, started.begun)
    for unsendable in started.unsendable:
        _put_off(parts, unsendable, now)
    for attempt_id in started.refused:
        question = _refuse(parts, attempt_id, now, asked)
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
            _settle(parts, attempt_id, report, source="lookup")
        elif report.status in OPEN_AT_GATEWAY and now < sent_at + parts.rules.settlement_window:
            return Wait(OPEN_AGAIN, "waits for the try before it, which is open again at Xendit")
    return None


def _hand_back(parts: Parts, attempt_ids: Sequence[str]) -> None:
    """No quota: whoever claims them next tries again."""
    with parts.transaction() as session:
        queries.release_leases(session, attempt_ids)


def _not_behind_a_breaker(parts: Parts, attempt_ids: Sequence[str]) -> list[str]:
    """While a channel is down, its attempts are parked before they take a permit from others."""
    troubles = parts.breakers.known(parts.sessions)
    if not any(trouble.probe_at for trouble in troubles.values()):
        return list(attempt_ids)
    now = parts.clock.now()
    with parts.transaction() as session:
        behind = [
            (each.attempt_id, breaker.waits_for(trouble.channel_code), trouble.waits())
            for each in charge_path.to_begin(session, attempt_ids, now)
            if (trouble := _behind_a_breaker(each, troubles, now)) is not None
        ]
        _park(session, behind)
    held = {identity for identity, _, _ in behind}
    return [identity for identity in attempt_ids if identity not in held]


def _behind_a_breaker(found: ToBegin, troubles: Mapping[str, Trouble], now: datetime) -> Trouble | None:
    token = _chargeable_token(found)
    trouble = troubles.get(token.channel_code) if token is not None else None
    if trouble is None or trouble.probe_at is None or trouble.probe_at <= now or found.origin == BY_HAND:
        return None
    return trouble


def _park(session: Session, waiting: Sequence[Parking], *, with_them: Collection[str] = ()) -> None:
    """They wait, each for its run or channel. All rows of this transaction, those `with_them` too, are locked first and
    in one order: another group may hold some of the same."""
    if not waiting:
        return
    queries.lock_attempts(session, {*with_them, *(identity for identity, _, _ in waiting)})
    for cause, error in dict.fromkeys(each[1:] for each in waiting):
        queries.park_attempts(session, [each[0] for each in waiting if each[1:] == (cause, error)], cause, error)
    for attempt_id, _, _ in waiting:
        note_unsent(attempt_id)


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
    is_news = any(accounts.knows_us(answer) for _, answer in answered) and parts.acquaintance.make()
    try:
        paid = _pay_together(parts, answered)
    except SQLAlchemyError as error:
        broken.append(error)
    for begun, answer in answered:
        try:
            if accounts.denies_token(answer):
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


def _renew(parts: Parts, waiting: Sequence[Begun]) -> None:
    until = real_now() + parts.rules.submitted_lease
    with parts.transaction() as session:
        charge_path.renew(session, [(each.attempt_id, each.lease_id) for each in waiting], until)


def _forget_denied(parts: Parts, broken: list[Exception]) -> None:
    """The account knows us. Written when all answers are settled: nothing of theirs waits for it."""
    try:
        with parts.transaction() as session:
            queries.forget_denied(session, parts.key_fingerprint)
    except SQLAlchemyError as error:
        broken.append(error)


def _pay_together(parts: Parts, answered: Sequence[Answered]) -> set[str]:
    """Most answers say that exactly what was asked for is paid. Returns the attempts that are settled by that."""
    now = parts.clock.now()
    ordinary = [paid for begun, answer in answered if (paid := _as_asked(begun, answer, now)) is not None]
    if not ordinary:
        return set()
    try:
        with parts.transaction() as session:
            return charge_path.pay(session, ordinary, now)
    except IntegrityError:
        return set()  # one of them is known under another attempt: each by itself


def _as_asked(begun: Begun, answer: ChargeReport | GatewayError, now: datetime) -> Paid | None:
    request = begun.request
    if not isinstance(answer, ChargeReport) or answer.status != ChargeStatus.SUCCEEDED:
        return None
    if answer.failure_code or answer.network_code or answer.advice_code:
        return None
    if answer.amount is not None and answer.amount != request.amount:
        return None
    return Paid(
        begun.attempt_id,
        begun.subscription_id,
        new_id("cap"),
        answer.payment_request_id,
        answer.payment_id,
        answer.captured_at or now,
        str(request.amount),
        answer.amount_is_captured,
    )


def _settle_one(parts: Parts, begun: Begun, answer: ChargeReport | GatewayError, denied: Denied | None) -> None:
    attempt_id = begun.attempt_id
    if denied is not None:
        _set_aside(parts, begun, denied)
        return
    match answer:
        case ChargeReport():
            _settle(parts, attempt_id, answer, source="answer")
        case NotSent():
            _set_back(parts, begun, NOT_SENT_WAIT, str(answer))
        case RateLimited():
            wait = CHANNEL_LIMIT_WAIT if _is_channel_limit(answer) else timedelta(seconds=answer.retry_after_seconds)
            _set_back(parts, begun, wait, str(answer))
        case Unavailable():
            refused = ChargeReport(ChargeStatus.FAILED, failure_code=answer.error_code or "CHANNEL_UNAVAILABLE")
            _settle(parts, attempt_id, refused, source="answer")
        case OutcomeUnknown():
            with parts.transaction() as session:
                doubt_attempt(session, attempt_id, parts.clock.now(), str(answer), rules=parts.rules)
        case RequestRejected():
            with parts.transaction() as session:
                _reject(session, attempt_id, answer, parts.clock.now(), refused_key=parts.key_fingerprint)
        case _:
            raise answer


def _settle(parts: Parts, attempt_id: str, report: ChargeReport, *, source: str) -> None:
    with parts.transaction() as session:
        settle_attempt(session, attempt_id, report, parts.clock.now(), parts.rules, source=source)


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


# ---------------------------------------------------------------------------------------------------- begin

BY_HAND = "operator"
EARLIER = "earlier tries"


@dataclass(frozen=True, slots=True)
class Begun:
    """The attempt is written down as submitted; this is what to send, and until when it may be sent."""

    attempt_id: str
    subscription_id: str
    customer_id: str
    request: ChargeRequest
    lease_id: str
    lease_until: datetime  # real time
    send_before: float  # uptime in seconds


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """The token has never been seen ACTIVE at Xendit (an import, a late activation): ask first."""

    attempt_id: str
    payment_token_id: str

    @property
    def subject(self) -> str:
        return self.payment_token_id


@dataclass(frozen=True, slots=True)
class EarlierTries:
    """This is a retry: a failure Xendit reported may have turned into money, and its webhook may be lost. Ask first."""

    attempt_id: str
    tries: Sequence[tuple[str, str, datetime]]  # attempt id, Xendit's payment request id, sent at

    @property
    def subject(self) -> str:
        return EARLIER


Answered = tuple[Begun, ChargeReport | GatewayError]
Question = EarlierTries | UnverifiedToken
Prepared = tuple[ToBegin, TokenWithDeclines, ChargeRequest]
Parking = tuple[str, str, str]  # attempt, what it waits for (`run:ID`, `channel:CODE`), and that in words


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a charge is not begun now, and for how long."""

    time: timedelta
    reason: str


@dataclass(frozen=True, slots=True)
class Unsendable:
    """The request could not be made here, and why."""

    attempt_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Started:
    """What became of a group: begun; not before Xendit has been asked; not allowed, which is looked at one by one; not
    to be sent from here."""

    begun: list[Begun] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unsendable: list[Unsendable] = field(default_factory=list)


def _unprepared(_request: ChargeRequest) -> None:
    """For whoever begins without sending."""


def begin_attempts(
    session: Session,
    attempt_ids: Sequence[str],
    now: datetime,
    rules: Rules,
    *,
    prepare: Callable[[ChargeRequest], None] = _unprepared,
    asked: Collection[str] = (),
    troubles: Mapping[str, Trouble] = MappingProxyType({}),
) -> Started:
    """scheduled -> submitted for those that may be charged, and that can be sent: `prepare` is the gateway's.

    Checked here, whatever was true when an attempt was planned: still scheduled and due, its run not stopped,
    subscription chargeable, invoice open, amount unchanged, token ACTIVE, network caps, channel limits, channel not
    down, no stop of the whole account; and that this database is no copy of the one that charges (CopyOfDatabase).

    The move itself is one UPDATE that names the expected old state, so it is won once (D6). Whoever withdraws a
    planned attempt (cancel, pause, another payment) changes the same row: one of the two finds it changed.
    """
    which_database.refuse_a_copy(session)
    started = Started()
    chosen: dict[str, tuple[ToBegin, TokenWithDeclines]] = {}
    waiting: list[Parking] = []
    for found in charge_path.to_begin(session, attempt_ids, now):
        if found.status != AttemptStatus.SCHEDULED or found.scheduled_at > now or _parked(found, waiting):
            continue
        if not caps.may_begin(found.run_id, found.lease_until, rules):
            continue
        token = _chargeable_token(found)
        if token is None or _over_daily_cap(session, found, now, rules):
            started.refused.append(found.attempt_id)
        elif (
            found.number > 1
            and EARLIER not in asked
            and (tries := queries.failed_at_gateway(session, found.invoice_id))
        ):
            started.questions.append(EarlierTries(found.attempt_id, tries))
        elif not _waits_for_channel(session, found, troubles.get(token.channel_code), now, waiting):
            chosen[found.attempt_id] = found, token
    _park(session, waiting, with_them=chosen)
    ready: list[Prepared] = []
    for attempt_id, (found, token) in chosen.items():
        request = _request(found, token, now, rules)
        try:
            prepare(request)
        except NotSent as error:
            started.unsendable.append(Unsendable(attempt_id, str(error)))
        else:
            ready.append((found, token, request))
    if ready:
        started.begun.extend(_submit(session, ready, now, rules))
    return started


def _submit(session: Session, ready: Sequence[Prepared], now: datetime, rules: Rules) -> list[Begun]:
    lease_id = new_id("lease")
    # The lease outlives the longest call by a wide margin; what has not left by then must not leave at all.
    lease_until = real_now() + rules.submitted_lease
    send_before = uptime() + rules.call_limit.total_seconds()
    won = charge_path.submit(
        session,
        [(found.attempt_id, token) for found, token, _ in ready],
        lease_id=lease_id,
        now=now,
        lease_until=lease_until,
    )
    return [
        Begun(
            found.attempt_id,
            found.subscription_id,
            found.customer_id,
            request,
            lease_id=lease_id,
            lease_until=lease_until,
            send_before=send_before,
        )
        for found, _, request in ready
        if found.attempt_id in won
    ]


def _request(found: ToBegin, token: TokenWithDeclines, now: datetime, rules: Rules) -> ChargeRequest:
    return ChargeRequest(
        reference_id=found.reference_id,
        payment_token_id=token.payment_token_id,
        channel_code=token.channel_code,
        amount=Money(found.amount_minor, found.currency),
        country=found.country,
        description=f"{found.plan_name}, {found.invoice_number}",
        metadata={
            "subscription_id": found.subscription_id,
            "invoice_id": found.invoice_id,
            "attempt_id": found.attempt_id,
        },
        recurring=recurring_terms(found.plan_schedule, now.date()),
        return_url=rules.return_base,
    )


def _chargeable_token(found: ToBegin) -> TokenWithDeclines | None:
    """The token to charge when every check is passed, else None."""
    if found.charging_stopped or _why_not_chargeable(found):
        return None
    token = after_failure.choose_token(found, by_hand=found.origin == BY_HAND).token
    return None if token is None or _beyond_channel_limits(found, token) else token


def _why_not_chargeable(found: ToBegin) -> str | None:
    if found.subscription_status not in BILLABLE:
        return f"the subscription is {found.subscription_status}"
    if found.invoice_status != InvoiceStatus.OPEN:
        return f"the invoice is {found.invoice_status}"
    if found.amount_minor != found.due_minor:
        return "the amount due has changed"
    return None


def _beyond_channel_limits(found: ToBegin, token: TokenWithDeclines) -> str | None:
    amount = Money(found.amount_minor, found.currency)
    try:
        channels.check_amount(found.country, token.channel_code, amount)
    except InvalidMoney as error:
        return str(error)
    return None


def _over_daily_cap(session: Session, found: ToBegin, now: datetime, rules: Rules) -> str | None:
    """The merchant's own guard against charging one customer again and again; what a person asks for goes out."""
    if not rules.subscriber_daily_cap or found.origin == BY_HAND:
        return None
    return caps.over_daily_cap(session, found.customer_id, found.currency, found.amount_minor, now, rules)


def _parked(found: ToBegin, waiting: list[Parking]) -> bool:
    """Its run is paused or stopped: it waits, wherever it was on its way. Where a customer waits, no run matters."""
    if found.run_state not in (None, RunState.RUNNING) and found.lane != Lane.CUSTOMER and found.parked_by is None:
        waiting.append((found.attempt_id, f"run:{found.run_id}", f"run {found.run_id} is paused"))
        return True
    return found.parked_by is not None


def _waits_for_channel(
    session: Session, found: ToBegin, trouble: Trouble | None, now: datetime, waiting: list[Parking]
) -> bool:
    if trouble is None or found.origin == BY_HAND or breaker.take_probe(session, trouble, now):
        return False
    waiting.append((found.attempt_id, breaker.waits_for(trouble.channel_code), trouble.waits()))
    return True


def _refuse(parts: Parts, attempt_id: str, now: datetime, asked: Collection[str] = ()) -> Question | None:
    """Something forbids the charge. What follows moves more than this row: look again, under the lock."""
    with parts.transaction() as session:
        if queries.lock_subscription_of_attempt(session, attempt_id) is None:
            return None
        looked = charge_path.to_begin(session, [attempt_id], now)[0]
        if looked.status != AttemptStatus.SCHEDULED:
            return None
        question = _refuse_locked(session, looked, now, parts.rules, asked)
        if queries.attempt_with_invoice(session, attempt_id).attempt.status == AttemptStatus.CANCELED:
            note_withdrawn(attempt_id)
        return question


def _refuse_locked(
    session: Session, looked: ToBegin, now: datetime, rules: Rules, asked: Collection[str]
) -> UnverifiedToken | None:
    """Why the charge must not be made now, and what becomes of the attempt."""
    found = queries.attempt_with_invoice(session, looked.attempt_id)
    attempt = found.attempt
    refusal = _why_not_chargeable(looked)
    choice = after_failure.choose_token(looked, by_hand=looked.origin == BY_HAND)
    if looked.charging_stopped:
        attempt.lease_until = None
    elif refusal:
        withdraw(session, attempt, now, refusal)
        close_if_ended(session, found.subscription, [found.invoice], now)
    elif choice.token is None:
        for token in choice.unverified:
            if token.payment_token_id not in asked:
                return UnverifiedToken(attempt.id, token.payment_token_id)
        _without_token(session, found, looked, choice, now)
    else:
        limit = _beyond_channel_limits(looked, choice.token) or _over_daily_cap(session, looked, now, rules)
        if limit is None:
            attempt.lease_until = None  # what forbade it is gone since the first look: the next claim takes it
        else:
            withdraw(session, attempt, now, limit)
            hold_invoice(session, found.invoice, now, limit, HoldKind.LIMIT)
    return None


def _without_token(
    session: Session, found: queries.Found, looked: ToBegin, choice: after_failure.Choice, now: datetime
) -> None:
    """Xendit has been asked about all that could be asked about: wait for one of them, or for the customer."""
    attempt = found.attempt
    wait = after_failure.wait_for_token(looked, choice, now) if choice.unverified and not choice.capped else None
    if wait is not None:
        reason = "Xendit says the token is not usable yet"
        queries.postpone(session, attempt.id, now + wait, error=reason)
        note_unsent(attempt.id)
    elif choice.unknown and not choice.capped and looked.origin == BY_HAND and attempt.payment_token_id is not None:
        # Others may know it better: what a person named by hand holds nothing else up.
        withdraw(session, attempt, now, f"Xendit does not know this payment method; {RIGHT_KEY}")
        if attempt.replaces_at is not None:
            schedule_attempt(session, found.invoice, max(now, attempt.replaces_at), origin="dunning")
    elif choice.unknown and not choice.capped:
        held_because = hold_while_unknown(session, found.subscription, now)
        if held_because is None:
            attempt.lease_until = None  # it was blocked since the first look: the next claim looks again
        else:
            waits_for = waits_for_token(found.subscription.customer_id)
            queries.park_attempts(session, [attempt.id], waits_for, held_because)
    else:
        after_failure.without_token(session, found, choice, now)


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
