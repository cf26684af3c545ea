"""The life of a subscription: activate, pause, resume, cancel, end. Called by onboarding, settling, the command line.

Whoever moves anything under a subscription (invoice, attempt, the row itself) first takes the lock of its row with
`lock_subscription`: one lock, one order, no deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from functools import cache
from typing import cast

from sqlalchemy import Table, insert, select, update
from sqlalchemy.orm import Session

from billing.domain.dunning import policy
from billing.domain.gateway import RecurringTerms
from billing.domain.lifecycle import (
    BILLABLE,
    LIVE,
    UNFINISHED,
    EndKind,
    HoldKind,
    InvoiceStatus,
    SessionStatus,
    SubscriptionStatus,
    check_subscription_move,
)
from billing.domain.schedule import (
    Anchor,
    Calendar,
    Period,
    frequency_days,
    schedule_from_text,
    stored_zone,
    to_local,
)
from billing.errors import IllegalTransition, NotFound
from billing.parts import tell
from billing.store.models import ChargeAttempt, Invoice, PaymentSession, Plan, SkippedPeriod, Subscription
from billing.store.trouble import raise_if_databases_trouble
from billing.subscriptions.invoices import (
    close_if_ended,
    close_invoice,
    has_unfinished_attempt,
    open_invoices,
    schedule_attempt,
    withdraw_all,
)

CONTRACT_YEARS = 5


def calendar_of(subscription: Subscription, plan_schedule: str) -> Calendar:
    """Raises ValueError for a subscription that was never activated: it has no anchor."""
    if subscription.anchor_local is None or subscription.anchor_day is None:
        raise ValueError("no anchor before activation")
    anchor = Anchor(subscription.anchor_local, subscription.anchor_day, stored_zone(subscription.timezone))
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


def move_subscription(subscription: Subscription, status: SubscriptionStatus, wish: str) -> None:
    """Every move of a status, but those of a whole group (open_periods.py). Raises IllegalTransition."""
    what = f"cannot {wish} {subscription.reference}"
    check_subscription_move(SubscriptionStatus(subscription.status), status, what)
    subscription.status = status


def set_anchor(subscription: Subscription, plan: Plan, begins: datetime) -> None:
    """What sets the anchor: the start asked for, or what makes billing possible (the payment method, the capture of a
    first payment) if that comes later; plus the trial. Nobody is billed for the time before he could be.

    The day of the month is that of the anchor's wall clock in the subscription's zone (an import may give its own).
    """
    zone = stored_zone(subscription.timezone)
    start = max(subscription.start_at or begins, begins)
    local = to_local(start, zone) + timedelta(days=plan.trial_days)
    subscription.anchor_local = local
    subscription.anchor_day = local.day


def activate(session: Session, subscription: Subscription, plan: Plan, now: datetime) -> None:
    """The token is there: plan the first period. Nothing happens when it is active already."""
    if subscription.status != SubscriptionStatus.INCOMPLETE:
        return
    for draft in open_invoices(session, subscription.id):
        # A payment session was to collect the first period; it ended, and the customer saved a method instead.
        close_invoice(session, draft, InvoiceStatus.VOID, now, reason="collected by the saved method instead")
    set_anchor(subscription, plan, now)
    plan_next(subscription, calendar_of(subscription, plan.schedule).first())
    in_trial = plan.trial_days > 0 and subscription.next_billing_at is not None and subscription.next_billing_at > now
    move_subscription(subscription, SubscriptionStatus.TRIALING if in_trial else SubscriptionStatus.ACTIVE, "activate")
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


def prepaid_first_period(
    session: Session, subscription: Subscription, plan: Plan, captured_at: datetime, now: datetime
) -> Period:
    """A payment session has collected the first period: it begins at the capture (or when asked, if that is later),
    however late we hear of it, and the second is planned."""
    if subscription.status != SubscriptionStatus.INCOMPLETE:
        raise IllegalTransition(f"{subscription.reference}: its first period is running already")
    set_anchor(subscription, plan, captured_at)
    calendar = calendar_of(subscription, plan.schedule)
    first = calendar.first()
    plan_next(subscription, calendar.after(first))
    subscription.current_period_start, subscription.current_period_end = first.start, first.end
    subscription.billed_cycles = 1
    if cycles_left(subscription, plan) == 0:
        no_more_periods(subscription, first.end)
    move_subscription(subscription, SubscriptionStatus.ACTIVE, "activate")
    tell(
        session,
        subscription.id,
        now,
        "subscription.activated",
        paid_until=_iso(first.end),
        next_billing_at=_iso(subscription.next_billing_at),
    )
    return first


# ----------------------------------------------------------------------------------------------- pause, resume


def pause(session: Session, subscription: Subscription, now: datetime, *, reason: str = "by request") -> None:
    """Stops billing and ends the retry ladder in the same transaction (U2). What is under way is still followed. What
    became due before (nobody had looked) is opened first: it is owed, and collected after the pause."""
    due_at = subscription.next_billing_at
    if subscription.status in BILLABLE and due_at is not None and due_at <= now and subscription.hold_reason is None:
        from billing.subscriptions.open_periods import open_one  # noqa: PLC0415 - opening is built on this file

        open_one(session, subscription, session.get_one(Plan, subscription.plan_id), now)
        session.refresh(subscription)
    move_subscription(subscription, SubscriptionStatus.PAUSED, "pause")
    subscription.paused_at = now
    subscription.next_billing_at = None
    withdraw_all(session, now, "subscription paused", subscription_id=subscription.id)
    for invoice in open_invoices(session, subscription.id):
        invoice.grace_ends_at = None  # the customer's time stands still too: `resume` gives what was left of it
    tell(session, subscription.id, now, "subscription.paused", reason=reason)


def resume(session: Session, subscription: Subscription, plan: Plan, now: datetime) -> None:
    """Paused: billing goes on with the next period, those in between are recorded as skipped.
    On hold: what was missed up to now is billed after all, oldest first."""
    if subscription.status != SubscriptionStatus.PAUSED:
        _approve_hold(session, subscription, now)
        return
    if subscription.anchor_local is None or subscription.next_local is None:
        raise IllegalTransition(f"cannot resume {subscription.reference}: it was never activated")
    if subscription.cancel_at_period_end and subscription.ends_at is not None and subscription.ends_at <= now:
        end(session, subscription, plan, now, kind=EndKind.PERIOD, reason=PERIOD_OVER)
        return
    skipped = 0
    if cycles_left(subscription, plan) != 0:
        skipped = _pass_over(session, subscription, plan, now, "paused", now)
        subscription.next_billing_at = _next_period(subscription, plan).start
    elif subscription.ends_at is None:  # left by a release that stored no end
        no_more_periods(subscription, subscription.current_period_end or now)
    unpaid = [invoice for invoice in open_invoices(session, subscription.id) if invoice.status == InvoiceStatus.OPEN]
    in_trial = subscription.current_period_start is None and plan.trial_days > 0 and not skipped
    status = (
        SubscriptionStatus.PAST_DUE
        if unpaid
        else SubscriptionStatus.TRIALING
        if in_trial
        else SubscriptionStatus.ACTIVE
    )
    move_subscription(subscription, status, "resume")
    paused_for = now - (subscription.paused_at or now)
    subscription.paused_at = None
    release_hold(subscription)
    tell(
        session,
        subscription.id,
        now,
        "subscription.resumed",
        skipped=skipped,
        next_billing_at=_iso(subscription.next_billing_at),
        ends_at=_iso(subscription.ends_at) if subscription.cancel_at_period_end else None,
    )
    for invoice in unpaid:
        if invoice.first_failed_at is not None:
            invoice.first_failed_at += paused_for  # ladder and grace go on where they stood
            invoice.grace_ends_at = invoice.first_failed_at + policy(plan.dunning).grace
        if invoice.hold_reason is None and not has_unfinished_attempt(session, invoice.id):
            schedule_attempt(session, invoice, now, origin="resume")
    end_if_over(session, subscription, now)


def _approve_hold(session: Session, subscription: Subscription, now: datetime) -> None:
    if subscription.hold_reason is None:
        what = f"cannot resume {subscription.reference}"
        if subscription.cancel_at_period_end and subscription.status != SubscriptionStatus.CANCELED:
            take_back = f"`billing subscription uncancel {subscription.reference}` takes that back"
            raise IllegalTransition(f"{what}: it is {subscription.status} until it ends with its period; {take_back}")
        raise IllegalTransition(f"{what}: it is {subscription.status} and not on hold")
    tell(session, subscription.id, now, "subscription.released", held_because=subscription.hold_reason)
    if subscription.hold_kind == HoldKind.CATCH_UP:
        subscription.catch_up_until = now  # to let it go on after anything else approves nothing
    release_hold(subscription)
    subscription.calendar_over = False  # if it could not be ended, that is tried again


def release_hold(subscription: Subscription) -> None:
    subscription.hold_reason = subscription.hold_kind = None


def _next_period(subscription: Subscription, plan: Plan) -> Period:
    """The next to be opened."""
    assert subscription.next_local is not None  # noqa: S101 - set with the anchor
    return calendar_of(subscription, plan.schedule).at(subscription.next_index, subscription.next_local)


def _pass_over(
    session: Session, subscription: Subscription, plan: Plan, until: datetime, reason: str, now: datetime
) -> int:
    """Periods that have begun by `until` and were never opened are recorded as skipped. Returns how many."""
    calendar, period = calendar_of(subscription, plan.schedule), _next_period(subscription, plan)
    skipped: list[Period] = []
    while period.start < until:
        skipped.append(period)
        period = calendar.after(period)
    record_skipped(session, subscription.id, skipped, reason, now)
    subscription.next_index, subscription.next_local = period.index, period.start_local
    return len(skipped)


# ------------------------------------------------------------------------------------------------- the end

NEAR_THE_END = timedelta(hours=3)  # a zone whose rules have changed begins a period some hours off; none is so short
PERIOD_OVER = "the period it was canceled for is over"
ALL_BILLED = "all cycles billed"


def cycles_left(subscription: Subscription, plan: Plan) -> int | None:
    """Periods that may still be billed; None without an end."""
    return None if plan.cycles is None else max(0, plan.cycles - subscription.billed_cycles)


def no_more_periods(subscription: Subscription, ends_at: datetime) -> None:
    """The last period is opened: nothing is due any more, and the subscription ends when this period is over and
    everything owed is settled. A cancellation planned for an earlier end stands."""
    subscription.next_billing_at = None
    subscription.ends_at = min(subscription.ends_at or ends_at, ends_at)


def cancel(session: Session, subscription: Subscription, now: datetime, *, at_once: bool, reason: str) -> None:
    """At the end of the period, or at once. What has no period running ends at once in any case."""
    what = f"cannot cancel {subscription.reference}"
    check_subscription_move(SubscriptionStatus(subscription.status), SubscriptionStatus.CANCELED, what)
    plan = session.get_one(Plan, subscription.plan_id)
    if at_once:
        end(session, subscription, plan, now, kind=EndKind.NOW, reason=reason)
        return
    if subscription.status not in BILLABLE:
        end(session, subscription, plan, now, kind=EndKind.PERIOD, reason=reason)
        return
    if subscription.cancel_at_period_end:
        raise IllegalTransition(f"{what}: it ends with its period already; --now ends it at once")
    subscription.cancel_at_period_end = True
    subscription.ends_at = _end_of_running_period(subscription, plan, now)
    if subscription.ends_at <= now:
        end(session, subscription, plan, now, kind=EndKind.PERIOD, reason=reason)
        return
    tell(session, subscription.id, now, "subscription.cancel_planned", at=_iso(subscription.ends_at))


def uncancel(session: Session, subscription: Subscription, plan: Plan, now: datetime) -> None:
    """Takes back a cancellation planned for the end of the period. Nothing else has moved with it: the next period and
    planned retries are where they were."""
    what = f"cannot uncancel {subscription.reference}"
    if subscription.status == SubscriptionStatus.CANCELED:
        raise IllegalTransition(f"{what}: it has ended, for good; `billing subscribe` begins another one")
    if not subscription.cancel_at_period_end:
        raise IllegalTransition(f"{what}: no cancellation is planned, it is {subscription.status}")
    ended_at = subscription.ends_at or subscription.next_billing_at
    if ended_at is not None and ended_at <= now:
        over = f"its last period was over at {_iso(ended_at)}"
        raise IllegalTransition(f"{what}: {over}; `billing subscribe` begins another one")
    subscription.cancel_at_period_end = False
    subscription.ends_at = None
    if cycles_left(subscription, plan) == 0:
        no_more_periods(subscription, subscription.current_period_end or now)
    tell(
        session,
        subscription.id,
        now,
        "subscription.cancel_taken_back",
        at=_iso(ended_at),
        next_billing_at=_iso(subscription.next_billing_at),
    )


def _end_of_running_period(subscription: Subscription, plan: Plan, now: datetime) -> datetime:
    """Of the period that runs by the calendar; after an outage, or on hold, it may still have to be opened."""
    if subscription.next_billing_at is None:  # the last period is opened
        return subscription.ends_at or subscription.current_period_end or now
    calendar, period = calendar_of(subscription, plan.schedule), _next_period(subscription, plan)
    if period.start > now:
        return period.start
    while period.end <= now:
        period = calendar.after(period)
    return period.end


def end(session: Session, subscription: Subscription, plan: Plan, now: datetime, *, kind: EndKind, reason: str) -> None:
    """Canceled, for ever. Planned attempts are withdrawn; what is open closes when no attempt can move money any more,
    as `kind` says. Periods that were due and not opened are recorded as skipped."""
    was_paused_at = subscription.paused_at if subscription.status == SubscriptionStatus.PAUSED else None
    move_subscription(subscription, SubscriptionStatus.CANCELED, "cancel")
    subscription.canceled_at = now
    subscription.end_kind = kind
    subscription.next_billing_at = None
    release_hold(subscription)
    if subscription.next_local is not None and cycles_left(subscription, plan) != 0:
        until = min(was_paused_at or now, (subscription.ends_at or now) - NEAR_THE_END)
        _note_unopened(session, subscription, plan, until, reason, now)
    withdraw_all(session, now, "subscription canceled", subscription_id=subscription.id)
    close_if_ended(session, subscription, open_invoices(session, subscription.id), now)
    # Its links must not take money any more: they are ended at Xendit as soon as somebody looks (sessions.py).
    session.execute(
        update(PaymentSession)
        .where(PaymentSession.subscription_id == subscription.id, PaymentSession.status == SessionStatus.ACTIVE)
        .values(next_check_at=now)
    )
    tell(session, subscription.id, now, "subscription.canceled", reason=reason)


def _note_unopened(
    session: Session, subscription: Subscription, plan: Plan, until: datetime, reason: str, now: datetime
) -> None:
    """What was due and not opened is recorded; a calendar that cannot be read keeps nobody from being canceled."""
    try:
        with session.begin_nested():
            why = f"subscription canceled before it was billed ({reason})"
            _pass_over(session, subscription, plan, until, why, now)
    except Exception as error:  # noqa: BLE001 - it is this row's, and said in its story
        raise_if_databases_trouble(error)
        tell(session, subscription.id, now, "periods.not_listed", reason=str(error))


def end_if_over(session: Session, subscription: Subscription, now: datetime) -> None:
    """Its last period is over: canceled, unless something is still owed, which is collected first. Called when that
    instant has come and whenever an invoice closes."""
    over = subscription.ends_at is not None and subscription.ends_at <= now
    # Marked as over: whoever settles with a clock read a moment earlier must not leave it so for ever.
    if not (over or subscription.calendar_over) or subscription.status not in LIVE:
        return
    session.flush()
    plan = session.get_one(Plan, subscription.plan_id)
    if subscription.cancel_at_period_end:
        if not is_to_be_tried(session, subscription):
            end(session, subscription, plan, now, kind=EndKind.PERIOD, reason=PERIOD_OVER)
    elif subscription.next_billing_at is not None:
        return  # periods wait to be opened
    elif open_invoices(session, subscription.id):
        subscription.calendar_over = True
    else:
        end(session, subscription, plan, now, kind=EndKind.CYCLES, reason=ALL_BILLED)


def is_to_be_tried(session: Session, subscription: Subscription) -> bool:
    """A period that began before the end and that an outage, or a stop of charging, has kept from its first try."""
    unopened = (
        subscription.next_billing_at is not None
        and subscription.ends_at is not None
        and subscription.next_billing_at < subscription.ends_at - NEAR_THE_END
    )
    first_try = (
        select(ChargeAttempt.id)
        .join(Invoice, Invoice.id == ChargeAttempt.invoice_id)
        .where(
            ChargeAttempt.subscription_id == subscription.id,
            ChargeAttempt.status.in_(UNFINISHED),
            ChargeAttempt.origin == "schedule",
            Invoice.status == InvoiceStatus.OPEN,
            Invoice.first_failed_at.is_(None),
        )
    )
    return subscription.hold_reason is None and (unopened or session.scalar(first_try.limit(1)) is not None)


_RECORD_SKIPPED = insert(cast(Table, SkippedPeriod.__table__))  # the table: a thousand rows are one statement


def record_skipped(
    session: Session,
    subscription_id: str,
    periods: Sequence[Period],
    reason: str,
    now: datetime,
    run_id: str | None = None,
) -> None:
    rows = [
        {
            "subscription_id": subscription_id,
            "period_key": period.key,
            "period_index": period.index,
            "period_start": period.start,
            "period_end": period.end,
            "reason": reason,
            "run_id": run_id,
            "created_at": now,
        }
        for period in periods
    ]
    if rows:
        session.execute(_RECORD_SKIPPED, rows)


def _iso(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant else None
