"""`python -m workers.scheduler`: cron ticks. Any number may run; for every slot one of them acts.

croniter says when a job's slot begins; whoever inserts the row (job, slot) does it. Without Redis the scheduler does
the work itself. On SIGTERM it finishes what is in hand and exits 0, or 1 when that could not be done. No job that
breaks ends it, nor keeps the other jobs from their turn.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import FrameType

import structlog

from billing.app import App, build_process
from billing.charging.key import lift_stop_of_another_key
from billing.domain.schedule import last_tick
from billing.errors import BillingError, CopyOfDatabase
from billing.parts import Parts, Send
from billing.runs import limits, run, tick
from billing.settings import load_settings
from billing.store import queries
from billing.store.clock import real_now, refuse_a_wrong_clock, uptime
from billing.store.trouble import database_errors_in_one_line, is_databases_trouble
from billing.work import InProcess, find_sender

LOOP_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15  # between tries while the database or Redis is away
SAY_AGAIN_SECONDS = 60  # that this is a copy of the database
CLOCKS_DIFFER = timedelta(seconds=30)  # between machines, at most

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Job:
    """A six-field cron expression (seconds last, as croniter has it) and what to do at each of its slots."""

    cron: str
    work: Callable[[Parts, Send], object]


JOBS: Mapping[str, Job] = {
    "bill": Job("* * * * * *", tick.tick),
    "watch-runs": Job("* * * * * */2", lambda parts, _send: limits.watch(parts)),
    "compare-days": Job("17 3 * * * 0", tick.hand_out_days),
    "which-database": Job("* * * * * 0", lambda parts, _send: parts.refuse_a_copy()),
    "forget-ticks": Job("17 * * * * 0", lambda parts, _send: run.forget_old_ticks(parts)),
}


def run_due_jobs(parts: Parts, send: Send, done: dict[str, datetime]) -> None:
    """Each job whose slot has changed: take its tick and do it. A job that fails is tried in its next slot, and keeps
    no other from its turn; that the database or Redis is away is raised when all had theirs."""
    away: Exception | None = None
    for name, job in JOBS.items():
        now = real_now()
        slot = last_tick(job.cron, now)
        if done.get(name) == slot:
            continue
        with parts.transaction() as session:
            refuse_a_wrong_clock(session)
            mine = queries.take_tick(session, name, slot)
            if not mine:
                queries.forget_ticks_to_come(session, name, now + CLOCKS_DIFFER)
        done[name] = slot
        if mine:
            away = _do(name, job, parts, send) or away
    if away is not None:
        raise away


def _do(name: str, job: Job, parts: Parts, send: Send) -> Exception | None:
    """The job. Returns what says that something it needs is away; what is a fault of ours is logged, with its
    traceback in the same line."""
    try:
        job.work(parts, send)
    except Exception as error:
        if isinstance(error, BillingError) or is_databases_trouble(error):
            return error
        log.exception("scheduler.job_failed", job=name, error=_one_line(error))
    return None


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [error.__class__.__name__])[0]


def main() -> int:
    try:
        settings = load_settings("database_url", "xendit_secret_key")
        app = build_process(settings)
        send = find_sender(settings)
    except BillingError as error:
        print(f"billing: {error}", file=sys.stderr)  # noqa: T201 - before any log is set up
        return error.exit_status
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` leaves it
            signal.signal(number, on_signal)
    in_process = None if send else InProcess(app.parts, settings.run_threads)
    log.info("scheduler.started", work="workers" if send else "in this process", jobs=sorted(JOBS))
    _loop(app, send or in_process, stop)  # type: ignore[arg-type]
    status = _close(app) if in_process is None else _close(in_process, app)
    log.info("scheduler.stopped", exit_status=status)
    return status


def _close(*opened: InProcess | App) -> int:
    """The exit status: 0 when what was in hand is finished, 1 when that could not be done."""
    status = 0
    for each in opened:
        try:
            each.close()
        except Exception as error:
            log.exception("scheduler.not_closed", error=_one_line(error))
            status = 1
    return status


def _loop(app: App, send: Send, stop: threading.Event) -> None:
    done: dict[str, datetime] = {}
    pause = LOOP_SECONDS
    lifted = False
    say_again = 0.0
    while not stop.is_set():
        try:
            with database_errors_in_one_line():
                lifted = lifted or lift_stop_of_another_key(app.parts)
                run_due_jobs(app.parts, send, done)
            pause = LOOP_SECONDS
        except CopyOfDatabase as error:
            pause = LONGEST_PAUSE_SECONDS
            if uptime() >= say_again:
                log.error("scheduler.copy_of_database", error=str(error))
                say_again = uptime() + SAY_AGAIN_SECONDS
        except BillingError as error:
            # The database or Redis is away: what is due stays due. Ask again, less and less often.
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            log.error("scheduler.waiting", error=_one_line(error), again_in_seconds=pause)
        except Exception as error:
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            log.exception("scheduler.failed", error=_one_line(error), again_in_seconds=pause)
        stop.wait(pause)


if __name__ == "__main__":
    sys.exit(main())
