"""How a run stands, for people's scripts: the JSON of `billing runs`, and the report at a run's end. Read only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select
from sqlalchemy.orm import Session

from billing.domain.lifecycle import AttemptStatus, RunState
from billing.domain.money import Money
from billing.parts import Parts, Rules
from billing.reading.pages import Listing
from billing.reading.views import Json, instant
from billing.runs import forecast
from billing.runs.control import find_run, state_of
from billing.runs.forecast import FORECAST, SPENDING_CAP
from billing.store import run_queries
from billing.store.models import BillingRun, ChannelBreaker, ChargeAttempt
from billing.store.run_queries import Standing

RUNS_AT_ONCE = 20  # listed: a run may have a hundred thousand charges to count
NEAR = 0.8  # of a guard's limit: worth showing


def totals(found: Standing, opened: int) -> Json:
    """The counts of the contract, and `waiting` (planned, not begun), of which `parked` (waits beside its time)."""
    by_status = found.by_status
    return {
        "opened": opened,
        "attempted": found.sent,
        "succeeded": by_status[AttemptStatus.SUCCEEDED],
        "failed": by_status[AttemptStatus.FAILED],
        "in_doubt": by_status[AttemptStatus.IN_DOUBT],
        "pending": sum(
            by_status[status]
            for status in (AttemptStatus.PENDING, AttemptStatus.REQUIRES_ACTION, AttemptStatus.SUBMITTED)
        ),
        "waiting": found.waiting,
        "parked": found.parked,
        "collected": forecast.in_major_units(found.collected),
    }


def run_line(run: BillingRun) -> Json:
    """What the row itself says: for lists."""
    return {
        "run_id": run.id,
        "kind": run.kind,
        "state": state_of(run),
        "at": instant(run.at),
        "started_at": instant(run.started_at),
        "finished_at": instant(run.finished_at),
        "reason": run.reason,
        "guard": run.guard,
        "waived": list(run.waived),
        "how_to_go_on": how_to_go_on(run),
        "plan": run.plan,
        "opened": run.opened,
    }


def list_runs(parts: Parts) -> Listing:
    """The latest first, with what was charged."""
    key = (BillingRun.started_at, BillingRun.id)
    return Listing(parts, select(BillingRun), key, _run_lines, find_run, newest_first=True, most_at_once=RUNS_AT_ONCE)


def _run_lines(session: Session, rows: Sequence[Row[Any]]) -> list[Json]:
    """All attempts of these runs are counted in one statement."""
    runs: list[BillingRun] = [row[0] for row in rows]
    counted = session.execute(
        select(
            ChargeAttempt.run_id,
            func.count().filter(ChargeAttempt.status.not_in({AttemptStatus.SCHEDULED, AttemptStatus.CANCELED})),
            func.count().filter(ChargeAttempt.status == AttemptStatus.SUCCEEDED),
            func.count().filter(ChargeAttempt.status == AttemptStatus.FAILED),
            func.count().filter(ChargeAttempt.status == AttemptStatus.SCHEDULED),
        )
        .where(ChargeAttempt.run_id.in_([run.id for run in runs]))
        .group_by(ChargeAttempt.run_id)
    )
    names = ("attempted", "succeeded", "failed", "waiting")
    counts = {row[0]: dict(zip(names, row[1:], strict=True)) for row in counted}
    return [run_line(run) | counts.get(run.id, dict.fromkeys(names, 0)) for run in runs]


def how_to_go_on(run: BillingRun) -> str | None:
    if run.state == RunState.PAUSED:
        return f"`billing runs resume {run.id}` goes on; `billing runs abort {run.id}` ends it"
    if run.state == RunState.STOPPED:
        return (
            f"`billing runs resume {run.id}` goes on and waives this guard for this run;"
            f" `billing runs abort {run.id}` ends it"
        )
    if run.state == RunState.ABORTED:
        return f"`billing run approve {run.id}` charges after all what it left"
    return None


def run_view(session: Session, run: BillingRun, now: datetime, rules: Rules) -> Json:
    """Everything there is to know of one run."""
    found = run_queries.standing(session, run.id, now)
    limit = forecast.quota_limit(session, rules)
    used = run_queries.quota_used(session)
    goes_on = run.state == RunState.RUNNING and run.finished_at is None
    eta = eta_seconds(found, limit) if goes_on else None
    stop = run_queries.charging_stop_reason(session) if goes_on else None
    return (
        run_line(run)
        | totals(found, run.opened)
        | {
            "charging_stopped": stop,
            "rate_per_minute": found.last_minute,
            "quota": {
                "limit": limit,
                "used_in_last_minute": used,
                "use": None if limit is None else round(used / limit, 3),
            },
            "eta_seconds": eta,
            "eta_at": None if eta is None else instant(now + timedelta(seconds=eta)),
            "declines": declines(session, ChargeAttempt.run_id == run.id),
            "by_channel": by_channel(session, ChargeAttempt.run_id == run.id),
            "channels_down": channels_down(session),
            "guards_near": guards_near(run, found, rules),
            "against_plan": against_plan(run, found),
        }
    )


def eta_seconds(found: Standing, limit: float | None) -> int | None:
    """At the pace of the last minute, or at the quota's when it has hardly begun; None when neither is known."""
    left = found.due + found.by_status[AttemptStatus.SUBMITTED]
    pace = float(found.last_minute)
    if limit is not None:
        pace = max(pace, limit) if pace < limit / 2 else pace
    if left == 0:
        return 0
    return math.ceil(left * 60 / pace) if pace else None


def results_of(session: Session, run: BillingRun, of: ColumnElement[bool], opened: int, now: datetime) -> Json:
    """As the members of `run_view`, of a part of the run or of more than it."""
    found = run_queries.standing(session, run.id, now, of=of)
    return totals(found, opened) | {"declines": declines(session, of), "by_channel": by_channel(session, of)}


def declines(session: Session, of: ColumnElement[bool]) -> list[Json]:
    rows = run_queries.declines_by_reason(session, of)
    return [{"failure_code": code, "decline_class": cls, "count": count} for code, cls, count in rows]


def by_channel(session: Session, of: ColumnElement[bool]) -> list[Json]:
    """Charges sent, by channel and currency, with what came of them."""
    rows: dict[tuple[str | None, str], Json] = {}
    for channel, currency, status, count, minor in run_queries.results_by_channel(session, of):
        empty = {
            "channel_code": channel,
            "currency": currency,
            "charges": 0,
            "succeeded": 0,
            "failed": 0,
            "collected": 0,
        }
        row = rows.setdefault((channel, currency), empty)
        row["charges"] += count
        if status in (AttemptStatus.SUCCEEDED, AttemptStatus.FAILED):
            row[status] += count
        if status == AttemptStatus.SUCCEEDED:
            row["collected"] += minor
    return [row | {"collected": str(Money(row["collected"], row["currency"]))} for row in rows.values()]


def channels_down(session: Session) -> list[Json]:
    query = select(ChannelBreaker).where(ChannelBreaker.probe_at.is_not(None)).order_by(ChannelBreaker.channel_code)
    return [
        {"channel_code": row.channel_code, "reason": row.reason, "since": instant(row.opened_at)}
        for row in session.scalars(query.limit(20))
    ]


def guards_near(run: BillingRun, found: Standing, rules: Rules) -> list[Json]:
    """Guards that have used up most of what they allow: {"guard", "currency", "used"} with 1 = the limit."""
    planned = forecast.in_minor_units((run.plan or {}).get("totals", {}))
    share = rules.run_forecast_share
    foreseen = {currency: minor * (1 + share) for currency, minor in planned.items()} if share else {}
    limits: Sequence[tuple[str, Mapping[str, float], Mapping[str, int]]] = (
        (SPENDING_CAP, rules.run_spending_cap, found.own_committed),
        (FORECAST, foreseen, found.own_foreseen),
    )
    near = [
        {"guard": guard, "currency": currency, "used": round(minor / limit[currency], 3)}
        for guard, limit, used in limits
        if guard not in run.waived
        for currency, minor in used.items()
        if limit.get(currency) and minor >= NEAR * limit[currency]
    ]
    return near if run.state == RunState.RUNNING and run.finished_at is None else []


def against_plan(run: BillingRun, found: Standing) -> Json | None:
    """What was charged, less what was planned: {"charges", "totals"}."""
    if run.plan is None or not run.plan.get("complete", True):
        return None
    planned, collected = forecast.in_minor_units(run.plan["totals"]), found.collected
    return {
        "charges": found.sent - int(run.plan["charges"]),
        "totals": {
            currency: str(Money(collected.get(currency, 0), currency) - Money(planned.get(currency, 0), currency))
            for currency in sorted({*planned, *collected})
        },
    }
