"""When periods begin: a calendar of the simulation's own, for the oracle.

It shares no code with billing/domain/schedule.py: two calendars that agree are a proof, one that is asked twice is not.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from zoneinfo import ZoneInfo

LAST_DAY = 0  # of the month, among the days of a cron rule
A_WEEK = 7


@dataclass(frozen=True, slots=True)
class CronRule:
    """The cron lines of the population, as the oracle reads them. Empty means every one."""

    hour: int
    minute: int
    days: tuple[int, ...] = ()  # of the month; LAST_DAY is the last one
    months: tuple[int, ...] = ()
    weekdays: tuple[int, ...] = ()  # Monday is 0

    def fires_on(self, day: datetime) -> bool:
        """Whether there is a tick on this local day."""
        last = calendar.monthrange(day.year, day.month)[1]
        of_month = not self.days or day.day in self.days or (LAST_DAY in self.days and day.day == last)
        in_month = not self.months or day.month in self.months
        of_week = not self.weekdays or day.weekday() in self.weekdays
        return of_month and in_month and of_week


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a plan bills: as the product is told, and as the oracle counts."""

    told: str
    months: int = 0
    days: int = 0
    cron: CronRule | None = None

    @property
    def is_short(self) -> bool:
        """So many charges a year that a life has to end early, or a year takes minutes."""
        return 0 < self.days < 3 * A_WEEK or (self.cron is not None and bool(self.cron.weekdays))


def period_starts(rhythm: Rhythm, anchor: datetime, zone: str, day: int | None = None) -> Iterator[datetime]:
    """When each period begins, for ever; the first at `anchor`, or at the first cron tick from there on.

    Wall clock in `zone`. `day` of the month is the anchor's unless an import says another; a short month has its last
    day, and the day comes back with a longer one; an hour that a change to summer time leaves out is an hour later.
    """
    local = anchor.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)
    if rhythm.cron is not None:
        yield from _ticks(rhythm.cron, local, zone)
        return
    for number in count():
        yield instant_of(_moved(local, rhythm, number, day or local.day), zone)


def _moved(local: datetime, rhythm: Rhythm, number: int, day: int) -> datetime:
    if rhythm.days:
        return local + timedelta(days=rhythm.days * number)
    if number == 0:
        return local
    months = local.year * 12 + local.month - 1 + rhythm.months * number
    year, month = divmod(months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return local.replace(year=year, month=month + 1, day=min(day, last))


def _ticks(rule: CronRule, local: datetime, zone: str) -> Iterator[datetime]:
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    for number in count():
        today = midnight + timedelta(days=number)
        tick = today.replace(hour=rule.hour, minute=rule.minute)
        if rule.fires_on(today) and tick >= local:
            yield instant_of(tick, zone)


def instant_of(local: datetime, zone: str) -> datetime:
    """The instant of a wall clock time: the first of two, and a missing one moves forward by the gap."""
    return local.replace(tzinfo=ZoneInfo(zone), fold=0).astimezone(UTC)


def days_later(instant: datetime, days: int, zone: str) -> datetime:
    """The same wall clock time, so many days on."""
    local = instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)
    return instant_of(local + timedelta(days=days), zone)
