"""The simulator's own clock, for when nobody hands it one: real time plus an offset the control API moves."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


def _real_time() -> datetime:
    # The product's clock lives in billing.store; this package imports nothing of the product.
    return datetime.fromtimestamp(time.time(), UTC)


class SettableClock:
    def __init__(self, real: Callable[[], datetime] = _real_time) -> None:
        self._real = real
        self._offset = timedelta()

    def __call__(self) -> datetime:
        return self._real() + self._offset

    def set_to(self, instant: datetime) -> None:
        self._offset = instant - self._real()

    def set_offset(self, seconds: float) -> None:
        self._offset = timedelta(seconds=seconds)
