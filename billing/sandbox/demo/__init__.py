"""`billing demo`: a whole subscriber base lived through, month after month, with nothing to install and no money.

    cast.py     who takes part, and what life has in store for them; the same seed, the same cast
    stage.py    PostgreSQL, Valkey, the simulator, web, workers and scheduler: real processes, gone at the end
    year.py     the months, from one due instant to the next: cron, the merchant's office and the customers
    figures.py  both ledgers read and compared, the calendar counted anew, one subscriber's story
    screen.py   ticker, progress and report;   phrases.py  facts in a few words

Called by billing/sandbox/commands/demo.py. Everything the product does here it does as in production.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from billing.sandbox.demo.cast import cast
from billing.sandbox.demo.figures import Figures, gather, summary
from billing.sandbox.demo.screen import Screen
from billing.sandbox.demo.stage import set_up
from billing.sandbox.demo.year import Year
from billing.sandbox.processes import signals_end_us

CUSTOMERS, MONTHS, SEED = 100, 12, 7  # some 40 seconds on two cores


def run_demo(
    *, customers: int | None = None, months: int | None = None, seed: int | None = None, as_json: bool = False
) -> int:
    """The exit status: 0, or 1 when the ledgers disagree or the doctor finds something.

    With `as_json` the progress goes to stderr and stdout gets one JSON document. Raises ServiceUnavailable when a
    process cannot be started or dies.
    """
    customers, months, seed = customers or CUSTOMERS, months or MONTHS, SEED if seed is None else seed
    started = time.monotonic()
    screen = Screen(months=months, to_stderr=as_json)
    screen.opening(customers=customers, seed=seed)
    with signals_end_us(), set_up() as stage:
        screen.ready()
        with screen.playing():
            Year(stage, cast(customers, months, seed), months, screen).play()
        figures = gather(stage)
    seconds = time.monotonic() - started
    if as_json:
        _print_json({"customers": customers, "months": months, "seed": seed}, figures, seconds)
    else:
        screen.report(figures, customers=customers, seconds=seconds)
    return 0 if figures.proof.holds else 1


def _print_json(asked: dict[str, Any], figures: Figures, seconds: float) -> None:
    document = asked | summary(figures) | {"seconds": round(seconds, 1)}
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.stdout.flush()
