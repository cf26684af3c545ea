"""`billing run`: one pass over what is due. Without Redis it does the work here; with Redis the workers do.

`billing run approve` says yes to what waits for a person: missed periods of a plan whose catch-up is hold, and what an
aborted run left.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated

import typer

from billing.app import App
from billing.charging.tokens import RIGHT_KEY
from billing.cli import live, output
from billing.cli.opening import GATEWAY, opened, sender
from billing.cli.runs import confirmed, view_of
from billing.cli.values import INSTANT, INSTANT_HELP, AsJson, parse_instant
from billing.domain.declines import DeclineClass
from billing.domain.lifecycle import RunState
from billing.domain.money import parse_amounts
from billing.errors import Conflict, InvalidMoney, ServiceUnavailable
from billing.reading.views import Json, instant
from billing.runs import control
from billing.runs import run as runs
from billing.settings import Settings, load_settings
from billing.store.clock import refuse_a_wrong_clock, require_test_clock, set_test_clock

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


def parse_expected(text: str) -> Mapping[str, int]:
    try:
        amounts = parse_amounts(text)
    except InvalidMoney as error:
        raise typer.BadParameter(str(error)) from None
    if not amounts:
        raise typer.BadParameter("write what you expect to be charged, such as 'IDR 50000000'")
    return amounts


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
        Mapping[str, int] | None,
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
        _dry_run(at, expect, as_json=as_json)
        return
    settings = load_settings("database_url", GATEWAY)
    if at is not None:
        require_test_clock(settings.test_clock)
    report = _run(settings, at, expect, wait=wait)
    output.show(report, as_json=as_json, people=lambda: _people(report))
    _refuse_if_not_done(report)


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
    with opened() as billing:
        waiting = control.waiting_for_approval(billing.parts, names or ())
        rows = [each.view() | {"reference": each.reference, "reason": each.reason} for each in waiting]
        if rows and not yes and sys.stdin.isatty() and not as_json:
            output.some_of(rows, WAITING_COLUMNS, title="Waiting for approval")
        question = f"Charge {len(rows)} of them?"
        approved = (
            [] if rows and not confirmed(question, yes=yes or as_json) else control.approve(billing.parts, waiting)
        )
    output.show({"approved": approved}, as_json=as_json, people=lambda: _people_approved(approved))


def _people_approved(approved: list[Json]) -> None:
    if not approved:
        output.note("nothing waits for approval")
        return
    output.say(f"{len(approved)} approved; the next `billing run`, or the scheduler, charges them.")


# ---------------------------------------------------------------------------------------------------- a run


def _run(settings: Settings, at: datetime | None, expect: Mapping[str, int] | None, *, wait: bool) -> Json:
    with opened(GATEWAY, settings=settings, log_level=logging.WARNING) as billing:
        with billing.parts.reading() as session:
            refuse_a_wrong_clock(session)
        as_of = _move_clock(billing, at) if at is not None else None
        seen: list[str] = []

        def note_id(totals: Json) -> None:
            seen[:] = [totals["run_id"]]

        def read() -> Json | None:
            return view_of(billing.parts, seen[0]) if seen else None

        with sender(billing) as (send, by_workers), live.watching(read):
            if by_workers:
                report = runs.run_on_workers(billing.parts, send, as_of, note_id, wait=wait, expect=expect)
            else:
                report = runs.run_here(billing.parts, send, as_of, note_id, expect=expect)
    if report["taken_up"] and not report["stopped"]:
        output.note(f"goes on with {report['run_id']}, which was left unfinished")
    if report["handed_out"] and by_workers and not wait and report["state"] == RunState.RUNNING:
        output.note(
            f"{report['handed_out']} charge(s) handed to the workers; `billing run --wait` or"
            " `billing runs show --follow` follows them to the end"
        )
    return report | {"at": instant(at)} if at is not None else report


def _refuse_if_not_done(report: Json) -> None:
    """The report is out. A run is no success when charges did not leave, or when nothing it was to do could be done;
    that customers were declined is none of its faults."""
    if report["stopped"]:
        raise ServiceUnavailable(
            f"charging is stopped: {report['stopped']}; put it right, then `billing charging resume`"
        )
    if report["state"] in (RunState.PAUSED, RunState.STOPPED, RunState.ABORTED):
        raise Conflict(f"{report['run_id']} is {report['state']}: {report['reason']}; {report['how_to_go_on']}")
    sent = f"{report['attempted']} charge(s) sent"
    if waiting := list(_waiting(report)):
        raise ServiceUnavailable(f"{'; '.join(waiting)}; {sent}; {_until(report)}")
    if report["not_handed_out"]:
        raise ServiceUnavailable(
            f"{report['waiting']} charge(s) wait and none was handed out: {report['not_handed_out']};"
            " start `dramatiq workers`, nothing is lost and the work goes on by itself"
        )
    undone = list(_undone(report, sent))
    if report["in_doubt"]:
        output.warn(
            f"{report['in_doubt']} charge(s) in doubt: nobody knows yet whether money moved; nothing else is charged"
            " for their invoices until Xendit has said so (`billing reconcile` asks now)"
        )
    if undone:
        raise Conflict("; also: ".join(undone))


def _waiting(report: Json) -> Iterator[str]:
    if report["unsent"]:
        yield f"{report['unsent']} charge(s) did not leave: {report['not_sent']}"
    if report["put_off"]:
        yield f"{report['put_off']} charge(s) that did not leave before still wait: {report['why_put_off']}"


def _until(report: Json) -> str:
    times = [at for at in (report["unsent_until"], report["put_off_until"]) if at is not None]
    if not times:
        return "they go out when that is over"
    first = output.second(min(times))
    return f"the first of them waits until {first}; a run after that sends it, or the scheduler does"


def _undone(report: Json, sent: str) -> Iterator[str]:
    if refused := _refused(report):
        yield (
            f"{refused} charge(s) were refused by Xendit for a reason on our side, and their invoices are held"
            f" ({_codes(report)}); {sent}; `billing doctor` lists them"
        )
    if report["withdrawn"]:
        yield (
            f"{report['withdrawn']} charge(s) could not be made: {report['why_withdrawn']}; {sent}; see"
            " `billing invoice list --status open`"
        )
    if report["unknown_tokens"]:
        yield (
            f"{report['unknown_tokens']} charge(s) wait, because Xendit does not know their payment methods:"
            f" {RIGHT_KEY}, then `billing run` again; `billing token refresh` asks about one"
        )


def _refused(report: Json) -> int:
    return sum(row["count"] for row in report["declines"] if row["decline_class"] == DeclineClass.OUR_FAULT)


def _codes(report: Json) -> str:
    ours = [row["failure_code"] for row in report["declines"] if row["decline_class"] == DeclineClass.OUR_FAULT]
    return ", ".join(str(code) for code in ours if code) or "without a code"


def _move_clock(billing: App, at: datetime) -> datetime | None:
    """Later than now: the clock goes there, and the run follows it, so that what its own charges plan for at once is
    done as well. Earlier: as of that time."""
    if at <= billing.parts.clock.now():
        return at
    with billing.parts.transaction() as session:
        set_test_clock(session, at)
    return None


def _people(report: Json) -> None:
    live.report(report)
    output.some_of(report["skipped"], SKIPPED_COLUMNS, title="Skipped")


# -------------------------------------------------------------------------------------------------- dry run


def _dry_run(at: datetime | None, expect: Mapping[str, int] | None, *, as_json: bool) -> None:
    with opened() as billing:
        report = runs.dry_run(billing.parts, at, expect=expect)
    output.show(report, as_json=as_json, people=lambda: _people_dry(report))


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
    return line | {
        "from": str(line["period_start"])[:10],
        "with": f"{line['channel_code'] or 'no token'}{card}",
        "remark": "asks the customer" if line["note"] else missed,
    }
