"""How rows look to people's scripts: the shapes of the command line's JSON and of the HTTP API. Read only.

Amounts are decimal strings in major units, instants ISO 8601 in UTC. Members are added, never renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from billing.domain.lifecycle import LIVE, RefundState, TokenStatus
from billing.domain.money import Money
from billing.domain.schedule import describe, schedule_from_text
from billing.store import queries
from billing.store.models import (
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
)

Json = dict[str, Any]


def instant(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def plan_view(plan: Plan) -> Json:
    return {
        "id": plan.id,
        "code": plan.code,
        "name": plan.name,
        "amount": str(Money(plan.amount_minor, plan.currency)),
        "currency": plan.currency,
        "schedule": describe(schedule_from_text(plan.schedule)),
        "timezone": plan.timezone,
        "trial_days": plan.trial_days,
        "cycles": plan.cycles,
        "catch_up": plan.catch_up,
        "dunning": plan.dunning,
        "created_at": instant(plan.created_at),
    }


def customer_view(customer: Customer) -> Json:
    return {
        "id": customer.id,
        "reference": customer.reference,
        "name": customer.name,
        "email": customer.email,
        "country": customer.country,
        "mobile": customer.mobile,
        "timezone": customer.timezone,
        "xendit_customer_id": customer.xendit_customer_id,
        "created_at": instant(customer.created_at),
    }


def token_view(token: PaymentToken, customer_reference: str) -> Json:
    return {
        "id": token.id,
        "payment_token_id": token.payment_token_id,
        "customer": customer_reference,
        "status": token.status,
        "channel_code": token.channel_code,
        "card_last4": token.card_last4,
        "card_expiry": token.card_expiry,
        "network": token.network,
        "card_type": token.card_type,
        "issuer": token.issuer,
        "rank": token.rank,
        "failure_code": token.failure_code,
        "blocked_reason": token.blocked_reason,
        "unknown_since": instant(token.unknown_since),
        "verified": token.status != TokenStatus.PENDING and token.unknown_since is None,
        "replaced_at": instant(token.replaced_at),
        "created_at": instant(token.created_at),
    }


def subscription_view(
    subscription: Subscription, customer_reference: str, plan_code: str, to_charge: str | None
) -> Json:
    """`to_charge`: the payment method that would be charged, which its own may not be any more (queries.py)."""
    return {
        "id": subscription.id,
        "reference": subscription.reference,
        "customer": customer_reference,
        "plan": plan_code,
        "status": subscription.status,
        "amount": str(Money(subscription.amount_minor, subscription.currency)),
        "currency": subscription.currency,
        "timezone": subscription.timezone,
        "current_period_start": instant(subscription.current_period_start),
        "current_period_end": instant(subscription.current_period_end),
        "next_billing_at": instant(next_billing(subscription)),
        "cancel_at_period_end": subscription.cancel_at_period_end,
        "ends_at": instant(subscription.ends_at),
        "canceled_at": instant(subscription.canceled_at),
        "payment_token_id": to_charge if subscription.status in LIVE else subscription.payment_token_id,
        "anchor_day": subscription.anchor_day,
        "billed_cycles": subscription.billed_cycles,
        "hold_reason": subscription.hold_reason,
        "hold_kind": subscription.hold_kind,
        "created_at": instant(subscription.created_at),
    }


def next_billing(subscription: Subscription) -> datetime | None:
    """None when it ends before: the calendar keeps its place, so that a planned cancellation can be taken back."""
    at, ends_at = subscription.next_billing_at, subscription.ends_at
    ends_first = subscription.cancel_at_period_end and (at is None or ends_at is None or at >= ends_at)
    return None if ends_first else at


def session_view(row: PaymentSession) -> Json:
    return {
        "id": row.id,
        "xendit_session_id": row.xendit_session_id,
        "reference_id": row.reference_id,
        "type": row.type,
        "mode": row.mode,
        "status": row.status,
        "amount": str(Money(row.amount_minor, row.currency)),
        "currency": row.currency,
        "payment_link_url": row.payment_link_url,
        "components_sdk_key": row.components_sdk_key,
        "expires_at": instant(row.expires_at),
        "subscription_id": row.subscription_id,
        "customer_id": row.customer_id,
        "payment_token_id": row.payment_token_id,
        "payment_id": row.payment_id,
        "created_at": instant(row.created_at),
    }


def attempt_view(attempt: ChargeAttempt) -> Json:
    return {
        "id": attempt.id,
        "number": attempt.number,
        "reference_id": attempt.reference_id,
        "status": attempt.status,
        "origin": attempt.origin,
        "amount": str(Money(attempt.amount_minor, attempt.currency)),
        "payment_token_id": attempt.payment_token_id,
        "payment_request_id": attempt.payment_request_id,
        "payment_id": attempt.payment_id,
        "failure_code": attempt.failure_code,
        "network_code": attempt.network_code,
        "advice_code": attempt.advice_code,
        "decline_class": attempt.decline_class,
        "error": attempt.error,
        "run_id": attempt.run_id,
        "parked_by": attempt.parked_by,
        "action_url": attempt.action_url,
        "scheduled_at": instant(attempt.scheduled_at),
        "submitted_at": instant(attempt.submitted_at),
        "settled_at": instant(attempt.settled_at),
        "next_check_at": instant(attempt.next_check_at),
    }


def invoice_view(invoice: Invoice, attempts: list[ChargeAttempt], refunded_minor: int) -> Json:
    return {
        "id": invoice.id,
        "number": invoice.number,
        "subscription_id": invoice.subscription_id,
        "period_start": instant(invoice.period_start),
        "period_end": instant(invoice.period_end),
        "amount": str(Money(invoice.amount_minor, invoice.currency)),
        "amount_paid": str(Money(invoice.amount_paid_minor, invoice.currency)),
        "refunded": str(Money(refunded_minor, invoice.currency)),
        "currency": invoice.currency,
        "status": invoice.status,
        "hold_reason": invoice.hold_reason,
        "hold_kind": invoice.hold_kind,
        "grace_ends_at": instant(invoice.grace_ends_at),
        "opened_at": instant(invoice.opened_at),
        "closed_at": instant(invoice.closed_at),
        "attempts": [attempt_view(attempt) for attempt in attempts],
    }


def event_view(row: WebhookEvent) -> Json:
    return {
        "id": row.id,
        "event": row.event,
        "state": row.state,
        "deliveries": row.deliveries,
        "tries": row.tries,
        "error": row.error,
        "subscription_id": row.subscription_id,
        "received_at": instant(row.received_at),
        "applied_at": instant(row.applied_at),
    }


# --------------------------------------------------------------------------------------- read and shape


def show_customer(session: Session, customer: Customer) -> Json:
    tokens = session.scalars(
        select(PaymentToken).where(PaymentToken.customer_id == customer.id).order_by(PaymentToken.rank)
    )
    return customer_view(customer) | {"tokens": [token_view(token, customer.reference) for token in tokens]}


def show_subscription(session: Session, subscription: Subscription) -> Json:
    customer = session.get_one(Customer, subscription.customer_id)
    plan = session.get_one(Plan, subscription.plan_id)
    to_charge = session.scalar(select(queries.token_to_charge()).where(Subscription.id == subscription.id))
    return subscription_view(subscription, customer.reference, plan.code, to_charge)


def refunded_minor(session: Session, invoices: Sequence[Invoice]) -> dict[str, int]:
    """What has been given back, by invoice and in its currency, whoever did it."""
    query = (
        select(Capture.invoice_id, Refund.currency, func.sum(Refund.amount_minor))
        .join(Refund, Refund.capture_id == Capture.id)
        .where(Capture.invoice_id.in_([invoice.id for invoice in invoices]), Refund.status == RefundState.SUCCEEDED)
        .group_by(Capture.invoice_id, Refund.currency)
    )
    given_back = {(row[0], row[1]): int(row[2]) for row in session.execute(query)}
    return {invoice.id: given_back.get((invoice.id, invoice.currency), 0) for invoice in invoices}


def show_invoice(session: Session, invoice: Invoice) -> Json:
    attempts = session.scalars(
        select(ChargeAttempt).where(ChargeAttempt.invoice_id == invoice.id).order_by(ChargeAttempt.number)
    )
    lines = session.scalars(select(InvoiceLine).where(InvoiceLine.invoice_id == invoice.id).order_by(InvoiceLine.id))
    captures = session.scalars(
        select(Capture).where(Capture.invoice_id == invoice.id).order_by(Capture.captured_at, Capture.id)
    ).all()
    refunds: dict[str, list[Refund]] = {capture.id: [] for capture in captures}
    for refund in session.scalars(select(Refund).where(Refund.capture_id.in_(refunds)).order_by(Refund.id)):
        refunds[refund.capture_id].append(refund)
    refunded = refunded_minor(session, [invoice])[invoice.id]
    return invoice_view(invoice, list(attempts), refunded) | {
        "lines": [
            {"description": line.description, "amount": str(Money(line.amount_minor, invoice.currency))}
            for line in lines
        ],
        "captures": [_capture_view(capture, refunds[capture.id]) for capture in captures],
    }


def _capture_view(capture: Capture, refunds: Sequence[Refund]) -> Json:
    """`refund` is the first of its refunds; a person may have made more in Xendit's dashboard."""
    given_back = [_refund_view(refund) for refund in refunds]
    return {
        "payment_id": capture.payment_id,
        "amount": str(Money(capture.amount_minor, capture.currency)),
        "currency": capture.currency,
        "captured_at": instant(capture.captured_at),
        "overpayment": capture.overpayment,
        "refund": given_back[0] if given_back else None,
        "refunds": given_back,
    }


def _refund_view(refund: Refund) -> Json:
    return {
        "reference_id": refund.reference_id,
        "refund_id": refund.xendit_refund_id,
        "amount": str(Money(refund.amount_minor, refund.currency)),
        "currency": refund.currency,
        "status": refund.status,
        "made_elsewhere": refund.made_elsewhere,
        "reason": refund.reason,
        "error": refund.error,
        "created_at": instant(refund.created_at),
    }
