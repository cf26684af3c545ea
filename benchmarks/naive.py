"""Opponent (a): the cron script. It loops over what is due, posts, adds a row, commits. Written as one does in an hour.

python -m benchmarks.naive                  the cron job
uvicorn benchmarks.naive:web                where Xendit's events go
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

URL = os.environ.get("BILLING_XENDIT_BASE_URL", "")
KEY = os.environ.get("BILLING_XENDIT_SECRET_KEY", "")
TOKEN = os.environ.get("BILLING_XENDIT_CALLBACK_TOKEN", "")
HEADERS = {"api-version": "2024-11-11"}

engine = create_engine(os.environ.get("BILLING_DATABASE_URL", "postgresql+psycopg://"))


class Base(DeclarativeBase):
    pass


class Subscription(Base):
    __tablename__ = "subscriptions"
    id: Mapped[int] = mapped_column(primary_key=True)
    payment_token_id: Mapped[str]
    country: Mapped[str]
    currency: Mapped[str]
    amount: Mapped[int]
    status: Mapped[str] = mapped_column(index=True)
    next_billing_at: Mapped[datetime] = mapped_column(index=True)


class Payment(Base):
    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    subscription_id: Mapped[int] = mapped_column(index=True)
    reference_id: Mapped[str] = mapped_column(unique=True)
    payment_request_id: Mapped[str] = mapped_column(index=True)
    status: Mapped[str]
    created_at: Mapped[datetime]
    confirmed_at: Mapped[datetime | None]


def payment_for(subscription: Subscription, reference: str, paid: Mapping[str, Any], now: datetime) -> Payment:
    return Payment(
        subscription_id=subscription.id,
        reference_id=reference,
        payment_request_id=paid["payment_request_id"],
        status=paid["status"],
        created_at=now,
    )


def charge_body(subscription: Subscription, reference: str) -> dict[str, Any]:
    return {
        "reference_id": reference,
        "type": "PAY",
        "payment_token_id": subscription.payment_token_id,
        "country": subscription.country,
        "currency": subscription.currency,
        "request_amount": subscription.amount,
        "description": "Your subscription",
        "metadata": {"subscription_id": str(subscription.id)},
        "channel_properties": {
            "card_on_file_type": "RECURRING",
            "skip_three_ds": True,
            "recurring_configuration": {"recurring_frequency": 30, "recurring_expiry": "2030-12-31"},
        },
    }


def bill(now: datetime) -> None:
    with Session(engine) as session:
        due = select(Subscription).where(Subscription.status == "active", Subscription.next_billing_at <= now)
        for subscription in session.scalars(due).all():
            reference = f"sub-{subscription.id}-{now:%Y%m%d}"
            answer = httpx.post(
                f"{URL}/v3/payment_requests",
                json=charge_body(subscription, reference),
                auth=(KEY, ""),
                headers=HEADERS,
                timeout=30,
            )
            answer.raise_for_status()
            session.add(payment_for(subscription, reference, answer.json(), now))
            subscription.next_billing_at += timedelta(days=30)
            session.commit()


def events_go_to(confirm: Callable[[Mapping[str, Any]], None]) -> Starlette:
    """The web process of both opponents; `confirm` is handed an event's data, in a thread."""

    async def receive(request: Request) -> JSONResponse:
        if request.headers.get("x-callback-token") != TOKEN:
            return JSONResponse({"ok": False}, 401)
        await run_in_threadpool(confirm, (await request.json())["data"])
        return JSONResponse({"ok": True})

    return Starlette(routes=[Route("/webhooks/xendit", receive, methods=["POST"])])


def confirm(data: Mapping[str, Any]) -> None:
    with Session(engine) as session:
        found = select(Payment).where(Payment.reference_id == data["reference_id"])
        payment = session.scalars(found).one_or_none()
        if payment is not None:
            payment.status = data["status"]
            payment.confirmed_at = datetime.now(UTC).replace(tzinfo=None)
            session.commit()


web = events_go_to(confirm)


if __name__ == "__main__":
    bill(datetime.now(UTC).replace(tzinfo=None))
