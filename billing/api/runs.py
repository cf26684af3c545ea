"""`billing.runs`: the billing runs there are; watch one, pause it, let it go on, end it, approve what waits.

`run` and `dry_run` are `billing.run`: one pass over what is due. Without Redis it does the work here; with Redis the
workers do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from billing.api import arguments
from billing.api.opening import GATEWAY, Entries, Opened, Operations
from billing.charging.tokens import RIGHT_KEY
from billing.domain.declines import DeclineClass
from billing.domain.lifecycle import RunState
from billing.parts import Parts
from billing.reading.views import Json, instant
from billing.runs import control
from billing.runs import report as progress
from billing.runs import run as runs
from billing.settings import require
from billing.shapes import AbortedRun, Approved, DryRun, Run, RunProgress, RunReport, RunSummary, WaitsForApproval
from billing.store.clock import refuse_a_wrong_clock, require_test_clock, set_test_clock

POLL_SECONDS = 0.5
ENDED = ("finished", "aborted")

Progress = Callable[[RunProgress], None]


class Runs(Operations):
    def list(self, *, limit: int | None = None, after: str | None = None) -> Entries[RunSummary]:
        """Billing runs, the latest first: those asked for, and the scheduler's, one a day."""
        return self._opened.shown(progress.list_runs(self._opened.parts), RunSummary, limit, after)

    def show(
        self, name: str | None = None, *, follow: bool = False, watch: Callable[[Run], None] = lambda _: None
    ) -> Run:
        """A run: how far it is, how fast, what was declined, and what it planned. Without a name the latest that goes
        on, else the latest.

        With `follow` it returns when the run has ended, and `watch` is told of it twice a second; one that is paused or
        stopped is waited for. Raises NotFound.
        """
        found = run_as_it_stands(self._opened.parts, name)
        while follow and found.state not in ENDED:
            watch(found)
            time.sleep(POLL_SECONDS)
            found = run_as_it_stands(self._opened.parts, found.run_id)
        return found

    def pause(self, name: str) -> Run:
        """Charge nothing more of a run, from this moment on, until it is resumed. What was sent goes on to its end.
        Raises NotFound, IllegalTransition."""
        control.pause_run(self._opened.parts, name)
        return run_as_it_stands(self._opened.parts, name)

    def resume(self, name: str) -> Run:
        """Let a paused or stopped run go on. The guard that stopped it is waived for this run, and for no other. Raises
        NotFound, IllegalTransition."""
        control.resume_run(self._opened.parts, name)
        return run_as_it_stands(self._opened.parts, name)

    def abort(self, name: str) -> AbortedRun:
        """End a run for good: what it has not begun is withdrawn, and those invoices are held; `approve` charges them
        after all. Asks nobody. Raises NotFound, IllegalTransition."""
        withdrawn = control.abort_run(self._opened.parts, name)
        view = _view(self._opened.parts, name) | {"withdrawn": withdrawn}
        return AbortedRun.model_validate(view)

    def approve(self, *names: str, ask: Callable[[Sequence[WaitsForApproval]], bool] | None = None) -> Approved:
        """Say yes to what waits for a person; the next run charges it: missed periods of a plan whose catch-up is hold,
        and what an aborted run left. Names are of subscriptions or runs; without one all that waits is approved.

        `ask` is told what waits, if anything does, and nothing is approved unless it says yes; without it nobody is
        asked. Raises NotFound, IllegalTransition for one that waits for nothing: then nothing is approved."""
        parts = self._opened.parts
        waiting = control.waiting_for_approval(parts, names)
        if waiting and ask is not None and not ask([_waits(each) for each in waiting]):
            return Approved(approved=())
        return Approved.model_validate({"approved": control.approve(parts, waiting)})


def _waits(waiting: control.Waiting) -> WaitsForApproval:
    return WaitsForApproval.model_validate(waiting.view() | {"reference": waiting.reference, "reason": waiting.reason})


def run_as_it_stands(parts: Parts, name: str | None) -> Run:
    return Run.model_validate(_view(parts, name))


def _view(parts: Parts, name: str | None) -> Json:
    now = parts.clock.now()
    with parts.reading() as session:
        return progress.run_view(session, control.find_run(session, name), now, parts.rules)


# ------------------------------------------------------------------------------------------------- billing.run


def dry_run(opened: Opened, at: datetime | None, expect: str | Mapping[str, arguments.AmountGiven] | None) -> DryRun:
    amounts = None if expect is None else arguments.expected(expect)
    found = runs.dry_run(opened.parts, arguments.maybe_instant("--at", at), expect=amounts)
    return DryRun.model_validate(found)


def run(
    opened: Opened,
    at: datetime | None,
    expect: str | Mapping[str, arguments.AmountGiven] | None,
    *,
    wait: bool,
    progress: Progress | None,
) -> RunReport:
    asked = arguments.maybe_instant("--at", at)
    amounts = None if expect is None else arguments.expected(expect)
    require(opened.settings, GATEWAY)
    if asked is not None:
        require_test_clock(opened.settings.test_clock)
    parts = opened.with_gateway()
    with parts.reading() as session:
        refuse_a_wrong_clock(session)
    as_of = _move_clock(parts, asked) if asked is not None else None

    def tell(totals: Json) -> None:
        if progress is not None:
            progress(RunProgress.model_validate(totals))

    with opened.sender() as (send, by_workers):
        if by_workers:
            view = runs.run_on_workers(parts, send, as_of, tell, wait=wait, expect=amounts)
        else:
            view = runs.run_here(parts, send, as_of, tell, expect=amounts)
    report = RunReport.model_validate(view | {"at": instant(asked)} if asked is not None else view)
    report.told(_why_not_done(report))
    _say_beside(opened, report, left_to_workers=by_workers and not wait)
    return report


def _move_clock(parts: Parts, at: datetime) -> datetime | None:
    """Later than now: the clock goes there, and the run follows it, so that what its own charges plan for at once is
    done as well. Earlier: as of that time."""
    if at <= parts.clock.now():
        return at
    with parts.transaction() as session:
        set_test_clock(session, at)
    return None


def _say_beside(opened: Opened, report: RunReport, *, left_to_workers: bool) -> None:
    if report.taken_up and not report.stopped:
        opened.note(f"goes on with {report.run_id}, which was left unfinished")
    if report.handed_out and left_to_workers and report.state == RunState.RUNNING:
        opened.note(
            f"{report.handed_out} charge(s) handed to the workers; `billing run --wait` or"
            " `billing runs show --follow` follows them to the end"
        )
    if report.in_doubt and _why_not_sent(report) is None:
        opened.warn(
            f"{report.in_doubt} charge(s) in doubt: nobody knows yet whether money moved; nothing else is charged"
            " for their invoices until Xendit has said so (`billing reconcile` asks now)"
        )


def _why_not_done(report: RunReport) -> str | None:
    """A run is no success when charges did not leave, or when nothing it was to do could be done; that customers were
    declined is none of its faults."""
    return _why_not_sent(report) or "; also: ".join(_undone(report)) or None


def _why_not_sent(report: RunReport) -> str | None:
    if report.stopped:
        return f"charging is stopped: {report.stopped}; put it right, then `billing charging resume`"
    if report.state in (RunState.PAUSED, RunState.STOPPED, RunState.ABORTED):
        return f"{report.run_id} is {report.state}: {report.reason}; {report.how_to_go_on}"
    if waiting := list(_waiting(report)):
        return f"{'; '.join(waiting)}; {_sent(report)}; {_until(report)}"
    if report.not_handed_out:
        return (
            f"{report.waiting} charge(s) wait and none was handed out: {report.not_handed_out};"
            " start `dramatiq workers`, nothing is lost and the work goes on by itself"
        )
    return None


def _waiting(report: RunReport) -> Iterator[str]:
    if report.unsent:
        yield f"{report.unsent} charge(s) did not leave: {report.not_sent}"
    if report.put_off:
        yield f"{report.put_off} charge(s) that did not leave before still wait: {report.why_put_off}"


def _until(report: RunReport) -> str:
    times = [at for at in (report.unsent_until, report.put_off_until) if at is not None]
    if not times:
        return "they go out when that is over"
    first = min(times).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"the first of them waits until {first}; a run after that sends it, or the scheduler does"


def _undone(report: RunReport) -> Iterator[str]:
    ours = [row for row in report.declines if row.decline_class == DeclineClass.OUR_FAULT]
    if ours:
        codes = ", ".join(row.failure_code for row in ours if row.failure_code) or "without a code"
        yield (
            f"{sum(row.count for row in ours)} charge(s) were refused by Xendit for a reason on our side, and their"
            f" invoices are held ({codes}); {_sent(report)}; `billing doctor` lists them"
        )
    if report.withdrawn:
        yield (
            f"{report.withdrawn} charge(s) could not be made: {report.why_withdrawn}; {_sent(report)}; see"
            " `billing invoice list --status open`"
        )
    if report.unknown_tokens:
        yield (
            f"{report.unknown_tokens} charge(s) wait, because Xendit does not know their payment methods:"
            f" {RIGHT_KEY}, then `billing run` again; `billing token refresh` asks about one"
        )


def _sent(report: RunReport) -> str:
    return f"{report.attempted} charge(s) sent"
