"""Xendit's request quota: a sliding minute per endpoint, told in three headers on every answer."""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from billing.xendit.simulator.answers import Headers

_WINDOW_SECONDS = 60.0


@dataclass(slots=True)
class Quota:
    limit: int
    monotonic: Callable[[], float]
    _taken: defaultdict[str, deque[float]]

    def __init__(self, limit: int, monotonic: Callable[[], float]) -> None:
        self.limit = limit
        self.monotonic = monotonic
        self._taken = defaultdict(deque)

    def take(self, endpoint: str) -> bool:
        """False when this minute is used up; a refused call does not count."""
        taken = self._current(endpoint)
        if len(taken) >= self.limit:
            return False
        taken.append(self.monotonic())
        return True

    def headers(self, endpoint: str) -> Headers:
        taken = self._current(endpoint)
        reset = taken[0] + _WINDOW_SECONDS - self.monotonic() if taken else _WINDOW_SECONDS
        return (
            ("rate-limit-limit", str(self.limit)),
            ("rate-limit-remaining", str(max(self.limit - len(taken), 0))),
            ("rate-limit-reset", f"{max(reset, 0):.2f}"),
        )

    def _current(self, endpoint: str) -> deque[float]:
        taken = self._taken[endpoint]
        oldest = self.monotonic() - _WINDOW_SECONDS
        while taken and taken[0] <= oldest:
            taken.popleft()
        return taken
