"""The operator's commands: migrate, adopt, doctor, reconcile, replay, import; stored events; the stop of charging."""

from __future__ import annotations

from datetime import date
from typing import Annotated

import typer

from billing.cli import output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.values import After, AsJson, Limit, parse_day
from billing.domain.lifecycle import EventState

events = typer.Typer(no_args_is_help=True)
charging = typer.Typer(no_args_is_help=True)

EVENT_COLUMNS = {
    "id": "id",
    "event": "event",
    "state": "state",
    "received": "received_at",
    "deliveries": "deliveries",
    "error": "error",
}
CHECK_COLUMNS = {"check": "name", "ok": "ok", "count": "count", "detail": "detail", "repair": "repair"}
DIFFERENCE_COLUMNS = {
    "kind": "kind",
    "payment": "payment_id",
    "reference": "reference_id",
    "ours": "ours",
    "theirs": "theirs",
    "explanation": "explanation",
}
REFUSED_COLUMNS = {"line": "line", "reason": "reason"}


# -------------------------------------------------------------------------------------------------- schema


def migrate(as_json: AsJson = False) -> None:
    """Create the schema, or bring it up to date. Safe to repeat, and from several places at once."""
    with opened() as billing:
        output.show(billing.migrate(), _people_migrate, as_json=as_json)


def _people_migrate(view: Json) -> None:
    output.say(f"The schema is at revision {view['revision']}.")


def adopt(as_json: AsJson = False) -> None:
    """Say that this database is the one to charge from now on: a restored backup, or one that has moved.

    A copy charges nobody until then. Make sure first that nothing uses the other one any more, and that it holds what
    was charged last: docs/operations.md, "The database was restored from a backup".

    Example: billing adopt
    """
    with opened() as billing:
        output.show(billing.adopt(), _people_adopt, as_json=as_json)


def _people_adopt(view: Json) -> None:
    here = _database(view["now"])
    if not view["changed"]:
        output.say(f"Nothing to change: this is the database, {here}.")
        return
    before = view["before"]
    since = "nothing" if before is None else f"{_database(before)}, noted {output.instant(before['noted_at'])}"
    output.say(f"This is the database now: {here}. Before: {since}. Charging goes on with the next run or tick.")


def _database(noted: Json) -> str:
    from billing.store import which_database

    return which_database.in_words(noted["system_identifier"], noted["database_oid"])


# -------------------------------------------------------------------------------------------- looking after


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can safely be put right.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the invariants on the live database: nothing charged twice, nothing forgotten, sums that agree.

    Exit status 1 if any check fails.
    """
    with opened() as billing:
        output.show(billing.doctor(repair=repair), lambda view: _people_doctor(view, repair=repair), as_json=as_json)


def _people_doctor(report: Json, *, repair: bool) -> None:
    columns = {title: member for title, member in CHECK_COLUMNS.items() if repair or member != "repair"}
    output.table(report["checks"], columns, empty="no checks")
    for check in report["checks"]:
        if not check["ok"] and not repair:
            output.say(f"{check['name']}: {check['repair']}")
    if report["ok"]:
        output.say(f"All {len(report['checks'])} checks passed.")


def reconcile(
    day: Annotated[
        date | None,
        typer.Option("--date", parser=parse_day, metavar="DAY", help="Also compare this day (UTC) with Xendit's list."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask Xendit about every attempt whose end is not known; with --date compare a day's money.

    Never sends a charge.

    Example: billing reconcile --date 2026-01-31
    """
    with opened() as billing:
        with output.progress("looking up") as moved:
            found = billing.reconcile(date=day, progress=moved)
        output.show(found, lambda view: _people_reconcile(view, day), as_json=as_json)


def _people_reconcile(document: Json, day: date | None) -> None:
    output.say(f"Resolved: {document['resolved']}. Still in doubt: {document['still_in_doubt']}.")
    if day is not None and not document["differences"]:
        output.say(f"{day}: our captures and Xendit's list agree.")
    output.some_of(document["differences"], DIFFERENCE_COLUMNS, title=f"Differences on {day}")


# ---------------------------------------------------------------------------------------------------- events


def replay(
    webhook_event: Annotated[
        str,
        typer.Argument(
            metavar="WEBHOOK_EVENT", help="Id of a stored event; see `billing events list`.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Apply a stored webhook event again. Never creates a charge; applying twice changes nothing."""
    with opened() as billing:
        found = billing.replay(webhook_event)
        output.show(found, lambda view: output.card(f"Webhook event {view['id']}", view), as_json=as_json)


@events.command("list")
def list_events(
    state: Annotated[EventState | None, typer.Option(help="Only those.", case_sensitive=False)] = None,
    limit: Limit = None,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List stored webhook events, the newest first.

    Example: billing events list --state parked
    """
    with opened() as billing:
        found = billing.events.list(state=state, limit=limit, after=after)
        output.show_list(found, EVENT_COLUMNS, limit=limit, as_json=as_json, empty="no such event")


# ----------------------------------------------------------------------------------------- the stop of it all


@charging.command("show")
def show_charging(as_json: AsJson = False) -> None:
    """Say whether charging is stopped, and why; and where the gateway has told us to wait or to go slower."""
    with opened() as billing:
        output.show(billing.charging.show(), _people_charging, as_json=as_json)


def _people_charging(view: Json) -> None:
    output.say(f"Charging is stopped: {view['reason']}" if view["stopped"] else "Charging is not stopped.")
    for row in view["paused"]:
        output.say(f"Closed by the gateway until {output.instant(row['until'])}: {row['endpoint']}")
    for row in view["learned_limits"]:
        output.say(f"The gateway allows {row['requests_per_minute']} requests a minute: {row['endpoint']}")
    for row in view["channels_down"]:
        output.say(f"Down since {output.instant(row['since'])}: {row['channel_code']} ({row['reason']})")
    if view["stopped"] or view["paused"] or view["channels_down"] or view["learned_limits"]:
        output.say("`billing charging resume` lifts all of it.")


@charging.command("stop")
def stop_charging(
    reason: Annotated[str, typer.Option("--reason", help='Why, for whoever finds it: "bank holiday".')],
    as_json: AsJson = False,
) -> None:
    """Charge nobody until `billing charging resume`. What is under way is still followed; nothing is lost."""
    with opened() as billing:
        stop = billing.charging.stop(reason=reason)
        output.show(stop, lambda view: output.say(f"Charging is stopped: {view['reason']}"), as_json=as_json)


@charging.command("resume")
def resume_charging(as_json: AsJson = False) -> None:
    """Charge again, after what stopped it (a refused key, a missing permission) has been put right.

    Endpoints that the gateway has closed are opened, and the limits its answers have told are forgotten. Channels that
    were down, and payment methods that Xendit did not know, are tried again.
    """
    done: list[str] = []
    with opened(note=done.append) as billing:
        output.show(billing.charging.resume(), lambda _: output.say(done[0]), as_json=as_json)


# ---------------------------------------------------------------------------------------------------- import


def import_(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="JSON lines, one subscriber a line; - reads stdin.", show_default=False),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every row, write nothing.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Wait until Xendit was asked about each token, and refuse what it does not know or calls dead."
            " Without it that is done in the background, before the first charge.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring in existing subscribers with existing payment tokens. All or nothing per row, safe to repeat.

    Exit status 1 if a row was refused; the others are in. Importing the file again also tells what was found out since:
    rows whose token Xendit does not know, or has ended, are refused.

    Example: billing import subscribers.jsonl --dry-run
    """
    warnings: list[str] = []
    with opened(warn=warnings.append) as billing:
        try:
            with output.progress("rows") as moved:
                found = billing.import_(file, dry_run=dry_run, verify=verify, progress=lambda rows: moved(rows, None))
        finally:
            _warn_of_rows(warnings)
        output.show(found, lambda view: _people_import(view, dry_run=dry_run), as_json=as_json)


def _warn_of_rows(warnings: list[str]) -> None:
    for text in warnings[: output.MANY]:
        output.warn(text)
    if len(warnings) > output.MANY:
        output.warn(f"... and {len(warnings) - output.MANY} more rows like these")


def _people_import(report: Json, *, dry_run: bool) -> None:
    tense = "Would create" if dry_run else "Created"
    output.say(f"{tense} {report['created']}, unchanged {report['unchanged']}, refused {len(report['refused'])}.")
    output.some_of(report["refused"], REFUSED_COLUMNS, title="Refused rows")
