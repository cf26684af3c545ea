"""The billing run that is asked for: opens what is due, has it charged, and reports. Called by `billing run`.

Without Redis this process does the work and returns when nothing is due; with Redis it hands the work to the workers
and may wait for them. Safe to start twice at once: two runs share the work, and one whose process died is taken up
again under its own id. The scheduler's run of the day needs no driver (runs/limits.py).

A report counts what this command did, and `whole_run` what the run came to, whoever did it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import wraps

from sqlalchemy import ColumnElement, false, func, select, update
from sqlalchemy.orm import Session

from billing.charging import endings
from billing.charging.tokens import waits_for_token
from billing.domain.gateway import CHARGE_ENDPOINT
from billing.domain.lifecycle import HoldKind, RunState
from billing.errors import ServiceUnavailable
from billing.parts import Parts, Rules, Send, Tally, tallied
from billing.reading.views import Json, instant
from billing.runs import forecast, limits, tick
from billing.runs.forecast import FORECAST, dry_run
from billing.runs.report import results_of, run_view, totals
from billing.store import queries, run_queries
from billing.store.clock import real_now, uptime
from billing.store.models import BillingRun, Subscription, new_id
from billing.store.run_queries import Standing
from billing.subscriptions import open_periods

__all__ = ["dry_run", "forget_old_ticks", "run_here", "run_on_workers"]

POLL_SECONDS = 0.2
STALLED_SECONDS = 600  # --wait gives up when workers show no progress for so long
COUNTING_SHARE = 20  # counting a large run may take one part in so many of its time
LARGE = 1_000  # charges
VERIFY_SECONDS = 20.0  # of a run without Redis, at its end, for imported payment methods

Progress = Callable[[Json], None]


def run_here(
    parts: Parts, send: Send, at: datetime | None, progress: Progress, *, expect: Mapping[str, int] | None = None
) -> Json:
    """Everything due, done in this process: left-over events, openings, charges, look-ups, until nothing is due."""
    run = _start(parts, at, expect, progress)
    with tallied(run.tally):
        _work(run, send)
    return _finish(run)


def _work(run: _Run, send: Send) -> None:
    parts = run.parts
    try:
        run.look()
        while run.goes_on():
            moved = tick.hand_out_checks(parts, send, tick.look(parts))
            tick.retire(parts)
            _end(run)
            moved += _open(run)
            moved += tick.hand_out_charges(parts, run.sending(send), run_id=run.id, now=run.as_of)
            run.look()
            if not moved and not limits.free_what_waits_for_nothing(parts):
                if not _waits_for_quota(run):
                    break
                time.sleep(POLL_SECONDS)
        _verify(run, send)
    except _Halted:
        pass
    except (ServiceUnavailable, KeyboardInterrupt):
        _leave(run)
        raise


def _verify(run: _Run, send: Send) -> None:
    """Imported payment methods that Xendit was not asked about yet, for a while: all of a large import take hours, and
    who is charged before his turn is asked about then."""
    until = uptime() + VERIFY_SECONDS
    while tick.look(run.parts).token_checks and run.goes_on() and tick.hand_out_unverified(run.parts, send):
        run.look()
        if uptime() >= until:
            break


def run_on_workers(
    parts: Parts,
    send: Send,
    at: datetime | None,
    progress: Progress,
    *,
    wait: bool,
    poll_seconds: float = POLL_SECONDS,
    expect: Mapping[str, int] | None = None,
) -> Json:
    """Open here, charge there. Without `wait` the scheduler (or the next run) hands out what does not fit at once."""
    run = _start(parts, at, expect, progress)
    with parts.reading() as session:
        run.before = Before(
            run_queries.begun_of_run(session, run.id),
            run_queries.did_not_leave(session),
            run_queries.withdrawn_of_run(session, run.id),
        )
    try:
        run.look()
        if run.goes_on():
            _hand_out(run, send)
        if wait:
            _follow(run, send, poll_seconds)
        elif not run.handed_out:
            run.not_handed_out = _why_not_handed_out(run, send)
    except _Halted:
        pass
    except ServiceUnavailable as error:
        _leave(run)
        raise ServiceUnavailable(f"{run.done_so_far}{error}") from None
    except KeyboardInterrupt:
        _leave(run)
        raise
    return _finish(run)


def _why_not_handed_out(run: _Run, send: Send) -> str | None:
    """What is due and nobody was told of; that the quota or others have filled the next seconds is no reason."""
    with run.parts.reading() as session:
        due = run_queries.anything_to_claim(session, run.as_of, real_now())
    if not due or tick.takes_more(send, tick.CHARGE):
        return None
    return "no worker fetches what lies in Redis"


def _hand_out(run: _Run, send: Send) -> None:
    _end(run)
    _open(run)
    tick.hand_out_checks(run.parts, send, tick.look(run.parts))
    tick.retire(run.parts)
    tick.hand_out_charges(run.parts, run.sending(send), run_id=run.id, now=run.as_of)


def _follow(run: _Run, send: Send, poll_seconds: float) -> None:
    """Until nothing is due and nothing under way."""
    last, moved_at = run.look(always=True), time.monotonic()
    while run.goes_on() and _work_left(run.parts, run.as_of):
        time.sleep(poll_seconds)
        _hand_out(run, send)
        standing = run.look(always=True)
        if standing != last:
            last, moved_at = standing, time.monotonic()
        elif time.monotonic() - moved_at > STALLED_SECONDS:
            raise ServiceUnavailable(
                f"run {run.id} makes no progress: no worker answers; start `dramatiq workers`,"
                " nothing is lost and the run goes on by itself"
            )


class _Halted(Exception):
    """No error: a person or a guard has stopped the run meanwhile."""


@dataclass(frozen=True, slots=True)
class Before:
    """What was true when a command came whose work others do: begun of its run, not left, withdrawn of its run."""

    begun: Collection[str]
    unsent: Collection[str]
    withdrawn: Collection[str]


@dataclass(slots=True)
class _Run:
    """A run and the process that drives it."""

    parts: Parts
    id: str
    opening_at: datetime
    at: datetime | None  # as asked for; None: billing's clock, wherever it goes
    progress: Progress
    skipped: list[dict[str, str]]
    taken_up: bool = False
    opened: int = 0  # by this command
    tally: Tally = field(default_factory=Tally)  # of what this command charges itself
    before: Before | None = None  # where workers charge
    handed_out: int = 0
    not_handed_out: str | None = None
    _rest_until: float = field(default=0.0)
    _seen: Standing = field(default_factory=Standing)

    @property
    def as_of(self) -> datetime:
        return self.at or self.parts.clock.now()

    @property
    def done_so_far(self) -> str:
        """In words, for an error that ends it."""
        if not self.opened and not self.handed_out:
            return ""
        return f"{self.opened} period(s) opened, {self.handed_out} charge(s) handed to workers; then "

    @property
    def of_this_command(self) -> ColumnElement[bool]:
        if self.before is None:
            return run_queries.begun_by(self.tally.begun, self.id)
        return run_queries.of_run_but(self.before.begun, self.id)

    @property
    def unsent(self) -> ColumnElement[bool]:
        if self.before is None:
            return run_queries.among(self.tally.unsent)
        return run_queries.of_run_but(self.before.unsent, self.id)

    @property
    def withdrawn(self) -> ColumnElement[bool]:
        if self.before is None:
            return run_queries.among(self.tally.withdrawn)
        return run_queries.of_run_but(self.before.withdrawn, self.id)

    def beat(self) -> None:
        """A sign of life: it is not taken over by another process."""
        with self.parts.transaction() as session:
            run_queries.beat(session, self.id, real_now())

    def goes_on(self) -> bool:
        with self.parts.reading() as session:
            return session.scalar(select(BillingRun.state).where(BillingRun.id == self.id)) == RunState.RUNNING

    def look(self, *, always: bool = False) -> Standing:
        """The heart beats, the guards look, progress is told. A large run is counted less often."""
        before = uptime()
        if before < self._rest_until and not always:
            return self._seen
        self.beat()
        self._seen = limits.check(self.parts, self.id)
        self.progress({"run_id": self.id} | totals(self._seen, self._seen.opened))
        if self._seen.by_status.total() > LARGE:
            after = uptime()
            self._rest_until = after + min(COUNTING_SHARE * (after - before), limits.HEART_STOPS.total_seconds() / 3)
        return self._seen

    def sending(self, send: Send) -> Send:
        """Between batches of charges somebody may have stopped the run: then nothing more of it is handed out."""

        @wraps(send)
        def watched(kind: str, ids: Sequence[str]) -> None:
            if not self.goes_on():
                with self.parts.transaction() as session:
                    queries.release_leases(session, ids)
                raise _Halted
            send(kind, ids)
            self.handed_out += len(ids)
            self.look()

        return watched


# --------------------------------------------------------------------------------------------- start and end


def _start(parts: Parts, at: datetime | None, expect: Mapping[str, int] | None, progress: Progress) -> _Run:
    """A run of its own, or one that nobody drives any more: then with what has become due meanwhile. Charging may be
    stopped: what is due is opened all the same, and waits."""
    parts.refuse_a_copy()
    now = at or parts.clock.now()
    with parts.reading() as session:
        skipped = forecast.held_lines(session, now)
    if at is None and expect is None and (orphan := _take_up(parts)) is not None:
        run = _Run(parts, orphan, now, at, progress, skipped, taken_up=True)
        more = forecast.plan_of_run(parts, now, without_run=orphan, between=run.beat)
        with parts.transaction() as session:
            row = run_queries.lock_run(session, orphan)
            if row is not None:
                row.plan = forecast.merged(row.plan, more)
        return run
    plan = forecast.plan_of_run(parts, now)
    run = _Run(parts, new_id("run"), now, at, progress, skipped)
    with parts.transaction() as session:
        _record(session, run, plan, expect)
    return run


def _take_up(parts: Parts) -> str | None:
    """The run that this process drives from here on, if one was left."""
    with parts.transaction() as session:
        orphan = run_queries.orphan_run(session, real_now() - limits.HEART_STOPS)
        if orphan is None:
            return None
        orphan.heartbeat_at = real_now()
        return orphan.id


def _record(session: Session, run: _Run, plan: Json, expect: Mapping[str, int] | None) -> None:
    """On record before anything is opened; stopped at once when its plan is not what somebody expects. One that begins
    charges what those before it were stopped from, and a person need not be asked about them any more."""
    surprise = _surprise(plan, expect, run.parts.rules)
    if surprise is None:
        run_queries.end_unbegun(session, f"not begun; {run.id} charges what was due", real_now())
    run_queries.insert_run(
        session,
        id=run.id,
        at=run.opening_at,
        started_at=real_now(),
        heartbeat_at=real_now(),
        plan=plan,
        state=RunState.RUNNING if surprise is None else RunState.STOPPED,
        reason=surprise,
        guard=None if surprise is None else FORECAST,
    )


def _surprise(plan: Json, expect: Mapping[str, int] | None, rules: Rules) -> str | None:
    if expect is None:
        return None
    return forecast.leaves_expectation(forecast.in_minor_units(plan["totals"]), expect, rules)


def _end(run: _Run) -> None:
    ended = endings.end_subscriptions(run.parts)
    run.skipped.extend({"subscription_id": identity, "reason": reason} for identity, reason in ended)


def _open(run: _Run) -> int:
    opened = 0
    for batch in tick.opening(run.parts, run.opening_at, run_id=run.id):
        opened += batch.invoices
        if batch.skipped:
            with run.parts.reading() as session:
                run.skipped.extend(_with_advice(session, open_periods.skipped_ids([batch])))
        run.look()  # the heart beats, and somebody may have stopped it
        if not run.goes_on():
            break
    if opened:
        run.opened += opened
        with run.parts.transaction() as session:
            session.execute(update(BillingRun).where(BillingRun.id == run.id).values(opened=BillingRun.opened + opened))
    return opened


def _with_advice(session: Session, lines: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Those of which a person has to say so are told with the command."""
    ids = [line["subscription_id"] for line in lines]
    held = select(Subscription.id).where(Subscription.id.in_(ids), Subscription.hold_kind == HoldKind.CATCH_UP)
    asks = set(session.scalars(held))
    return [
        line | {"reason": f"{line['reason']}; {forecast.waits_for_approval(line['subscription_id'])}"}
        if line["subscription_id"] in asks
        else line
        for line in lines
    ]


def _work_left(parts: Parts, at: datetime) -> bool:
    """Attempts that are due or in a worker's hands, of whatever run; not those that are parked."""
    with parts.reading() as session:
        stopped = run_queries.charging_stop_reason(session) is not None
        in_hand = sum(queries.count_in_flight(session, real_now()))
        return not stopped and (in_hand > 0 or run_queries.anything_to_claim(session, at, real_now()))


def _waits_for_quota(run: _Run) -> bool:
    """Nothing could be handed out because the quota of the next seconds is given away, to us or to others."""
    if run.parts.quota.outlook(CHARGE_ENDPOINT, tick.AHEAD_SECONDS) is None:
        return False
    with run.parts.reading() as session:
        return run_queries.anything_to_claim(session, run.as_of, real_now())


def _leave(run: _Run) -> None:
    """This process drives it no longer; the next `billing run`, or the scheduler, does."""
    with run.parts.transaction() as session:
        run_queries.beat(session, run.id, None)


def _finish(run: _Run) -> Json:
    """Finished when nothing is left of it; what others still have in hand they finish, and then the run."""
    with run.parts.transaction() as session:
        row = run_queries.lock_run(session, run.id)
        found = run_queries.standing(session, run.id, run.as_of)
        if row is not None and row.finished_at is None:
            row.heartbeat_at = None
            if row.state == RunState.RUNNING and not found.anything_left:
                row.finished_at = real_now()
    limits.watch(run.parts)
    return _report(run)


def _report(run: _Run) -> Json:
    """What this command did, with what is left and why: `stopped` (all charging is), `unsent` charges that could not
    be sent (`not_sent` says why, `unsent_until` when the first is tried again), `put_off` others that could not be sent
    before and wait still (`why_put_off`, `put_off_until`), `withdrawn` ones of invoices that are still owed
    (`why_withdrawn`), `unknown_tokens` (charges that wait because Xendit knows no payment method of theirs),
    `not_handed_out` (why workers got nothing)."""
    with run.parts.reading() as session:
        row = session.get_one(BillingRun, run.id)
        view = run_view(session, row, run.as_of, run.parts.rules)
        mine = results_of(session, row, run.of_this_command, run.opened, run.as_of)
        unsent = run_queries.unsent(session, run.unsent, real_now())
        put_off = run_queries.unsent(session, ~func.coalesce(run.unsent, false()), real_now())
        withdrawn, why_withdrawn = run_queries.withdrawn(session, run.withdrawn)
        unknown = run_queries.parked_by(session, waits_for_token(""))
        stop = run_queries.charging_stop_reason(session)
    return (
        view
        | mine
        | {
            "whole_run": {name: view[name] for name in mine},
            "at": instant(run.opening_at),
            "skipped": run.skipped,
            "stopped": stop,
            "unsent": unsent.count,
            "not_sent": unsent.why,
            "unsent_until": instant(unsent.until),
            "put_off": put_off.count,
            "why_put_off": put_off.why,
            "put_off_until": instant(put_off.until),
            "withdrawn": withdrawn,
            "why_withdrawn": why_withdrawn,
            "unknown_tokens": unknown,
            "handed_out": run.handed_out,
            "not_handed_out": run.not_handed_out,
            "taken_up": run.taken_up,
        }
    )


def forget_old_ticks(parts: Parts) -> None:
    with parts.transaction() as session:
        queries.forget_ticks(session, real_now() - timedelta(days=1))
