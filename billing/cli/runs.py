"""`billing runs`: the billing runs there are; watch one, pause it, let it go on, end it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from billing.app import App
from billing.cli import live, output
from billing.cli.opening import opened
from billing.cli.values import After, AsJson, Limit
from billing.parts import Parts
from billing.reading.views import Json
from billing.runs import control, report

app = typer.Typer(no_args_is_help=True)

COLUMNS = {
    "run": "run_id",
    "kind": "kind",
    "state": "state",
    "started": "started_at",
    "planned": "planned",
    "sent": "attempted",
    "succeeded": "succeeded",
    "failed": "failed",
    "waiting": "waiting",
    "reason": "reason",
}
NARROW_COLUMNS = {"run": "run_id", "state": "state", "started": "started", "sent": "progress"}
WIDE = 150  # columns of a terminal that has room for all
ENDED = ("finished", "aborted")

RunName = Annotated[str, typer.Argument(metavar="ID", help="run-...", show_default=False)]


@app.command("list")
def list_(limit: Limit = None, after: After = None, as_json: AsJson = False) -> None:
    """List billing runs, the latest first: those asked for with `billing run`, and the scheduler's, one a day."""
    columns = COLUMNS if output.console().width >= WIDE else NARROW_COLUMNS
    empty = "no such billing run" if after else "no billing run yet; `billing run` makes one"
    with opened() as billing:
        found = report.list_runs(billing.parts)
        output.show_list(found, columns, limit=limit, after=after, as_json=as_json, empty=empty, row=_row)


def _row(line: Mapping[str, Any]) -> Json:
    return {
        **line,
        "planned": (line["plan"] or {}).get("charges"),
        "started": str(line["started_at"])[5:16].replace("T", " "),
        "progress": f"{line['attempted']:,} of {line['attempted'] + line['waiting']:,}",
    }


@app.command("show")
def show(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="Without it: the latest that goes on, else the latest.", show_default=False
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Watch it until it has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run: how far it is, how fast, what was declined, and what it planned.

    Example: billing runs show --follow
    """
    with opened() as billing:
        view = view_of(billing.parts, name)
        if follow:
            view = _follow(billing.parts, view)
    output.show(view, as_json=as_json, people=lambda: live.report(view))


@app.command("pause")
def pause(name: RunName, as_json: AsJson = False) -> None:
    """Charge nothing more of a run, from this moment on, until it is resumed. What was sent goes on to its end."""
    view = _steer(name, lambda billing: control.pause_run(billing.parts, name))
    done = f"{name} is {view['state']}; {view['waiting']} charge(s) wait. {view['how_to_go_on']}"
    output.show(view, as_json=as_json, people=lambda: output.say(done))


@app.command("resume")
def resume(name: RunName, as_json: AsJson = False) -> None:
    """Let a paused or stopped run go on. The guard that stopped it is waived for this run, and for no other."""
    view = _steer(name, lambda billing: control.resume_run(billing.parts, name))
    waived = f" Waived for it: {', '.join(view['waived'])}." if view["waived"] else ""
    done = f"{name} goes on with {view['waiting']} charge(s); without a scheduler `billing run` sends them.{waived}"
    output.show(view, as_json=as_json, people=lambda: output.say(done))


@app.command("abort")
def abort(
    name: RunName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """End a run for good: what it has not begun is withdrawn, and those invoices are held.

    `billing run approve ID` charges them after all.
    """
    with opened() as billing:
        before = view_of(billing.parts, name)
        question = f"Abort {name}? {before['waiting']} charge(s) are withdrawn and their invoices held."
        if before["state"] not in ENDED and not confirmed(question, yes=yes):
            return
        withdrawn = control.abort_run(billing.parts, name)
        view = view_of(billing.parts, name) | {"withdrawn": withdrawn}
    done = f"{name} is aborted; {withdrawn} charge(s) withdrawn. {view['how_to_go_on']}"
    output.show(view, as_json=as_json, people=lambda: output.say(done))


def view_of(parts: Parts, name: str | None) -> Json:
    now = parts.clock.now()
    with parts.reading() as session:
        return report.run_view(session, control.find_run(session, name), now, parts.rules)


def confirmed(question: str, *, yes: bool) -> bool:
    """Asked on a terminal only: a script that says it means it."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    if typer.confirm(question, err=True):
        return True
    output.note("nothing was changed")
    return False


def _steer(name: str, move: Callable[[App], None]) -> Json:
    with opened() as billing:
        move(billing)
        return view_of(billing.parts, name)


def _follow(parts: Parts, view: Json) -> Json:
    """Until it has ended; a run that is paused or stopped is waited for."""
    name = view["run_id"]
    with live.watching(lambda: view_of(parts, name)):
        while view["state"] not in ENDED:
            time.sleep(live.REFRESH_SECONDS)
            view = view_of(parts, name)
    return view
