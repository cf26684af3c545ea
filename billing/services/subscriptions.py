"""The life of a subscription: activate, pause, resume, cancel. Called by onboarding, charging and the command line.

Whoever moves anything under a subscription (invoice, attempt, the row itself) first takes the lock of its row with
`lock_subscription`: one lock, one order, no deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from billing.domain.gateway import Lane, RecurringTerms
from billing.domain.lifecycle import (
    UNFINISHED,
    AttemptStatus,
    InvoiceStatus,
    SessionStatus,
    SubscriptionStatus,
    check_subscription_move,
)
from billing.domain.schedule import (
    Anchor,
    Period,
    Schedule,
    first_period,
    frequency_days,
    next_period,
    parse_zone,
    period_at,
    schedule_from_text,
    to_local,
)
from billing.errors import IllegalTransition, NotFound
from billing.services.parts import tell
from billing.store.models import (
    ChargeAttempt,
    Invoice,
    PaymentSession,
    Plan,
    SkippedPeriod,
    Subscription,
    new_id,
)

MAX_SKIPPED_AT_ONCE = 1_000
CONTRACT_YEARS = 5


@dataclass(frozen=True, slots=True)
class Calendar:
    """A subscription's periods: its schedule and its original anchor."""

    schedule: Schedule
    anchor: Anchor

    def first(self) -> Period:
        return first_period(self.schedule, self.anchor)

    def at(self, index: int, start_local: datetime) -> Period:
        return period_at(self.schedule, self.anchor, index, start_local)

    def after(self, period: Period) -> Period:
        return next_period(self.schedule, self.anchor, period)


def calendar_of(subscription: Subscription, plan_schedule: str) -> Calendar:
    """Raises ValueError for a subscription that was never activated: it has no anchor."""
    if subscription.anchor_local is None or subscription.anchor_day is None:
        raise ValueError("no anchor before activation")
    anchor = Anchor(subscription.anchor_local, subscription.anchor_day, parse_zone(subscription.timezone))
    return Calendar(schedule_from_text(plan_schedule), anchor)


def lock_subscription(session: Session, subscription_id: str) -> Subscription:
    """The row, locked until the end of the transaction, as it is now. Raises NotFound."""
    query = select(Subscription).where(Subscription.id == subscription_id).with_for_update(key_share=True)
    subscription = session.scalar(query.execution_options(populate_existing=True))
    if subscription is None:
        raise NotFound(f"no subscription {subscription_id}; see `billing subscription list`")
    return subscription


def lock_subscriptions_of(session: Session, customer_id: str) -> list[Subscription]:
    """All of a customer's subscriptions that are not canceled, locked in the order of their ids."""
    query = (
        select(Subscription)
        .where(Subscription.customer_id == customer_id, Subscription.status != SubscriptionStatus.CANCELED)
        .order_by(Subscription.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return list(session.scalars(query))


def set_anchor(subscription: Subscription, plan: Plan, now: datetime) -> None:
    """What sets the anchor, in this order: the start asked for, else the moment of activation; plus the trial.

    The day of the month is that of the anchor's wall clock in the subscription's zone (an import may give its own).
    """
    zone = parse_zone(subscription.timezone)
    local = to_local(subscription.start_at or now, zone) + timedelta(days=plan.trial_days)
    subscription.anchor_local = local
    subscription.anchor_day = local.day


def activate(session: Session, subscription: Subscription, plan: Plan, now: datetime) -> None:
    """The token is there: plan the first period. Nothing happens when it is active already."""
    if subscription.status != SubscriptionStatus.INCOMPLETE:
        return
    for draft in _open_invoices(session, subscription.id):
        # A payment session was to collect the first period; it ended, and the customer saved a method instead.
        close_invoice(session, draft, InvoiceStatus.VOID, now, reason="collected by the saved method instead")
    set_anchor(subscription, plan, now)
    plan_next(subscription, calendar_of(subscription, plan.schedule).first())
    in_trial = plan.trial_days > 0 and subscription.next_billing_at is not None and subscription.next_billing_at > now
    subscription.status = SubscriptionStatus.TRIALING if in_trial else SubscriptionStatus.ACTIVE
    tell(
        session,
        subscription.id,
        now,
        "subscription.trialing" if in_trial else "subscription.activated",
        next_billing_at=_iso(subscription.next_billing_at),
    )


def invoice_number(subscription: Subscription, period: Period) -> str:
    """Unique without a counter that every worker would wait for (L1)."""
    return f"{subscription.reference}-{period.index + 1}"


@cache  # a run asks for the same few plans over and over
def recurring_terms(plan_schedule: str, today: date) -> RecurringTerms:
    """What the card schemes are told of the series. A subscription without an end says a day years ahead."""
    return RecurringTerms(frequency_days(schedule_from_text(plan_schedule)), date(today.year + CONTRACT_YEARS, 12, 31))


def plan_next(subscription: Subscription, period: Period) -> None:
    """`period` is the next to be opened, and due at its start."""
    subscription.next_index = period.index
    subscription.next_local = period.start_local
    subscription.next_billing_at = period.start


def prepaid_first_period(session: Session, subscription: Subscription, plan: Plan, now: datetime) -> Period:
    """A payment session has collected the first period: it begins now (or when asked), and the second is planned."""
    if subscription.status != SubscriptionStatus.INCOMPLETE:
        raise IllegalTransition(f"{subscription.reference}: its first period is running already")
    set_anchor(subscription, plan, now)
    calendar = calendar_of(subscription, plan.schedule)
    first = calendar.first()
    plan_next(subscription, calendar.after(first))
    subscription.current_period_start, subscription.current_period_end = first.start, first.end
    subscription.billed_cycles = 1
    subscription.status = SubscriptionStatus.ACTIVE
    tell(
        session,
        subscription.id,
        now,
        "subscription.activated",
        paid_until=_iso(first.end),
        next_billing_at=_iso(subscription.next_billing_at),
    )
    return first


def pause(session: Session, subscription: Subscription, now: datetime, *, reason: str = "by request") -> None:
    """Stops billing and ends the retry ladder in the same transaction (U2). What is under way is still followed."""
    what = f"cannot pause {subscription.reference}"
    check_subscription_move(SubscriptionStatus(subscription.status), SubscriptionStatus.PAUSED, what)
    subscription.status = SubscriptionStatus.PAUSED
    subscription.paused_at = now
    subscription.next_billing_at = None
    _withdraw_planned_attempts(session, subscription.id, now, "subscription paused")
    tell(session, subscription.id, now, "subscription.paused", reason=reason)


def resume(session: Session, subscription: Subscription, plan: Plan, now: datetime) -> None:
    """Paused: billing goes on with the next period, those in between are recorded as skipped.
    On hold: what was missed up to now is billed after all, oldest first."""
    if subscription.status != SubscriptionStatus.PAUSED:
        _release_hold(session, subscription, now)
        return
    if subscription.anchor_local is None or subscription.next_local is None:
        raise IllegalTransition(f"cannot resume {subscription.reference}: it was never activated")
    calendar = calendar_of(subscription, plan.schedule)
    period = calendar.at(subscription.next_index, subscription.next_local)
    skipped: list[Period] = []
    while period.start < now and len(skipped) < MAX_SKIPPED_AT_ONCE:
        skipped.append(period)
        period = calendar.after(period)
    record_skipped(session, subscription.id, skipped, "paused", now)
    plan_next(subscription, period)
    trialing = subscription.current_period_start is None and plan.trial_days > 0 and not skipped
    unpaid = _open_invoices(session, subscription.id)
    subscription.status = (
        SubscriptionStatus.PAST_DUE
        if unpaid
        else SubscriptionStatus.TRIALING
        if trialing
        else SubscriptionStatus.ACTIVE
    )
    subscription.paused_at = None
    subscription.hold_reason = None
    tell(
        session,
        subscription.id,
        now,
        "subscription.resumed",
        skipped=len(skipped),
        next_billing_at=_iso(subscription.next_billing_at),
    )
    for invoice in unpaid:
        if invoice.hold_reason is None and not has_unfinished_attempt(session, invoice.id):
            schedule_attempt(session, invoice, now, origin="resume")


def _release_hold(session: Session, subscription: Subscription, now: datetime) -> None:
    if subscription.hold_reason is None:
        what = f"cannot resume {subscription.reference}"
        raise IllegalTransition(f"{what}: it is {subscription.status} and not on hold")
    tell(session, subscription.id, now, "subscription.released", held_because=subscription.hold_reason)
    subscription.hold_reason = None
    subscription.open_failures = 0
    subscription.catch_up_until = now


def cancel(session: Session, subscription: Subscription, now: datetime, *, at_once: bool, reason: str) -> None:
    """At the end of the period, or at once. What has no period running ends at once in any case."""
    what = f"cannot cancel {subscription.reference}"
    check_subscription_move(SubscriptionStatus(subscription.status), SubscriptionStatus.CANCELED, what)
    idle = subscription.status in (SubscriptionStatus.INCOMPLETE, SubscriptionStatus.PAUSED)
    if not at_once and not idle:
        if subscription.cancel_at_period_end:
            raise IllegalTransition(f"{what}: it ends with its period already; --now ends it at once")
        subscription.cancel_at_period_end = True
        tell(session, subscription.id, now, "subscription.cancel_planned", at=_iso(subscription.next_billing_at))
        return
    end(session, subscription, now, reason=reason)


def end(session: Session, subscription: Subscription, now: datetime, *, reason: str) -> None:
    """Canceled, for ever. Planned attempts are withdrawn; unpaid invoices are void unless money may still come."""
    subscription.status = SubscriptionStatus.CANCELED
    subscription.canceled_at = now
    subscription.next_billing_at = None
    subscription.hold_reason = None
    _withdraw_planned_attempts(session, subscription.id, now, "subscription canceled")
    for invoice in _open_invoices(session, subscription.id):
        if not has_unfinished_attempt(session, invoice.id):
            close_invoice(session, invoice, InvoiceStatus.VOID, now, reason="subscription canceled")
    # Its links must not take money any more: they are ended at Xendit as soon as somebody looks (sessions.py).
    session.execute(
        update(PaymentSession)
        .where(PaymentSession.subscription_id == subscription.id, PaymentSession.status == SessionStatus.ACTIVE)
        .values(next_check_at=now)
    )
    tell(session, subscription.id, now, "subscription.canceled", reason=reason)


def close_invoice(session: Session, invoice: Invoice, status: InvoiceStatus, now: datetime, *, reason: str) -> None:
    invoice.status = status
    invoice.closed_at = now
    invoice.grace_ends_at = None
    tell(session, invoice.subscription_id, now, f"invoice.{status}", invoice=invoice.number, reason=reason)


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
        amount_minor=invoice.amount_minor - invoice.amount_paid_minor,
        currency=invoice.currency,
        payment_token_id=payment_token_id,
        scheduled_at=at,
        replaces_at=replaces_at,
        created_at=at,
    )
    session.add(attempt)
    session.flush()
    return attempt


def lane_of(origin: str) -> Lane:
    """Who waits for an attempt of this origin."""
    if origin in ("operator", "new_token"):
        return Lane.CUSTOMER
    return Lane.RETRY if origin == "dunning" else Lane.RENEWAL


def record_skipped(
    session: Session,
    subscription_id: str,
    periods: Sequence[Period],
    reason: str,
    now: datetime,
    run_id: str | None = None,
) -> None:
    session.add_all(
        SkippedPeriod(
            subscription_id=subscription_id,
            period_key=period.key,
            period_index=period.index,
            period_start=period.start,
            period_end=period.end,
            reason=reason,
            run_id=run_id,
            created_at=now,
        )
        for period in periods
    )


def has_unfinished_attempt(session: Session, invoice_id: str) -> bool:
    query = select(ChargeAttempt.id).where(ChargeAttempt.invoice_id == invoice_id, ChargeAttempt.status.in_(UNFINISHED))
    return session.scalar(query) is not None


def _withdraw_planned_attempts(session: Session, subscription_id: str, now: datetime, why: str) -> None:
    """Planned tries are canceled; one that waits for the customer is to be canceled at Xendit as well."""
    query = (
        select(ChargeAttempt)
        .where(
            ChargeAttempt.subscription_id == subscription_id,
            ChargeAttempt.status.in_({AttemptStatus.SCHEDULED, AttemptStatus.REQUIRES_ACTION}),
        )
        .with_for_update()
    )  # a worker may be beginning it this instant: then it is not planned any more
    for attempt in session.scalars(query):
        if attempt.status == AttemptStatus.REQUIRES_ACTION:
            attempt.cancel_wanted = True
            attempt.next_check_at = now
        else:
            attempt.status = AttemptStatus.CANCELED
            attempt.settled_at = now
            attempt.error = why


def _open_invoices(session: Session, subscription_id: str) -> list[Invoice]:
    query = select(Invoice).where(
        Invoice.subscription_id == subscription_id,
        Invoice.status.in_({InvoiceStatus.DRAFT, InvoiceStatus.OPEN}),
    )
    return list(session.scalars(query.order_by(Invoice.period_index)))


def _iso(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant else None
