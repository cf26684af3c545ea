"""Opening what is due: invoices a second, and whether the cost depends on how many subscriptions exist."""

from __future__ import annotations

import time
from statistics import median

from sqlalchemy import text

from benchmarks.world import Result, database, fill, make_app, peak_memory_mib
from billing.app import App
from billing.services import dispatch

DUE = 10_000


def main() -> list[Result]:
    small, large = _measure(10_000), _measure(1_000_000)
    ratio = large / small
    return [
        Result("opening, 10,000 due of 10,000", f"{DUE / small:,.0f} invoices/s", ">= 2,000/s", DUE / small >= 2_000),
        Result(
            "opening, 10,000 due of 1,000,000", f"{DUE / large:,.0f} invoices/s", ">= 2,000/s", DUE / large >= 2_000
        ),
        Result("time with 1,000,000 rows / with 10,000", f"{ratio:.2f}", "0.80 to 1.20", 0.8 <= ratio <= 1.2),
        Result("peak memory of the process that opens", f"{peak_memory_mib():.0f} MiB", "flat", met=True),
    ]


def _measure(subscriptions: int) -> float:
    """Seconds to open DUE invoices, median of three runs over the same rows."""
    with database() as url:
        app = make_app(url)
        fill(app, subscriptions=subscriptions, due=DUE)
        return median(_open_once(app) for _ in range(3))


def _open_once(app: App) -> float:
    _reset(app)
    now = app.parts.clock.now()
    started = time.perf_counter()
    opened = sum(batch.invoices for batch in dispatch.open_all_due(app.parts, now))
    seconds = time.perf_counter() - started
    if opened != DUE:
        raise SystemExit(f"opened {opened} instead of {DUE}")
    return seconds


def _reset(app: App) -> None:
    """Everything that was opened is due again."""
    with app.parts.transaction() as session:
        session.execute(text("TRUNCATE invoice_lines, charge_attempts, captures, invoices, refunds CASCADE"))
        session.execute(
            text(
                "UPDATE subscriptions SET next_index = 0, next_local = anchor_local, billed_cycles = 0,"
                " next_billing_at = anchor_local AT TIME ZONE 'Asia/Jakarta' WHERE next_index = 1"
            )
        )
    with app.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE subscriptions"))


if __name__ == "__main__":
    for result in main():
        print(result)
