"""What to watch, in Prometheus's text format. Read from the database at each scrape, so every process may be asked."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from billing.domain.lifecycle import BILLABLE, UNFINISHED, AttemptStatus, EventState
from billing.services.parts import Parts
from billing.store.models import ChargeAttempt, ChargingStop, Subscription, WebhookEvent

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(parts: Parts) -> bytes:
    """The metrics page. Without a database: only `billing_up 0`."""
    registry = CollectorRegistry()
    up = Gauge("billing_up", "1 when the database answers", registry=registry)
    try:
        _measure(parts, registry)
        up.set(1)
    except SQLAlchemyError:
        up.set(0)
    return generate_latest(registry)


def _measure(parts: Parts, registry: CollectorRegistry) -> None:
    now = parts.clock.now()
    attempts = Gauge("billing_attempts_unfinished", "Charge attempts under way", ["status"], registry=registry)
    oldest = Gauge("billing_oldest_due_seconds", "Age of the oldest due work not begun", ["kind"], registry=registry)
    events = Gauge("billing_webhook_events_waiting", "Stored events not applied", ["state"], registry=registry)
    stopped = Gauge(
        "billing_charging_stopped", "1 while the account is refused and nothing is charged", registry=registry
    )
    with parts.reading() as session:
        counted = session.execute(
            select(ChargeAttempt.status, func.count())
            .where(ChargeAttempt.status.in_(UNFINISHED))
            .group_by(ChargeAttempt.status)
        )
        found = {row[0]: row[1] for row in counted}
        for status in sorted(UNFINISHED):
            attempts.labels(status=status).set(found.get(status, 0))
        first_attempt = session.scalar(
            select(func.min(ChargeAttempt.scheduled_at)).where(ChargeAttempt.status == AttemptStatus.SCHEDULED)
        )
        first_subscription = session.scalar(
            select(func.min(Subscription.next_billing_at)).where(
                Subscription.status.in_(BILLABLE), Subscription.hold_reason.is_(None)
            )
        )
        for kind, first in (("attempt", first_attempt), ("subscription", first_subscription)):
            oldest.labels(kind=kind).set(max(0.0, (now - first).total_seconds()) if first else 0)
        for state in (EventState.RECEIVED, EventState.UNMATCHED, EventState.PARKED):
            waiting = select(func.count()).where(WebhookEvent.state == state)
            events.labels(state=state).set(session.scalar(waiting) or 0)
        stopped.set(1 if session.scalar(select(ChargingStop.id)) is not None else 0)
