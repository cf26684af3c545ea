"""The gateway's request budget, shared by all processes through the database.

Xendit counts requests per endpoint and account in a sliding window of a minute. Every process takes permits out of
one row per endpoint and second before it sends, so together they never send what the budget does not allow; losing
Redis or restarting everything forgets nothing. Time is the database's own, so machines need not agree about it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from sqlalchemy import text

from billing.domain.gateway import Quota
from billing.store.engine import Sessions

WINDOW_SECONDS = 62  # the gateway's 60, one for the bucket's width, one for a permit taken but sent a moment later
NO_LIMIT = 50_000  # per minute: beyond Xendit's ceiling per IP there is nothing to share
PERMIT_LIFE_SECONDS = 1.0
NAP_SECONDS = 0.25

_TAKE = text(
    """
    WITH now AS (SELECT floor(extract(epoch FROM clock_timestamp()))::bigint AS second),
    used AS (
        SELECT coalesce(sum(sent), 0) AS sent FROM quota_buckets, now
        WHERE endpoint = :endpoint AND quota_buckets.second > now.second - :window
    ),
    paused AS (
        SELECT EXISTS (SELECT 1 FROM quota_pauses WHERE endpoint = :endpoint AND until > clock_timestamp()) AS yes
    ),
    granted AS (
        SELECT CASE WHEN paused.yes THEN 0 ELSE greatest(0, least(:wanted, floor(:limit - used.sent)))::int END AS n
        FROM used, paused
    )
    INSERT INTO quota_buckets (endpoint, second, sent)
    SELECT :endpoint, now.second, granted.n FROM now, granted WHERE granted.n > 0
    ON CONFLICT (endpoint, second) DO UPDATE SET sent = quota_buckets.sent + excluded.sent
    RETURNING (SELECT n FROM granted)
    """
)
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('billing.quota:' || :endpoint))")
_FORGET = text(
    "DELETE FROM quota_buckets WHERE endpoint = :endpoint"
    " AND second < floor(extract(epoch FROM clock_timestamp())) - 600"
)
_PAUSE = text(
    """
    INSERT INTO quota_pauses (endpoint, until) VALUES (:endpoint, clock_timestamp() + :seconds * interval '1 second')
    ON CONFLICT (endpoint) DO UPDATE SET until = greatest(quota_pauses.until, excluded.until)
    """
)


def make_quota(sessions: Sessions, requests_per_minute: float) -> Quota:
    return Unlimited() if requests_per_minute >= NO_LIMIT else SharedQuota(sessions, requests_per_minute)


class Unlimited:
    def acquire(self, endpoint: str, *, wait_seconds: float) -> bool:  # noqa: ARG002 - the port's signature
        return True

    def pause(self, endpoint: str, seconds: float) -> None:  # noqa: ARG002 - the port's signature
        return None


class SharedQuota:
    """Permits are taken a few at a time, so that threads of one process ask the database seldom."""

    def __init__(
        self, sessions: Sessions, requests_per_minute: float, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._sessions = sessions
        self._limit = requests_per_minute
        self._batch = max(1, math.floor(requests_per_minute / 240))  # a quarter of a second's worth
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._permits: dict[str, tuple[int, float]] = {}  # endpoint -> how many, good until

    def acquire(self, endpoint: str, *, wait_seconds: float) -> bool:
        deadline = self._monotonic() + wait_seconds
        while True:
            with self._lock:
                if self._take_one(endpoint):
                    return True
            left = deadline - self._monotonic()
            if left <= 0:
                return False
            time.sleep(min(NAP_SECONDS, left))

    def pause(self, endpoint: str, seconds: float) -> None:
        with self._lock:
            self._permits.pop(endpoint, None)
        with self._sessions.begin() as session:
            session.execute(_PAUSE, {"endpoint": endpoint, "seconds": seconds})

    def _take_one(self, endpoint: str) -> bool:
        count, good_until = self._permits.get(endpoint, (0, 0.0))
        if count == 0 or self._monotonic() > good_until:
            count = self._take_from_database(endpoint)
            good_until = self._monotonic() + PERMIT_LIFE_SECONDS
        if count == 0:
            self._permits.pop(endpoint, None)
            return False
        self._permits[endpoint] = (count - 1, good_until)
        return True

    def _take_from_database(self, endpoint: str) -> int:
        with self._sessions.begin() as session:
            session.execute(_LOCK, {"endpoint": endpoint})
            granted = session.scalar(
                _TAKE,
                {"endpoint": endpoint, "window": WINDOW_SECONDS, "wanted": self._batch, "limit": self._limit},
            )
            if granted:
                session.execute(_FORGET, {"endpoint": endpoint})
        return int(granted or 0)
