"""What others have met and reported in public, tried on this software: each a story of surroundings nobody planned."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

import pytest
import structlog

from billing import log
from tests.world import World

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = structlog.get_config()
    yield
    monkeypatch.undo()
    structlog.configure(**before)


def _log_to(stream: TextIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", cast(TextIO, stream))
    log.configure("console")
    structlog.configure(cache_logger_on_first_use=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.usefixtures("logging_as_it_was")
def test_a_full_disk_under_the_log_costs_lines_and_no_charge(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(database_url) as world, Path("/dev/full").open("wb", buffering=0) as disk:
        full = io.TextIOWrapper(cast(io.BufferedIOBase, disk), encoding="utf-8", write_through=True)
        ana = world.subscribe_save()
        world.break_calls("TIMEOUT_AFTER")  # which is worth a warning
        _log_to(full, monkeypatch)

        report = world.run()

        assert (report["in_doubt"], ana.outcomes) == (1, ["in_doubt"])
        world.deliver_webhooks()
        assert ana.invoice.status == "paid"


@pytest.mark.usefixtures("logging_as_it_was")
def test_without_a_stderr_log_lines_go_nowhere_and_not_among_the_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _log_to(None, monkeypatch)
    structlog.get_logger().warning("nobody.hears")
    assert capsys.readouterr().out == ""


def test_every_test_that_the_table_names_is_there() -> None:
    """docs/public-reports.md: a report whose test was renamed or removed is held by nothing."""
    table = (ROOT / "docs" / "public-reports.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", table)

    assert len(named) > len(re.findall(r"^\| \d+ \|", table, re.MULTILINE)) * 3
    gone = [(file, test) for file, test in named if f"def {test}(" not in (ROOT / "tests" / file).read_text()]
    assert gone == []
