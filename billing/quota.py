"""The gateway's request budget, shared by all processes through the database.

Xendit counts requests per endpoint and account in a sliding window of a minute. Whoever wants to send reserves a slot
first: a tenth of the budget may go at once, the rest is paced evenly over the window, so that the wall is never
reached and whoever comes next waits a moment, not a minute. Together that is the whole quota, and never more of it.

Lanes decide who may reserve how far ahead: while renewals fill the next half second, a customer who waits still finds a
slot right behind it, and a retry finds none until they are through. A lane that has had less than its guaranteed share
may reserve further ahead than anybody, so none starves.

Nothing is kept in Redis or in memory: losing either, or restarting everything, forgets nothing. Time is the
database's own, so machines need not agree about it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from billing.domain.gateway import LONGEST_PAUSE_SECONDS, Lane, Quota
from billing.store.engine import Sessions

WINDOW_SECONDS = 61.0  # the gateway's 60, and one for a permit that is used a moment after its slot
AT_ONCE = 0.1  # of the budget, without pacing: a small run is over in a moment
NO_LIMIT = 50_000  # per minute: beyond Xendit's ceiling per IP there is nothing to share
PERMIT_LIFE_SECONDS = 0.8

# How many seconds ahead a lane may reserve. The further, the more certain its turn.
HORIZONS = {Lane.CUSTOMER: 0.8, Lane.RENEWAL: 0.4, Lane.RETRY: 0.25, Lane.UPKEEP: 0.12}
OWED_HORIZON = 1.2  # of a lane that has had less than its share
SHARES = {Lane.CUSTOMER: 0.3, Lane.RENEWAL: 0.2, Lane.RETRY: 0.1, Lane.UPKEEP: 0.05}

SLACK = 0.02  # of the limit: answers under way make the gateway's count and ours differ by a few
LEARN_SECONDS = 1.0  # at most so often
# What headers may teach: one that says 0 or 1 must not close an endpoint, one that says 10**30 is no limit.
LEAST_LEARNED, MOST_LEARNED = 10, NO_LIMIT
LEARNED_LIFE_SECONDS = 600.0  # a limit that no answer has confirmed for so long is forgotten
SHORTEST_NAP_SECONDS = 0.02


def make_quota(sessions: Sessions, requests_per_minute: float, *, adapt: bool = False) -> Quota:
    """`adapt`: nobody has set a limit, so what the gateway's headers say is the limit, even when it is higher."""
    if requests_per_minute >= NO_LIMIT:
        return Unlimited()
    return SharedQuota(sessions, requests_per_minute, adapt=adapt)


class Unlimited:
    def acquire(self, endpoint: str, lane: Lane, wanted: int = 1, *, wait_seconds: float) -> int:  # noqa: ARG002 - the port's signature
        return wanted

    def give_back(self, endpoint: str, permits: int) -> None:
        """Nobody counts."""

    def outlook(self, endpoint: str, seconds: float) -> int | None:  # noqa: ARG002 - the port's signature
        return None

    def learn(self, endpoint: str, *, limit: int | None, remaining: int | None) -> None:
        """Without a limit of ours the gateway's 429 is heard by the charge that gets it."""

    def pause(self, endpoint: str, seconds: float) -> None:
        """As above."""


# ---------------------------------------------------------------------------------------- the rule, pure


@dataclass(frozen=True, slots=True)
class Budget:
    """One endpoint's budget at one instant. Times are seconds since the epoch by the database's clock."""

    limit: float  # requests a minute
    now: float
    next_slot: float = 0.0  # of the paced ones
    used_at_once: int = 0  # in the window that ends now
    used: int = 0  # all of them, reserved ones too
    paused_until: float = 0.0
    served: dict[Lane, float] = field(default_factory=dict)  # up to when each lane has had its share

    @property
    def at_once(self) -> int:
        """How many of the window's requests need not be paced."""
        return math.ceil(self.limit * AT_ONCE) if self.limit >= 2 else 0  # noqa: PLR2004 - one at once, one paced

    @property
    def interval(self) -> float:
        """Seconds between two paced slots."""
        return WINDOW_SECONDS / (self.limit - self.at_once)

    @property
    def ahead(self) -> float:
        """How far ahead of now the paced slots are reserved."""
        return max(0.0, self.next_slot - self.now)

    def owes(self, lane: Lane) -> bool:
        return self.served.get(lane, 0.0) <= self.now

    def horizon(self, lane: Lane) -> float:
        return OWED_HORIZON if self.owes(lane) else HORIZONS[lane]

    def permits_within(self, seconds: float) -> int:
        """How many slots are free in the next seconds."""
        if self.paused_until > self.now + seconds:
            return 0
        paced = (seconds - self.ahead) / self.interval
        return max(0, self.at_once - self.used_at_once) + max(0, math.floor(paced) + 1)


@dataclass(frozen=True, slots=True)
class Reserved:
    """Slots for `permits` requests from `start` on; or none, and when to ask again."""

    permits: int
    start: float
    at_once: int
    budget: Budget
    ask_again_in: float = 0.0


def reserve(budget: Budget, lane: Lane, wanted: int) -> Reserved:
    """Slots as far as the lane may reserve: unpaced ones while there are any, else paced ones."""
    if budget.paused_until > budget.now:
        return Reserved(0, 0.0, 0, budget, budget.paused_until - budget.now)
    free = budget.at_once - budget.used_at_once
    if free > 0:
        permits = min(wanted, free)
        return Reserved(permits, budget.now, permits, _served(budget, lane, permits))
    room = budget.horizon(lane) - budget.ahead
    if room < 0:
        return Reserved(0, 0.0, 0, budget, -room)
    permits = min(wanted, 1 + math.floor(room / budget.interval))
    start = budget.now + budget.ahead
    moved = replace(budget, next_slot=start + permits * budget.interval)
    return Reserved(permits, start, 0, _served(moved, lane, permits))


def _served(budget: Budget, lane: Lane, permits: int) -> Budget:
    """A lane's guaranteed share is a pace of its own; it cannot be saved up."""
    pace = WINDOW_SECONDS / (budget.limit * SHARES[lane])
    since = max(budget.served.get(lane, 0.0), budget.now)
    return replace(budget, served=budget.served | {lane: since + permits * pace})


# ------------------------------------------------------------------------------------- shared by processes


_LOCK = text("SELECT 1 FROM quota_budgets WHERE endpoint = :endpoint FOR UPDATE")
_BEGIN = text(
    "INSERT INTO quota_budgets (endpoint, next_slot) VALUES (:endpoint, to_timestamp(:now)) ON CONFLICT DO NOTHING"
)
_NOW = text("SELECT extract(epoch FROM clock_timestamp())::float8")
_READ = text(
    """
    SELECT extract(epoch FROM b.next_slot)::float8, coalesce(extract(epoch FROM b.paused_until)::float8, 0),
        b.learned_limit, b.lanes, coalesce(s.sent, 0), coalesce(s.at_once, 0)
    FROM quota_budgets b LEFT JOIN LATERAL (
        SELECT sum(sent)::int AS sent, sum(at_once)::int AS at_once FROM quota_slots
        WHERE endpoint = b.endpoint AND tenth > :since
    ) s ON true
    WHERE b.endpoint = :endpoint
    """
)
_MOVE = text(
    "UPDATE quota_budgets SET next_slot = to_timestamp(:next_slot), lanes = :lanes WHERE endpoint = :endpoint"
).bindparams(bindparam("lanes", type_=JSONB))
_NOTE = text(
    """
    INSERT INTO quota_slots (endpoint, tenth, sent, at_once) VALUES (:endpoint, :tenth, :sent, :at_once)
    ON CONFLICT (endpoint, tenth)
    DO UPDATE SET sent = quota_slots.sent + excluded.sent, at_once = quota_slots.at_once + excluded.at_once
    """
)
_FORGET = text("DELETE FROM quota_slots WHERE endpoint = :endpoint AND tenth < :before")
_LEARN_LIMIT = text("UPDATE quota_budgets SET learned_limit = :limit WHERE endpoint = :endpoint")
_PAUSE = text(
    """
    INSERT INTO quota_budgets (endpoint, next_slot, paused_until)
    VALUES (:endpoint, to_timestamp(:now), to_timestamp(:until))
    ON CONFLICT (endpoint) DO UPDATE SET paused_until = CASE
        WHEN quota_budgets.paused_until > to_timestamp(:believed_until) THEN excluded.paused_until
        ELSE greatest(quota_budgets.paused_until, excluded.paused_until) END
    """
)


class SharedQuota:
    """The rule above, on a row per endpoint that is locked for as long as a reservation takes."""

    def __init__(
        self,
        sessions: Sessions,
        requests_per_minute: float,
        *,
        adapt: bool = False,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`clock` and `sleep` are for tests: seconds since the epoch instead of the database's, and who waits."""
        self._sessions = sessions
        self._limit = requests_per_minute
        self._adapt = adapt
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._gates: dict[tuple[str, Lane], threading.Lock] = {}  # one thread of a lane asks, the others queue
        self._spare: dict[str, list[float]] = {}  # endpoint -> until when a permit that came back is good
        self._seen: dict[str, tuple[int | None, int]] = {}  # endpoint -> learned limit and use, when last read
        self._learned_at: dict[str, float] = {}
        self._heard_at: dict[str, float] = {}  # endpoint -> when an answer has last named its limit

    # ----------------------------------------------------------------------------------------------- asking

    def acquire(self, endpoint: str, lane: Lane, wanted: int = 1, *, wait_seconds: float) -> int:
        spare = self._take_spare(endpoint, wanted)
        if spare:
            return spare
        deadline = time.monotonic() + wait_seconds
        gate = self._gate(endpoint, lane)
        if not gate.acquire(timeout=max(wait_seconds, 0.0) + SHORTEST_NAP_SECONDS):
            return 0
        try:
            reserved = self._reserve(endpoint, lane, wanted)
            while reserved.permits == 0:
                nap = max(reserved.ask_again_in, SHORTEST_NAP_SECONDS)
                if time.monotonic() + nap > deadline:
                    return 0
                self._sleep(nap)
                reserved = self._reserve(endpoint, lane, wanted)
        finally:
            gate.release()
        until_slot = reserved.start - reserved.budget.now
        if until_slot > 0:
            self._sleep(until_slot)
        return reserved.permits

    def give_back(self, endpoint: str, permits: int) -> None:
        if permits > 0:
            good_until = time.monotonic() + PERMIT_LIFE_SECONDS
            with self._lock:
                self._spare.setdefault(endpoint, []).extend([good_until] * permits)

    def outlook(self, endpoint: str, seconds: float) -> int | None:
        with self._sessions() as session:
            budget = self._read(session, endpoint, self._now(session))
            session.commit()
        return budget.permits_within(seconds)

    def _take_spare(self, endpoint: str, wanted: int) -> int:
        with self._lock:
            good = [until for until in self._spare.pop(endpoint, ()) if until > time.monotonic()]
            if len(good) > wanted:
                self._spare[endpoint] = good[wanted:]
        return min(wanted, len(good))

    def _gate(self, endpoint: str, lane: Lane) -> threading.Lock:
        with self._lock:
            return self._gates.setdefault((endpoint, lane), threading.Lock())

    # --------------------------------------------------------------------------------------- on the database

    def _reserve(self, endpoint: str, lane: Lane, wanted: int) -> Reserved:
        with self._sessions.begin() as session:
            self._lock_budget(session, endpoint)
            now = self._now(session)
            reserved = reserve(self._read(session, endpoint, now), lane, wanted)
            if reserved.permits:
                self._write(session, endpoint, reserved)
        return reserved

    def _lock_budget(self, session: Session, endpoint: str) -> None:
        if session.scalar(_LOCK, {"endpoint": endpoint}) is None:
            session.execute(_BEGIN, {"endpoint": endpoint, "now": self._now(session)})
            session.scalar(_LOCK, {"endpoint": endpoint})

    def _now(self, session: Session) -> float:
        return self._clock() if self._clock is not None else float(session.scalar(_NOW) or 0.0)

    def _read(self, session: Session, endpoint: str, now: float) -> Budget:
        since = math.floor((now - WINDOW_SECONDS) * 10)
        row = session.execute(_READ, {"endpoint": endpoint, "since": since}).one_or_none()
        if row is None:
            return Budget(self._limit, now)
        next_slot, paused_until, learned, lanes, used, used_at_once = row
        self._seen[endpoint] = (learned, used)
        served = {Lane(int(lane)): float(until) for lane, until in lanes.items()}
        # No pause of ours is longer: the first releases believed an instant, and closed the endpoint for decades.
        until = paused_until if paused_until <= _believed_until(now) else 0.0
        return Budget(self._effective(learned), now, next_slot, used_at_once, used, until, served)

    def _effective(self, learned: int | None) -> float:
        if learned is None:
            return self._limit
        limit = float(min(max(learned, LEAST_LEARNED), MOST_LEARNED))
        return limit if self._adapt else min(self._limit, limit)

    def _write(self, session: Session, endpoint: str, reserved: Reserved) -> None:
        budget = reserved.budget
        next_slot = max(budget.next_slot, budget.now)
        session.execute(_MOVE, {"endpoint": endpoint, "next_slot": next_slot, "lanes": _as_json(budget)})
        tenth = math.floor(reserved.start * 10)
        values = {"endpoint": endpoint, "tenth": tenth, "sent": reserved.permits, "at_once": reserved.at_once}
        session.execute(_NOTE, values)
        if tenth % 100 == 0:
            session.execute(_FORGET, {"endpoint": endpoint, "before": tenth - 6_000})

    # --------------------------------------------------------------------------------------------- learning

    def learn(self, endpoint: str, *, limit: int | None, remaining: int | None) -> None:
        """Asks the database only when the answer is news: another limit, or more requests than ours alone."""
        known_limit, used = self._seen.get(endpoint, (None, 0))
        if limit is None or limit <= 0:
            if known_limit is not None:
                self._forget_unconfirmed(endpoint)
            return
        with self._lock:
            self._heard_at[endpoint] = time.monotonic()
        limit = min(limit, MOST_LEARNED)
        theirs = 0 if remaining is None else limit - remaining
        limit = max(limit, LEAST_LEARNED)
        slack = max(3, math.ceil(limit * SLACK))
        if limit == known_limit and theirs <= used + slack:
            return
        with self._lock:
            if time.monotonic() - self._learned_at.get(endpoint, -math.inf) < LEARN_SECONDS:
                return
            self._learned_at[endpoint] = time.monotonic()
        with self._sessions.begin() as session:
            self._lock_budget(session, endpoint)
            session.execute(_LEARN_LIMIT, {"endpoint": endpoint, "limit": limit})
            budget = self._read(session, endpoint, self._now(session))
            if theirs > budget.used + slack:
                self._make_room_for_others(session, endpoint, budget, theirs - budget.used)

    def _forget_unconfirmed(self, endpoint: str) -> None:
        """An answer without headers tells nothing; after many minutes of them the limit is the one that was set."""
        with self._lock:
            heard_at = self._heard_at.setdefault(endpoint, time.monotonic())
            if time.monotonic() - heard_at < LEARNED_LIFE_SECONDS:
                return
            self._heard_at[endpoint] = time.monotonic()
        with self._sessions.begin() as session:
            self._lock_budget(session, endpoint)
            session.execute(_LEARN_LIMIT, {"endpoint": endpoint, "limit": None})
            self._read(session, endpoint, self._now(session))

    def _make_room_for_others(self, session: Session, endpoint: str, budget: Budget, others: int) -> None:
        """Somebody else uses the same account: their requests take slots as ours do."""
        start = budget.now + budget.ahead
        next_slot = min(start + others * budget.interval, budget.now + WINDOW_SECONDS)
        session.execute(_MOVE, {"endpoint": endpoint, "next_slot": next_slot, "lanes": _as_json(budget)})
        tenth = math.floor(budget.now * 10)
        session.execute(_NOTE, {"endpoint": endpoint, "tenth": tenth, "sent": others, "at_once": 0})

    def pause(self, endpoint: str, seconds: float) -> None:
        """Nobody sends to the endpoint for so long, and never for more than an hour."""
        bounded = min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS) if math.isfinite(seconds) else WINDOW_SECONDS
        with self._lock:
            self._spare.pop(endpoint, None)
        with self._sessions.begin() as session:
            now = self._now(session)
            values = {"now": now, "until": now + bounded, "believed_until": _believed_until(now)}
            session.execute(_PAUSE, {"endpoint": endpoint} | values)


def _believed_until(now: float) -> float:
    return now + LONGEST_PAUSE_SECONDS + 1.0


# ------------------------------------------------------------------------------------ what a person is told


_STANDING = text(
    """
    SELECT endpoint, learned_limit,
        CASE WHEN paused_until > clock_timestamp() AND paused_until <= clock_timestamp() + :longest
        THEN paused_until END
    FROM quota_budgets ORDER BY endpoint
    """
)
_LIFT = text(
    """
    WITH stopped AS (
        SELECT endpoint FROM quota_budgets
        WHERE paused_until > clock_timestamp() OR learned_limit IS NOT NULL ORDER BY endpoint FOR UPDATE
    )
    UPDATE quota_budgets b SET paused_until = NULL, learned_limit = NULL FROM stopped
    WHERE b.endpoint = stopped.endpoint RETURNING b.endpoint
    """
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the gateway slows us down: endpoints that a 429 has closed, and limits that its headers have told."""

    paused: dict[str, datetime]
    learned_limits: dict[str, int]


def standing(session: Session) -> Standing:
    rows = session.execute(_STANDING, {"longest": timedelta(seconds=LONGEST_PAUSE_SECONDS + 1.0)}).all()
    return Standing(
        paused={endpoint: until for endpoint, _, until in rows if until is not None},
        learned_limits={endpoint: limit for endpoint, limit, _ in rows if limit is not None},
    )


def lift(session: Session) -> int:
    """Open every endpoint again and forget what headers have taught; the next answers teach it anew. Returns for how
    many endpoints."""
    return len(session.execute(_LIFT).all())


def _as_json(budget: Budget) -> dict[str, float]:
    return {str(int(lane)): round(until, 3) for lane, until in budget.served.items()}
