"""`billing runs`: the billing runs there are; watch one, pause it, let it go on, end it."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Annotated

import typer

from billing.cli import live, output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.values import After, AsJson, Limit

if TYPE_CHECKING:
    from billing.shapes import Run

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
        found = billing.runs.list(limit=limit, after=after)
        output.show_list(found, columns, limit=limit, as_json=as_json, empty=empty, row=_row)


def _row(line: Json) -> Json:
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
    last: deque[Run] = deque(maxlen=1)
    with opened() as billing:
        with live.watching(lambda: last[0] if last else None, wanted=follow):
            found = billing.runs.show(name, follow=follow, watch=last.append)
        output.show(found, live.report, as_json=as_json)


@app.command("pause")
def pause(name: RunName, as_json: AsJson = False) -> None:
    """Charge nothing more of a run, from this moment on, until it is resumed. What was sent goes on to its end."""

    def people(view: Json) -> None:
        output.say(f"{name} is {view['state']}; {view['waiting']} charge(s) wait. {view['how_to_go_on']}")

    with opened() as billing:
        output.show(billing.runs.pause(name), people, as_json=as_json)


@app.command("resume")
def resume(name: RunName, as_json: AsJson = False) -> None:
    """Let a paused or stopped run go on. The guard that stopped it is waived for this run, and for no other."""

    def people(view: Json) -> None:
        waived = f" Waived for it: {', '.join(view['waived'])}." if view["waived"] else ""
        sends = "without a scheduler `billing run` sends them"
        output.say(f"{name} goes on with {view['waiting']} charge(s); {sends}.{waived}")

    with opened() as billing:
        output.show(billing.runs.resume(name), people, as_json=as_json)


@app.command("abort")
def abort(
    name: RunName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """End a run for good: what it has not begun is withdrawn, and those invoices are held.

    `billing run approve ID` charges them after all.
    """

    def people(view: Json) -> None:
        output.say(f"{name} is aborted; {view['withdrawn']} charge(s) withdrawn. {view['how_to_go_on']}")

    with opened() as billing:
        before = billing.runs.show(name)
        question = f"Abort {name}? {before.waiting} charge(s) are withdrawn and their invoices held."
        if before.state not in ENDED and not confirmed(question, yes=yes):
            return
        output.show(billing.runs.abort(name), people, as_json=as_json)


def confirmed(question: str, *, yes: bool) -> bool:
    """Asked on a terminal only: a script that says it means it."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    if typer.confirm(question, err=True):
        return True
    output.note("nothing was changed")
    return False
