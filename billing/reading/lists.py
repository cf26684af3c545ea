"""Lists for people and scripts, in the shapes of reading/views.py. Read only; called by billing/api/.

Ids are made in the order of time, so that lists in the order of creation are read along the primary key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session, defer

from billing.parts import Parts
from billing.reading.pages import Listing
from billing.reading.views import (
    Json,
    customer_view,
    event_view,
    instant,
    invoice_view,
    plan_view,
    refunded_minor,
    session_view,
    subscription_view,
    token_view,
)
from billing.store import queries
from billing.store.models import (
    ChargeAttempt,
    ChargingStop,
    Customer,
    Invoice,
    PaymentSession,
    PaymentToken,
    Plan,
    Subscription,
    WebhookEvent,
)
from billing.subscribing import catalog

Found = TypeVar("Found")


def list_plans(parts: Parts) -> Listing:
    return Listing(parts, select(Plan), (Plan.code,), _each(plan_view), catalog.find_plan)


def list_customers(parts: Parts) -> Listing:
    """With their tokens."""
    return Listing(parts, select(Customer), (Customer.reference,), _with_tokens, catalog.find_customer)


def _with_tokens(session: Session, rows: Sequence[Row[Any]]) -> list[Json]:
    customers = [row[0] for row in rows]
    query = select(PaymentToken).where(PaymentToken.customer_id.in_([customer.id for customer in customers]))
    tokens = _by_owner(session, query.order_by(PaymentToken.rank, PaymentToken.id), "customer_id")
    return [
        customer_view(customer)
        | {"tokens": [token_view(token, customer.reference) for token in tokens.get(customer.id, ())]}
        for customer in customers
    ]


def list_tokens(parts: Parts, customer: str) -> Listing:
    """Of one customer, the first to be charged on top."""
    with parts.reading() as session:
        owner = catalog.find_customer(session, customer)
    query = select(PaymentToken).where(PaymentToken.customer_id == owner.id)
    shape = _each(lambda token: token_view(token, owner.reference))
    return Listing(parts, query, (PaymentToken.rank, PaymentToken.id), shape, catalog.find_token)


def show_token(session: Session, token_id: str) -> Json:
    token = session.get_one(PaymentToken, token_id)
    return token_view(token, session.get_one(Customer, token.customer_id).reference)


def list_subscriptions(parts: Parts, *, status: str | None = None, customer: str | None = None) -> Listing:
    """The oldest first."""
    query: Any = (
        select(Subscription, Customer.reference, Plan.code, queries.token_to_charge())
        .join(Customer, Customer.id == Subscription.customer_id)
        .join(Plan, Plan.id == Subscription.plan_id)
    )
    if status is not None:
        query = query.where(Subscription.status == status)
    if (owner := _find(parts, catalog.find_customer, customer)) is not None:
        query = query.where(Subscription.customer_id == owner.id)
    return Listing(parts, query, (Subscription.id,), _each(subscription_view), catalog.find_subscription)


def list_sessions(parts: Parts, *, subscription: str | None = None, customer: str | None = None) -> Listing:
    """The oldest first."""
    query = select(PaymentSession)
    if (started := _find(parts, catalog.find_subscription, subscription)) is not None:
        query = query.where(PaymentSession.subscription_id == started.id)
    if (owner := _find(parts, catalog.find_customer, customer)) is not None:
        query = query.where(PaymentSession.customer_id == owner.id)
    return Listing(parts, query, (PaymentSession.id,), _each(session_view), catalog.find_session)


def list_invoices(parts: Parts, *, subscription: str | None = None, status: str | None = None) -> Listing:
    """With their attempts; the oldest first."""
    query = select(Invoice)
    if (owner := _find(parts, catalog.find_subscription, subscription)) is not None:
        query = query.where(Invoice.subscription_id == owner.id)
    if status is not None:
        query = query.where(Invoice.status == status)
    return Listing(parts, query, (Invoice.id,), _with_attempts, catalog.find_invoice)


def _with_attempts(session: Session, rows: Sequence[Row[Any]]) -> list[Json]:
    invoices = [row[0] for row in rows]
    query = select(ChargeAttempt).where(ChargeAttempt.invoice_id.in_([invoice.id for invoice in invoices]))
    attempts = _by_owner(session, query.order_by(ChargeAttempt.number), "invoice_id")
    refunded = refunded_minor(session, invoices)
    return [invoice_view(invoice, attempts.get(invoice.id, []), refunded[invoice.id]) for invoice in invoices]


def list_events(parts: Parts, *, state: str | None = None) -> Listing:
    """The newest first."""
    query = select(WebhookEvent).options(defer(WebhookEvent.payload))
    if state is not None:
        query = query.where(WebhookEvent.state == state)
    return Listing(parts, query, (WebhookEvent.id,), _each(event_view), catalog.find_event, newest_first=True)


def show_charging_stop(session: Session) -> Json:
    stop = session.scalar(select(ChargingStop))
    return {
        "stopped": stop is not None,
        "reason": stop.reason if stop is not None else None,
        "at": instant(stop.at) if stop is not None else None,
    }


# --------------------------------------------------------------------------------------------------- pieces


def _each(view: Callable[..., Json]) -> Callable[[Session, Sequence[Row[Any]]], list[Json]]:
    """For rows that need nothing but themselves."""
    return lambda _session, rows: [view(*row) for row in rows]


def _by_owner(session: Session, query: Select[Any], member: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    rows: Iterable[Any] = session.scalars(query)
    for row in rows:
        found.setdefault(getattr(row, member), []).append(row)
    return found


def _find(parts: Parts, find: Callable[[Session, str], Found], name: str | None) -> Found | None:
    """What is named, by id or reference; raises NotFound."""
    if name is None:
        return None
    with parts.reading() as session:
        return find(session, name)
