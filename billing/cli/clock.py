"""`billing clock`: the test clock, one for every process on this database. Refused without BILLING_TEST_CLOCK=true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated

import typer

from billing.app import App
from billing.cli import output
from billing.cli.opening import opened
from billing.cli.values import INSTANT, INSTANT_HELP, LAST_YEAR, AsJson, parse_duration, parse_instant
from billing.errors import InvalidInput
from billing.reading.views import instant
from billing.settings import load_settings
from billing.store.clock import advance_test_clock, require_test_clock, set_test_clock

app = typer.Typer(no_args_is_help=True)


@contextmanager
def _opened() -> Iterator[App]:
    settings = load_settings("database_url")
    require_test_clock(settings.test_clock)
    with opened(settings=settings) as billing:
        yield billing


@app.command("show")
def show(as_json: AsJson = False) -> None:
    """Say what time it is for billing."""
    with _opened() as billing:
        now = billing.parts.clock.now()
    _show(now, as_json=as_json)


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
    with _opened() as billing:
        with billing.parts.transaction() as session:
            set_test_clock(session, to)
        now = billing.parts.clock.now()
    _show(now, as_json=as_json)


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
    with _opened() as billing:
        with billing.parts.transaction() as session:
            if (billing.parts.clock.now() + by).year > LAST_YEAR:
                raise InvalidInput(f"that is beyond the year {LAST_YEAR}; `billing clock set` goes back")
            advance_test_clock(session, by)
        now = billing.parts.clock.now()
    _show(now, as_json=as_json)


def _show(now: datetime, *, as_json: bool) -> None:
    text = instant(now)
    output.show({"now": text}, as_json=as_json, people=lambda: output.say(f"It is now {text}."))
