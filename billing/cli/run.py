"""`billing run`: one pass over what is due. Without Redis it does the work here; with Redis the workers do."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated

import typer

from billing.app import App
from billing.cli import output
from billing.cli.opening import GATEWAY, opened, sender
from billing.cli.values import INSTANT, INSTANT_HELP, AsJson, parse_instant
from billing.errors import ServiceUnavailable
from billing.services import runs
from billing.services.views import Json, instant
from billing.settings import Settings, load_settings
from billing.store.clock import require_test_clock, set_test_clock

TOTALS = ("opened", "attempted", "succeeded", "failed", "pending", "in_doubt", "waiting")
SKIPPED_COLUMNS = {"subscription": "subscription_id", "reason": "reason"}
PLANNED_COLUMNS = {
    "customer": "customer",
    "amount": "amount",
    "period from": "period_start",
    "token": "payment_token_id",
    "channel": "channel_code",
    "note": "note",
    "subscription": "subscription_id",
}


def run(
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
    as_json: AsJson = False,
) -> None:
    """Open what is due and charge it. Safe to start twice at once, and as often as you like.

    Without Redis this command does the work and returns when nothing is due: enough for a cron entry.

    Example: billing run --dry-run --at 2026-03-01T00:00:00+07:00
    """
    if dry_run:
        _dry_run(at, as_json=as_json)
        return
    settings = load_settings("database_url", GATEWAY)
    if at is not None:
        require_test_clock(settings.test_clock)
    report = _run(settings, at, wait=wait)
    output.show(report, as_json=as_json, people=lambda: _people(report))
    _refuse_if_stuck(report)


def _run(settings: Settings, at: datetime | None, *, wait: bool) -> Json:
    with opened(settings=settings, log_level=logging.WARNING) as billing:
        as_of = _move_clock(billing, at) if at is not None else None
        with sender(billing) as (send, by_workers), output.progress("charging") as moved:

            def follow(totals: Json) -> None:
                moved(totals["attempted"], totals["attempted"] + totals["waiting"])

            if by_workers:
                report = runs.run_on_workers(billing.parts, send, as_of, follow, wait=wait)
            else:
                report = runs.run_here(billing.parts, send, as_of, follow)
    if by_workers and not wait:
        output.note("handed to the workers; `billing run --wait` follows them to the end")
    return report | {"at": instant(at)} if at is not None else report


def _refuse_if_stuck(report: Json) -> None:
    """The report is out; but a run that charged nothing because nothing could be charged is no success."""
    if report["stopped"]:
        raise ServiceUnavailable(
            f"charging is stopped: {report['stopped']}; put it right, then `billing charging resume`"
        )
    if report["waiting"] and report["not_sent"]:
        text = f"{report['waiting']} charge(s) could not be sent yet: {report['not_sent']}; the next run sends them"
        if not report["attempted"]:
            raise ServiceUnavailable(text)
        output.warn(text)


def _move_clock(billing: App, at: datetime) -> datetime | None:
    """Later than now: the clock goes there, and the run follows it, so that what its own charges plan for at once is
    done as well. Earlier: as of that time."""
    if at <= billing.parts.clock.now():
        return at
    with billing.parts.transaction() as session:
        set_test_clock(session, at)
    return None


def _dry_run(at: datetime | None, *, as_json: bool) -> None:
    with opened() as billing:
        report = runs.dry_run(billing.parts, at)
    output.show(report, as_json=as_json, people=lambda: _people_dry(report))


def _people(report: Json) -> None:
    totals = {name: report.get(name, 0) for name in TOTALS}
    output.card(f"Billing run {report['run_id']} as of {output.instant(report['at'])}", totals)
    output.some_of(report["skipped"], SKIPPED_COLUMNS, title="Skipped")


def _people_dry(report: Json) -> None:
    sums = [output.money(amount, currency) for currency, amount in report["totals"].items()]
    output.say(f"As of {output.instant(report['at'])}: {report['attempted']} charge(s), {', '.join(sums) or 'nothing'}")
    output.some_of(report["planned"], PLANNED_COLUMNS, title="Would be charged")
    output.some_of(report["skipped"], SKIPPED_COLUMNS, title="Would be skipped")
    output.note("a dry run: nothing was written, nobody was charged")
