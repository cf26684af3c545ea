"""Peak memory of lists: `billing ... list --json` as a process of its own, over 100,000 rows and over 1,000."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass

from sqlalchemy import text

from benchmarks.world import BenchmarkFailed, Result, fill, servers, soon
from billing.store.engine import make_engine

COMMANDS = (("invoice", "list"), ("subscription", "list"), ("customer", "list"))
ALLOWED_GROWTH = 1.15
# The kernel counts what a process was before its exec as well: a small one in between starts the command.
LAUNCHER = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
# Each subscription's first period, opened and once tried: written straight into the tables.
ROWS = """
INSERT INTO invoices (id, number, subscription_id, period_key, period_index, period_start, period_end, amount_minor,
    currency, status, opened_at)
SELECT 'inv-' || id, reference || '-1', id, 'k', 0, now(), now() + interval '1 month', amount_minor, currency,
    'open', now()
FROM subscriptions;
INSERT INTO charge_attempts (id, reference_id, invoice_id, subscription_id, number, origin, status, amount_minor,
    currency, scheduled_at, created_at)
SELECT 'att-' || id, 'att-' || id, 'inv-' || id, id, 1, 'schedule', 'scheduled', amount_minor, currency, now(), now()
FROM subscriptions;
"""


@dataclass(frozen=True, slots=True)
class Listed:
    peak_mib: float
    seconds: float


def main(*, quick: bool = False) -> list[Result]:
    few, many = (500, 5_000) if quick else (1_000, 100_000)
    with servers() as shared:
        small, large = (_measure(shared.new_ours(f"lists{rows}"), rows) for rows in (few, many))
    results = []
    for command in COMMANDS:
        before, after = small[command], large[command]
        growth = after.peak_mib / before.peak_mib
        results.append(
            Result(
                f"peak memory of `billing {' '.join(command)} --json`, {many:,} rows against {few:,}",
                f"{after.peak_mib:.0f} MiB against {before.peak_mib:.0f} MiB ({growth:.2f}); {after.seconds:.1f} s",
                f"<= {ALLOWED_GROWTH}",
                growth <= ALLOWED_GROWTH,
            )
        )
    return results


def _measure(url: str, rows: int) -> dict[tuple[str, str], Listed]:
    fill(url, subscriptions=rows, due={soon(rows): 0}, tokens=[f"pt-of-{number}" for number in range(rows)])
    engine = make_engine(url, pool_size=1)
    with engine.begin() as connection:
        connection.execute(text(ROWS))
    engine.dispose()
    return {command: _list(url, command) for command in COMMANDS}


def _list(url: str, command: tuple[str, str]) -> Listed:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "billing", *command, "--json"],
        env={**os.environ, "BILLING_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkFailed(f"`billing {' '.join(command)} --json` ended with status {done.returncode}")
    return Listed(int(done.stdout) / 1024, time.monotonic() - started)
