"""What people type: instants, days, durations."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
import typer

from billing.cli.values import parse_day, parse_duration, parse_instant


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T09:00:00+07:00",
        "2026-01-31T02:00:00Z",
        "2026-01-31 02:00Z",
        "2026-01-31t02:00:00z",
        "2026-01-31T09:00+0700",
    ],
)
def test_one_instant_in_many_spellings(text: str) -> None:
    assert parse_instant(text) == datetime(2026, 1, 31, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "2026-01-31", "2026-01-31T09:00:00", "2026-02-30T09:00:00Z", "2026-01-31T25:00:00Z", "1999-01-31T09:00:00Z",
     "9999-12-31T23:59:59-12:00", "2026-W05-6T09:00:00Z", "now", "2026-01-31T09:00:00+99:00"],
)  # fmt: skip
def test_what_is_no_instant_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"2026-01-31T09:00:00\+07:00|a year from 2000"):
        parse_instant(text)


def test_a_day() -> None:
    assert parse_day("2026-01-31") == date(2026, 1, 31)
    for text in ("2026-02-30", "20260131", "2026-W05-6", "today"):
        with pytest.raises(typer.BadParameter, match="2026-01-31"):
            parse_day(text)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("31d", timedelta(days=31)),
        ("1d12h", timedelta(hours=36)),
        ("2W", timedelta(weeks=2)),
        ("90s", timedelta(seconds=90)),
        ("5m", timedelta(minutes=5)),
    ],
)
def test_durations(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["", "d", "1", "1x", "-1d", "1.5d", "1d 12h", "999999999w", "٣d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"such as 31d|at most"):
        parse_duration(text)
