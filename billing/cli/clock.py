"""`billing clock`: the test clock, one for every process on this database. Refused without BILLING_TEST_CLOCK=true."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import typer

from billing.cli import output
from billing.cli.opening import opened
from billing.cli.values import INSTANT, INSTANT_HELP, AsJson, parse_duration, parse_instant

app = typer.Typer(no_args_is_help=True)


@app.command("show")
def show(as_json: AsJson = False) -> None:
    """Say what time it is for billing."""
    with opened() as billing:
        output.show(billing.clock.show(), _people, as_json=as_json)


@app.command("set")
def set_(
    to: Annotated[
        datetime, typer.Argument(parser=parse_instant, metavar=INSTANT, help=INSTANT_HELP, show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Set the test clock, forwards or backwards; from there it runs on at its normal pace.

    Example: billing clock set 2026-01-31T09:00:00+07:00
    """
    with opened() as billing:
        output.show(billing.clock.set(to), _people, as_json=as_json)


@app.command("advance")
def advance(
    by: Annotated[
        timedelta,
        typer.Argument(
            parser=parse_duration, metavar="DURATION", help="31d, 12h, 1d12h; units s m h d w.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Move the test clock forward.

    Example: billing clock advance 31d
    """
    with opened() as billing:
        output.show(billing.clock.advance(by), _people, as_json=as_json)


def _people(view: output.Json) -> None:
    output.say(f"It is now {view['now']}.")
