"""Peak memory of worker and scheduler: a run of 100,000 against one of 1,000, real processes, the gateway at 0 ms."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.world import Result, Servers, fill, peak_mib, servers, site, sleep_until, soon, start_ours

PROCESSES, THREADS = 2, 16
ALLOWED = 1.15
LONGEST_RUN_SECONDS = 480


@dataclass(frozen=True, slots=True)
class Peak:
    worker: float
    scheduler: float
    rate: float


def main(*, quick: bool = False) -> list[Result]:
    few, many, fewer = (200, 1_000, 1_000) if quick else (1_000, 100_000, 30_000)
    with servers() as shared:
        small = _run(shared, few)
        if many / small.rate > LONGEST_RUN_SECONDS:
            many = fewer
        large = _run(shared, many)
    return [
        _result("a worker process", many, few, large.worker, small.worker),
        _result("the scheduler", many, few, large.scheduler, small.scheduler),
        Result(f"charges/s of that run of {many:,} (gateway at 0 ms, no webhooks)", f"{large.rate:.0f}"),
    ]


def _result(whose: str, many: int, few: int, large: float, small: float) -> Result:
    growth = large / small
    figure = f"{large:.0f} MiB against {small:.0f} MiB ({growth:.2f})"
    return Result(f"peak memory of {whose}, {many:,} due against {few:,}", figure, f"<= {ALLOWED}", growth <= ALLOWED)


def _run(shared: Servers, charges: int) -> Peak:
    url = shared.new_ours("memory")
    with site(shared, url, BILLING_MAX_IN_FLIGHT="1000") as here:
        start_ours(here, processes=PROCESSES, threads=THREADS, webhooks=False)
        due_at = soon(charges)
        fill(url, subscriptions=charges, due={due_at: charges}, tokens=here.gateway.new_tokens(charges))
        sleep_until(due_at)
        started = time.monotonic()
        here.wait(lambda: here.gateway.captured() >= charges, f"{charges} charges", seconds=60 + charges / 50)
        seconds = time.monotonic() - started
        return Peak(peak_mib(here.pids["worker"]), peak_mib(here.pids["scheduler"]), charges / seconds)
