"""The shared budget: never more than the gateway gives, all of what it gives, and the right ones first.

The clock of these tests is a number; nobody waits. The gateway's side is counted as the gateway counts it: the requests
of any sixty seconds.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from billing.domain.gateway import CHARGE_ENDPOINT, Lane
from billing.quota import Budget, SharedQuota, Unlimited, make_quota, reserve
from billing.store import engine
from billing.store.engine import Sessions, make_engine, make_sessions
from billing.store.models import QuotaSlot

OTHER_ENDPOINT = "GET /v3/payment_requests/{id}"
START = 1_800_000_000.0
MINUTE = 60.0


# The rule, without a database


@dataclass
class Gateway:
    """Sends as fast as the rule lets it, and counts as Xendit does."""

    limit: float
    now: float = START
    budget: Budget = field(init=False)
    sent: list[tuple[float, Lane]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.budget = Budget(self.limit, self.now)

    def ask(self, lane: Lane, wanted: int = 1) -> int:
        recent = [at for at, _ in self.sent_at_once if at > self.now - 61]
        reserved = reserve(
            Budget(self.limit, self.now, self.budget.next_slot, len(recent), served=self.budget.served), lane, wanted
        )
        if reserved.permits:
            self.budget = reserved.budget
            times = [reserved.start + number * self.paced(reserved.at_once) for number in range(reserved.permits)]
            self.sent += [(at, lane) for at in times]
            self.sent_at_once += [(at, lane) for at in times][: reserved.at_once]
        return reserved.permits

    sent_at_once: list[tuple[float, Lane]] = field(default_factory=list)

    def paced(self, at_once: int) -> float:
        return 0.0 if at_once else self.budget.interval

    def fullest_minute(self) -> int:
        times = sorted(at for at, _ in self.sent)
        return max((number + 1 - bisect_left(times, at - MINUTE + 1e-6) for number, at in enumerate(times)), default=0)

    def sent_by(self, lane: Lane) -> int:
        return sum(1 for _, by in self.sent if by == lane)


@settings(max_examples=200, deadline=None)
@given(
    limit=st.sampled_from([1, 2, 5, 30, 60, 600]),
    asked=st.lists(
        st.tuples(st.floats(0, 20), st.sampled_from(list(Lane)), st.integers(1, 16)), min_size=1, max_size=300
    ),
)
def test_no_minute_holds_more_than_the_limit(limit: int, asked: list[tuple[float, Lane, int]]) -> None:
    gateway = Gateway(limit)
    for pause, lane, wanted in asked:
        gateway.now += pause
        gateway.ask(lane, wanted)

    assert gateway.fullest_minute() <= limit


def test_a_long_run_uses_the_whole_quota() -> None:
    gateway = Gateway(600)
    while gateway.now < START + 5 * MINUTE:
        gateway.ask(Lane.RENEWAL)
        gateway.now += 0.01

    assert gateway.fullest_minute() <= 600
    assert gateway.sent_by(Lane.RENEWAL) >= 0.97 * 5 * 600


def test_a_small_run_does_not_wait() -> None:
    gateway = Gateway(600)

    assert sum(gateway.ask(Lane.RENEWAL) for _ in range(60)) == 60
    assert {at for at, _ in gateway.sent} == {START}


def test_a_customer_waits_a_moment_behind_a_run_that_uses_everything() -> None:
    gateway = Gateway(600)
    waited = []
    for step in range(6_000):
        gateway.now = START + step * 0.02
        gateway.ask(Lane.RENEWAL, 4)
        if step % 500 == 499:
            assert gateway.ask(Lane.CUSTOMER) == 1, "there is always a slot right behind the renewals"
            waited.append(max(at for at, lane in gateway.sent if lane == Lane.CUSTOMER) - gateway.now)

    assert max(waited) <= 2.0
    assert gateway.fullest_minute() <= 600


def test_every_lane_gets_its_share_while_another_would_take_all() -> None:
    gateway = Gateway(600)
    for step in range(30_000):
        gateway.now = START + step * 0.01
        for lane in (Lane.CUSTOMER, Lane.RENEWAL, Lane.RETRY, Lane.UPKEEP):
            gateway.ask(lane)

    total = len(gateway.sent)
    assert gateway.sent_by(Lane.CUSTOMER) > gateway.sent_by(Lane.RENEWAL) > gateway.sent_by(Lane.RETRY)
    assert gateway.sent_by(Lane.RETRY) >= 0.08 * total
    assert gateway.sent_by(Lane.UPKEEP) >= 0.04 * total


def test_renewals_go_before_retries_and_retries_before_upkeep() -> None:
    gateway = Gateway(600)
    for step in range(30_000):
        gateway.now = START + step * 0.01
        for lane in (Lane.UPKEEP, Lane.RETRY, Lane.RENEWAL):  # in the worst order
            gateway.ask(lane)

    assert gateway.sent_by(Lane.RENEWAL) > 4 * gateway.sent_by(Lane.RETRY) > 4 * gateway.sent_by(Lane.UPKEEP)


# Shared through the database


class Clock:
    def __init__(self) -> None:
        self.now = START
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Those who sleep at the same time wake at the same time."""
        until = self.now + seconds
        with self.lock:
            self.now = max(self.now, until)


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    engine = make_engine(database_url)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shared(sessions: Sessions, clock: Clock, limit: float = 600, *, adapt: bool = False) -> SharedQuota:
    """As one process has it."""
    return SharedQuota(sessions, limit, adapt=adapt, clock=clock, sleep=clock.sleep)


def taken_now(quota: SharedQuota, clock: Clock, *, endpoint: str = CHARGE_ENDPOINT, lane: Lane = Lane.RENEWAL) -> int:
    """How many permits one instant gives, the slots of the next second included."""
    before, count = clock.now, 0
    while quota.acquire(endpoint, lane, wait_seconds=-1) and count < 10_000:
        count += 1
        clock.now = before
    return count


def test_two_processes_share_one_budget(sessions: Sessions, clock: Clock) -> None:
    first, second = shared(sessions, clock, 60), shared(sessions, clock, 60)

    def send(quota: SharedQuota) -> None:
        for _ in range(60):
            assert quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=3_600) == 1

    threads = [threading.Thread(target=send, args=(quota,)) for quota in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with sessions() as session:
        slots = session.execute(select(QuotaSlot.tenth, QuotaSlot.sent).order_by(QuotaSlot.tenth)).all()
    assert sum(sent for _, sent in slots) == 120
    fullest = max(sum(sent for tenth, sent in slots if first <= tenth < first + 600) for first, _ in slots)
    assert 50 <= fullest <= 60, "all of it; how closely is measured in benchmarks"


def test_a_restart_brings_no_burst(sessions: Sessions, clock: Clock) -> None:
    used = taken_now(shared(sessions, clock), clock)
    assert used >= 60

    assert taken_now(shared(sessions, clock), clock) == 0, "a new process, the same second"


def test_a_machine_that_is_cut_off_while_it_reserves_stops_nobody_for_long(
    database_url: str, sessions: Sessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the row's lock, and PostgreSQL hears nothing more of it, not even an end."""
    shared(sessions, clock).acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0)
    monkeypatch.setattr(engine, "LONGEST_IDLE_SECONDS", 1)
    cut_off = make_engine(database_url, pool_size=2)
    silent = cut_off.connect()
    silent.execute(text("SELECT FROM quota_budgets FOR UPDATE"))

    assert shared(sessions, clock).acquire(CHARGE_ENDPOINT, Lane.CUSTOMER, wait_seconds=0) == 1

    silent.invalidate()
    cut_off.dispose()


def test_endpoints_have_budgets_of_their_own(sessions: Sessions, clock: Clock) -> None:
    quota = shared(sessions, clock)
    taken_now(quota, clock)

    assert quota.acquire(OTHER_ENDPOINT, Lane.UPKEEP, wait_seconds=0) == 1


def test_the_limit_in_the_headers_counts_when_it_is_lower(sessions: Sessions, clock: Clock) -> None:
    quota = shared(sessions, clock, 600)
    quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0)
    quota.learn(CHARGE_ENDPOINT, limit=60, remaining=59)

    assert shared(sessions, clock, 600).outlook(CHARGE_ENDPOINT, 60.0) <= 60  # type: ignore[operator]


@pytest.mark.parametrize(("adapt", "most"), [(False, 600), (True, 1_200)])
def test_a_higher_limit_counts_only_when_nobody_has_set_one(
    sessions: Sessions, clock: Clock, adapt: bool, most: int
) -> None:
    quota = shared(sessions, clock, 600, adapt=adapt)
    quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0)
    quota.learn(CHARGE_ENDPOINT, limit=1_200, remaining=1_199)

    outlook = quota.outlook(CHARGE_ENDPOINT, 61.0)
    assert outlook is not None
    assert 0.97 * most <= outlook <= most


def test_what_others_send_with_the_same_account_takes_slots(sessions: Sessions, clock: Clock) -> None:
    """A merchant's own checkout uses the same quota: we slow down before the wall."""
    quota = shared(sessions, clock, 600)
    quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0)
    before = quota.outlook(CHARGE_ENDPOINT, 60.0)
    quota.learn(CHARGE_ENDPOINT, limit=600, remaining=100)

    after = quota.outlook(CHARGE_ENDPOINT, 60.0)
    assert before is not None
    assert after is not None
    assert after <= 110, f"{before} before, {after} after"


def test_an_answer_that_is_no_news_costs_nothing(sessions: Sessions, clock: Clock) -> None:
    quota = shared(sessions, clock, 600)
    quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0)
    quota.learn(CHARGE_ENDPOINT, limit=600, remaining=599)
    quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0)
    asked: list[int] = []
    quota._sessions = lambda: asked.append(1)  # type: ignore[assignment]

    quota.learn(CHARGE_ENDPOINT, limit=600, remaining=598)

    assert asked == []


def test_a_429_holds_everybody(sessions: Sessions, clock: Clock) -> None:
    first, second = shared(sessions, clock), shared(sessions, clock)
    first.pause(CHARGE_ENDPOINT, 20)

    assert [second.acquire(CHARGE_ENDPOINT, lane, wait_seconds=1) for lane in Lane] == [0, 0, 0, 0]
    assert second.acquire(OTHER_ENDPOINT, Lane.UPKEEP, wait_seconds=0) == 1
    clock.now += 21
    assert second.acquire(CHARGE_ENDPOINT, Lane.CUSTOMER, wait_seconds=0) == 1


def test_a_permit_that_comes_back_is_used_by_the_next(sessions: Sessions, clock: Clock) -> None:
    quota = shared(sessions, clock)
    taken = taken_now(quota, clock)
    quota.give_back(CHARGE_ENDPOINT, 2)

    assert taken
    assert quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, 5, wait_seconds=0) == 2
    assert quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=-1) == 0


def test_whoever_waits_for_a_slot_gets_it_when_its_time_has_come(sessions: Sessions, clock: Clock) -> None:
    quota = shared(sessions, clock, 60)
    taken_now(quota, clock)
    before = clock.now

    assert quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=10) == 1
    assert 0 < clock.now - before <= 3


def test_a_very_large_number_is_no_limit(sessions: Sessions) -> None:
    quota = make_quota(sessions, 1_000_000)

    assert isinstance(quota, Unlimited)
    assert quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, 500, wait_seconds=0) == 500
    assert quota.outlook(CHARGE_ENDPOINT, 1.0) is None


@pytest.mark.parametrize("limit", [0.5, 1, 2, 3])
def test_the_smallest_quota_lets_something_through(sessions: Sessions, clock: Clock, limit: float) -> None:
    quota = shared(sessions, clock, limit)

    assert quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0) == 1


@pytest.mark.parametrize("seconds", [1_795_737_600.0, float("nan"), float("inf"), -5.0])
def test_nobody_can_close_an_endpoint_for_more_than_an_hour(sessions: Sessions, clock: Clock, seconds: float) -> None:
    quota = shared(sessions, clock)
    quota.pause(CHARGE_ENDPOINT, seconds)

    clock.now += 3_601
    assert quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0) == 1


def test_a_pause_of_decades_that_an_older_release_stored_does_not_hold(sessions: Sessions, clock: Clock) -> None:
    quota = shared(sessions, clock)
    quota.pause(CHARGE_ENDPOINT, 20)
    with sessions.begin() as session:
        session.execute(text("UPDATE quota_budgets SET paused_until = '2083-01-01'"))

    assert quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0) == 1
    quota.pause(CHARGE_ENDPOINT, 20)
    assert quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0) == 0, "and the next 429 is heard"


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_an_absurd_limit_leaves_some_requests(sessions: Sessions, clock: Clock, limit: int) -> None:
    quota = shared(sessions, clock, 600)
    quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0)
    quota.learn(CHARGE_ENDPOINT, limit=limit, remaining=0)

    clock.now += 120
    outlook = quota.outlook(CHARGE_ENDPOINT, 60.0)
    assert outlook is not None
    assert 9 <= outlook <= 10


def test_a_limit_stored_by_an_older_release_is_bounded_as_well(sessions: Sessions, clock: Clock) -> None:
    quota = shared(sessions, clock, 600)
    quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0)
    with sessions.begin() as session:
        session.execute(text("UPDATE quota_budgets SET learned_limit = 1"))

    clock.now += 120
    assert (quota.outlook(CHARGE_ENDPOINT, 60.0) or 0) >= 9


def test_a_limit_that_no_answer_confirms_any_more_is_forgotten(
    sessions: Sessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = shared(sessions, clock, 600)
    quota.acquire(CHARGE_ENDPOINT, Lane.RENEWAL, wait_seconds=0)
    quota.learn(CHARGE_ENDPOINT, limit=60, remaining=59)
    quota.learn(CHARGE_ENDPOINT, limit=None, remaining=None)
    assert (quota.outlook(CHARGE_ENDPOINT, 60.0) or 0) <= 60, "one answer without headers tells nothing"

    monkeypatch.setattr("billing.quota.LEARNED_LIFE_SECONDS", 0.0)
    quota.learn(CHARGE_ENDPOINT, limit=None, remaining=None)
    assert (quota.outlook(CHARGE_ENDPOINT, 60.0) or 0) > 500
