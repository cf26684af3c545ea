"""What the log says while something is away: little, on one line each, and how much was left out."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

import pytest
import redis
import structlog

from billing.log import COMPLAINTS_A_MINUTE, Complaints, FewOfAKind


@dataclass
class Minutes:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def minutes() -> Minutes:
    return Minutes()


@pytest.fixture
def complaints(minutes: Minutes) -> Complaints:
    return Complaints(FewOfAKind(minutes))


def written(complaints: Complaints, event: str, **line: object) -> dict[str, object] | None:
    try:
        return dict(complaints(None, "error", {"event": event, **line}))
    except structlog.DropEvent:
        return None


def test_a_thousand_threads_without_a_database_are_three_lines_a_minute(
    complaints: Complaints, minutes: Minutes
) -> None:
    lines = [written(complaints, "work.put_off", error="the database does not answer", ids=n) for n in range(1_000)]
    minutes.seconds += 61
    [following] = [written(complaints, "work.put_off", error="the database does not answer", ids=7)]

    assert len([line for line in lines if line]) == COMPLAINTS_A_MINUTE
    assert following is not None
    assert following["more_like_it"] == 1_000 - COMPLAINTS_A_MINUTE


def test_another_cause_is_told_at_once(complaints: Complaints) -> None:
    for _ in range(10):
        written(complaints, "scheduler.waiting", error="the database does not answer")

    assert written(complaints, "scheduler.waiting", error="Redis does not answer") is not None


def test_what_concerns_one_subscriber_is_always_written(complaints: Complaints) -> None:
    lines = [written(complaints, "charge.in_doubt", error="no answer", attempt=n) for n in range(50)]

    assert None not in lines


def library_says(complaints: Complaints, name: str, text: str, error: Exception | None = None) -> str | None:
    traced = None
    if error is not None:
        try:
            raise error
        except Exception:  # noqa: BLE001 - with the traceback that a library would log
            traced = sys.exc_info()
    record = logging.LogRecord(name, logging.CRITICAL, "", 0, text, (), traced)
    return logging.Formatter("%(message)s").format(record) if complaints.filter(record) else None


def test_the_consumers_of_dramatiq_say_it_without_a_traceback_and_seldom(complaints: Complaints) -> None:
    """Redis has become a replica: four consumers fail every few seconds."""
    readonly = redis.exceptions.ReadOnlyError("You can't write against a read only replica.")
    said = [
        library_says(complaints, f"dramatiq.worker.ConsumerThread({queue})", "Consumer encountered an error.", readonly)
        for _ in range(20)
        for queue in ("charges", "upkeep", "charges.DQ", "upkeep.DQ")
    ]

    assert [line for line in said if line] == ["Consumer encountered an error. (ReadOnlyError)"] * COMPLAINTS_A_MINUTE


def test_a_bug_in_a_library_keeps_its_traceback(complaints: Complaints) -> None:
    line = library_says(complaints, "dramatiq.worker.WorkerThread", "failed", KeyError("what"))

    assert line is not None
    assert "Traceback" in line
