"""Charges that wait for something beside their time, a run or a channel: parked and let go in portions.

A hundred thousand may wait for the same. Each portion is a transaction of its own: none holds so many rows, and one
that is cut short has lost nothing, because what they wait for is a state elsewhere. Called by steering, charging and
guards.
"""

from __future__ import annotations

from billing.parts import Parts
from billing.store import queries, run_queries


def let_go(parts: Parts, cause: str) -> int:
    """Everything that waits for `cause` may be claimed again; returns how many. What is parked for it meanwhile, by
    somebody who has not heard, is let go by the next look (guards.watch)."""
    released = 0
    while True:
        with parts.transaction() as session:
            portion = queries.unpark(session, cause)
        released += portion
        if portion < queries.PARKED_AT_ONCE:
            return released


def hold_run(parts: Parts, run_id: str, error: str) -> None:
    """Nothing of this run is claimed until it is let go. Its state alone holds it: this spares the workers the
    question."""
    while True:
        with parts.transaction() as session:
            portion = run_queries.park_free(session, run_id, error, queries.PARKED_AT_ONCE)
        if portion < queries.PARKED_AT_ONCE:
            return
