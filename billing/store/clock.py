"""Time. The only place that reads a system clock.

`now()` is billing's time: what is due, trials, retries, grace. With the test clock it runs ahead of (or behind) real
time by one stored offset, the same for every process on the database. `real_now()` is for leases, time-outs and the
gateway's quota, which live in real time whatever the test clock says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Protocol

from sqlalchemy import DateTime, Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from billing.errors import InvalidSetting, ServiceUnavailable
from billing.store.engine import Sessions
from billing.store.models import TestClock

CLOCKS_MAY_DIFFER = timedelta(hours=1)  # ours and the database's: less bills nobody on another day

_OFFSET = select(TestClock.offset_microseconds).where(TestClock.id == 1)


class Clock(Protocol):
    def now(self) -> datetime: ...


def _wall() -> datetime:
    return datetime.now(UTC)


# What this machine calls the time, and how long it has been up. Replaced in one place only: a simulation lives a year
# in seconds, leases and time-outs included.
_machine: Callable[[], datetime] = _wall
_uptime: Callable[[], float] = time.monotonic
if hasattr(time, "CLOCK_BOOTTIME"):  # Linux: goes on while the machine sleeps, as the gateway's time does
    _uptime = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)  # noqa: E731


def real_now() -> datetime:
    return _machine()


def uptime() -> float:
    """Seconds since some fixed moment, whatever is done to the wall clock."""
    return _uptime()


@contextmanager
def machine_time(now: Callable[[], datetime], up: Callable[[], float]) -> Iterator[None]:
    """For the time of the block this process lives in another time (sandbox/simulation)."""
    global _machine, _uptime
    before = _machine, _uptime
    _machine, _uptime = now, up
    try:
        yield
    finally:
        _machine, _uptime = before


def refuse_a_wrong_clock(session: Session) -> None:
    """A machine that is a day ahead would charge everybody a day early, one that is a year ahead twelve times at once.
    Raises ServiceUnavailable, until the clocks agree."""
    ours, theirs = real_now(), session.scalars(select(func.clock_timestamp(type_=DateTime(timezone=True)))).one()
    if abs(ours - theirs) > CLOCKS_MAY_DIFFER:
        raise ServiceUnavailable(
            f"the clock of this machine says {ours:%Y-%m-%d %H:%M} UTC and that of the database"
            f" {theirs.astimezone(UTC):%Y-%m-%d %H:%M} UTC: nothing is billed until they agree; set the wrong one (NTP)"
        )


class SystemClock:
    def now(self) -> datetime:
        return real_now()


class DatabaseTestClock:
    """Reads the offset for every unit of work: a moved clock is seen by all processes at once."""

    def __init__(self, sessions: Sessions) -> None:
        # Read several times a charge: one plain statement, no transaction around it.
        self._engine: Engine = sessions.kw["bind"].execution_options(isolation_level="AUTOCOMMIT")

    def now(self) -> datetime:
        with self._engine.connect() as connection:
            offset = connection.scalar(_OFFSET)
        return real_now() + timedelta(microseconds=offset or 0)


def make_clock(sessions: Sessions, *, test_clock: bool) -> Clock:
    return DatabaseTestClock(sessions) if test_clock else SystemClock()


def set_test_clock(session: Session, target: datetime) -> None:
    """From now on the clock says `target` and runs on at its normal pace."""
    _store_offset(session, target - real_now())


def advance_test_clock(session: Session, by: timedelta) -> None:
    current = session.scalar(select(TestClock.offset_microseconds).where(TestClock.id == 1).with_for_update())
    _store_offset(session, timedelta(microseconds=current or 0) + by)


def _store_offset(session: Session, offset: timedelta) -> None:
    microseconds = offset // timedelta(microseconds=1)
    upsert = insert(TestClock).values(id=1, offset_microseconds=microseconds)
    session.execute(
        upsert.on_conflict_do_update(index_elements=[TestClock.id], set_={"offset_microseconds": microseconds})
    )


def require_test_clock(enabled: bool) -> None:
    if not enabled:
        raise InvalidSetting(
            "BILLING_TEST_CLOCK: not set, so time cannot be moved; for example BILLING_TEST_CLOCK=true"
        )
