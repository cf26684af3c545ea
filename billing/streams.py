"""The standard streams, whatever terminal, pipe or nothing at all is behind them.

Called by cli/__init__.py before a command runs, by cli/output.py for every text that leaves, by log.py.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from billing.domain.names import visible

_FILES = (0, 1, 2)
_FAILING = ("strict", "surrogateescape")  # ways to treat a letter the stream cannot hold
_SPELLED_OUT = "backslashreplace"


def make_safe() -> None:
    """Nobody's output fails because of where it goes. A closed stream becomes an empty one: otherwise the next file or
    connection that is opened would get its number, and what is printed would land there."""
    for number in _FILES:
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 - for as long as we live
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _FAILING:
            stream.reconfigure(errors=_SPELLED_OUT)


def readable(text: str, stream: TextIO, *, keep: str = "") -> str:
    """As this stream can show it: nothing that steers a terminal, and what its encoding has no letter for spelled out
    before anybody measures how wide it is."""
    text = visible(text, keep=keep)
    if holds_every_letter(stream):
        return text
    errors = stream.errors if stream.errors and stream.errors not in _FAILING else _SPELLED_OUT
    return text.encode(stream.encoding, errors).decode(stream.encoding)


def holds_every_letter(stream: TextIO) -> bool:
    """A stream without an encoding is one in memory."""
    return not stream.encoding or codecs.lookup(stream.encoding).name.startswith("utf-")


def drop(stream: TextIO) -> None:
    """What could not be written stays in Python's buffer; without this it would complain once more at the very end."""
    with suppress(OSError, ValueError):  # a stream without a file has nothing to drop
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Unbreakable(io.TextIOBase):
    """For log lines: when nobody reads them any more they are lost, and the work goes on."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()
