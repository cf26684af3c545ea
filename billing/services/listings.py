"""Lists for people and scripts, in the shapes of services/views.py. Read only; called by the command line."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.services.views import Json, customer_view, event_view, instant, plan_view, session_view, token_view
from billing.store.models import (
    ChargingStop,
    Customer,
    PaymentSession,
    PaymentToken,
    Plan,
    WebhookEvent,
)


def list_plans(session: Session) -> list[Json]:
    return [plan_view(plan) for plan in session.scalars(select(Plan).order_by(Plan.code))]


def list_customers(session: Session) -> list[Json]:
    """With their tokens, in two statements whatever their number."""
    customers = session.scalars(select(Customer).order_by(Customer.reference)).all()
    by_id: dict[str, list[Json]] = {customer.id: [] for customer in customers}
    references = {customer.id: customer.reference for customer in customers}
    for token in session.scalars(select(PaymentToken).order_by(PaymentToken.rank)):
        if token.customer_id in by_id:
            by_id[token.customer_id].append(token_view(token, references[token.customer_id]))
    return [customer_view(customer) | {"tokens": by_id[customer.id]} for customer in customers]


def list_tokens(session: Session, customer: Customer) -> list[Json]:
    query = select(PaymentToken).where(PaymentToken.customer_id == customer.id).order_by(PaymentToken.rank)
    return [token_view(token, customer.reference) for token in session.scalars(query)]


def show_token(session: Session, token_id: str) -> Json:
    token = session.get_one(PaymentToken, token_id)
    return token_view(token, session.get_one(Customer, token.customer_id).reference)


def list_sessions(session: Session, *, subscription_id: str | None, customer_id: str | None) -> list[Json]:
    query = select(PaymentSession).order_by(PaymentSession.created_at, PaymentSession.id)
    if subscription_id is not None:
        query = query.where(PaymentSession.subscription_id == subscription_id)
    if customer_id is not None:
        query = query.where(PaymentSession.customer_id == customer_id)
    return [session_view(row) for row in session.scalars(query)]


def list_events(session: Session, *, state: str | None, limit: int) -> list[Json]:
    """The newest first."""
    query = select(WebhookEvent).order_by(WebhookEvent.received_at.desc(), WebhookEvent.id.desc()).limit(limit)
    if state is not None:
        query = query.where(WebhookEvent.state == state)
    return [event_view(row) for row in session.scalars(query)]


def show_charging_stop(session: Session) -> Json:
    stop = session.scalar(select(ChargingStop))
    return {
        "stopped": stop is not None,
        "reason": stop.reason if stop is not None else None,
        "at": instant(stop.at) if stop is not None else None,
    }
