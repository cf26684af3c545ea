"""Periods tile the calendar, in every zone, and come back to their anchor (field notes C1 to C6)."""

from __future__ import annotations

import re
from calendar import monthrange
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.domain.familiar_zones import FAMILIAR_ZONES, ZONES_AT
from billing.domain.schedule import (
    MOST_OF_UNIT,
    Anchor,
    Cron,
    Every,
    Period,
    Schedule,
    Unit,
    describe,
    due_periods,
    first_period,
    frequency_days,
    next_period,
    parse_cron,
    parse_every,
    parse_zone,
    period_at,
    schedule_from_text,
    schedule_to_text,
    stored_zone,
    to_instant,
    to_local,
)
from billing.errors import InvalidSchedule

# Berlin and New York move an hour, Lord Howe half an hour, Santiago at midnight, Jakarta never.
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Jakarta")
CRONS = (
    *("0 9 1 * *", "30 2 * * *", "0 0 L * *", "0 9 * * MON", "15 1,2,3 * * *", "*/30 * * * *"),
    *("0 0 1 */3 *", "0 9 15,L * *", "0 2 * * SUN", "0 0 * * *", "0 9 1 1 *"),
)

zones = st.sampled_from(ZONES).map(parse_zone)
walls = st.datetimes(datetime.fromisoformat("2024-01-01"), datetime.fromisoformat("2031-12-31")).map(
    lambda wall: wall.replace(microsecond=0)
)
everies = st.builds(Every, st.integers(1, 10), st.sampled_from(Unit))
crons = st.sampled_from(CRONS).map(lambda text: schedule_from_text(f"cron {text}"))
anchors = st.builds(Anchor, walls, st.integers(1, 31), zones)


def wall(text: str) -> datetime:
    return datetime.fromisoformat(text)


def jakarta(local: str, day: int | None = None) -> Anchor:
    start = wall(local)
    return Anchor(start, day or start.day, parse_zone("Asia/Jakarta"))


def the_first(count: int, schedule: Schedule, anchor: Anchor) -> list[Period]:
    periods = [first_period(schedule, anchor)]
    while len(periods) < count:
        periods.append(next_period(schedule, anchor, periods[-1]))
    return periods


def starts(count: int, schedule: Schedule, anchor: Anchor) -> list[str]:
    return [period.start_local.isoformat(" ", "minutes") for period in the_first(count, schedule, anchor)]


# ---------------------------------------------------------------------------------------------- properties


@given(everies | crons, anchors)
def test_periods_tile_time_without_gap_or_overlap(schedule: Schedule, anchor: Anchor) -> None:
    periods = the_first(30, schedule, anchor)
    assert [period.index for period in periods] == list(range(30))
    assert all(period.start < period.end for period in periods)
    assert all(one.end == following.start for one, following in pairwise(periods))
    assert all(one.start_local < following.start_local for one, following in pairwise(periods))
    assert len({period.key for period in periods}) == 30


@given(everies | crons, anchors, st.integers(0, 29))
def test_a_stored_period_is_found_again(schedule: Schedule, anchor: Anchor, index: int) -> None:
    period = the_first(index + 1, schedule, anchor)[-1]
    assert period_at(schedule, anchor, index, period.start_local) == period


@given(anchors, st.sampled_from((Unit.MONTH, Unit.YEAR)), st.integers(1, 7))
def test_later_months_begin_on_the_anchor_day_or_the_last_of_the_month(anchor: Anchor, unit: Unit, count: int) -> None:
    for period in the_first(30, Every(count, unit), anchor)[1:]:
        local = period.start_local
        assert local.day == min(anchor.day, monthrange(local.year, local.month)[1])
        assert local.time() == anchor.local.time()
        months = (local.year - anchor.local.year) * 12 + local.month - anchor.local.month
        assert months == period.index * count * (12 if unit == Unit.YEAR else 1)


@given(crons, anchors)
def test_cron_starts_at_the_first_tick_not_before_the_anchor(schedule: Cron, anchor: Anchor) -> None:
    first = first_period(schedule, anchor)
    assert first.start_local >= anchor.local
    again = Anchor(first.start_local, anchor.day, anchor.zone)
    assert first_period(schedule, again) == first


@given(walls, zones)
def test_a_wall_clock_time_that_exists_survives_the_round_trip(local: datetime, zone: ZoneInfo) -> None:
    there_and_back = to_local(to_instant(local, zone), zone)
    assert timedelta(0) <= there_and_back - local <= timedelta(hours=1)


@given(st.builds(Every, st.integers(1, 10), st.sampled_from(Unit)) | crons)
def test_a_schedule_survives_being_stored(schedule: Schedule) -> None:
    assert schedule_from_text(schedule_to_text(schedule)) == schedule


# ---------------------------------------------------------------------------------------------- the calendar


def test_the_31st_comes_back_after_february() -> None:  # C1
    assert starts(4, Every(1, Unit.MONTH), jakarta("2026-01-31T09:00")) == [
        "2026-01-31 09:00",
        "2026-02-28 09:00",
        "2026-03-31 09:00",
        "2026-04-30 09:00",
    ]


def test_an_imported_anchor_day_steers_the_later_periods() -> None:
    assert starts(3, Every(1, Unit.MONTH), jakarta("2026-02-28T09:00", day=31)) == [
        "2026-02-28 09:00",
        "2026-03-31 09:00",
        "2026-04-30 09:00",
    ]


def test_a_leap_day_comes_back_every_fourth_year() -> None:
    yearly = starts(5, Every(1, Unit.YEAR), jakarta("2024-02-29T00:00"))
    assert [day[:10] for day in yearly] == ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]


def test_1900_style_centuries_have_no_leap_day() -> None:
    assert starts(2, Every(1, Unit.MONTH), jakarta("2100-01-31T00:00"))[1] == "2100-02-28 00:00"
    assert starts(2, Every(1, Unit.MONTH), jakarta("2000-01-31T00:00"))[1] == "2000-02-29 00:00"


def test_weeks_keep_the_weekday_and_days_the_hour() -> None:
    assert starts(3, Every(2, Unit.WEEK), jakarta("2026-12-28T08:30")) == [
        "2026-12-28 08:30",
        "2027-01-11 08:30",
        "2027-01-25 08:30",
    ]
    assert starts(2, Every(10, Unit.DAY), jakarta("2026-02-25T08:30"))[1] == "2026-03-07 08:30"


def test_the_key_is_the_local_start() -> None:  # D10
    period = first_period(Every(1, Unit.MONTH), jakarta("2026-03-01T02:00"))
    assert period.key == "2026-03-01T02:00"
    assert period.start == datetime(2026, 2, 28, 19, tzinfo=UTC)
    assert first_period(Every(1, Unit.DAY), jakarta("2026-03-01T02:00:07")).key == "2026-03-01T02:00:07"


# ---------------------------------------------------------------------------------------------- clock changes


def berlin(local: str) -> Anchor:
    return Anchor(wall(local), wall(local).day, parse_zone("Europe/Berlin"))


@pytest.mark.parametrize("schedule", [Every(1, Unit.DAY), parse_cron("30 2 * * *")])
def test_a_missing_hour_moves_forward(schedule: Schedule) -> None:
    before, missing, after = the_first(3, schedule, berlin("2026-03-28T02:30"))
    assert before.start == datetime(2026, 3, 28, 1, 30, tzinfo=UTC)
    assert missing.start == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # 03:30 in Berlin
    assert missing.key == "2026-03-29T02:30"
    assert after.start == datetime(2026, 3, 30, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize("schedule", [Every(1, Unit.DAY), parse_cron("30 2 * * *")])
def test_a_repeated_hour_counts_once(schedule: Schedule) -> None:  # C6
    twice, after = the_first(2, schedule, berlin("2026-10-25T02:30"))
    assert twice.start == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # the first of the two
    assert twice.end == after.start == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_ticks_that_fall_on_moved_ones_are_the_same_moment() -> None:
    """02:30 becomes 03:30, so the tick of 03:30 is already there, and 03:00 lies behind it."""
    half_hours = [key[11:] for key in _keys("*/30 * * * *", berlin("2026-03-29T01:30"), 4)]
    assert half_hours == ["01:30", "02:00", "02:30", "04:00"]


def test_a_tick_right_after_the_missing_hour_can_be_the_first() -> None:
    assert _keys("0 3 * * *", berlin("2026-03-29T03:00"), 1) == ["2026-03-29T03:00"]


def test_the_second_of_two_hours_looks_like_the_first() -> None:
    zone = parse_zone("Europe/Berlin")
    second = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    local = to_local(second, zone)
    assert (local, local.fold) == (wall("2026-10-25T02:30"), 0)
    assert to_instant(local.replace(fold=1), zone) == second - timedelta(hours=1)


def _keys(cron: str, anchor: Anchor, count: int) -> list[str]:
    return [period.key for period in the_first(count, schedule_from_text(f"cron {cron}"), anchor)]


# ---------------------------------------------------------------------------------------------- due periods


def test_what_is_due_has_started_by_now() -> None:
    schedule, anchor = Every(1, Unit.MONTH), jakarta("2026-01-31T09:00")
    first = first_period(schedule, anchor)
    at_the_second = the_first(2, schedule, anchor)[1].start
    just_before = at_the_second - timedelta(microseconds=1)
    assert due_periods(schedule, anchor, first, first.start - timedelta(seconds=1), 12) == []
    assert len(due_periods(schedule, anchor, first, just_before, 12)) == 1
    assert len(due_periods(schedule, anchor, first, at_the_second, 12)) == 2


def test_the_search_for_due_periods_is_bounded() -> None:
    schedule, anchor = Every(1, Unit.DAY), jakarta("2020-01-01T00:00")
    far_away = datetime(2999, 1, 1, tzinfo=UTC)
    due = due_periods(schedule, anchor, first_period(schedule, anchor), far_away, 13)
    assert [period.index for period in due] == list(range(13))


@pytest.mark.parametrize("unit", list(Unit))
def test_beyond_the_end_of_the_calendar_is_refused(unit: Unit) -> None:
    with pytest.raises(InvalidSchedule, match="beyond the year"):
        period_at(Every(10, unit), jakarta("2026-01-01T00:00"), 5_000_000, wall("2026-01-01T00:00"))


# ---------------------------------------------------------------------------------------------- what people write


def test_people_write_every() -> None:
    assert parse_every("month") == Every(1, Unit.MONTH)
    assert parse_every("2:week") == Every(2, Unit.WEEK)
    assert parse_every(" 3:Days ") == Every(3, Unit.DAY)
    assert [describe(parse_every(text)) for text in ("month", "2:week")] == ["every month", "every 2 weeks"]
    assert schedule_to_text(parse_every("month")) == "every 1:month"


@pytest.mark.parametrize(
    "text",
    ["", "fortnight", "0:month", "-1:week", "1.5:month", "2 week", "999:year", "month:2", "1_0:day", "\u0661:day"],
)
def test_a_wrong_every_is_refused(text: str) -> None:
    with pytest.raises(InvalidSchedule, match="write"):
        parse_every(text)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("0 9 1 * *", "0 9 1 * *"),
        ("  0   9 ? jan,jul mon ", "0 9 ? JAN,JUL MON"),
        ("0 9 * * MON#1", "0 9 * * MON#1"),
        ("0 9 * * L5", "0 9 * * L5"),
        ("0 */24 * * *", "0 */24 * * *"),
        ("0 9 L * *", "0 9 L * *"),
        ("0 9 25-L * *", "0 9 25-L * *"),
        ("0 9 31 1,3,5 *", "0 9 31 1,3,5 *"),
        ("0 9 1-31 * *", "0 9 1-31 * *"),
        ("0 9 */2 * *", "0 9 */2 * *"),
        ("0 9 31W * *", "0 9 31W * *"),
        ("0 9 * * FRI,MON", "0 9 * * FRI,MON"),
        ("0 9 28 2 *", "0 9 28 2 *"),
    ],
)
def test_people_write_cron(written: str, kept: str) -> None:
    cron = parse_cron(written)
    assert cron == Cron(kept)
    assert describe(cron) == schedule_to_text(cron) == f"cron {kept}"


@pytest.mark.parametrize(
    "text", ["0 9 31 * *", "0 9 30 * *", "0 9 29 * *", "0 9 15,30 * *", "0 9 31 1-4 *", "0 9 29 2 *"]
)
def test_a_day_that_some_months_lack_is_refused_with_advice(text: str) -> None:  # C6
    with pytest.raises(InvalidSchedule, match=r"has a day \d+; write L .* or use --every month"):
        parse_cron(text)


@pytest.mark.parametrize(
    "text",
    ["0 9 1 * MON", "0 9 1-7 * MON", "0 9 */2 * 1", "0 9 L * FRI", "0 9 15W * 1-5", "0 9 1 * 0-6", "0 9 1,15 jan SUN"],
)
def test_a_day_of_the_month_and_a_weekday_is_refused_because_cron_takes_either(text: str) -> None:
    with pytest.raises(InvalidSchedule, match=r"cron takes either, not both: .* write one of them") as refusal:
        parse_cron(text)
    assert "\n" not in str(refusal.value)


def test_the_advice_for_two_kinds_of_days_is_two_lines_that_are_taken() -> None:
    with pytest.raises(InvalidSchedule) as refusal:
        parse_cron("0 9 1 * MON")
    for advised in ("0 9 1 * *", "0 9 * * MON"):
        assert f"'{advised}'" in str(refusal.value)
        assert parse_cron(advised) == Cron(advised)


@pytest.mark.parametrize(
    "text",
    [
        *("*/5 * * * *", "* * * * *", "0 * * * *", "0 9,21 * * *", "0,30 9 * * *", "0 9-17 * * *", "0 */12 1 * *"),
        *("* 9 1 * *", "0 9-10 L * *", "0-0 9 1 * *", "59 23,0 1 1 *", "0 0/6 * * MON#1"),
    ],
)
def test_more_than_one_charge_a_day_is_refused(text: str) -> None:
    with pytest.raises(InvalidSchedule, match="more often than once a day"):
        parse_cron(text)


@pytest.mark.parametrize("text", ["0 9 1 * MON", "*/5 * * * *", "0 9,21 * * *"])
def test_a_plan_that_says_so_already_goes_on(text: str) -> None:
    schedule = schedule_from_text(f"cron {text}")
    assert schedule_to_text(schedule) == f"cron {text}"
    assert frequency_days(schedule) >= 1


@pytest.mark.parametrize("text", ["0 9 31 2 *", "0 9 31 4,6 *", "0 9 30 2 *"])
def test_what_can_never_fire_is_refused(text: str) -> None:
    with pytest.raises(InvalidSchedule, match="never fire"):
        parse_cron(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0 9 1 *", "0 0 9 1 * *", "@monthly", "0 9 1 * * 2026", "60 9 1 * *", "0 24 1 * *", "0 9 0 * *"),
        *("0 9 1 13 *", "0 9 1 * 8", "a b c d e", "*/0 9 * * *", "H 9 * * *", "R 9 * * *", "0 R(3-5) * * *"),
        *("0 9 * * MON#5", "- - - - -", "0 9 1\u00a0* *", "9" * 300 + " * * * *"),
    ],
)
def test_a_wrong_cron_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidSchedule) as refusal:
        parse_cron(text)
    assert "\n" not in str(refusal.value)


@given(st.text("0123456789*/,-LW#?HRMONJAN() ", max_size=25))
def test_any_text_is_a_schedule_or_refused(text: str) -> None:
    for kind in ("cron ", "every ", ""):
        with suppress(InvalidSchedule):
            schedule = schedule_from_text(kind + text)
            assert frequency_days(schedule) >= 1
            assert schedule_from_text(schedule_to_text(schedule)) == schedule


def test_the_card_schemes_are_told_days() -> None:
    days = {text: frequency_days(schedule_from_text(text)) for text in _FREQUENCIES}
    assert days == _FREQUENCIES


_FREQUENCIES = {
    "every 1:month": 30,
    "every 1:year": 365,
    "every 2:week": 14,
    "every 1:day": 1,
    "cron 0 9 1 * *": 30,
    "cron 0 9 * * MON": 7,
    "cron 0 9 1,15 * *": 15,
    "cron 0 9 1 1 *": 365,
    "cron * * * * *": 1,
}


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("Asia/Jakrta", "Asia/Jakarta"),
        ("asia/jakarta", "write Asia/Jakarta"),
        ("Jakarta", "Asia/Jakarta"),
        ("Asia/Ho Chi Minh", "Asia/Ho_Chi_Minh"),
        ("WIB", "write Asia/Jakarta"),
        ("+07:00", "offset"),
        ("UTC+7", "offset"),
        ("right/Asia/Jakarta", "IANA"),
        ("localtime", "IANA"),
        ("posixrules", "IANA"),
        ("posix/Asia/Jakarta", "IANA"),
        ("Factory", "is no place"),
        ("Asia/Hanoi", "write Asia/Ho_Chi_Minh"),
        ("Hà Nội", "write Asia/Ho_Chi_Minh"),
        ("Asia/Surabaya", "write Asia/Jakarta"),
        ("medan", "write Asia/Jakarta"),
        ("Asia/Bali", "write Asia/Makassar"),
        ("Denpasar", "write Asia/Makassar"),
        ("Asia/Cebu", "write Asia/Manila"),
        ("Davao City", "write Asia/Manila"),
        ("Asia/Chiang_Mai", "write Asia/Bangkok"),
        ("chiang mai", "write Asia/Bangkok"),
        ("Asia/Penang", "write Asia/Kuala_Lumpur"),
        ("Johor", "write Asia/Kuala_Lumpur"),
        ("WITA", "write Asia/Makassar"),
        ("WIT", "write Asia/Jayapura"),
        ("ICT", "write Asia/Bangkok"),
        ("PHT", "write Asia/Manila"),
        ("SGT", "write Asia/Singapore"),
        ("UTC+07:00", "Asia/Jakarta, Asia/Bangkok or Asia/Ho_Chi_Minh"),
        ("gmt+8", "Asia/Manila"),
        ("Asia/jakarta", "write Asia/Jakarta"),
        ("ASIA/MANILA", "write Asia/Manila"),
        ("Asia/Jakarta ", "write Asia/Jakarta"),
        ("../../etc/passwd", "IANA"),
        ("", "IANA"),
        ("\0", "IANA"),
        ("x" * 5000, "IANA"),
    ],
)
def test_a_wrong_zone_is_refused_with_what_to_write(typed: str, advice: str) -> None:
    with pytest.raises(InvalidSchedule) as refusal:
        parse_zone(typed)
    assert advice in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_zone_that_is_advised_is_one() -> None:
    for zone in FAMILIAR_ZONES.values():
        assert parse_zone(zone).key == zone
    for advised in ZONES_AT.values():
        assert all(parse_zone(zone) for zone in re.findall(r"Asia/\w+", advised))
    assert not set(FAMILIAR_ZONES) & {zone.lower() for zone in available_timezones()}


def test_what_was_stored_with_no_place_goes_on() -> None:
    assert stored_zone("Factory").utcoffset(datetime(2026, 1, 1, tzinfo=UTC)) == timedelta(0)


@pytest.mark.parametrize("count", [0, -1, 99_999])
@pytest.mark.parametrize("unit", list(Unit))
def test_a_schedule_cannot_be_built_wrong(count: int, unit: Unit) -> None:
    assert unit in MOST_OF_UNIT
    with pytest.raises(InvalidSchedule):
        Every(count, unit)


def test_an_anchor_is_a_wall_clock_time_and_a_day_of_the_month() -> None:
    zone = parse_zone("Asia/Jakarta")
    with pytest.raises(InvalidSchedule, match="offset"):
        Anchor(datetime(2026, 1, 1, tzinfo=UTC), 1, zone)
    for day in (0, 32):
        with pytest.raises(InvalidSchedule, match="1 to 31"):
            Anchor(wall("2026-01-01"), day, zone)
