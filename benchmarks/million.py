"""At 1,000,000 subscriptions, each with a paid invoice behind it: what an idle tick costs, and opening 100,000.

`python -m benchmarks.million URL INSTANT` is one opening in a process of its own, for its peak memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import psycopg
from sqlalchemy import Engine, event

from benchmarks.world import BenchmarkFailed, Result, expect, fill, make_app, own_peak_mib, plain, servers
from billing.app import App
from billing.runs import tick

IDLE_TICKS = 50
LARGE_TABLE_ROWS = 10_000
GOAL_RATE, GOAL_IDLE_MS, GOAL_MEMORY = 5_000, 5.0, 1.15

_HISTORY = """
INSERT INTO invoices (id, number, subscription_id, period_key, period_index, period_start, period_end, amount_minor,
  amount_paid_minor, currency, status, opened_at, closed_at)
SELECT 'inv-'||id, 'old-'||id, id, 'before', 0, next_billing_at - interval '1 month', next_billing_at, amount_minor,
  amount_minor, currency, 'paid', next_billing_at - interval '1 month', next_billing_at - interval '1 month'
FROM subscriptions
;
INSERT INTO charge_attempts (id, reference_id, invoice_id, subscription_id, number, origin, status, amount_minor,
  currency, payment_token_id, scheduled_at, submitted_at, settled_at, created_at)
SELECT 'att-'||subscription_id, 'att-old-'||subscription_id, id, subscription_id, 1, 'schedule', 'succeeded',
  amount_minor, currency, 'tok-'||substr(subscription_id, 5), opened_at, opened_at, opened_at, opened_at
FROM invoices
;
VACUUM ANALYZE
"""


@dataclass(frozen=True, slots=True)
class Opening:
    invoices: int
    seconds: float
    peak_mib: float


def main(*, quick: bool = False) -> list[Result]:
    total, due, few = (20_000, 4_000, 200) if quick else (1_000_000, 100_000, 1_000)
    early = datetime.now(UTC) + timedelta(hours=1)
    late = early + timedelta(hours=1)
    with servers() as shared:
        url = shared.new_ours("million")
        fill(url, subscriptions=total, due={early: few, late: due})
        with psycopg.connect(plain(url), autocommit=True) as connection:
            for statement in _HISTORY.split(";"):
                connection.execute(statement)
        idle = _idle_ticks(url, total)
        small, large = _open(url, early, few), _open(url, late, due)
    rate, growth = large.invoices / large.seconds, large.peak_mib / small.peak_mib
    return [
        *idle,
        Result(f"opening {due:,} due of {total:,}", f"{rate:,.0f}/s", f">= {GOAL_RATE:,}/s", rate >= GOAL_RATE),
        Result(
            f"peak memory of the process that opens {due:,}, against {few:,}",
            f"{large.peak_mib:.0f} MiB against {small.peak_mib:.0f} MiB ({growth:.2f})",
            f"<= {GOAL_MEMORY}", growth <= GOAL_MEMORY,
        ),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ opening


def _open(url: str, at: datetime, expected: int) -> Opening:
    command = [sys.executable, "-m", "benchmarks.million", url, (at + timedelta(minutes=1)).isoformat()]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    expect(done.returncode == 0, f"opening failed: {done.stderr.strip()[-300:]}")
    opening = Opening(**json.loads(done.stdout.splitlines()[-1]))
    expect(opening.invoices == expected, f"opened {opening.invoices} instead of {expected}")
    return opening


def open_here(url: str, now: datetime) -> None:
    app = make_app(url)
    started = time.perf_counter()
    opened = sum(batch.invoices for batch in tick.open_all_due(app.parts, now))
    seconds = time.perf_counter() - started
    app.close()
    print(json.dumps({"invoices": opened, "seconds": seconds, "peak_mib": own_peak_mib()}))


# ------------------------------------------------------------------------------------------------ idle ticks


@dataclass(slots=True)
class Watched:
    """The statements of an engine and the time the database took for them, commits and rollbacks included."""

    seconds: float = 0.0
    statements: list[tuple[str, Any]] = field(default_factory=list)
    _started: float = 0.0

    def begin(self) -> None:
        self._started = time.perf_counter()

    def end(self) -> None:
        self.seconds += time.perf_counter() - self._started


def _idle_ticks(url: str, total: int) -> list[Result]:
    app = make_app(url)
    times: list[float] = []
    with watch(app.engine) as watched:
        for number in range(IDLE_TICKS + 1):
            watched.seconds = 0.0
            watched.statements.clear()
            expect(not tick.tick(app.parts, _nobody), "something was due in an idle tick")
            if number:  # the first opens the connection
                times.append(watched.seconds * 1_000)
        asked = list(watched.statements)
    scans = sorted({table for statement in asked for table in _large_scans(app, statement)})
    app.close()
    middle = median(times)
    return [
        Result(
            f"database time of a tick with nothing due of {total:,}",
            f"{middle:.2f} ms ({len(asked)} statements; longest of {len(times)}: {max(times):.2f} ms)",
            f"< {GOAL_IDLE_MS:g} ms", middle < GOAL_IDLE_MS,
        ),
        Result("sequential scans of large tables in it", ", ".join(scans) or "none", "none", not scans),
    ]  # fmt: skip


def _nobody(kind: str, ids: Sequence[str]) -> None:
    raise BenchmarkFailed(f"an idle tick handed out {len(ids)} of {kind}")


@contextmanager
def watch(engine: Engine) -> Iterator[Watched]:
    watched, dialect = Watched(), engine.dialect
    commit, rollback = dialect.do_commit, dialect.do_rollback

    def before(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        watched.statements.append((statement, parameters))
        watched.begin()

    def after(*_: object) -> None:
        watched.end()

    def timed(call: Any) -> Any:
        def run(connection: Any) -> None:
            watched.begin()
            call(connection)
            watched.end()

        return run

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    dialect.do_commit, dialect.do_rollback = timed(commit), timed(rollback)  # type: ignore[method-assign]
    try:
        yield watched
    finally:
        dialect.do_commit, dialect.do_rollback = commit, rollback  # type: ignore[method-assign]
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "after_cursor_execute", after)


def _large_scans(app: App, statement: tuple[str, Any]) -> Iterator[str]:
    text, parameters = statement
    with app.engine.connect() as connection, connection.begin() as undone:
        plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {text}", parameters).scalar_one()
        scanned = list(_scanned(plan[0]["Plan"]))
        sizes: dict[str, float] = dict(connection.exec_driver_sql("SELECT relname, reltuples FROM pg_class").fetchall())
        undone.rollback()
    yield from (table for table in scanned if sizes.get(table, 0) > LARGE_TABLE_ROWS)


def _scanned(node: dict[str, Any]) -> Iterator[str]:
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    for below in node.get("Plans", []):
        yield from _scanned(below)


if __name__ == "__main__":
    open_here(sys.argv[1], datetime.fromisoformat(sys.argv[2]))
