"""Begin: a planned attempt becomes `submitted`, or the reason why it is not charged is acted upon. Called by send.py.

    token_or_reason   every reason not to charge, from top to bottom; the first that applies counts
    begin_attempts    asks it for a group of attempts, and submits those without a reason
    refuse            what follows from a reason moves more than one row: asked again under the lock

Whatever was true when an attempt was planned is checked here once more, because between plan and charge there may be
weeks, another payment or another process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from types import MappingProxyType

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from billing.charging import after_failure
from billing.charging.tokens import RIGHT_KEY, hold_while_unknown, waits_for_token
from billing.domain.channels import check_amount
from billing.domain.gateway import ChargeRequest, Lane
from billing.domain.lifecycle import (
    BILLABLE,
    DEAD_TOKENS,
    AttemptStatus,
    HoldKind,
    InvoiceStatus,
    RunState,
    TokenStatus,
)
from billing.domain.money import Money, format_money
from billing.errors import InvalidMoney, NotSent
from billing.parts import Parts, Rules, note_unsent, note_withdrawn
from billing.store import breaker, queries, which_database
from billing.store.breaker import Trouble
from billing.store.clock import real_now, uptime
from billing.store.models import ChargeAttempt, Customer, PaymentToken, Subscription, new_id
from billing.subscriptions.invoices import close_if_ended, hold_invoice, schedule_attempt, withdraw
from billing.subscriptions.moves import recurring_terms

BY_HAND = "operator"
EARLIER = "earlier tries"
A_DAY = timedelta(days=1)

# Our network caps, well inside those of the schemes: they count declines per card, whoever caused them.
CARD_DECLINES_A_DAY = 10
CARD_DECLINES_IN_30_DAYS = 15

# How long a token that Xendit still calls PENDING is waited for: the longer it lasts, the rarer it is asked about.
PENDING_LOOK_UPS = (timedelta(hours=1), timedelta(days=1))
PENDING_FOR_GOOD = timedelta(days=7)  # then the customer is asked


# ------------------------------------------------------------------------------------- reasons not to charge


class Then(Enum):
    """What follows from a reason not to charge."""

    LEAVE = auto()  # nothing: it is not its time, or somebody else's business
    PARK = auto()  # it waits for its run or its channel, and is let go with it
    REST = auto()  # it is free for the next claim
    WITHDRAW = auto()  # the attempt ends
    HOLD = auto()  # the attempt ends, and a person decides about the invoice
    FIND_TOKEN = auto()  # a token is asked about or waited for, or the customer is asked for another
    ASK = auto()  # Xendit is asked what has become of the tries before it


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an attempt is not charged now."""

    then: Then
    words: str
    waits_for: str = ""  # of PARK: `run:ID` or `channel:CODE`
    earlier: Sequence[tuple[str, str, datetime]] = ()  # of ASK: attempt id, Xendit's payment request id, sent at
    choice: Choice | None = None  # of FIND_TOKEN


def token_or_reason(  # noqa: PLR0912 - one list
    session: Session,
    found: ToBegin,
    now: datetime,
    rules: Rules,
    *,
    asked: Collection[str] = (),
    troubles: Mapping[str, Trouble] = MappingProxyType({}),
) -> TokenWithDeclines | Reason:
    """The token to charge, or the first reason not to charge this attempt now. There are no others."""
    by_hand = found.origin == BY_HAND
    amount = Money(found.amount_minor, found.currency)

    # The attempt and its run. Where a customer waits, no run matters.
    if found.status != AttemptStatus.SCHEDULED:
        return Reason(Then.LEAVE, f"it is {found.status}")
    if found.scheduled_at > now:
        return Reason(Then.LEAVE, "it is planned for later")
    if found.parked_by is not None:
        return Reason(Then.LEAVE, "it waits already")
    if found.run_state not in (None, RunState.RUNNING) and found.lane != Lane.CUSTOMER:
        return Reason(Then.PARK, f"run {found.run_id} is paused", f"run:{found.run_id}")
    if found.run_id is not None and rules.run_spending_cap and found.lease_until is None:
        return Reason(Then.LEAVE, "its run has taken it back, to stay within its spending cap")

    # The account, the subscription, the invoice.
    if found.charging_stopped:
        return Reason(Then.REST, "all charging is stopped")
    if found.subscription_status not in BILLABLE:
        return Reason(Then.WITHDRAW, f"the subscription is {found.subscription_status}")
    if found.invoice_status != InvoiceStatus.OPEN:
        return Reason(Then.WITHDRAW, f"the invoice is {found.invoice_status}")
    if found.amount_minor != found.due_minor:
        return Reason(Then.WITHDRAW, "the amount due has changed")

    # The payment method, its limits and the merchant's.
    choice = choose_token(found, by_hand=by_hand)
    token = choice.token
    if token is None:
        return Reason(Then.FIND_TOKEN, "no payment token that may be charged", choice=choice)
    if limit := _beyond_channel_limits(found.country, token.channel_code, amount):
        return Reason(Then.HOLD, limit)
    if not by_hand and (limit := _over_daily_cap(session, found.customer_id, amount, now, rules)):
        return Reason(Then.HOLD, limit)

    # What Xendit may know, and whether its channel works.
    if found.number > 1 and EARLIER not in asked and (tries := queries.failed_at_gateway(session, found.invoice_id)):
        return Reason(Then.ASK, "an earlier try may have been paid after all", earlier=tries)
    trouble = troubles.get(token.channel_code)
    if trouble is not None and not by_hand and not breaker.take_probe(session, trouble, now):
        return Reason(Then.PARK, trouble.waits(), breaker.waits_for(trouble.channel_code))
    return token


def _beyond_channel_limits(country: str, channel_code: str, amount: Money) -> str | None:
    try:
        check_amount(country, channel_code, amount)
    except InvalidMoney as error:
        return str(error)
    return None


def _over_daily_cap(session: Session, customer_id: str, amount: Money, now: datetime, rules: Rules) -> str | None:
    """The merchant's own guard against charging one customer again and again. Charges of one customer follow each
    other by the lock of its row."""
    cap = rules.subscriber_daily_cap.get(amount.currency)
    if cap is None:
        return None
    session.execute(select(Customer.id).where(Customer.id == customer_id).with_for_update(key_share=True)).all()
    spent = session.scalar(
        select(func.coalesce(func.sum(ChargeAttempt.amount_minor), 0))
        .join(Subscription, Subscription.id == ChargeAttempt.subscription_id)
        .where(
            Subscription.customer_id == customer_id,
            ChargeAttempt.currency == amount.currency,
            ChargeAttempt.submitted_at > now - A_DAY,
            ChargeAttempt.status.not_in({AttemptStatus.FAILED, AttemptStatus.CANCELED, AttemptStatus.SCHEDULED}),
        )
    )
    if int(spent or 0) + amount.amount_minor <= cap:
        return None
    charged = format_money(Money(int(spent or 0), amount.currency))
    return (
        f"{format_money(amount)} after {charged} in 24 hours would exceed the daily cap of"
        f" {format_money(Money(cap, amount.currency))} for one subscriber"
    )


# -------------------------------------------------------------------------------------------- which token


@dataclass(frozen=True, slots=True)
class Choice:
    """The token to charge. Without one: those that Xendit has not called ACTIVE yet, in the order to ask about them;
    whether one is capped until a later day; whether there is one that Xendit does not know."""

    token: TokenWithDeclines | None = None
    unverified: Sequence[TokenWithDeclines] = ()
    capped: bool = False
    unknown: bool = False


def choose_token(found: ToBegin, *, by_hand: bool) -> Choice:
    """The ACTIVE one that the attempt names, else the subscription's own, else the customer's in their order. Only when
    none of them may be charged the others count, however far in front they stand.

    A dead or blocked token is never chosen (U7: a hard decline ends that token, not the search), and one that the
    customer has replaced only by a person who names it.
    """
    alive = [token for token in _in_order(found) if token.blocked_reason is None and token.status not in DEAD_TOKENS]
    known = [token for token in alive if not token.unknown]
    active = [token for token in known if token.status == TokenStatus.ACTIVE]
    for token in active:
        if not _over_the_caps(token, by_hand=by_hand):
            return Choice(token=token)
    # A status we do not know yet is no end. What requires action is the customer's turn.
    asked_about = [token for token in known if token.status not in (TokenStatus.ACTIVE, TokenStatus.REQUIRES_ACTION)]
    return Choice(unverified=asked_about, capped=bool(active), unknown=len(known) < len(alive))


def _in_order(found: ToBegin) -> list[TokenWithDeclines]:
    named = found.named_token
    if named is not None and found.origin == BY_HAND:  # who names a token by hand means that one
        return [token for token in found.tokens if token.id == named]
    standing = [token for token in found.tokens if not token.replaced]
    return sorted(standing, key=lambda token: preference(token, named, found.own_token))


def preference(token: TokenWithDeclines | PaymentToken, named: str | None, own: str | None) -> tuple[bool, bool, int]:
    """The one the attempt names, the subscription's own, the customer's in their order. In SQL, without a name:
    `queries.token_to_charge`."""
    return token.id != named, token.id != own, token.rank


def _over_the_caps(token: TokenWithDeclines, *, by_hand: bool) -> bool:
    """By hand the schemes' own limits hold; automatic tries also wait a day after a decline on this invoice."""
    return (
        token.declines_in_a_day >= CARD_DECLINES_A_DAY
        or token.declines_in_30_days >= CARD_DECLINES_IN_30_DAYS
        or (not by_hand and token.declined_here_today)
    )


# ---------------------------------------------------------------------------------------------------- begin


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


Question = EarlierTries | UnverifiedToken
Prepared = tuple["ToBegin", "TokenWithDeclines", ChargeRequest]


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
    """scheduled -> submitted for those that there is no reason not to charge, and that can be sent: `prepare` is the
    gateway's. Raises CopyOfDatabase: a copy of the database that charges does not charge.

    The move itself is one UPDATE that names the expected old state, so it is won once (D6). Whoever withdraws a
    planned attempt (cancel, pause, another payment) changes the same row: one of the two finds it changed.
    """
    which_database.refuse_a_copy(session)
    started = Started()
    chosen: dict[str, tuple[ToBegin, TokenWithDeclines]] = {}
    waiting: dict[str, Reason] = {}
    for found in to_begin(session, attempt_ids, now):
        verdict = token_or_reason(session, found, now, rules, asked=asked, troubles=troubles)
        if isinstance(verdict, TokenWithDeclines):
            chosen[found.attempt_id] = found, verdict
        elif verdict.then == Then.PARK:
            waiting[found.attempt_id] = verdict
        elif verdict.then == Then.ASK:
            started.questions.append(EarlierTries(found.attempt_id, verdict.earlier))
        elif verdict.then != Then.LEAVE:
            started.refused.append(found.attempt_id)
    park(session, waiting, with_them=chosen)
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


def park(session: Session, waiting: Mapping[str, Reason], *, with_them: Collection[str] = ()) -> None:
    """They wait, each for its run or channel. All rows of this transaction, those `with_them` too, are locked first and
    in one order: another group may hold some of the same."""
    if not waiting:
        return
    queries.lock_attempts(session, {*with_them, *waiting})
    for reason in dict.fromkeys(waiting.values()):
        ids = [attempt_id for attempt_id, its in waiting.items() if its == reason]
        queries.park_attempts(session, ids, reason.waits_for, reason.words)
    for attempt_id in waiting:
        note_unsent(attempt_id)


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


def _submit(session: Session, ready: Sequence[Prepared], now: datetime, rules: Rules) -> list[Begun]:
    lease_id = new_id("lease")
    # The lease outlives the longest call by a wide margin; what has not left by then must not leave at all.
    lease_until = real_now() + rules.submitted_lease
    send_before = uptime() + rules.call_limit.total_seconds()
    values = {
        "ids": [found.attempt_id for found, _, _ in ready],
        "tokens": [token.id for _, token, _ in ready],
        "cards": [token.fingerprint for _, token, _ in ready],
        "lease": lease_id,
        "now": now,
        "until": lease_until,
    }
    won = set(session.scalars(_SUBMIT, values))
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


# -------------------------------------------------------------------------------------- what a refusal moves


def refuse(parts: Parts, attempt_id: str, now: datetime, asked: Collection[str] = ()) -> UnverifiedToken | None:
    """Something forbids the charge. What follows moves more than this row: look again, under the lock. Returns what
    Xendit must be asked before anything follows."""
    with parts.transaction() as session:
        if queries.lock_subscription_of_attempt(session, attempt_id) is None:
            return None
        looked = to_begin(session, [attempt_id], now)[0]
        if looked.status != AttemptStatus.SCHEDULED:
            return None
        question = _refuse_locked(session, looked, now, parts.rules, asked)
        if queries.attempt_with_invoice(session, attempt_id).attempt.status == AttemptStatus.CANCELED:
            note_withdrawn(attempt_id)
        return question


def _refuse_locked(
    session: Session, looked: ToBegin, now: datetime, rules: Rules, asked: Collection[str]
) -> UnverifiedToken | None:
    found = queries.attempt_with_invoice(session, looked.attempt_id)
    attempt = found.attempt
    verdict = token_or_reason(session, looked, now, rules, asked=(EARLIER,))
    if isinstance(verdict, TokenWithDeclines):
        attempt.lease_until = None  # what forbade it is gone since the first look: the next claim takes it
    elif verdict.then == Then.WITHDRAW:
        withdraw(session, attempt, now, verdict.words)
        close_if_ended(session, found.subscription, [found.invoice], now)
    elif verdict.then == Then.HOLD:
        withdraw(session, attempt, now, verdict.words)
        hold_invoice(session, found.invoice, now, verdict.words, HoldKind.LIMIT)
    elif verdict.choice is not None:
        for token in verdict.choice.unverified:
            if token.payment_token_id not in asked:
                return UnverifiedToken(attempt.id, token.payment_token_id)
        _without_token(session, found, looked, verdict.choice, now)
    else:
        attempt.lease_until = None  # as above, or it has to wait for what the next look finds
    return None


def _without_token(session: Session, found: queries.Found, looked: ToBegin, choice: Choice, now: datetime) -> None:
    """Xendit has been asked about all that could be asked about: wait for one of them, or for the customer."""
    attempt = found.attempt
    wait = _wait_for_token(looked, choice, now) if choice.unverified and not choice.capped else None
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
        after_failure.without_token(session, found, now, capped=choice.capped)


def _wait_for_token(found: ToBegin, choice: Choice, now: datetime) -> timedelta | None:
    """How long a charge waits for a token that Xendit has just called PENDING again; None when that has lasted too
    long. It counts from when it is needed: an import may have told of it long before."""
    since = max(found.invoice_opened_at, *(token.created_at for token in choice.unverified))
    if now - since >= PENDING_FOR_GOOD:
        return None
    shortest, longest = PENDING_LOOK_UPS
    return min(max((now - since) / 2, shortest), longest)


# ------------------------------------------------------------------------------------------- the statements


@dataclass(frozen=True, slots=True)
class TokenWithDeclines:
    """A token and what the network caps count: declines of its card, over all invoices and here since yesterday."""

    id: str
    payment_token_id: str
    status: str
    channel_code: str
    fingerprint: str | None
    rank: int
    blocked_reason: str | None
    unknown: bool  # Xendit says that it has no such token
    replaced: bool  # it was declined, and the customer has saved another since
    created_at: datetime
    declines_in_a_day: int
    declines_in_30_days: int
    declined_here_today: bool


@dataclass(frozen=True, slots=True)
class ToBegin:
    """A planned attempt and everything that could forbid it."""

    attempt_id: str
    reference_id: str
    subscription_id: str
    invoice_id: str
    number: int
    origin: str
    status: str
    scheduled_at: datetime
    amount_minor: int
    currency: str
    named_token: str | None
    run_id: str | None
    lane: int
    parked_by: str | None
    lease_until: datetime | None
    invoice_number: str
    invoice_status: str
    due_minor: int
    subscription_status: str
    own_token: str | None
    customer_id: str
    country: str
    plan_name: str
    plan_schedule: str
    run_state: str | None
    charging_stopped: bool
    invoice_opened_at: datetime
    tokens: list[TokenWithDeclines] = field(default_factory=list)


_DECLINES = """(SELECT count(*) FROM charge_attempts o WHERE o.fingerprint = t.fingerprint AND o.status = 'failed'
        AND (o.decline_class IS NULL OR o.decline_class NOT IN ('our_fault', 'not_sent')) AND o.settled_at >"""

_TO_BEGIN = text(
    f"""
    SELECT a.id, a.reference_id, a.subscription_id, a.invoice_id, a.number, a.origin, a.status, a.scheduled_at,
        a.amount_minor, a.currency, a.payment_token_id, a.run_id, a.lane, a.parked_by, a.lease_until,
        i.number, i.status, i.amount_minor - (SELECT coalesce(sum(k.amount_minor), 0) FROM captures k
            WHERE k.invoice_id = i.id AND NOT k.overpayment), s.status, s.payment_token_id,
        c.id, c.country, p.name, p.schedule, r.state, EXISTS (SELECT FROM charging_stop),
        i.opened_at, t.id, t.payment_token_id, t.status, t.channel_code, t.fingerprint, t.rank, t.blocked_reason,
        t.unknown_since IS NOT NULL, t.replaced_at IS NOT NULL, t.created_at,
        {_DECLINES} :a_day_ago), {_DECLINES} :a_month_ago),
        EXISTS (SELECT FROM charge_attempts h WHERE h.subscription_id = a.subscription_id
            AND h.fingerprint = t.fingerprint AND h.status = 'failed' AND h.settled_at > :a_day_ago
            AND h.decline_class IN ('retry_later', 'needs_customer', 'dead_token', 'unknown_first'))
    FROM charge_attempts a
    JOIN invoices i ON i.id = a.invoice_id
    JOIN subscriptions s ON s.id = a.subscription_id
    JOIN plans p ON p.id = s.plan_id
    JOIN customers c ON c.id = s.customer_id
    LEFT JOIN billing_runs r ON r.id = a.run_id
    LEFT JOIN payment_tokens t ON t.customer_id = c.id
    WHERE a.id = ANY(CAST(:ids AS text[]))
    """  # noqa: S608 - our own statement, twice
)


def to_begin(session: Session, ids: Sequence[str], now: datetime) -> list[ToBegin]:
    """The attempts, their surroundings and the customers' tokens with their declines, in one statement."""
    values = {"ids": list(ids), "a_day_ago": now - timedelta(days=1), "a_month_ago": now - timedelta(days=30)}
    found: dict[str, ToBegin] = {}
    for row in session.execute(_TO_BEGIN, values):
        each = found.get(row[0])
        if each is None:
            each = found[row[0]] = ToBegin(*row[:27])
        if row[27] is not None:
            each.tokens.append(TokenWithDeclines(*row[27:]))
    return [found[identity] for identity in ids if identity in found]


# Locked in the order of their ids, as everybody does who takes several.
_SUBMIT = text(
    """
    WITH mine AS MATERIALIZED (
        SELECT id FROM charge_attempts WHERE id = ANY(CAST(:ids AS text[])) AND status = 'scheduled'
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE charge_attempts a
    SET status = 'submitted', submitted_at = :now, payment_token_id = n.token, fingerprint = n.card,
        lease_until = :until, lease_id = :lease, error = NULL
    FROM mine JOIN unnest(CAST(:ids AS text[]), CAST(:tokens AS text[]), CAST(:cards AS text[])) AS n (id, token, card)
        ON n.id = mine.id
    WHERE a.id = mine.id AND a.status = 'scheduled' AND a.parked_by IS NULL
    RETURNING a.id
    """
)
