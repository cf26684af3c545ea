"""How far a reader has to go: the files and functions of one ordinary charge, counted as they are entered.

One renewal of a card, from the tick that finds it due until its answer is settled; then one by `billing run` without
Redis, the start and the report of the run included. Definitions of classes and what is generated for them (attribute
access, dataclass methods) are no functions that are read, and a `with` block or a loop that goes on in a generator is
no new call of it. What a thread of a pool begins with was handed to the pool by its own file: no change of file.
`python -m benchmarks.trace` lists the files of the first, in the order in which they are entered.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from inspect import CO_GENERATOR
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import psycopg

from benchmarks.world import Result, Site, expect, fill, make_app, nowhere, plain, servers, site
from billing.app import App
from billing.cli import run_command
from billing.runs.tick import tick
from billing.work import InProcess

OURS = f"{Path(__file__).resolve().parent.parent}{os.sep}"
MOST_FILES, MOST_CHANGES = 16, 60
MOST_FILES_OF_RUN, MOST_CHANGES_OF_RUN = 24, 220
_HERE = f"{OURS}benchmarks{os.sep}"


@dataclass(slots=True)
class Trace:
    """Files and functions in the order of their first call, and how often a call led into another file."""

    files: dict[str, int] = field(default_factory=dict)
    functions: dict[CodeType, None] = field(default_factory=dict)
    changes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not _is_ours(code) or _goes_on(frame):
            return
        caller = frame.f_back
        while caller is not None and not _is_ours(caller.f_code):
            caller = caller.f_back
        with self._lock:
            self.functions[code] = None
            self.files[code.co_filename] = self.files.get(code.co_filename, 0) + 1
            if caller is not None and caller.f_code.co_filename != code.co_filename:
                self.changes += 1


def _is_ours(code: CodeType) -> bool:
    return (
        code.co_filename.startswith(OURS)
        and not code.co_filename.startswith((_HERE, f"{OURS}."))
        and code.co_name not in ("<module>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<lambda>")
    )


def _goes_on(frame: FrameType) -> bool:
    """A generator that is resumed after a `yield`: the argument of its RESUME is not that of a beginning."""
    code = frame.f_code
    return bool(code.co_flags & CO_GENERATOR) and code.co_code[frame.f_lasti + 1] != 0


@contextmanager
def traced() -> Iterator[Trace]:
    """Of threads that begin in the block, too."""
    trace = Trace()
    threading.setprofile(trace.note)
    sys.setprofile(trace.note)
    try:
        yield trace
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def trace_both() -> tuple[Trace, Trace]:
    with servers() as shared:
        url = shared.new_ours("trace")
        with site(shared, url) as here:
            here.start_simulator(webhook_url="")
            due = datetime.now(UTC) - timedelta(minutes=5)
            fill(url, subscriptions=3, due={due: 3}, tokens=here.gateway.new_tokens(3))
            _set_status(url, "paused", "sub-1", "sub-2", "sub-3")
            return _by_tick(url, here), _by_run(url, here)


def _by_tick(url: str, here: Site) -> Trace:
    """The first charge of a process opens connections and learns the limits; the second is an ordinary one."""
    app = make_app(url, BILLING_XENDIT_BASE_URL=here.gateway.url, BILLING_CHARGES_AT_ONCE="1")
    _charge_once(url, app, "sub-1")
    trace = _charge_once(url, app, "sub-2")
    app.close()
    expect(here.gateway.captured() == 2, "a charge for each of two ticks")
    return trace


def _charge_once(url: str, app: App, subscription: str) -> Trace:
    _set_status(url, "active", subscription)
    with ThreadPoolExecutor() as callers:  # threads that begin now: one that is there already is not traced
        parts = replace(app.parts, callers=callers)
        send = InProcess(parts, 1)
        with traced() as trace:
            tick(parts, send)
        send.close()
    return trace


def _by_run(url: str, here: Site) -> Trace:
    _set_status(url, "active", "sub-3")
    os.environ.update(here.environment, BILLING_REDIS_URL="")
    with redirect_stdout(io.StringIO()), traced() as trace:
        status = run_command(["run", "--json"])
    expect(status == 0 and here.gateway.captured() == 3, "a charge by `billing run`")
    return trace


def _set_status(url: str, status: str, *subscriptions: str) -> None:
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("UPDATE subscriptions SET status = %s WHERE id = ANY(%s)", [status, list(subscriptions)])


def main(*, quick: bool = False) -> list[Result]:  # noqa: ARG001 - there is one size
    by_tick, by_run = trace_both()
    figures = [
        ("files of one charge, from tick to settled", len(by_tick.files), MOST_FILES),
        ("calls into another file, from tick to settled", by_tick.changes, MOST_CHANGES),
        ("functions of one charge, from tick to settled", len(by_tick.functions), 0),
        ("files of one charge by `billing run`", len(by_run.files), MOST_FILES_OF_RUN),
        ("calls into another file by `billing run`", by_run.changes, MOST_CHANGES_OF_RUN),
        ("functions of one charge by `billing run`", len(by_run.functions), 0),
    ]
    return [
        Result(name, str(figure), f"<= {most}" if most else "", met=not most or figure <= most)
        for name, figure, most in figures
    ]


def _print(trace: Trace) -> None:
    by_file: dict[str, list[str]] = {name: [] for name in trace.files}
    for code in trace.functions:
        by_file[code.co_filename].append(code.co_qualname if sys.version_info >= (3, 11) else code.co_name)
    for name, functions in by_file.items():
        print(f"{name.removeprefix(OURS)} ({trace.files[name]} calls): {', '.join(functions)}")
    print(f"{len(trace.files)} files, {len(trace.functions)} functions, {trace.changes} calls into another file\n")


if __name__ == "__main__":
    with nowhere():
        for each in trace_both():
            _print(each)
