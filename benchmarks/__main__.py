"""`make bench`: every benchmark, one table with the machine and the date; exit status 1 when a goal is missed."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from benchmarks import charging, memory, opening, statements, webhooks
from benchmarks.world import Result


def main() -> int:
    console = Console(width=120)
    results: list[Result] = []
    for benchmark in (statements, opening, charging, webhooks, memory):
        console.print(f"{benchmark.__name__.rsplit('.', maxsplit=1)[-1]} ...", style="dim")
        results += benchmark.main()
    today = datetime.now(UTC).date().isoformat()
    table = Table(title=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {today}")
    for column in ("measure", "figure", "goal", ""):
        table.add_column(column)
    for result in results:
        table.add_row(
            result.measure, result.figure, result.goal, "" if not result.goal else "met" if result.met else "MISSED"
        )
    console.print(table)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
