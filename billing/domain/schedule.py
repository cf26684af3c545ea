"""When a subscription is billed: every N days, weeks, months or years from an anchor, or at cron ticks.

Called by the services that plan and open periods, and by the command line to read what people type. Days are
those of the subscription's time zone, so everything is computed on the local wall clock and turned into an
instant last. Two rules for clock changes: a local time that does not exist moves forward, a local time that
comes twice counts once (the first). The n-th calendar period comes from the original anchor, never from the
period before: 31 Jan, 28 Feb, 31 Mar.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from enum import StrEnum
from functools import cache, lru_cache
from typing import assert_never
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from croniter import (  # type: ignore[import-untyped]  # ships no types
    CroniterError,
    croniter,
)

from billing.domain.familiar_zones import FAMILIAR_ZONES, SOME_ZONE, ZONES_AT
from billing.errors import InvalidSchedule

LAST_YEAR = 9998  # python's calendar ends a year later
CRON_FIELDS = 5
LONGEST_CRON = 200
EVERY = "*"  # how croniter says that a field names nothing
SOME_DAY = datetime(2025, 1, 1)  # noqa: DTZ001 - a wall clock, like every tick
CRON_YEARS = 9  # two leap days are at most eight years apart; what does not fire by then never will
# Zones have skipped a whole day; no more ticks than this can be swallowed at once.
MINUTES_IN_A_GAP = 2 * 24 * 60
MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
MONTH_NAMES = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class Unit(StrEnum):
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


MOST_OF_UNIT = {Unit.DAY: 3650, Unit.WEEK: 520, Unit.MONTH: 120, Unit.YEAR: 10}
DAYS_OF_UNIT = {Unit.DAY: 1, Unit.WEEK: 7, Unit.MONTH: 30, Unit.YEAR: 365}


@dataclass(frozen=True, slots=True)
class Every:
    """Calendar arithmetic from an anchor."""

    count: int
    unit: Unit

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_OF_UNIT[self.unit]:
            most = MOST_OF_UNIT[self.unit]
            raise InvalidSchedule(f"every {self.count}:{self.unit}: write a number from 1 to {most}")


@dataclass(frozen=True, slots=True)
class Cron:
    """Five cron fields. Made by `parse_cron` and `schedule_from_text`, which check them."""

    expression: str


Schedule = Every | Cron


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where a calendar hangs: wall clock of the first period, day of the month of the later ones."""

    local: datetime
    day: int
    zone: ZoneInfo

    def __post_init__(self) -> None:
        if self.local.tzinfo is not None:
            raise InvalidSchedule("an anchor is a wall clock time: give it without offset")
        if not 1 <= self.day <= 31:  # noqa: PLR2004
            raise InvalidSchedule(f"anchor day {self.day}: write a day from 1 to 31")


@dataclass(frozen=True, slots=True)
class Period:
    """What one invoice covers: [start, end). `key` is the local start: an hour that comes twice is one."""

    index: int
    start_local: datetime
    start: datetime
    end: datetime
    key: str


# -------------------------------------------------------------------------------- what people write


def parse_every(text: str) -> Every:
    """`month`, `2:week`. Raises InvalidSchedule."""
    written = re.fullmatch(r"(?:([0-9]{1,5}):)?(day|week|month|year)s?", text.strip().lower(), re.ASCII)
    if written is None:
        raise InvalidSchedule(f"--every {text[:40]!r}: write day, week, month, year, or several: 2:week")
    return Every(int(written[1] or 1), Unit(written[2]))


def parse_cron(expression: str) -> Cron:
    """What a new plan may say: one tick a day at most, on days that are named in one way. Raises InvalidSchedule."""
    # Every one of them is a star written out, to cron as well: it restricts nothing.
    cron = _read_cron(re.sub(r"(?<!\S)\*/1(?!\S)", "*", expression))
    shown = f"--cron {expression[:60]!r}"
    (minutes, hours, days, _, weekdays), _ = croniter.expand(cron.expression)
    if EVERY in days + weekdays:
        _refuse_several_a_day(shown, minutes, hours)
        return cron
    minute, hour, day, month, weekday = cron.expression.split()
    raise InvalidSchedule(
        f"{shown}: with a day of the month and a weekday cron takes either, not both: it would fire on day {day} and"
        f" on every {weekday} as well; write one of them: '{minute} {hour} {day} {month} *' or"
        f" '{minute} {hour} * {month} {weekday}' (MON#1 is the first Monday of a month)"
    )


def _refuse_several_a_day(shown: str, minutes: list[int | str], hours: list[int | str]) -> None:
    if len(minutes) > 1 or len(hours) > 1 or EVERY in minutes + hours:
        raise InvalidSchedule(
            f"{shown}: it fires more often than once a day, and each time is a charge; write one minute and one hour,"
            " such as '0 9 * * *' for every day at 9:00"
        )


def _read_cron(expression: str) -> Cron:
    """Five fields that fire in every month they name; also what plans of earlier releases say. Raises
    InvalidSchedule."""
    fields = re.findall(r"\S+", expression, re.ASCII)
    shown = f"--cron {expression[:60]!r}"
    if len(fields) != CRON_FIELDS or len(expression) > LONGEST_CRON:
        raise InvalidSchedule(f"{shown}: write minute hour day month weekday, such as '0 9 1 * *'")
    if re.search(r"(^|[ ,])[hr]($|[ ,(/])", " ".join(fields).lower()):
        raise InvalidSchedule(f"{shown}: H and R pick a time by chance; write the minute and hour you mean")
    text = " ".join(fields).upper()
    try:
        expanded, nth_weekdays = croniter.expand(text)
    except CroniterError:
        raise InvalidSchedule(f"{shown}: a field is wrong; write minute hour day month weekday: '0 9 1 * *'") from None
    try:
        croniter.expand(text, strict=True)
        next(_ticks(text, SOME_DAY))
    except CroniterError:
        raise InvalidSchedule(f"{shown}: it can never fire; name a day its months have, or L for the last") from None
    _refuse_short_months(shown, fields[2].lower(), expanded[2], expanded[3])
    if any(5 in nth for nth in nth_weekdays.values()):  # noqa: PLR2004
        raise InvalidSchedule(f"{shown}: most months have no fifth one; write L1 for the last Monday")
    return Cron(text)


def _refuse_short_months(shown: str, written: str, days: list[int | str], months: list[int | str]) -> None:
    """Day 31 skips five months a year without a word. A star and L name none, W moves to one there is."""
    if "w" in written or all(re.match(r"[*?]|.*l", part) for part in written.split(",")):
        return
    named = [day for day in days if isinstance(day, int)]
    if len(named) == 31:  # noqa: PLR2004 - 1-31 is a star written out
        return
    in_months = [month for month in months if isinstance(month, int)] or list(range(1, 13))
    for month in in_months:
        if named and max(named) > MONTH_LENGTHS[month - 1]:
            day, name = max(named), MONTH_NAMES[month - 1]
            advice = "write L for the month's last day, or use --every month"
            raise InvalidSchedule(f"{shown}: not every {name} has a day {day}; {advice}")


def schedule_to_text(schedule: Schedule) -> str:
    """The form that is stored and shown: `every 1:month`, `cron 0 9 1 * *`."""
    match schedule:
        case Every(count, unit):
            return f"every {count}:{unit}"
        case Cron(expression):
            return f"cron {expression}"
        case _:
            assert_never(schedule)


@lru_cache(maxsize=4096)
def schedule_from_text(text: str) -> Schedule:
    """The inverse of `schedule_to_text`; remembered, because every invoice of a plan asks."""
    kind, _, rest = text.partition(" ")
    match kind:
        case "every":
            return parse_every(rest)
        case "cron":
            return _read_cron(rest)
        case _:
            raise InvalidSchedule(f"schedule {text[:60]!r}: write 'every 1:month' or 'cron 0 9 1 * *'")


def describe(schedule: Schedule) -> str:
    """For people: `every month`, `every 2 weeks`, `cron 0 9 1 * *`."""
    match schedule:
        case Every(1, unit):
            return f"every {unit}"
        case Every(count, unit):
            return f"every {count} {unit}s"
        case Cron():
            return schedule_to_text(schedule)
        case _:
            assert_never(schedule)


# -------------------------------------------------------------------------------- zones and instants

NO_PLACES = ("Factory", "localtime", "posixrules")  # no zone set, whatever this machine is set to, rules for others
REPEATED = ("right/", "posix/")  # the database again, with leap seconds and without


def parse_zone(name: str) -> ZoneInfo:
    """An IANA name, for something new. Raises InvalidSchedule with names that look alike."""
    if name in NO_PLACES or name.startswith(REPEATED):
        raise InvalidSchedule(f"time zone {name[:60]!r} is no place; write an IANA name such as Asia/Jakarta")
    return stored_zone(name)


@lru_cache(maxsize=1024)
def stored_zone(name: str) -> ZoneInfo:
    """The zone of something that is there already. Raises InvalidSchedule when the machine does not know it."""
    if name in _known_zones() or name in NO_PLACES:
        with suppress(ZoneInfoNotFoundError, ValueError, OSError):
            return ZoneInfo(name)
    raise InvalidSchedule(f"time zone {name[:60]!r} is not known; {_zone_advice(name)}")


@cache
def _known_zones() -> frozenset[str]:
    """As they are written: where a file system knows no capitals, zoneinfo would take any spelling."""
    return frozenset(available_timezones())


def _zone_advice(name: str) -> str:
    typed = _plain_letters(name[:60])
    city = typed.rpartition("/")[2]
    if (offset := re.fullmatch(r"(?:utc|gmt)?([+-][0-9:]+)", typed, re.ASCII)) is not None:
        hours = re.sub(r"^([+-])0?|:?00$", r"\1", offset[1])
        return f"an offset knows no clock change: write an IANA name such as {ZONES_AT.get(hours, SOME_ZONE)}"
    by_lower = {zone.lower(): zone for zone in sorted(_known_zones()) if zone not in NO_PLACES}
    for written in (typed, city):
        if written in FAMILIAR_ZONES:
            return f"write {FAMILIAR_ZONES[written]}"
    if typed in by_lower:
        return f"write {by_lower[typed]}"
    cities = {zone.rpartition("/")[2]: zone for zone in by_lower}
    close = get_close_matches(typed, by_lower, n=3, cutoff=0.7)
    close += [cities[found] for found in get_close_matches(city, cities, n=3, cutoff=0.75)]
    if not close:
        return f"write an IANA name such as {SOME_ZONE}"
    return "did you mean " + " or ".join(by_lower[zone] for zone in list(dict.fromkeys(close))[:3]) + "?"


def _plain_letters(name: str) -> str:
    """`Hà Nội` -> `ha_noi`."""
    lower = unicodedata.normalize("NFKD", name.strip().lower().replace("\u0111", "d"))
    return re.sub(r"[\s_-]+(?=[a-z])", "_", "".join(letter for letter in lower if not unicodedata.combining(letter)))


def to_instant(local: datetime, zone: ZoneInfo) -> datetime:
    """The UTC instant of a wall clock time: the first of two, and a missing one moves forward by the gap.

    Both are what fold=0 means (PEP 495).
    """
    return local.replace(tzinfo=zone, fold=0).astimezone(UTC)


def to_local(instant: datetime, zone: ZoneInfo) -> datetime:
    """The wall clock of an instant, without zone and without a mark for the second of two hours."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


# -------------------------------------------------------------------------------- periods


def first_period(schedule: Schedule, anchor: Anchor) -> Period:
    """Index 0: from the anchor itself, or from the first cron tick at or after it."""
    match schedule:
        case Every():
            return period_at(schedule, anchor, 0, anchor.local)
        case Cron(expression):
            return period_at(schedule, anchor, 0, _tick_not_before(expression, anchor.local))
        case _:
            assert_never(schedule)


def period_at(schedule: Schedule, anchor: Anchor, index: int, start_local: datetime) -> Period:
    """The period with this index. `start_local` is its stored local start: a tick for cron, unused
    otherwise."""
    match schedule:
        case Every():
            start_local = _calendar_start(schedule, anchor, index)
            end_local = _calendar_start(schedule, anchor, index + 1)
        case Cron(expression):
            end_local = _tick_after(expression, start_local, anchor.zone)
        case _:
            assert_never(schedule)
    zone = anchor.zone
    start, end = to_instant(start_local, zone), to_instant(end_local, zone)
    return Period(index, start_local, start, end, _key(start_local))


def next_period(schedule: Schedule, anchor: Anchor, period: Period) -> Period:
    """The one that starts where `period` ends."""
    match schedule:
        case Every():
            return period_at(schedule, anchor, period.index + 1, period.start_local)
        case Cron(expression):
            following = _tick_after(expression, period.start_local, anchor.zone)
            return period_at(schedule, anchor, period.index + 1, following)
        case _:
            assert_never(schedule)


def due_periods(schedule: Schedule, anchor: Anchor, first: Period, now: datetime, limit: int) -> list[Period]:
    """The periods from `first` on that have started by `now`, at most `limit`, oldest first."""
    due: list[Period] = []
    period = first
    while period.start <= now and len(due) < limit:
        due.append(period)
        period = next_period(schedule, anchor, period)
    return due


@lru_cache(maxsize=4096)
def frequency_days(schedule: Schedule) -> int:
    """Days between two charges as the card schemes want to know them: a whole number, at least 1."""
    match schedule:
        case Every(count, unit):
            return count * DAYS_OF_UNIT[unit]
        case Cron(expression):
            ticks = _ticks(expression, SOME_DAY)
            first, *_, last = (next(ticks) for _ in range(13))
            return max(1, round((last - first) / timedelta(days=12)))
        case _:
            assert_never(schedule)


def _key(local: datetime) -> str:
    return local.isoformat(timespec="seconds" if local.second else "minutes")


def _calendar_start(every: Every, anchor: Anchor, index: int) -> datetime:
    """Always from the anchor, so that a shortened month leaves no trace in the next one."""
    local, steps = anchor.local, index * every.count
    if index == 0:
        return local
    match every.unit:
        case Unit.DAY | Unit.WEEK:
            try:
                return local + timedelta(days=steps * DAYS_OF_UNIT[every.unit])
            except OverflowError:
                raise InvalidSchedule(f"period {index} lies beyond the year {LAST_YEAR}") from None
        case Unit.MONTH:
            return _month_start(anchor, local.month - 1 + steps)
        case Unit.YEAR:
            return _month_start(anchor, local.month - 1 + 12 * steps)
        case _:
            assert_never(every.unit)


def _month_start(anchor: Anchor, months: int) -> datetime:
    """`months` counts from January of the anchor's year."""
    year, month = anchor.local.year + months // 12, months % 12
    if year > LAST_YEAR:
        raise InvalidSchedule(f"a period lies beyond the year {LAST_YEAR}")
    length = MONTH_LENGTHS[month]
    if month == 1 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0):
        length = 29
    return anchor.local.replace(year=year, month=month + 1, day=min(anchor.day, length))


# Reading a cron line costs croniter 0.1 ms, a hundred times the rest of a period, and all subscriptions of a
# plan share its ticks: so ticks are remembered. (One croniter per line would be cheaper still, but it keeps
# its position in itself and workers are threads.)


@lru_cache(maxsize=16_384)
def _tick_after(expression: str, local: datetime, zone: ZoneInfo) -> datetime:
    """The next tick, later on the wall clock and in time: where an hour is missing, its ticks moved forward,
    and the ticks they landed on (or behind) are the same moment once more."""
    instant = to_instant(local, zone)
    ticks = _ticks(expression, local)
    for _ in range(MINUTES_IN_A_GAP):
        tick = next(ticks)
        if to_instant(tick, zone) > instant:
            return tick
    raise InvalidSchedule(f"cron {expression}: no tick after {local}")


def _tick_not_before(expression: str, local: datetime) -> datetime:
    """Ticks lie on whole minutes, so the first one not before `local` is the first after the last
    microsecond."""
    return next(_ticks(expression, local - timedelta(microseconds=1)))


def _ticks(expression: str, after: datetime) -> Iterator[datetime]:
    """The wall clock times strictly after one. Without a zone: croniter's own clock changes fire twice in
    autumn."""
    ticks = croniter(expression, after, ret_type=datetime, max_years_between_matches=CRON_YEARS)
    while True:
        tick: datetime = ticks.get_next()
        yield tick


def last_tick(expression: str, at: datetime) -> datetime:
    """For the scheduler's own jobs: when a six-field expression (seconds last, in UTC) last fired, `at` included."""
    before: datetime = croniter(expression, at.replace(microsecond=0) + timedelta(seconds=1)).get_prev(datetime)
    return before


@dataclass(frozen=True, slots=True)
class Calendar:
    """A subscription's periods: its schedule and its original anchor."""

    schedule: Schedule
    anchor: Anchor

    def first(self) -> Period:
        return first_period(self.schedule, self.anchor)

    def at(self, index: int, start_local: datetime) -> Period:
        return period_at(self.schedule, self.anchor, index, start_local)

    def after(self, period: Period) -> Period:
        return next_period(self.schedule, self.anchor, period)
