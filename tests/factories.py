"""Rows for tests: plain functions that write what the services would have written, and return it.

Every function takes an open session and flushes; committing is the test's. Whatever a test does not name gets a
sensible value of its own, so `make_subscription(session)` is enough for an active monthly subscription with a
customer, a plan, an ACTIVE card and a calendar that starts at NOW.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from billing.domain.lifecycle import (
    AttemptStatus,
    InvoiceStatus,
    RefundState,
    SessionStatus,
    SubscriptionStatus,
    TokenStatus,
)
from billing.store.models import (
    Base,
    Capture,
    ChargeAttempt,
    Customer,
    Invoice,
    InvoiceLine,
    PaymentSession,
    PaymentToken,
    Plan,
    Refund,
    Subscription,
    WebhookEvent,
    new_id,
)
from billing.subscriptions.moves import activate, calendar_of, plan_next

NOW = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)  # 09:00 in Jakarta, on a day that most months do not have
_numbers = itertools.count(1)
Row = TypeVar("Row", bound=Base)


def make_plan(session: Session, **values: Any) -> Plan:
    """IDR 50,000 a month, at nine in Jakarta."""
    number = next(_numbers)
    defaults: dict[str, Any] = {
        "id": new_id("plan"),
        "code": f"plan-{number}",
        "name": "Gold",
        "amount_minor": 50_000,
        "currency": "IDR",
        "schedule": "every 1:month",
        "timezone": "Asia/Jakarta",
        "trial_days": 0,
        "cycles": None,
        "catch_up": "all",
        "dunning": "standard",
        "created_at": NOW,
    }
    return _added(session, Plan(**defaults | values))


def make_customer(session: Session, **values: Any) -> Customer:
    """Ana, in Indonesia, not known to Xendit yet."""
    number = next(_numbers)
    defaults: dict[str, Any] = {
        "id": new_id("cus"),
        "reference": f"customer-{number}",
        "name": "Ana",
        "email": "ana@example.com",
        "country": "ID",
        "timezone": "Asia/Jakarta",
        "created_at": NOW,
    }
    return _added(session, Customer(**defaults | values))


def make_token(session: Session, customer: Customer, **values: Any) -> PaymentToken:
    """An ACTIVE Visa card of its own fingerprint, ranked after the customer's other tokens."""
    number = next(_numbers)
    last = session.scalar(select(func.max(PaymentToken.rank)).where(PaymentToken.customer_id == customer.id))
    defaults: dict[str, Any] = {
        "id": new_id("tok"),
        "payment_token_id": f"pt-00000000-0000-0000-0000-{number:012d}",
        "customer_id": customer.id,
        "status": TokenStatus.ACTIVE,
        "channel_code": "CARDS",
        "card_last4": "1091",
        "card_expiry": "2029-12",
        "network": "VISA",
        "fingerprint": f"{number:024x}",
        "rank": (last or 0) + 1,
        "created_at": NOW,
    }
    return _added(session, PaymentToken(**defaults | values))


def make_subscription(
    session: Session,
    *,
    customer: Customer | None = None,
    plan: Plan | None = None,
    token: PaymentToken | None = None,
    start_at: datetime = NOW,
    **values: Any,
) -> Subscription:
    """Active, with a token and its first period due at `start_at`.

    `status="incomplete"` leaves it without calendar and token, as `billing subscribe` does.
    """
    customer = customer or make_customer(session)
    plan = plan or make_plan(session)
    identity = new_id("sub")
    status = values.pop("status", SubscriptionStatus.ACTIVE)
    subscription = Subscription(
        id=identity,
        reference=values.pop("reference", identity),
        customer_id=customer.id,
        plan_id=plan.id,
        status=SubscriptionStatus.INCOMPLETE,
        amount_minor=plan.amount_minor,
        currency=plan.currency,
        timezone=plan.timezone,
        start_at=start_at,
        next_index=0,
        billed_cycles=0,
        cancel_at_period_end=False,
        open_failures=0,
        created_at=NOW,
    )
    _added(session, subscription)
    if status != SubscriptionStatus.INCOMPLETE:
        subscription.payment_token_id = (token or make_token(session, customer)).id
        activate(session, subscription, plan, min(start_at, NOW))  # its payment method came in time
        subscription.status = status
    for name, value in values.items():
        setattr(subscription, name, value)
    session.flush()
    return subscription


def make_invoice(session: Session, subscription: Subscription | None = None, **values: Any) -> Invoice:
    """The subscription's next period, opened: its invoice with one line, no attempt; the calendar moves on."""
    subscription = subscription or make_subscription(session)
    plan = session.get_one(Plan, subscription.plan_id)
    assert subscription.next_local is not None
    calendar = calendar_of(subscription, plan.schedule)
    period = calendar.at(subscription.next_index, subscription.next_local)
    plan_next(subscription, calendar.after(period))
    subscription.current_period_start, subscription.current_period_end = period.start, period.end
    subscription.billed_cycles += 1
    defaults: dict[str, Any] = {
        "id": new_id("inv"),
        "number": f"{subscription.reference}-{period.index + 1}",
        "subscription_id": subscription.id,
        "period_key": period.key,
        "period_index": period.index,
        "period_start": period.start,
        "period_end": period.end,
        "amount_minor": subscription.amount_minor,
        "amount_paid_minor": 0,
        "currency": subscription.currency,
        "status": InvoiceStatus.OPEN,
        "dunning_step": 0,
        "technical_step": 0,
        "opened_at": period.start,
    }
    invoice = _added(session, Invoice(**defaults | values))
    _added(session, InvoiceLine(invoice_id=invoice.id, description=plan.name, amount_minor=invoice.amount_minor))
    return invoice


def make_attempt(session: Session, invoice: Invoice | None = None, **values: Any) -> ChargeAttempt:
    """One try at an invoice, `scheduled` for its opening unless `status` says otherwise.

    From `submitted` on it is dated and names the subscription's token and card; an end is dated as well.
    """
    invoice = invoice or make_invoice(session)
    status = AttemptStatus(values.get("status", AttemptStatus.SCHEDULED))
    numbers = select(func.max(ChargeAttempt.number)).where(ChargeAttempt.invoice_id == invoice.id)
    identity = new_id("att")
    at = values.get("scheduled_at", invoice.opened_at)
    defaults: dict[str, Any] = {
        "id": identity,
        "reference_id": identity,
        "invoice_id": invoice.id,
        "subscription_id": invoice.subscription_id,
        "number": (session.scalar(numbers) or 0) + 1,
        "origin": "schedule",
        "status": status,
        "amount_minor": invoice.amount_minor,
        "currency": invoice.currency,
        "scheduled_at": at,
        "checks": 0,
        "cancel_wanted": False,
        "created_at": at,
    }
    if status not in (AttemptStatus.SCHEDULED, AttemptStatus.CANCELED):
        token = _token_of(session, invoice)
        defaults["submitted_at"] = at
        if token is not None:
            defaults |= {"payment_token_id": token.id, "fingerprint": token.fingerprint}
    if status in (AttemptStatus.SUCCEEDED, AttemptStatus.FAILED, AttemptStatus.CANCELED):
        defaults["settled_at"] = at + timedelta(seconds=1)
    if status == AttemptStatus.FAILED:
        defaults |= {"failure_code": "INSUFFICIENT_BALANCE", "decline_class": "retry_later"}
    if status == AttemptStatus.IN_DOUBT:
        defaults |= {"doubt_since": at, "next_check_at": at + timedelta(minutes=1)}
    if status in (AttemptStatus.PENDING, AttemptStatus.REQUIRES_ACTION):
        defaults["next_check_at"] = at + timedelta(minutes=1)
    return _added(session, ChargeAttempt(**defaults | values))


def make_paid_invoice(session: Session, subscription: Subscription | None = None, **values: Any) -> Invoice:
    """The next period, opened and paid by its first attempt."""
    invoice = make_invoice(session, subscription, **values)
    attempt = make_attempt(session, invoice, status=AttemptStatus.SUCCEEDED)
    make_capture(session, attempt)
    invoice.status, invoice.closed_at = InvoiceStatus.PAID, attempt.settled_at
    session.flush()
    return invoice


def make_capture(session: Session, attempt: ChargeAttempt, **values: Any) -> Capture:
    """Money for an attempt; the invoice's `amount_paid_minor` grows with it."""
    invoice = session.get_one(Invoice, attempt.invoice_id)
    defaults: dict[str, Any] = {
        "id": new_id("cap"),
        "payment_id": f"py-{next(_numbers):08d}",
        "payment_request_id": attempt.payment_request_id,
        "invoice_id": invoice.id,
        "attempt_id": attempt.id,
        "amount_minor": attempt.amount_minor,
        "currency": attempt.currency,
        "overpayment": False,
        "captured_at": attempt.settled_at or attempt.scheduled_at,
    }
    capture = _added(session, Capture(**defaults | values))
    invoice.amount_paid_minor += capture.amount_minor
    session.flush()
    return capture


def make_refund(session: Session, capture: Capture, **values: Any) -> Refund:
    """To be sent at once, unless `status` says otherwise. `succeeded` does not touch the invoice's sum."""
    defaults: dict[str, Any] = {
        "id": new_id("ref"),
        "reference_id": new_id("ref"),
        "capture_id": capture.id,
        "amount_minor": capture.amount_minor,
        "currency": capture.currency,
        "reason": "DUPLICATE",
        "status": RefundState.REQUESTED,
        "next_try_at": capture.captured_at,
        "created_at": capture.captured_at,
    }
    return _added(session, Refund(**defaults | values))


def make_payment_session(session: Session, subscription: Subscription, **values: Any) -> PaymentSession:
    """A SAVE session, open at Xendit, with a link and its look-up planned."""
    identity = new_id("ses")
    number = next(_numbers)
    defaults: dict[str, Any] = {
        "id": identity,
        "reference_id": identity,
        "xendit_session_id": f"ps-{number:08d}",
        "customer_id": subscription.customer_id,
        "subscription_id": subscription.id,
        "type": "SAVE",
        "mode": "PAYMENT_LINK",
        "status": SessionStatus.ACTIVE,
        "amount_minor": 0,
        "currency": subscription.currency,
        "payment_link_url": f"https://checkout.example/{number}",
        "expires_at": NOW + timedelta(hours=23),
        "next_check_at": NOW + timedelta(minutes=10),
        "created_at": NOW,
    }
    return _added(session, PaymentSession(**defaults | values))


def make_event(session: Session, **values: Any) -> WebhookEvent:
    """A webhook event that was received and waits to be applied."""
    number = next(_numbers)
    defaults: dict[str, Any] = {
        "id": new_id("evt"),
        "dedupe_key": f"payment.capture:py-{number}",
        "event": "payment.capture",
        "payload": {},
        "state": "received",
        "received_at": NOW,
        "next_try_at": NOW + timedelta(seconds=20),
    }
    return _added(session, WebhookEvent(**defaults | values))


def _token_of(session: Session, invoice: Invoice) -> PaymentToken | None:
    subscription = session.get_one(Subscription, invoice.subscription_id)
    return session.get(PaymentToken, subscription.payment_token_id) if subscription.payment_token_id else None


def _added(session: Session, row: Row) -> Row:
    session.add(row)
    session.flush()
    return row
