"""What stops a billing run by itself, and who looks after runs that nobody drives. A stopped run says why, and a person
lets it go on (runs/control.py).

    spending cap          of a run: held while charges are claimed, so that it is never exceeded, not by one charge
    subscriber daily cap  of a customer in 24 hours: held when a charge begins
    decline jump          more declines than usual: looked at while the run goes on
    forecast              more money than the run had planned: looked at while the run goes on

All but the decline jump are off unless they are set, and that one is silent until there is enough to compare with: a
stop that nobody asked for must be rarer than the harm it prevents.

Called by dispatch (the scheduler's run of the day, the cap), charging (the subscriber's cap), runs (a run that is
driven) and the scheduler (`watch`, every two seconds).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from billing.charging import parking
from billing.domain.lifecycle import AttemptStatus, RunKind, RunState
from billing.domain.money import Money, format_money
from billing.parts import Parts, Rules
from billing.runs import control
from billing.runs import forecast as planning
from billing.runs.control import waits_for
from billing.runs.forecast import DECLINES, FORECAST, SPENDING_CAP
from billing.store import queries, run_queries
from billing.store.clock import real_now
from billing.store.models import BillingRun, ChargeAttempt
from billing.store.run_queries import Standing
from billing.store.trouble import raise_if_databases_trouble

RESULTS_NEEDED = 500  # of the last 60 days: with fewer nobody knows what is usual, and nothing is stopped
USUAL_DAYS = timedelta(days=60)
A_DAY = timedelta(days=1)
HEART_STOPS = timedelta(seconds=60)
LOOK_SECONDS = 2
CHARGES_A_LOOK = 25_000  # a run of so many charges is counted at every look, a larger one less often
LONGEST_PAUSE_SECONDS = 60

log = structlog.get_logger()


# ------------------------------------------------------------------------------------- the run of the day


def plan_daily_run(parts: Parts, run_id: str, now: datetime, until: float) -> None:
    """All that comes due in the day, counted until `until` (uptime): the others have their turn then, and a plan that
    is not complete is compared with nothing. Without a plan the run goes on all the same."""
    end_of_day = datetime.combine(now.astimezone(UTC).date(), time.max, UTC)
    try:
        plan = planning.plan_of_run(parts, end_of_day, until=until)
    except Exception as error:
        raise_if_databases_trouble(error)
        log.exception("run.not_planned", run=run_id)
        return
    with parts.transaction() as session:
        if run_queries.was_opened_for(session, run_id):  # by another process, while this one counted
            plan |= {"complete": False}
        session.execute(update(BillingRun).where(BillingRun.id == run_id).values(plan=plan))


# ------------------------------------------------------------------------------------------------ the caps


def hold_to_caps(session: Session, run_id: str, ids: Sequence[str], rules: Rules) -> list[str]:
    """Of the attempts just claimed: those that may be sent. Called in the claim's transaction.

    Claims of one run follow each other by the lock of its row, so each sees what those before it handed out. When
    nothing fits any more the run is stopped, and the rest is parked. Attempts may belong to another run than the one
    that claims.
    """
    rows = session.execute(
        select(ChargeAttempt.id, ChargeAttempt.run_id, ChargeAttempt.currency, ChargeAttempt.amount_minor)
        .where(ChargeAttempt.id.in_(ids))
        .order_by(ChargeAttempt.scheduled_at, ChargeAttempt.id)
    ).all()
    owner = {row.id: row.run_id or run_id for row in rows}
    held: set[str] = set()
    for each in sorted(set(owner.values())):  # one order for everybody who locks
        claimed = [(row.id, row.currency, int(row.amount_minor)) for row in rows if owner[row.id] == each]
        held |= _hold_run_to_cap(session, each, claimed, rules)
    return [identity for identity in ids if identity not in held]


def _hold_run_to_cap(session: Session, run_id: str, claimed: Sequence[tuple[str, str, int]], rules: Rules) -> set[str]:
    run = run_queries.lock_run(session, run_id)
    if run is None:
        return set()
    if run.state != RunState.RUNNING:
        held = {identity for identity, _, _ in claimed}
        queries.park_attempts(session, sorted(held), waits_for(run_id), f"billing run {run_id} is {run.state}")
        return held
    if SPENDING_CAP in run.waived:
        return set()
    spent, in_hand = run_queries.committed(session, run_id, but={identity for identity, _, _ in claimed})
    held = _beyond(spent, claimed, rules)
    if held and len(held) == len(claimed) and not in_hand:
        _stop_at_cap(session, run, claimed, rules)
    elif held:
        # There is something on its way that the cap has room for: the run is stopped when that has begun.
        queries.release_leases(session, sorted(held))
    return held


def _beyond(spent: Counter[str], claimed: Sequence[tuple[str, str, int]], rules: Rules) -> set[str]:
    """Claimed attempts without room under the cap, in their order: the first that does not fit ends it."""
    held: set[str] = set()
    for identity, currency, minor in claimed:
        spent[currency] += minor
        if held or spent[currency] > rules.run_spending_cap.get(currency, spent[currency]):
            held.add(identity)
    return held


def _stop_at_cap(session: Session, run: BillingRun, claimed: Sequence[tuple[str, str, int]], rules: Rules) -> None:
    currency = next(currency for _, currency, _ in claimed if currency in rules.run_spending_cap)
    cap = format_money(Money(rules.run_spending_cap[currency], currency))
    reason = f"the next charge would exceed its spending cap of {cap}"
    run.finished_at = None  # if it was: there is something left of it after all
    control.mark_stopped(run, SPENDING_CAP, reason)
    session.flush()
    # A portion; whoever claims more of it parks what was claimed.
    run_queries.park_free(session, run.id, control.stopped_error(run.id, reason), queries.PARKED_AT_ONCE)


# --------------------------------------------------------------------------- while a run goes on


@dataclass(frozen=True, slots=True)
class Alarm:
    guard: str
    reason: str


def check(parts: Parts, run_id: str) -> Standing:
    """How a run stands; a guard that has reason to stops it."""
    now = parts.clock.now()
    with parts.reading() as session:
        run = session.get_one(BillingRun, run_id)
        found = run_queries.standing(session, run_id, now)
        found.opened = run.opened or 0
        alarm = evaluate(session, run, found, now, parts.rules) if run.state == RunState.RUNNING else None
    if alarm is not None:
        control.stop_run(parts, run_id, alarm.guard, alarm.reason)
    return found


def evaluate(session: Session, run: BillingRun, found: Standing, now: datetime, rules: Rules) -> Alarm | None:
    """The first guard that would stop the run now; those a person has waived keep silent. A run of which nothing waits
    is left alone: there is nothing to stop, and a person would be asked to let it go on."""
    if not found.own[AttemptStatus.SCHEDULED]:
        return None
    for guard, judge in ((DECLINES, _declines_jump), (FORECAST, _leaves_forecast)):
        reason = None if guard in run.waived else judge(session, run, found, now, rules)
        if reason is not None:
            return Alarm(guard, reason)
    return None


def _declines_jump(session: Session, run: BillingRun, found: Standing, now: datetime, rules: Rules) -> str | None:
    """First tries compared with first tries: what was declined yesterday is declined more often today, and that is no
    jump."""
    settled = found.first_declined + found.first_succeeded
    if not rules.run_decline_jump or settled < rules.run_decline_sample:
        return None
    share = found.first_declined / settled
    if share <= rules.run_decline_jump:  # whatever is usual, this is no jump
        return None
    usual = run_queries.usual_decline_share(session, run.id, now - USUAL_DAYS, RESULTS_NEEDED)
    if usual is None or share <= usual + rules.run_decline_jump:
        return None
    return f"{share:.0%} of {settled:,} charges were declined, and {usual:.0%} is usual"


def _leaves_forecast(session: Session, run: BillingRun, found: Standing, _now: datetime, rules: Rules) -> str | None:
    """What it opens is compared, of those who were there when it was planned. Retries, and what has waited for a
    channel or a person, were opened long before."""
    plan = run.plan
    if not rules.run_forecast_share or plan is None or not plan.get("complete", True):
        return None
    planned = planning.in_minor_units(plan.get("opening", plan["totals"]))
    share, begun = rules.run_forecast_share, found.own.total()
    if begun < rules.run_decline_sample or _beyond_forecast(found.own_foreseen, planned, share) is None:
        return None
    opened = run_queries.opened_as_foreseen(session, run, plan.get("facts", 0))
    currency = _beyond_forecast(opened, planned, share)
    if currency is None:
        return None
    return (
        f"it has opened {format_money(Money(opened[currency], currency))}, and"
        f" {format_money(Money(planned.get(currency, 0), currency))} were planned"
    )


def _beyond_forecast(sums: Mapping[str, int], planned: Mapping[str, int], share: float) -> str | None:
    """The first currency of which there is more than planned, by more than the share."""
    for currency, minor in sums.items():
        forecast = planned.get(currency, 0)
        if (minor - forecast) * 100 > forecast * round(share * 100):
            return currency
    return None


# ---------------------------------------------------------------------- looking after all runs


def watch(parts: Parts) -> None:
    """Of every run that nobody drives: stopped by its guards, finished when nothing is left of it, freed of what it no
    longer waits for. With no run unfinished and nothing parked it costs two questions to two indexes."""
    now, real = parts.clock.now(), real_now()
    with parts.reading() as session:
        runs = run_queries.unfinished_runs(
            session, (RunState.RUNNING, RunState.ABORTED, RunState.STOPPED, RunState.PAUSED)
        )
        causes = run_queries.parked_causes(session)
        aborted = run_queries.aborted_among(session, causes) if causes else []
        busy = bool(runs) and run_queries.anything_to_charge(session, now)
    if causes:
        free_what_waits_for_nothing(parts)
    for run_id in aborted:  # set back by a worker, or opened, after the abort
        control.withdraw_rest(parts, run_id)
    for run in runs:
        if run.state == RunState.ABORTED:
            _see_off(parts, run, now)
        elif run.state == RunState.RUNNING:
            _look_after(parts, run, now, real, busy=busy)
        else:
            _let_end(parts, run, now, real)


def free_what_waits_for_nothing(parts: Parts) -> int:
    """Parked for a run that goes on or a channel that is back, by somebody who had not heard of it, or left so by a
    process that died in between. Returns how many are let go."""
    with parts.reading() as session:
        gone = run_queries.causes_gone(session, run_queries.parked_causes(session))
    return sum(parking.let_go(parts, cause) for cause in gone)


def _see_off(parts: Parts, run: BillingRun, now: datetime) -> None:
    """What was opened for an aborted run after it was aborted, or left by an abort that was cut short."""
    control.withdraw_rest(parts, run.id)
    if run.kind == RunKind.ASKED or _day_is_over(run, now):
        _finish(parts, run.id)


def _look_after(parts: Parts, run: BillingRun, now: datetime, real: datetime, *, busy: bool) -> None:
    may_finish = _day_is_over(run, now) if run.kind == RunKind.DAILY else _heart_has_stopped(run, real)
    if not busy:
        with parts.reading() as session:
            left = may_finish and run_queries.has_parked(session, run.id)
        if may_finish and not left:
            _finish(parts, run.id)
        return
    if not _is_its_turn(run, real):
        return
    found = check(parts, run.id)
    if may_finish and not found.anything_left:
        _finish(parts, run.id)


def _let_end(parts: Parts, run: BillingRun, now: datetime, real: datetime) -> None:
    """A run that was stopped or paused, of which nothing is left to let go on: nobody need be asked about it."""
    if not (_day_is_over(run, now) if run.kind == RunKind.DAILY else _heart_has_stopped(run, real)):
        return
    with parts.transaction() as session:
        locked = run_queries.lock_run(session, run.id)
        if (
            locked is None
            or locked.state not in (RunState.STOPPED, RunState.PAUSED)
            or not run_queries.was_opened_for(session, run.id)
        ):
            return
        if not run_queries.standing(session, run.id, now).anything_planned:
            locked.state, locked.finished_at = RunState.RUNNING, real_now()
            log.info("run.over", run=run.id, reason=locked.reason)


def _heart_has_stopped(run: BillingRun, real: datetime) -> bool:
    return run.heartbeat_at is None or run.heartbeat_at < real - HEART_STOPS


def _day_is_over(run: BillingRun, now: datetime) -> bool:
    today = f"run-{now.astimezone(UTC).date().isoformat()}"
    return run.kind != RunKind.DAILY or bool(run.id < today)


def _is_its_turn(run: BillingRun, real: datetime) -> bool:
    """Counting costs what the run has charged: the larger it is, the rarer it is counted."""
    charges = (run.plan or {}).get("charges", 0)
    pause: int = min(LONGEST_PAUSE_SECONDS // LOOK_SECONDS, 1 + charges // CHARGES_A_LOOK)
    return int(real.timestamp() // LOOK_SECONDS) % pause == 0


def _finish(parts: Parts, run_id: str) -> None:
    with parts.transaction() as session:
        session.execute(
            update(BillingRun)
            .where(
                BillingRun.id == run_id,
                BillingRun.finished_at.is_(None),
                BillingRun.state.in_((RunState.RUNNING, RunState.ABORTED)),
            )
            .values(finished_at=real_now())
        )
