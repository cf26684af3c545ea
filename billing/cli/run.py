"""`billing run`: one pass over what is due. Without Redis it does the work here; with Redis the workers do.

`billing run approve` says yes to what waits for a person: missed periods of a plan whose catch-up is hold, and what an
aborted run left.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from billing.api import arguments
from billing.cli import live, output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.runs import confirmed
from billing.cli.values import INSTANT, INSTANT_HELP, AsJson, parse_instant
from billing.errors import InvalidArgument

if TYPE_CHECKING:
    from billing.shapes import WaitsForApproval

app = typer.Typer()

SKIPPED_COLUMNS = {"subscription": "subscription_id", "reason": "reason"}
PLANNED_COLUMNS = {
    "customer": "customer",
    "amount": "amount",
    "period from": "period_start",
    "missed": "missed",
    "token": "payment_token_id",
    "channel": "channel_code",
    "note": "note",
    "subscription": "subscription_id",
}
# On a terminal: what fits beside each other; --json and pipes have the ids.
SHORT_COLUMNS = {"customer": "customer", "amount": "amount", "from": "from", "with": "with", "note": "remark"}
CHANNEL_COLUMNS = {"channel": "channel_code", "charges": "charges", "amount": "amount"}
WAITING_COLUMNS = {"subscription": "reference", "periods": "periods", "amount": "amount", "reason": "reason"}


def parse_expected(text: str) -> str:
    """Read again by `Billing.run`; refused here, where the option's name is known."""
    try:
        arguments.expected(text)
    except InvalidArgument as error:
        raise typer.BadParameter(str(error)) from None
    return text


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    at: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_instant,
            metavar=INSTANT,
            help=f"As of this time; needs --dry-run, or the test clock, which it moves forward. {INSTANT_HELP}",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say who would be charged, how much and with what.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With Redis: follow the workers until all is done.")] = False,
    expect: Annotated[
        str | None,
        typer.Option(
            parser=parse_expected,
            metavar="AMOUNTS",
            help="Begin only if what is planned is about this much, such as 'IDR 50000000, PHP 10000'.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Open what is due and charge it. Safe to start twice at once, and as often as you like.

    Without Redis this command does the work and returns when nothing is due: enough for a cron entry.

    Example: billing run --dry-run --at 2026-03-01T00:00:00+07:00
    """
    if context.invoked_subcommand is not None:
        if at is not None or dry_run or wait or expect is not None:
            raise typer.BadParameter(f"options of `billing run` do not go with `{context.invoked_subcommand}`")
        return
    if dry_run:
        with opened() as billing:
            output.show(billing.run(at=at, dry_run=True, expect=expect), _people_dry, as_json=as_json)
        return
    begun: deque[str] = deque(maxlen=1)
    with opened(log_level=logging.WARNING) as billing:
        with live.watching(lambda: billing.runs.show(begun[0]) if begun else None):
            report = billing.run(at=at, wait=wait, expect=expect, progress=lambda run: begun.append(run.run_id))
        output.show(report, _people, as_json=as_json)


@app.command("approve")
def approve(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHAT]...",
            help="Subscriptions (reference or id), or runs that were aborted. Without it: all that waits.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say yes to what waits for a person; the next run charges it.

    Missed periods of a plan whose catch-up is hold (or too many of them at once), and what an aborted run left.
    """

    def ask(waiting: Sequence[WaitsForApproval]) -> bool:
        if not yes and sys.stdin.isatty() and not as_json:
            rows = [each.model_dump(mode="json") for each in waiting]
            output.some_of(rows, WAITING_COLUMNS, title="Waiting for approval")
        return confirmed(f"Charge {len(waiting)} of them?", yes=yes or as_json)

    with opened() as billing:
        output.show(billing.runs.approve(*names or (), ask=ask), _people_approved, as_json=as_json)


def _people_approved(view: Json) -> None:
    approved = len(view["approved"])
    if approved:
        output.say(f"{approved} approved; the next `billing run`, or the scheduler, charges them.")
    else:
        output.note("nothing waits for approval")


# ---------------------------------------------------------------------------------------------------- a run


def _people(report: Json) -> None:
    live.report(report)
    output.some_of(report["skipped"], SKIPPED_COLUMNS, title="Skipped")


# -------------------------------------------------------------------------------------------------- dry run


def _people_dry(report: Json) -> None:
    output.say(f"As of {output.instant(report['at'])}: {report['attempted']} charge(s), {live.sums(report['totals'])}")
    if report["expected_seconds"] is not None:
        output.say(f"At today's quota that takes about {live.span(report['expected_seconds'])}.")
    if report["missed"]:
        output.say(f"{report['missed']} of them are for missed periods, by their plans' catch-up policy.")
    for guard in report["guards"]:
        output.warn(f"{guard['guard'].replace('_', ' ')}: {guard['reason']}")
    output.some_of(report["by_channel"], CHANNEL_COLUMNS, title="By channel")
    if output.console().is_terminal:
        output.some_of([_short(line) for line in report["planned"]], SHORT_COLUMNS, title="Would be charged")
    else:
        output.some_of(report["planned"], PLANNED_COLUMNS, title="Would be charged")
    output.some_of(report["skipped"], SKIPPED_COLUMNS, title="Would be skipped")
    output.note("a dry run: nothing was written, nobody was charged")


def _short(line: Json) -> Json:
    missed = f"missed; catch-up {line['catch_up']}" if line["missed"] else None
    card = f" {line['card_last4']}" if line["card_last4"] else ""
    return {
        **line,
        "from": str(line["period_start"])[:10],
        "with": f"{line['channel_code'] or 'no token'}{card}",
        "remark": "asks the customer" if line["note"] else missed,
    }
