"""Every due period is billed, skipped or held, as the plan says (field notes M1, M5)."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.domain.catch_up import CatchUp, Decision, decide
from billing.domain.schedule import Anchor, Every, Period, Unit, next_period, parse_zone, period_at


def due(count: int) -> tuple[Period, ...]:
    start = datetime.fromisoformat("2026-01-31T09:00")
    schedule, anchor = Every(1, Unit.MONTH), Anchor(start, 31, parse_zone("Asia/Jakarta"))
    periods = [period_at(schedule, anchor, 0, start)]
    while len(periods) < count:
        periods.append(next_period(schedule, anchor, periods[-1]))
    return tuple(periods[:count])


@pytest.mark.parametrize("policy", list(CatchUp))
def test_one_due_period_is_always_billed(policy: CatchUp) -> None:
    assert decide(policy, due(1)) == Decision(bill=due(1))
    assert decide(policy, ()) == Decision()


def test_all_bills_every_missed_period() -> None:
    assert decide(CatchUp.ALL, due(3)) == Decision(bill=due(3))


def test_all_stops_at_the_limit_and_asks() -> None:
    assert decide(CatchUp.ALL, due(12)).hold is None
    beyond = decide(CatchUp.ALL, due(13))
    assert (beyond.bill, beyond.skip) == (due(13)[:12], ())
    assert beyond.hold is not None
    assert "more than 12" in beyond.hold


def test_latest_bills_the_running_period_and_records_the_others() -> None:
    assert decide(CatchUp.LATEST, due(3)) == Decision(bill=due(3)[2:], skip=due(3)[:2])


def test_skip_charges_nothing_until_the_next_due_date() -> None:
    assert decide(CatchUp.SKIP, due(2)) == Decision(skip=due(2))


def test_hold_touches_nothing_and_says_why() -> None:
    decision = decide(CatchUp.HOLD, due(2))
    assert (decision.bill, decision.skip) == ((), ())
    assert decision.hold is not None
    assert "2 periods are due since 2026-01-31T09:00" in decision.hold


@given(st.sampled_from(CatchUp), st.integers(0, 30), st.integers(1, 20))
def test_no_due_period_is_lost_or_counted_twice(policy: CatchUp, count: int, limit: int) -> None:
    periods = due(count)
    decision = decide(policy, periods, limit=limit)
    settled = decision.skip + decision.bill
    assert settled == periods[: len(settled)]
    assert len(settled) == count or decision.hold
