"""Xendit's request quota: a sliding minute per endpoint, told in three headers on every answer."""

from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from billing.sandbox.simulator.answers import Headers

WINDOW_SECONDS = 60.0


@dataclass(slots=True)
class Quota:
    """One simulator is one account, so the endpoint alone names a budget. What was taken and refused is kept for
    GET /_simulator/quota: a client's own count of its requests proves nothing."""

    limit: int
    monotonic: Callable[[], float]
    accepted: defaultdict[str, "array[float]"] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    refused: Counter[str] = field(default_factory=Counter)
    fullest: Counter[str] = field(default_factory=Counter)  # most requests in any sliding minute
    _taken: defaultdict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def take(self, endpoint: str) -> bool:
        """False when this minute is used up; a refused call does not count."""
        now = self.monotonic()
        taken = self._current(endpoint, now)
        if len(taken) >= self.limit:
            self.refused[endpoint] += 1
            return False
        taken.append(now)
        self.accepted[endpoint].append(now)
        self.fullest[endpoint] = max(self.fullest[endpoint], len(taken))
        return True

    def headers(self, endpoint: str) -> Headers:
        now = self.monotonic()
        taken = self._current(endpoint, now)
        reset = taken[0] + WINDOW_SECONDS - now if taken else WINDOW_SECONDS
        return (
            ("rate-limit-limit", str(self.limit)),
            ("rate-limit-remaining", str(max(self.limit - len(taken), 0))),
            ("rate-limit-reset", f"{max(reset, 0):.2f}"),
        )

    def _current(self, endpoint: str, now: float) -> deque[float]:
        taken = self._taken[endpoint]
        oldest = now - WINDOW_SECONDS
        while taken and taken[0] <= oldest:
            taken.popleft()
        return taken
