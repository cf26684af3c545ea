"""Charges a second through begin, charge, settle: one process, 64 threads, the simulator at 150 ms."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
from sqlalchemy import func, select

from benchmarks.world import (
    Result,
    database,
    environment,
    fill,
    make_app,
    peak_memory_mib,
    simulator,
    simulator_tokens,
)
from billing.app import App, work_on
from billing.services import dispatch
from billing.store.models import Capture

THREADS = 64
LATENCY_MS = 150
GOAL = 250


def main(charges: int = 5_000) -> list[Result]:
    with database() as database_url:
        os.environ.update(environment(database_url))
        with simulator(latency_ms=LATENCY_MS) as url:
            app = make_app(database_url, BILLING_XENDIT_BASE_URL=url, BILLING_MAX_IN_FLIGHT="10000")
            fill(app, subscriptions=charges, due=charges, tokens=simulator_tokens(url, charges))
            dispatch.open_all_due(app.parts, app.parts.clock.now())
            rate = _charge_all(app, charges)
            ledger = httpx.get(f"{url}/_simulator/ledger?summary=1", timeout=30).json()
            captured = ledger["totals"]["IDR"]["count"]
            app.close()
    return [
        Result(
            f"charges through begin, charge, settle ({THREADS} threads, gateway at {LATENCY_MS} ms)",
            f"{rate:.0f}/s",
            f">= {GOAL}/s",
            rate >= GOAL,
        ),
        Result("captures at the gateway for as many due", f"{captured} of {charges}", "equal", captured == charges),
        Result("peak memory of that process", f"{peak_memory_mib():.0f} MiB", "", met=True),
    ]


def _charge_all(app: App, charges: int) -> float:
    with ThreadPoolExecutor(THREADS) as pool:

        def send(kind: str, ids: Sequence[str]) -> None:
            for future in [pool.submit(work_on, app.parts, kind, identity) for identity in ids]:
                future.add_done_callback(lambda done: done.result())

        started = time.perf_counter()
        dispatch.hand_out_charges(app.parts, send)
        pool.shutdown(wait=True)
        seconds = time.perf_counter() - started
    with app.parts.sessions() as session:
        settled = session.scalar(select(func.count()).select_from(Capture)) or 0
    if settled != charges:
        raise SystemExit(f"{settled} of {charges} charges were settled")
    return charges / seconds


if __name__ == "__main__":
    for result in main():
        print(result)
