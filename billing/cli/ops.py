"""The operator's commands: migrate, adopt, doctor, reconcile, replay, import; stored events; the stop of charging."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date
from pathlib import Path
from typing import Annotated, TextIO

import typer
from alembic.util.exc import CommandError

from billing import quota
from billing.charging import look_up, parking
from billing.checks import doctor as checks
from billing.checks import reconcile as resolving
from billing.cli import output
from billing.cli.opening import GATEWAY, opened
from billing.cli.values import After, AsJson, Limit, parse_day
from billing.domain.lifecycle import EventState
from billing.domain.names import LONGEST_TEXT, check_text
from billing.errors import BillingError, InvalidInput, ServiceUnavailable
from billing.inbox import apply
from billing.reading import lists
from billing.reading.views import Json, event_view, instant
from billing.runs.report import channels_down
from billing.settings import load_settings
from billing.store import breaker, queries, which_database
from billing.store.clock import real_now
from billing.store.engine import make_engine
from billing.store.migrate import upgrade
from billing.subscribing import catalog, import_files, import_rows
from billing.xendit.webhook import read_event

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


class Unsound(BillingError):
    """The command did its work, and what it found is not in order: exit status 1, after the report."""


# -------------------------------------------------------------------------------------------------- schema


def migrate(as_json: AsJson = False) -> None:
    """Create the schema, or bring it up to date. Safe to repeat, and from several places at once."""
    settings = load_settings("database_url")
    make_engine(settings.database).dispose()  # a URL that cannot be used is refused in one line
    try:
        revision = upgrade(settings.database)
    except CommandError as error:
        raise ServiceUnavailable(
            f"the database was made by another version of this software ({error});"
            " install that version or a newer one; or, if it is another program's, name a database in"
            " BILLING_DATABASE_URL that is for this software alone"
        ) from None
    text = f"The schema is at revision {revision}."
    output.show({"revision": revision}, as_json=as_json, people=lambda: output.say(text))
    with opened(settings=settings) as billing, billing.parts.reading() as session:
        wrong = which_database.standing(session).wrong
    if wrong is not None:
        output.warn(wrong)


def adopt(as_json: AsJson = False) -> None:
    """Say that this database is the one to charge from now on: a restored backup, or one that has moved.

    A copy charges nobody until then. Make sure first that nothing uses the other one any more, and that it holds what
    was charged last: docs/operations.md, "The database was restored from a backup".

    Example: billing adopt
    """
    with opened() as billing, billing.parts.transaction() as session:
        before = which_database.adopt(session, real_now())
        here = which_database.standing(session)
    document = {
        "adopted": True,
        "changed": not before.is_the_one,
        "before": _noted_view(before.noted),
        "now": _noted_view(here.noted),
    }
    output.show(document, as_json=as_json, people=lambda: output.say(_adopted(before, here)))
    if before.noted is not None and not before.is_the_one:
        output.warn(
            "what the other database has charged since this copy was made, or still charges, is unknown here and is"
            " charged again: docs/operations.md, 'The database was restored from a backup'"
        )


def _noted_view(noted: which_database.Noted | None) -> Json | None:
    if noted is None:
        return None
    return {
        "system_identifier": noted.system_identifier,
        "database_oid": noted.database_oid,
        "noted_at": instant(noted.noted_at),
    }


def _adopted(before: which_database.Standing, here: which_database.Standing) -> str:
    if before.is_the_one:
        return f"Nothing to change: this is the database, {here}."
    since = "nothing" if before.noted is None else f"{before.noted}, noted {before.noted.noted_at:%Y-%m-%d %H:%M} UTC"
    return f"This is the database now: {here}. Before: {since}. Charging goes on with the next run or tick."


# -------------------------------------------------------------------------------------------- looking after


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can safely be put right.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the invariants on the live database: nothing charged twice, nothing forgotten, sums that agree.

    Exit status 1 if any check fails.
    """
    with opened() as billing:
        report = checks.examine(billing.parts, repair=repair)
    output.show(report, as_json=as_json, people=lambda: _people_doctor(report, repair=repair))
    if not report["ok"]:
        failed = [check["name"] for check in report["checks"] if not check["ok"]]
        advice = "" if repair else "; `billing doctor --repair` puts right what can be"
        raise Unsound(f"{len(failed)} check(s) failed: {', '.join(failed)}{advice}")


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
    with opened(GATEWAY) as billing:
        if day is not None and day > (today := billing.parts.clock.now().astimezone(UTC).date()):
            raise typer.BadParameter(f"--date {day}: that day has not begun, today is {today} (UTC); give one that has")
        with output.progress("looking up") as moved:
            outcome = resolving.resolve_open(billing.parts, moved)
        differences = [asdict(row) for row in look_up.compare_day(billing.parts, day)] if day else []
    document = {
        "resolved": outcome.resolved,
        "still_in_doubt": outcome.still_in_doubt,
        "differences": differences,
    }
    output.show(document, as_json=as_json, people=lambda: _people_reconcile(document, day))
    if outcome.unanswered:
        raise Unsound(f"{outcome.unanswered} look-up(s) brought no answer ({outcome.error}); run it again later")


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
        with billing.parts.reading() as session:
            event = catalog.find_event(session, webhook_event)
        apply.apply_stored_event(billing.parts, event.id, read_event, again=True)
        with billing.parts.reading() as session:
            view = event_view(catalog.find_event(session, event.id))
    output.show(view, as_json=as_json, people=lambda: output.card(f"Webhook event {view['id']}", view))
    if view["state"] == EventState.PARKED or (view["state"] == EventState.APPLIED and view["error"]):
        raise Unsound(f"event {view['id']} could not be applied: {view['error']}")
    if view["state"] == EventState.UNMATCHED:
        output.warn("nothing here belongs to this event yet; it is tried again by itself")


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
        found = lists.list_events(billing.parts, state=state)
        output.show_list(found, EVENT_COLUMNS, limit=limit, after=after, as_json=as_json, empty="no such event")


# ----------------------------------------------------------------------------------------- the stop of it all


@charging.command("show")
def show_charging(as_json: AsJson = False) -> None:
    """Say whether charging is stopped, and why; and where the gateway has told us to wait or to go slower."""
    with opened() as billing, billing.parts.reading() as session:
        found = quota.standing(session)
        view = lists.show_charging_stop(session) | {
            "paused": [{"endpoint": name, "until": instant(until)} for name, until in found.paused.items()],
            "learned_limits": [
                {"endpoint": name, "requests_per_minute": limit} for name, limit in found.learned_limits.items()
            ],
            "channels_down": channels_down(session),
        }
    output.show(view, as_json=as_json, people=lambda: _people_charging(view))


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
    reason = check_text("--reason", reason, longest=LONGEST_TEXT)
    with opened() as billing:
        with billing.parts.transaction() as session:
            queries.stop_charging(session, f"by an operator: {reason}", billing.parts.clock.now())
        with billing.parts.reading() as session:
            view = lists.show_charging_stop(session)
    output.show(view, as_json=as_json, people=lambda: output.say(f"Charging is stopped: {view['reason']}"))


@charging.command("resume")
def resume_charging(as_json: AsJson = False) -> None:
    """Charge again, after what stopped it (a refused key, a missing permission) has been put right.

    Endpoints that the gateway has closed are opened, and the limits its answers have told are forgotten. Channels that
    were down, and payment methods that Xendit did not know, are tried again.
    """
    with opened() as billing:
        with billing.parts.transaction() as session:
            lifted = queries.lift_charging_stop(session)
            opened_again = quota.lift(session)
            channels = breaker.lift(session)
            queries.ask_unknown_tokens_now(session, billing.parts.clock.now())
        for channel in channels:
            parking.let_go(billing.parts, breaker.waits_for(channel))
        with billing.parts.reading() as session:
            view = lists.show_charging_stop(session)
    text = "Charging goes on with the next run or tick." if lifted else "Charging was not stopped."
    if opened_again:
        text += f" Pauses and limits of {opened_again} endpoint(s) are lifted."
    if channels:
        text += f" Tried again: {', '.join(channels)}."
    output.show(view, as_json=as_json, people=lambda: output.say(text))


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
    with opened(*((GATEWAY,) if verify else ())) as billing, _lines(file) as lines, output.progress("rows") as moved:
        report = import_rows.import_rows(
            billing.parts,
            lines,
            dry_run=dry_run,
            verify_with_gateway=verify,
            progress=lambda rows: moved(rows, None),
            warn=warnings.append,
        )
    _warn_of_rows(file, report, warnings)
    output.show(report, as_json=as_json, people=lambda: _people_import(report, dry_run=dry_run))
    if report["refused"]:
        raise Unsound(f"{len(report['refused'])} row(s) refused; mend them and import the file again")


@contextmanager
def _lines(file: str) -> Iterator[TextIO]:
    if file == "-":
        stdin = getattr(sys.stdin, "buffer", None)
        if stdin is None:  # text already
            yield sys.stdin
            return
        with import_files.lines_of(file, stdin) as lines:
            yield lines
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(f"cannot read {file}: {reason}; name a file of JSON lines, or - for stdin") from None
    with stream, import_files.lines_of(file, stream) as lines:
        yield lines


def _warn_of_rows(file: str, report: Json, warnings: list[str]) -> None:
    for text in warnings[: output.MANY]:
        output.warn(text)
    if len(warnings) > output.MANY:
        output.warn(f"... and {len(warnings) - output.MANY} more rows like these")
    if not any(report.values()):
        output.warn(f"{file} holds no row; is it the file you mean?")


def _people_import(report: Json, *, dry_run: bool) -> None:
    tense = "Would create" if dry_run else "Created"
    output.say(f"{tense} {report['created']}, unchanged {report['unchanged']}, refused {len(report['refused'])}.")
    output.some_of(report["refused"], REFUSED_COLUMNS, title="Refused rows")
