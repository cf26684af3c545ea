"""What an answer's headers say about the quota, read strictly. Called by refusals.py and by billing/app.py.

Others write these headers: a proxy, a gateway with a wrong clock, a mistake. What is not a plain number is as good as
nothing, and no wait is longer than an hour.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from billing.domain.gateway import LONGEST_PAUSE_SECONDS

WINDOW_SECONDS = 60.0  # of Xendit's quota: what is waited when no header says more
SHORTEST_WAIT_SECONDS = 1.0
HEADERS = ("rate-limit-limit", "rate-limit-remaining", "rate-limit-reset", "retry-after")
_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rates:
    """`limit` and `remaining` of the window, None when they are not told."""

    limit: int | None
    remaining: int | None
    wait_seconds: float | None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Rates:
        named = (_number(headers.get(name)) for name in ("rate-limit-reset", "retry-after"))
        wait = next((seconds for seconds in named if seconds is not None), None)
        return cls(
            limit=_whole(headers.get("rate-limit-limit")),
            remaining=_whole(headers.get("rate-limit-remaining")),
            wait_seconds=None if wait is None else min(max(wait, SHORTEST_WAIT_SECONDS), LONGEST_PAUSE_SECONDS),
        )

    def wait_or(self, default: float = WINDOW_SECONDS) -> float:
        """Seconds until the gateway takes requests again."""
        return default if self.wait_seconds is None else self.wait_seconds


def _number(header: str | None) -> float | None:
    """`58.37`. An instant (`1795737600`, a date), a sign, an exponent, a list or nothing is None."""
    return float(header) if header is not None and _NUMBER.fullmatch(header.strip()) else None


def _whole(header: str | None) -> int | None:
    number = _number(header)
    return int(number) if number is not None and number.is_integer() else None
