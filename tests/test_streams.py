"""Standard streams that are narrow, closed, or read by nobody: nothing fails because of them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest
import structlog

from billing import log
from billing.streams import Unbreakable, drop, make_safe, readable


def narrow(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)


@pytest.fixture
def read_by_nobody() -> Iterator[TextIO]:
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", encoding="utf-8", buffering=1)  # noqa: PTH123, SIM115
    yield stream
    drop(stream)
    stream.close()


@pytest.mark.parametrize(
    ("encoding", "errors", "shown"),
    [
        ("utf-8", "strict", "Ana Nguyễn ☕"),
        ("utf-16", "strict", "Ana Nguyễn ☕"),
        ("ascii", "strict", r"Ana Nguy\u1ec5n \u2615"),
        ("latin-1", "strict", r"Ana Nguy\u1ec5n \u2615"),
        ("cp1258", "strict", r"Ana Nguy\u1ec5n \u2615"),
        ("ascii", "replace", "Ana Nguy?n ?"),
        ("ascii", "ignore", "Ana Nguyn "),
    ],
)
def test_letters_a_stream_cannot_hold_are_spelled_out_or_as_its_owner_wants(
    encoding: str, errors: str, shown: str
) -> None:
    assert readable("Ana Nguyễn ☕", narrow(encoding, errors)) == shown


def test_a_stream_in_memory_holds_every_letter() -> None:
    assert readable("Ana Nguyễn ☕\x1b", io.StringIO()) == r"Ana Nguyễn ☕\x1b"


def test_streams_that_would_fail_spell_out_and_the_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = narrow("latin-1"), narrow("ascii", "replace")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    make_safe()
    assert (out.errors, err.errors) == ("backslashreplace", "replace")
    out.write("ễ")
    out.flush()
    assert out.buffer.getvalue() == rb"\u1ec5"  # type: ignore[attr-defined]


def test_closed_streams_become_empty_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    make_safe()
    sys.stdout.write("nobody reads this\n")
    assert sys.stdin.read() == ""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def test_log_lines_without_a_reader_are_lost_and_nothing_else(read_by_nobody: TextIO) -> None:
    log = Unbreakable(read_by_nobody)
    for _ in range(3):
        print("charge.submitted", file=log, flush=True)
    with pytest.raises(BrokenPipeError):
        read_by_nobody.flush()


@pytest.fixture
def own_log() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("own_log")
def test_the_work_goes_on_when_nobody_reads_its_log(monkeypatch: pytest.MonkeyPatch, read_by_nobody: TextIO) -> None:
    monkeypatch.setattr(sys, "stderr", read_by_nobody)
    log.configure("console")
    for _ in range(3):
        structlog.get_logger().info("charge.submitted", attempt="att-1")


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_words_of_others_steer_no_log_either(monkeypatch: pytest.MonkeyPatch, log_format: str) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(sys, "stderr", heard)
    log.configure(log_format)
    structlog.get_logger().warning("xendit.refused", error="\x1b[31mno\x9b2J\u202e\nnext line")
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        structlog.get_logger().exception("job.failed")
    said = heard.getvalue()
    assert "no" in said
    assert readable(said, heard, keep="\n") == said
    assert said.startswith("{") or said.splitlines()[1].endswith("job.failed")
