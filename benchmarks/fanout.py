"""Opponent (b): a day's work with dramatiq. One message per subscription, tuned, and without any safety.

    dramatiq benchmarks.fanout --processes 2 --threads 32
    python -m benchmarks.fanout                 the cron job: a message for everything due
    uvicorn benchmarks.fanout:web               where Xendit's events go

Tables and the body of a charge are those of naive.py. What the day went into: one HTTP client and one database
connection a thread, rows kept readable after a commit, one UPDATE per event.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dramatiq
import httpx
from dramatiq.brokers.redis import RedisBroker
from sqlalchemy import create_engine, select, update
from sqlalchemy.orm import Session

from benchmarks.naive import HEADERS, KEY, URL, Payment, Subscription, charge_body, events_go_to, payment_for

THREADS = 32

engine = create_engine(os.environ.get("BILLING_DATABASE_URL", "postgresql+psycopg://"), pool_size=THREADS)
broker = RedisBroker(url=os.environ.get("BILLING_REDIS_URL") or "redis://localhost")  # type: ignore[no-untyped-call]
dramatiq.set_broker(broker)
_here = threading.local()


def client() -> httpx.Client:
    if not hasattr(_here, "client"):
        _here.client = httpx.Client(base_url=URL, auth=(KEY, ""), headers=HEADERS, timeout=30)
    found: httpx.Client = _here.client
    return found


@dramatiq.actor(max_retries=3)
def charge(subscription_id: int) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    with Session(engine, expire_on_commit=False) as session:
        subscription = session.get_one(Subscription, subscription_id)
        if subscription.next_billing_at > now:
            return
        reference = f"sub-{subscription.id}-{now:%Y%m%d}"
        answer = client().post("/v3/payment_requests", json=charge_body(subscription, reference))
        answer.raise_for_status()
        session.add(payment_for(subscription, reference, answer.json(), now))
        subscription.next_billing_at += timedelta(days=30)
        session.commit()


def confirm(data: Mapping[str, Any]) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    with Session(engine) as session:
        session.execute(
            update(Payment)
            .where(Payment.reference_id == data["reference_id"])
            .values(status=data["status"], confirmed_at=now)
        )
        session.commit()


web = events_go_to(confirm)


def bill(now: datetime) -> None:
    due = select(Subscription.id).where(Subscription.status == "active", Subscription.next_billing_at <= now)
    with Session(engine) as session:
        for subscription_id in session.scalars(due):
            charge.send(subscription_id)


if __name__ == "__main__":
    bill(datetime.now(UTC).replace(tzinfo=None))
