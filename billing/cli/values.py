"""What people type, read strictly: instants, days, durations, and the options that many commands share."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

import typer

from billing.api.arguments import FIRST_YEAR, LAST_YEAR

MOST_DAYS = 36_500
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:[0-9]{1,9}[smhdw])+", re.ASCII)
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)


def parse_instant(text: str) -> datetime:
    """ISO 8601 with offset: a time without one means another instant on every machine."""
    written = text.strip().upper()
    example = "write ISO 8601 with an offset, such as 2026-01-31T09:00:00+07:00 or 2026-01-31T02:00:00Z"
    if _INSTANT.fullmatch(written) is None:
        raise typer.BadParameter(f"{text[:40]!r} is no time; {example}")
    try:
        instant = datetime.fromisoformat(written)
    except ValueError:
        raise typer.BadParameter(f"{text[:40]!r} is no time of any calendar; {example}") from None
    if instant.tzinfo is None:
        raise typer.BadParameter(f"{text[:40]!r} has no offset; {example}")
    if not FIRST_YEAR <= instant.year <= LAST_YEAR:
        raise typer.BadParameter(f"{text[:40]!r}: write a year from {FIRST_YEAR} to {LAST_YEAR}")
    return instant.astimezone(UTC)


def parse_day(text: str) -> date:
    """A calendar day of Xendit's list, which is in UTC."""
    example = "write a day such as 2026-01-31"
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text.strip(), re.ASCII) is None:
        raise typer.BadParameter(f"{text[:40]!r} is no day; {example}")
    try:
        day = date.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{text[:40]!r} is no day of any calendar; {example}") from None
    if not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise typer.BadParameter(f"{text[:40]!r}: write a year from {FIRST_YEAR} to {LAST_YEAR}")
    return day


def parse_duration(text: str) -> timedelta:
    """`31d`, `1d12h`, `90s`. Never backwards: `clock set` does that."""
    written = text.strip().lower()
    if _DURATION.fullmatch(written) is None:
        raise typer.BadParameter(f"{text[:40]!r}: write a duration such as 31d, 12h or 1d12h (units s m h d w)")
    parts = re.findall(r"([0-9]+)([smhdw])", written)
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > MOST_DAYS * _SECONDS["d"]:
        raise typer.BadParameter(f"{text[:40]!r}: at most {MOST_DAYS}d at once")
    return timedelta(seconds=seconds)


AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]

Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many.", show_default=False)]
After = Annotated[
    str | None,
    typer.Option("--after", metavar="ID", help="Only what comes after this one: reference or id.", show_default=False),
]

INSTANT = "TIME"
INSTANT_HELP = "ISO 8601 with offset, such as 2026-01-31T09:00:00+07:00."
