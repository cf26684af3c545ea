"""How often a stranger may do something in this process. Used by billing/web.py; lives in memory, so every web
process counts for itself.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from threading import Lock

MOST_KEYS = 4_096


class RateLimit:
    """At most `most` times in any `seconds`, for every key. Remembers the `most_keys` that came last."""

    def __init__(
        self, most: int, seconds: float, *, clock: Callable[[], float] = time.monotonic, most_keys: int = MOST_KEYS
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._most_keys = most_keys
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = Lock()

    def wait(self, key: str) -> int:
        """0, and it counts; or how many seconds to wait, and it does not count: who keeps asking waits no longer."""
        with self._lock:
            now = self._clock()
            times = self._times.setdefault(key, deque())
            self._times.move_to_end(key)
            if len(self._times) > self._most_keys:
                self._times.popitem(last=False)
            while times and times[0] <= now - self._seconds:
                times.popleft()
            if len(times) < self._most:
                times.append(now)
                return 0
            return max(1, math.ceil(times[0] + self._seconds - now))
