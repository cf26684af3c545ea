"""What follows a failure: which token next, when, how often, and when to give up. Called by settle.py, begin.py and
look_up.py.

The rules are data (domain/declines.py, domain/dunning.py); this file applies them to rows. Dunning counts scheduled
steps: what a customer or an operator tries by hand never uses up the ladder (U1).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import assert_never

import structlog
from sqlalchemy import exists, func, select, update
from sqlalchemy.orm import Session

from billing.charging.tokens import mark_replaced
from billing.domain import dunning
from billing.domain.declines import DECLINES, Classified, DeclineClass
from billing.domain.lifecycle import (
    BILLABLE,
    AttemptStatus,
    EndKind,
    HoldKind,
    InvoiceStatus,
    SubscriptionStatus,
    TokenStatus,
)
from billing.parts import Rules, tell
from billing.store import queries
from billing.store.models import ChargeAttempt, Invoice, PaymentSession, PaymentToken, Plan, Subscription
from billing.subscriptions.invoices import (
    close_if_ended,
    close_invoice,
    has_unfinished_attempt,
    hold_invoice,
    release_invoice,
    schedule_attempt,
    withdraw,
)
from billing.subscriptions.moves import end, end_if_over, is_to_be_tried, lock_subscription, move_subscription, pause

CAP_WAIT = timedelta(days=1)

# How long after an attempt went into doubt (or was sent) we ask Xendit about it.
LOOK_UPS = tuple(timedelta(minutes=m) for m in (1, 5, 30, 120, 360, 720, 1440))
ACTION_LOOK_UPS = tuple(timedelta(minutes=m) for m in (10, 60, 360, 1440))
ACTION_WINDOW = timedelta(days=1)  # what waits for the customer longer than this is canceled
PENDING_IN_SILENCE = timedelta(days=7)  # then the invoice is held, and a person asks Xendit
LATER_LOOK_UPS = timedelta(days=1)  # at first; then the older, the rarer

log = structlog.get_logger()

RETRYABLE = frozenset({DeclineClass.RETRY_LATER, DeclineClass.RETRY_AFTER, DeclineClass.UNKNOWN_FIRST})
COUNTED_ORIGINS = frozenset({"schedule", "dunning"})


def without_token(session: Session, found: queries.Found, now: datetime, *, capped: bool) -> None:
    """No token may be charged now: wait out the network cap, or ask the customer for a payment method."""
    attempt, invoice = found.attempt, found.invoice
    if capped:
        attempt.scheduled_at = _rest_ends(session, found, now)
        attempt.lease_until = attempt.error = None
        reason = "network limit of declines per card"
        tell(session, attempt.subscription_id, now, "attempt.postponed", attempt=attempt.id, reason=reason)
        return
    withdraw(session, attempt, now, "no payment token that may be charged")
    _start_grace(invoice, found.plan, now)
    mark_past_due(session, found.subscription, now)
    tell(
        session,
        attempt.subscription_id,
        now,
        "customer.asked",
        invoice=invoice.number,
        reason="no payment token that may be charged",
        until=_iso(invoice.grace_ends_at),
    )


def _rest_ends(session: Session, found: queries.Found, now: datetime) -> datetime:
    """A day after this invoice's last decline: a try by hand must not cost the ladder more than that. Where the limits
    over all invoices hold it back, look again in a day."""
    last = session.scalar(
        select(func.max(ChargeAttempt.settled_at)).where(
            ChargeAttempt.invoice_id == found.invoice.id, ChargeAttempt.status == AttemptStatus.FAILED
        )
    )
    return last + CAP_WAIT if last is not None and last + CAP_WAIT > now else now + CAP_WAIT


# ------------------------------------------------------------------------------------------ after a failure


def after_failure(session: Session, found: queries.Found, verdict: Classified, now: datetime) -> str:
    """Let the dunning policy say what comes next and write it down. Returns it in words, for the story."""
    attempt, invoice, subscription = found.attempt, found.invoice, found.subscription
    _note_decline_on_token(session, attempt, verdict, now)
    if invoice.hold_kind in (HoldKind.PENDING, HoldKind.DOUBT):
        release_invoice(invoice)  # what it waited for has come
    if subscription.status not in BILLABLE:
        return _without_future(session, found, now)
    if invoice.status != InvoiceStatus.OPEN:
        return f"nothing: the invoice is {invoice.status}"
    if invoice.hold_reason is None and found.captures and attempt.origin == "operator":
        hold_invoice(session, invoice, now, "the rest could not be collected", HoldKind.AMOUNT)
    if invoice.hold_reason is not None:
        return f"nothing: the invoice waits for a person ({invoice.hold_reason})"
    _start_grace(invoice, found.plan, now)
    mark_past_due(session, subscription, now)
    upcoming = _follow(session, found, _next_step(session, found, verdict, now), now)
    end_if_over(session, subscription, now)
    return upcoming


def _next_step(session: Session, found: queries.Found, verdict: Classified, now: datetime) -> dunning.Next:
    attempt, invoice = found.attempt, found.invoice
    same_code = select(func.count()).where(
        ChargeAttempt.invoice_id == invoice.id,
        ChargeAttempt.status == AttemptStatus.FAILED,
        ChargeAttempt.failure_code == attempt.failure_code,
        ChargeAttempt.origin.in_(COUNTED_ORIGINS),
    )
    return dunning.next_step(
        dunning.policy(found.plan.dunning),
        verdict,
        dunning.Progress(
            step=invoice.dunning_step,
            technical_step=invoice.technical_step,
            first_failed_at=invoice.first_failed_at,
            soft_tries_of_code=session.scalar(same_code) or 0,
        ),
        now,
        has_other_token=_other_token(session, found) is not None,
        counts=attempt.origin in COUNTED_ORIGINS,
    )


def _follow(session: Session, found: queries.Found, step: dunning.Next, now: datetime) -> str:
    attempt, invoice, subscription = found.attempt, found.invoice, found.subscription
    match step:
        case dunning.RetryAt(at=at, reason=reason):
            # A try by hand used up no step: what it took the place of is planned again, not earlier than it was.
            at = max(at, attempt.replaces_at or at)
            invoice.dunning_step, invoice.technical_step = step.step, step.technical_step
            schedule_attempt(session, invoice, at, origin="dunning")
            return f"retry at {_iso(at)}: {reason}"
        case dunning.NextToken(reason=reason):
            other = _other_token(session, found)
            schedule_attempt(session, invoice, now, origin="dunning", payment_token_id=other.id if other else None)
            return f"next payment method: {reason}"
        case dunning.AskCustomer(until=until, reason=reason):
            invoice.grace_ends_at = until
            tell(
                session,
                subscription.id,
                now,
                "customer.asked",
                invoice=invoice.number,
                reason=reason,
                until=_iso(until),
            )
            return f"the customer is asked until {_iso(until)}: {reason}"
        case dunning.GiveUp(reason=reason):
            give_up(session, subscription, found.plan, invoice, now, reason)
            return f"given up: {reason}"
        case dunning.Hold(reason=reason):
            hold_invoice(session, invoice, now, reason, HoldKind.DECLINE)
            return f"held: {reason}"
        case _:
            assert_never(step)


def _other_token(session: Session, found: queries.Found) -> PaymentToken | None:
    """The customer's next chargeable token that has not failed on this invoice yet."""
    tried = select(ChargeAttempt.payment_token_id).where(
        ChargeAttempt.invoice_id == found.invoice.id,
        ChargeAttempt.payment_token_id.is_not(None),
        ChargeAttempt.status.in_({AttemptStatus.FAILED, AttemptStatus.CANCELED}),
    )
    query = (
        select(PaymentToken)
        .where(
            PaymentToken.customer_id == found.subscription.customer_id,
            PaymentToken.status == TokenStatus.ACTIVE,
            queries.may_be_charged(PaymentToken),
            PaymentToken.id.not_in(tried),
        )
        .order_by(PaymentToken.rank)
        .limit(1)
    )
    return session.scalar(query)


def _note_decline_on_token(session: Session, attempt: ChargeAttempt, verdict: Classified, now: datetime) -> None:
    """A token that must never be tried again is blocked; a stolen or stopped card under every token it has."""
    if attempt.payment_token_id is None:
        return
    if verdict.cls in DECLINES:
        _replace_if_another_was_saved(session, attempt, now)
    if not (verdict.cls == DeclineClass.DEAD_TOKEN or verdict.blocks_card):
        return
    dead = PaymentToken.id == attempt.payment_token_id
    if verdict.blocks_card and attempt.fingerprint:
        dead = dead | (PaymentToken.fingerprint == attempt.fingerprint)
    blocked = select(PaymentToken.id).where(dead, PaymentToken.blocked_reason.is_(None)).order_by(PaymentToken.id)
    news = list(session.scalars(blocked))
    session.execute(update(PaymentToken).where(dead).values(blocked_reason=verdict.code))
    for token_id in news:
        undo = f"billing token unblock {token_id}"
        if token_id == attempt.payment_token_id:
            tell(session, attempt.subscription_id, now, "token.blocked", token=token_id, reason=verdict.code, undo=undo)
        log.warning("token.blocked", token=token_id, reason=verdict.code, undo=undo)


def _replace_if_another_was_saved(session: Session, attempt: ChargeAttempt, now: datetime) -> None:
    """The customer saved another payment method while this one was being charged: it is replaced as if its decline
    had come before."""
    declined = session.get_one(PaymentToken, attempt.payment_token_id)
    saved = exists().where(PaymentSession.payment_token_id == PaymentToken.payment_token_id)
    newer = select(PaymentToken.id).where(
        PaymentToken.customer_id == declined.customer_id,
        PaymentToken.id != declined.id,
        PaymentToken.status == TokenStatus.ACTIVE,
        PaymentToken.created_at >= (attempt.submitted_at or now),
        PaymentToken.rank < declined.rank,
        saved,
    )
    by = session.scalar(newer.limit(1)) if declined.replaced_at is None else None
    if by is not None:
        mark_replaced(session, declined, by, [attempt.subscription_id], now)


def _without_future(session: Session, found: queries.Found, now: datetime) -> str:
    """The subscription was paused or canceled meanwhile: no new attempt; a canceled one's invoice ends here."""
    close_if_ended(session, found.subscription, [found.invoice], now)
    return f"nothing: the subscription is {found.subscription.status}"


def revise_plan(session: Session, found: queries.Found, verdict: Classified, now: datetime) -> None:
    """Better codes arrived after a retry was planned: it may only become later, or fall away."""
    planned = session.scalar(
        select(ChargeAttempt)
        .where(
            ChargeAttempt.invoice_id == found.invoice.id,
            ChargeAttempt.status == AttemptStatus.SCHEDULED,
            ChargeAttempt.origin == "dunning",
            ChargeAttempt.number == found.attempt.number + 1,
        )
        .with_for_update()
    )
    _note_decline_on_token(session, found.attempt, verdict, now)
    if planned is None:
        return
    if verdict.cls in RETRYABLE and not (verdict.blocks_card or verdict.revoked):
        earliest = (found.attempt.settled_at or now) + (verdict.wait or timedelta())
        if earliest > planned.scheduled_at:
            planned.scheduled_at = earliest
            tell(
                session,
                planned.subscription_id,
                now,
                "attempt.postponed",
                attempt=planned.id,
                until=_iso(earliest),
                reason=f"advised by code {verdict.code}",
            )
        return
    if planned.lease_until is not None:
        return  # handed to a worker already: begin chooses no blocked token, and its result is judged anew
    withdraw(session, planned, now, f"code {verdict.code} forbids another try")
    _follow(session, found, _next_step(session, found, verdict, now), now)


def try_again_uncounted(session: Session, found: queries.Found, now: datetime) -> None:
    """The last attempt never reached Xendit: the same step again, under a new reference."""
    if found.invoice.hold_kind == HoldKind.DOUBT:
        release_invoice(found.invoice)  # what it waited for is known
    if found.subscription.status not in BILLABLE:
        _without_future(session, found, now)
    elif found.invoice.status == InvoiceStatus.OPEN and found.invoice.hold_reason is None:
        schedule_attempt(
            session, found.invoice, now, origin=found.attempt.origin, replaces_at=found.attempt.replaces_at
        )


# ------------------------------------------------------------------------------- subscription and invoice


def mark_past_due(session: Session, subscription: Subscription, now: datetime) -> None:
    if subscription.status in (SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING):
        move_subscription(subscription, SubscriptionStatus.PAST_DUE, "mark as past due")
        tell(session, subscription.id, now, "subscription.past_due")


def recover_subscription(session: Session, subscription: Subscription, now: datetime) -> None:
    """Back to active when the last overdue invoice is settled."""
    if subscription.status != SubscriptionStatus.PAST_DUE:
        if subscription.status == SubscriptionStatus.TRIALING:
            move_subscription(subscription, SubscriptionStatus.ACTIVE, "activate")
        return
    session.flush()
    overdue = select(Invoice.id).where(
        Invoice.subscription_id == subscription.id,
        Invoice.status == InvoiceStatus.OPEN,
        Invoice.first_failed_at.is_not(None),
    )
    if session.scalar(overdue.limit(1)) is None:
        move_subscription(subscription, SubscriptionStatus.ACTIVE, "recover")
        tell(session, subscription.id, now, "subscription.recovered")


def hold_if_pending_for_long(session: Session, attempt: ChargeAttempt, now: datetime) -> None:
    """Xendit has not decided for a week: a person is told, because the invoice waits and would wait for ever. The
    hold ends by itself when the attempt gets a result; look-ups go on."""
    if attempt.submitted_at is None or now < attempt.submitted_at + PENDING_IN_SILENCE:
        return
    invoice = session.get_one(Invoice, attempt.invoice_id)
    if invoice.status == InvoiceStatus.OPEN and invoice.hold_reason is None:
        days = PENDING_IN_SILENCE.days
        reason = (
            f"a charge has been pending for more than {days} days; ask Xendit about {attempt.payment_request_id},"
            " `billing reconcile` looks it up now"
        )
        hold_invoice(session, invoice, now, reason, HoldKind.PENDING)


def _start_grace(invoice: Invoice, plan: Plan, now: datetime) -> None:
    if invoice.first_failed_at is None:
        invoice.first_failed_at = now
    if invoice.grace_ends_at is None:
        invoice.grace_ends_at = invoice.first_failed_at + dunning.policy(plan.dunning).grace


def give_up(
    session: Session, subscription: Subscription, plan: Plan, invoice: Invoice, now: datetime, reason: str
) -> None:
    """On purpose: the invoice is uncollectible and the policy's final action follows."""
    close_invoice(session, invoice, InvoiceStatus.UNCOLLECTIBLE, now, reason=reason)
    session.flush()
    if subscription.status not in BILLABLE:
        return
    match dunning.policy(plan.dunning).final_action:
        case dunning.FinalAction.CANCEL:
            reason = f"invoice {invoice.number} could not be collected"
            end(session, subscription, plan, now, kind=EndKind.DUNNING, reason=reason)
        case dunning.FinalAction.PAUSE:
            pause(session, subscription, now, reason=f"invoice {invoice.number} could not be collected")
            end_if_over(session, subscription, now)
        case dunning.FinalAction.PAST_DUE:
            end_if_over(session, subscription, now)


def close_overdue_invoice(session: Session, invoice_id: str, subscription_id: str, now: datetime) -> None:
    """Grace is over and nothing is under way: give up."""
    subscription = lock_subscription(session, subscription_id)
    invoice = session.get_one(Invoice, invoice_id, populate_existing=True)
    if invoice.status != InvoiceStatus.OPEN or has_unfinished_attempt(session, invoice.id):
        return
    if subscription.hold_kind == HoldKind.TOKEN_UNKNOWN:
        invoice.grace_ends_at = now + CAP_WAIT  # nobody's time runs out while our key may be the wrong one
        return
    if is_to_be_tried(session, subscription):
        invoice.grace_ends_at = now + CAP_WAIT  # after an outage: the others are tried once before any is given up
        return
    plan = session.get_one(Plan, subscription.plan_id)
    give_up(session, subscription, plan, invoice, now, "the time for a new payment method is over")


# ---------------------------------------------------------------------------------------------- looking up


def next_look_up(attempt: ChargeAttempt, now: datetime, rules: Rules) -> datetime:
    """When to ask Xendit about an attempt next: minutes at first, then hours, then days, ever more of them."""
    since = attempt.submitted_at or attempt.created_at
    ladder = LOOK_UPS
    if attempt.status == AttemptStatus.IN_DOUBT:
        since = attempt.doubt_since or since
        ladder = (*LOOK_UPS, rules.settlement_window)
    elif attempt.status == AttemptStatus.REQUIRES_ACTION:
        ladder = ACTION_LOOK_UPS
    later = now + max(LATER_LOOK_UPS, (now - since) / 4)
    return next((since + step for step in ladder if since + step > now), later)


def window_is_over(attempt: ChargeAttempt, now: datetime, rules: Rules) -> bool:
    """Whether an attempt has been in doubt so long that silence means the request never arrived."""
    return attempt.doubt_since is not None and now >= attempt.doubt_since + rules.settlement_window


def _iso(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant else None
