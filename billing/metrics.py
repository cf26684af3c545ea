"""What to watch, in Prometheus's text format. Read from the database at each scrape, so every process may be asked."""

from __future__ import annotations

from datetime import datetime

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest, values
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from billing.domain.gateway import CHARGE_ENDPOINT
from billing.domain.lifecycle import BILLABLE, UNFINISHED, AttemptStatus, EventState, RunKind, RunState
from billing.parts import Parts, Rules
from billing.runs import forecast, report
from billing.store import run_queries, which_database
from billing.store.models import BillingRun, ChargeAttempt, ChargingStop, Subscription, WebhookEvent
from billing.store.run_queries import Standing

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Whatever PROMETHEUS_MULTIPROC_DIR says, which gunicorn's users set: there is nothing to share between processes here.
values.ValueClass = values.MutexValue


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
    copy = Gauge("billing_database_is_a_copy", "1 on a copy of the database, which charges nobody", registry=registry)
    with parts.reading() as session:
        copy.set(0 if which_database.standing(session).is_the_one else 1)
        counted = session.execute(
            select(ChargeAttempt.status, func.count())
            .where(ChargeAttempt.status.in_(UNFINISHED))
            .group_by(ChargeAttempt.status)
        )
        found = {row[0]: row[1] for row in counted}
        for status in sorted(UNFINISHED):
            attempts.labels(status=status).set(found.get(status, 0))
        first_attempt = session.scalar(
            select(func.min(ChargeAttempt.scheduled_at)).where(
                ChargeAttempt.status == AttemptStatus.SCHEDULED, ChargeAttempt.parked_by.is_(None)
            )
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
        _measure_runs(session, now, parts.rules, registry)


def _measure_runs(session: Session, now: datetime, rules: Rules, registry: CollectorRegistry) -> None:
    """Of the latest run that goes on, of either kind; label sets that do not grow with runs or customers."""
    charges = Gauge("billing_run_charges", "Charges of the runs under way", ["run", "status"], registry=registry)
    waiting = Gauge("billing_run_waiting", "Planned charges of the runs under way", ["run"], registry=registry)
    rate = Gauge("billing_run_rate_per_minute", "Charges sent in the last minute", ["run"], registry=registry)
    stopped = Gauge("billing_runs_stopped", "Runs that wait for a person, by state", ["state"], registry=registry)
    limit = Gauge("billing_quota_limit", "Requests a minute; 0 = no limit", ["endpoint"], registry=registry)
    used = Gauge("billing_quota_used", "Requests of the last minute", ["endpoint"], registry=registry)
    down = Gauge(
        "billing_channel_open", "1 while charges of a channel wait: it is down", ["channel"], registry=registry
    )
    states = session.execute(
        select(BillingRun.state, func.count()).where(BillingRun.finished_at.is_(None)).group_by(BillingRun.state)
    )
    by_state = {row[0]: row[1] for row in states}
    for state in (RunState.STOPPED, RunState.PAUSED):
        stopped.labels(state=state).set(by_state.get(state, 0))
    for kind in (RunKind.ASKED, RunKind.DAILY):
        found = _latest(session, kind, now)
        for status in AttemptStatus:
            charges.labels(run=kind, status=status).set(found.by_status[status])
        waiting.labels(run=kind).set(found.waiting)
        rate.labels(run=kind).set(found.last_minute)
    limit.labels(endpoint=CHARGE_ENDPOINT).set(forecast.quota_limit(session, rules) or 0)
    used.labels(endpoint=CHARGE_ENDPOINT).set(run_queries.quota_used(session))
    for channel in report.channels_down(session):
        down.labels(channel=channel["channel_code"]).set(1)


def _latest(session: Session, kind: str, now: datetime) -> Standing:
    query = select(BillingRun.id).where(BillingRun.finished_at.is_(None), BillingRun.kind == kind)
    run_id = session.scalar(query.order_by(BillingRun.started_at.desc()).limit(1))
    return Standing() if run_id is None else run_queries.standing(session, run_id, now)
