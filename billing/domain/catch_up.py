"""Which of several due periods are billed after an outage or a late start: the plan's catch-up policy.

Called by subscriptions/open_periods.py. Every due period ends in exactly one of `bill`, `skip` (recorded) or a hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from billing.domain.schedule import Period

MOST_AT_ONCE = 12  # periods of one subscription in one run; beyond that a person looks before money moves


class CatchUp(StrEnum):
    ALL = "all"  # bill every missed period, oldest first
    LATEST = "latest"  # bill only the running one
    SKIP = "skip"  # charge nothing until the next due date
    HOLD = "hold"  # charge nothing, stop and ask


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with the due periods. With `hold` set, `bill` comes first and the rest waits."""

    bill: tuple[Period, ...] = ()
    skip: tuple[Period, ...] = ()
    hold: str | None = None


def decide(policy: CatchUp, due: Sequence[Period], *, limit: int = MOST_AT_ONCE) -> Decision:
    """Split the due periods, oldest first.

    A period is missed when a later one has started as well; a single due period is billed however late it is.
    """
    periods = tuple(due)
    if len(periods) <= 1:
        return Decision(bill=periods)
    match policy:
        case CatchUp.ALL:
            return Decision(bill=periods[:limit], hold=_too_many(periods, limit))
        case CatchUp.LATEST:
            return Decision(bill=periods[-1:], skip=periods[:-1])
        case CatchUp.SKIP:
            return Decision(skip=periods)
        case CatchUp.HOLD:
            reason = f"{len(periods)} periods are due since {periods[0].key} and the plan's catch-up is hold"
            return Decision(hold=reason)
        case _:
            assert_never(policy)


def _too_many(periods: Sequence[Period], limit: int) -> str | None:
    if len(periods) <= limit:
        return None
    since = periods[0].key
    return f"more than {limit} periods are due since {since}; {limit} are billed, the rest waits for a person"
