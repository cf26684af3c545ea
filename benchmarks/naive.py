"""Opponent (a): the cron script. It loops over what is due, posts, adds a row, commits. Written as one does in an hour.

python -m benchmarks.naive                  the cron job
uvicorn benchmarks.naive:web                where Xendit's events go
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from fastapi import FastAPI, Header, HTTPException
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

URL = os.environ.get("BILLING_XENDIT_BASE_URL", "")
KEY = os.environ.get("BILLING_XENDIT_SECRET_KEY", "")
TOKEN = os.environ.get("BILLING_XENDIT_CALLBACK_TOKEN", "")
HEADERS = {"api-version": "2024-11-11"}

engine = create_engine(os.environ.get("BILLING_DATABASE_URL", "postgresql+psycopg://"))
web = FastAPI()


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
            paid = answer.json()
            session.add(
                Payment(
                    subscription_id=subscription.id,
                    reference_id=reference,
                    payment_request_id=paid["payment_request_id"],
                    status=paid["status"],
                    created_at=now,
                )
            )
            subscription.next_billing_at += timedelta(days=30)
            session.commit()


@web.post("/webhooks/xendit")
def receive(payload: dict[str, Any], x_callback_token: str = Header()) -> dict[str, bool]:
    if x_callback_token != TOKEN:
        raise HTTPException(401)
    with Session(engine) as session:
        found = select(Payment).where(Payment.reference_id == payload["data"]["reference_id"])
        payment = session.scalars(found).one_or_none()
        if payment is not None:
            payment.status = payload["data"]["status"]
            payment.confirmed_at = datetime.now(UTC).replace(tzinfo=None)
            session.commit()
    return {"ok": True}


if __name__ == "__main__":
    bill(datetime.now(UTC).replace(tzinfo=None))
