"""Years out of seeds: nothing is charged twice and nothing forgotten, and the same seed is the same year again.

A thousand seeds run in CI beside this (`.ci/run`, `billing simulate --seeds 1000`); these few are for the developer.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from billing.sandbox.simulation import coverage, population
from billing.sandbox.simulation.fate import Fate
from billing.sandbox.simulation.periods import LAST_DAY, CronRule, Rhythm, period_starts
from billing.sandbox.simulation.play import Play
from billing.sandbox.simulation.runner import empty, play_seed

SEEDS = range(900_000, 900_024)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_year_in_which_everything_goes_wrong_breaks_no_promise(engine: Engine, seed: int) -> None:
    lived = play_seed(engine, seed)

    assert not isinstance(lived, str), lived


def history(engine: Engine, seed: int) -> str:
    empty(engine)
    play = Play(seed, engine, subscribers=2)
    play.live_through()
    told = "\n".join(f"{at.isoformat()} {who} {what}" for at, who, what in play.stage.told)
    return hashlib.sha256(told.encode()).hexdigest()


@pytest.mark.timeout(300)  # four years on one core
def test_the_same_seed_is_the_same_year_again(engine: Engine) -> None:
    """To the microsecond and the last id: otherwise a failing seed could not be looked into."""
    assert history(engine, 7) == history(engine, 7)
    assert history(engine, 7) != history(engine, 8)


@pytest.mark.timeout(180)
def test_the_command_tells_what_was_lived_through() -> None:
    """In processes of its own, with a server of its own, and without any setting."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BILLING_")}
    command = [sys.executable, "-m", "billing", "simulate", "--seeds", "4", "--processes", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=170, check=False)

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["seeds"], document["subscriber_years"], document["failures"]) == (4, 8, [])
    assert document["charges"] > 0
    assert {row["what"] for row in document["coverage"]} >= {
        "subscription",
        "invoice",
        "attempt",
        "decline class",
    }


# -------------------------------------------------------------------------------------------- the oracle itself


def starts(rhythm: Rhythm, anchor: datetime, zone: str, count: int) -> list[str]:
    found = period_starts(rhythm, anchor, zone)
    return [next(found).isoformat() for _ in range(count)]


def test_the_oracle_counts_months_as_people_do() -> None:
    """By hand, from a calendar: the 31st, then the last of February, then the 31st again."""
    assert starts(Rhythm("", months=1), datetime(2027, 1, 31, 2, tzinfo=UTC), "Asia/Jakarta", 4) == [
        "2027-01-31T02:00:00+00:00",
        "2027-02-28T02:00:00+00:00",
        "2027-03-31T02:00:00+00:00",
        "2027-04-30T02:00:00+00:00",
    ]


def test_the_oracle_knows_that_clocks_change() -> None:
    """02:30 in New York, weekly: on 14 March 2027 there is no 02:30; the hour after it is taken."""
    assert starts(Rhythm("", days=7), datetime(2027, 3, 7, 7, 30, tzinfo=UTC), "America/New_York", 3) == [
        "2027-03-07T07:30:00+00:00",
        "2027-03-14T07:30:00+00:00",
        "2027-03-21T06:30:00+00:00",
    ]


def test_the_oracle_knows_the_last_day_of_a_month() -> None:
    """From a calendar: 02:30 in Jakarta is 19:30 the day before in UTC."""
    rhythm = Rhythm("cron 30 2 L * *", cron=CronRule(2, 30, days=(LAST_DAY,)))

    assert starts(rhythm, datetime(2027, 1, 31, 0, tzinfo=UTC), "Asia/Jakarta", 3) == [
        "2027-02-27T19:30:00+00:00",
        "2027-03-30T19:30:00+00:00",
        "2027-04-29T19:30:00+00:00",
    ]


def test_an_import_may_have_an_anchor_day_of_its_own() -> None:
    found = period_starts(Rhythm("", months=1), datetime(2027, 2, 28, 2, tzinfo=UTC), "Asia/Jakarta", 31)

    assert [next(found).isoformat()[:10] for _ in range(4)] == ["2027-02-28", "2027-03-31", "2027-04-30", "2027-05-31"]


# ------------------------------------------------------------------------------------------------ the table


def test_what_is_drawn_is_in_the_table() -> None:
    """Whatever a thousand worlds are made of has a cell, and every cell of what can be drawn is drawn."""
    drawn: set[tuple[str, str]] = set()
    for seed in range(1_000):
        fate = Fate(seed)
        population.draw_merchant(fate)
        begin = datetime(2027, 1, 1, tzinfo=UTC)
        population.draw_subscribers(fate, 2, begin, begin + timedelta(days=240))
        drawn |= {(f"drawn: {kind}", option) for kind, option in fate.drawn}

    assert drawn == {cell for cell in coverage.cells() if cell[0].startswith("drawn: ")}


def test_an_empty_cell_is_named() -> None:
    counts = Counter(dict.fromkeys(coverage.cells(), 1))
    assert coverage.empty_cells(counts) == []

    counts["invoice", "open -> void"] = 0
    assert coverage.empty_cells(counts) == [("invoice", "open -> void")]


def test_what_cannot_happen_is_legal_and_has_a_reason() -> None:
    assert set(coverage.CANNOT_HAPPEN) <= set(coverage.cells())
    assert all(coverage.CANNOT_HAPPEN.values())
