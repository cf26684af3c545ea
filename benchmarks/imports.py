"""`billing import` as a process of its own: rows a second and peak memory, for new rows and for the same file again.

The servers run on the same machine, so that two cores do the work of both. The time that the process takes to start is
taken off: that of an import of nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.lists import LAUNCHER
from benchmarks.world import BenchmarkFailed, Result, servers

GOAL = 3_000  # rows a second
ALLOWED_BYTES = 1_024  # of memory for each row more
PLAN = ("plan", "create", "gold", "--name", "Gold", "--amount", "50000", "--currency", "IDR", "--every", "month")
LAUNCHER_KEEPS_OUTPUT = LAUNCHER.replace("stdout=subprocess.DEVNULL", "stdout=sys.stderr")


@dataclass(frozen=True, slots=True)
class Taken:
    rate: float
    peak_mib: float


def main(*, quick: bool = False) -> list[Result]:
    few, many = (1_000, 5_000) if quick else (20_000, 100_000)
    results: list[Result] = []
    with servers() as shared, tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for rows in (few, many):
            url = shared.new_ours(f"imports{rows}")
            _run(url, *PLAN)
            nothing = Path(folder) / "nothing.jsonl"
            nothing.touch()
            started = time.monotonic()
            _run(url, "import", str(nothing))
            start = time.monotonic() - started
            file = Path(folder) / f"{rows}.jsonl"
            with file.open("w", encoding="utf-8") as stream:
                stream.writelines(_rows(rows))
            for what, flags, report in (
                ("a dry run", ("--dry-run",), {"created": rows, "unchanged": 0, "refused": []}),
                ("new", (), {"created": rows, "unchanged": 0, "refused": []}),
                ("unchanged", (), {"created": 0, "unchanged": rows, "refused": []}),
            ):
                taken = _import(url, file, rows, flags, report, start)
                peaks[what, rows] = taken.peak_mib
                measure = f"rows/s of `billing import`, {rows:,} rows, {what} (peak {taken.peak_mib:.0f} MiB)"
                results.append(Result(measure, f"{taken.rate:.0f}", f">= {GOAL}", taken.rate >= GOAL))
    grown = (peaks["new", many] - peaks["new", few]) * 2**20 / (many - few)
    measure = "memory for each row more"
    return [*results, Result(measure, f"{grown:.0f} bytes", f"<= {ALLOWED_BYTES}", grown <= ALLOWED_BYTES)]


def _rows(number: int) -> Iterator[str]:
    """Each of another customer, but for one in ten who has a second subscription; due at every half hour of a month."""
    begin = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    for each in range(number):
        who = each - 1 if each % 10 == 9 else each
        yield (
            json.dumps(
                {
                    "customer_reference": f"customer-{who:07}",
                    "name": f"Subscriber Number {who}",
                    "email": f"subscriber-{who}@example.com",
                    "country": "ID",
                    "plan": "gold",
                    "subscription_reference": f"subscription-{each:07}",
                    "payment_token_id": f"pt-00000000-0000-4000-8000-{who:012}",
                    "channel_code": "CARDS",
                    "next_billing_at": (begin + timedelta(minutes=30 * (each % 1_440))).isoformat(),
                    "xendit_customer_id": f"cust-00000000-0000-4000-8000-{who:012}",
                }
            )
            + "\n"
        )


def _import(url: str, file: Path, rows: int, flags: tuple[str, ...], right: dict[str, object], start: float) -> Taken:
    started = time.monotonic()
    done = _run(url, "import", str(file), *flags, "--json")
    seconds = time.monotonic() - started
    if json.loads(done.stderr) != right:
        raise BenchmarkFailed(f"`billing import` of {rows} rows reported otherwise than {right}")
    return Taken(rows / (seconds - start), int(done.stdout) / 1024)


def _run(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LAUNCHER_KEEPS_OUTPUT, sys.executable, "-m", "billing", *words]
    environment = {**os.environ, "BILLING_DATABASE_URL": url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkFailed(f"`billing {' '.join(words)}` ended with status {done.returncode}: {done.stderr[-300:]}")
    return done
