"""How much of a 600-a-minute quota a run uses, and whether it ever runs into the wall."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from benchmarks.world import Result, expect, fill, servers, site, sleep_until, soon, start_ours

A_MINUTE = 600
PROCESSES, THREADS = 2, 8


def main(*, quick: bool = False) -> list[Result]:
    rate, charges = (120, 150) if quick else (A_MINUTE, 900)
    with servers() as shared:
        url = shared.new_ours("quota")
        with site(shared, url) as here:
            start_ours(here, processes=PROCESSES, threads=THREADS, rate=rate)
            due_at = soon(charges)
            fill(url, subscriptions=charges, due={due_at: charges}, tokens=here.gateway.new_tokens(charges))
            sleep_until(due_at)
            here.run("billing", "run", seconds=60 + 90 * charges / rate)
            here.wait(
                lambda: here.gateway.captured() >= charges, f"{charges} charges", seconds=60 + 90 * charges / rate
            )
            found = here.gateway.quota()
            duplicates = here.gateway.duplicates()
    arrivals: list[float] = found["arrivals"]
    seconds = arrivals[-1] - arrivals[0]
    use = min(1.0, charges / (rate / 60 * seconds))
    soonest = 60 * ((charges - 1) // rate)  # a full minute at once, and the next as soon as it may go
    fullest = fullest_window(arrivals) / rate
    expect(fullest_window(arrivals) == found["fullest_window"], "the simulator counts its windows wrongly")
    return [
        Result(
            f"use of {rate}/min over {charges} charges, {PROCESSES} x {THREADS} threads",
            f"{use:.1%} ({seconds:.1f} s from the first to the last)", ">= 97 %", use >= 0.97,
        ),
        Result("the soonest a sliding minute allows", f"{soonest:.0f} s ({soonest / seconds:.1%} of it)"),
        Result("fullest sliding minute of that", f"{fullest:.1%}", "<= 100 %", fullest <= 1),
        Result("answered with 429", str(found["refused"]), "0", found["refused"] == 0),
        Result("charged twice", str(duplicates), "0", duplicates == 0),
    ]  # fmt: skip


def fullest_window(arrivals: Sequence[float], *, seconds: float = 60) -> int:
    """The most that lie within any `seconds`, the older end left out."""
    return max(
        (index + 1 - bisect.bisect_right(arrivals, at - seconds) for index, at in enumerate(arrivals)), default=0
    )
