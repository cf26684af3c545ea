"""`make bench`, or `python -m benchmarks [--quick] [NAME...]`: one table with the machine and the date.

Exit status 1 when a goal is missed or a benchmark failed. `--quick`: small sizes, to see that everything works.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from subprocess import TimeoutExpired

import httpx
import psycopg
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.world import BenchmarkFailed, Result, nowhere
from billing.errors import BillingError

NAMES = (
    "throughput",
    "quota",
    "waiting",
    "million",
    "memory",
    "webhooks",
    "statements",
    "lists",
    "commands",
    "trace",
    "imports",
)


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    asked.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=", ".join(NAMES))
    asked.add_argument("--quick", action="store_true", help="small sizes: shows that it works, not how fast it is")
    options = asked.parse_args()
    console = Console(width=150)
    results: list[Result] = []
    with nowhere():
        for name in options.names or NAMES:
            results += _run(name, console, quick=options.quick)
    console.print(_table(results, quick=options.quick))
    return 0 if all(result.met for result in results) else 1


def _run(name: str, console: Console, *, quick: bool) -> list[Result]:
    console.print(f"{name} ...", style="dim")
    started = time.monotonic()
    try:
        found: list[Result] = importlib.import_module(f"benchmarks.{name}").main(quick=quick)
    except (BenchmarkFailed, BillingError, httpx.HTTPError, SQLAlchemyError, psycopg.Error, TimeoutExpired) as error:
        found = [Result(name, f"failed: {str(error).splitlines()[0]}", "to run", met=False)]
    console.print(f"{name}: {time.monotonic() - started:.0f} s", style="dim")
    return found


def _table(results: list[Result], *, quick: bool) -> Table:
    machine = f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    title = f"{machine}, {datetime.now(UTC):%d %b %Y %H:%M} UTC{', quick: the sizes prove nothing' if quick else ''}"
    table = Table(title=title)
    for column in ("measure", "figure", "goal", ""):
        table.add_column(column, overflow="fold")
    for result in results:
        table.add_row(
            result.measure, result.figure, result.goal, "" if not result.goal else "met" if result.met else "MISSED"
        )
    return table


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
