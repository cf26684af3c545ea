"""A day of any size against Xendit's list: page by page, little memory, and ended when the process is told to end."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, cast

import pytest

from billing.charging import look_up
from billing.domain.gateway import PaymentGateway, TransactionPage, TransactionRow
from billing.errors import NotSent, Unavailable
from billing.parts import Parts
from billing.runs import tick
from billing.work import InProcess
from tests.world import START, World

TODAY = date(2026, 1, 31)
PAGE = 1_000


@dataclass
class LongList:
    """Xendit with so many payments on a day, none of them ours. `asked`: the pages, by what they come after."""

    payments: int
    before_page: Callable[[int], None] = lambda _number: None
    asked: list[str | None] = field(default_factory=list)

    def transactions_page(
        self, *, created_from: datetime, created_to: datetime, after: str | None = None
    ) -> TransactionPage:
        assert created_from < created_to
        self.asked.append(after)
        self.before_page(len(self.asked))
        first = int(after or 0)
        last = min(first + PAGE, self.payments)
        rows = [
            TransactionRow(str(n), "PAYMENT", "PENDING", f"theirs-{n}", f"py-{n}", None, START)
            for n in range(first + 1, last + 1)
        ]
        return TransactionPage(rows, str(last) if last < self.payments else None)


class Impatient(threading.Event):
    """Counts how often somebody waits, and lets nobody wait."""

    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits += 1
        return self.is_set()


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


def with_list(world: World, xendit: LongList) -> Parts:
    return replace(world.parts, gateway=cast(PaymentGateway, xendit), stopping=Impatient())


def test_more_than_a_hundred_thousand_payments_are_compared_in_little_memory(world: World) -> None:
    look_up.compare_day(with_list(world, LongList(PAGE)), TODAY)  # what is loaded once
    parts = with_list(world, LongList(120_000))

    tracemalloc.start()
    try:
        assert look_up.compare_day(parts, TODAY) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20


def test_our_side_of_a_day_is_read_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_up, "CAPTURES_AT_ONCE", 2)
    for number in range(5):
        world.subscribe_save(f"customer{number}")
    world.run()
    world.deliver_webhooks()
    assert look_up.compare_day(world.parts, TODAY) == []

    nothing_listed = cast(Any, LongList(0))
    nothing_listed.find_transactions = lambda _reference: []
    missing = look_up.compare_day(with_list(world, nothing_listed), TODAY)
    assert [row.kind for row in missing] == ["missing_there"] * 5


def test_a_process_that_is_told_to_end_stops_between_two_pages(world: World) -> None:
    xendit = LongList(100 * PAGE)
    parts = with_list(world, xendit)
    xendit.before_page = lambda number: parts.stopping.set() if number == 3 else None

    with pytest.raises(look_up.Interrupted):
        look_up.compare_day(parts, TODAY)
    assert len(xendit.asked) == 3


def test_the_scheduler_without_workers_does_not_wait_for_a_day(world: World) -> None:
    """Its own pool compares; on SIGTERM it is closed."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if number == 2:
            reached.set()
            assert go_on.wait(60)

    xendit = LongList(1_000 * PAGE, hold)
    send = InProcess(replace(world.parts, gateway=cast(PaymentGateway, xendit)), 1)
    send(tick.DAY, [TODAY.isoformat()])
    assert reached.wait(60)
    closing = threading.Thread(target=send.close)
    closing.start()
    while not send._parts.stopping.is_set():
        pass
    go_on.set()
    closing.join(60)
    assert not closing.is_alive()
    assert len(xendit.asked) == 2
    assert not world.parts.stopping.is_set(), "whoever else uses these parts goes on"


def test_one_answer_that_is_lost_does_not_lose_the_day(world: World) -> None:
    def lose(number: int) -> None:
        if number in (3, 4):
            raise NotSent("the request quota to Xendit is used up for the moment")

    xendit = LongList(5 * PAGE, lose)
    parts = with_list(world, xendit)

    assert look_up.compare_day(parts, TODAY) == []
    assert xendit.asked == [None, "1000", "2000", "2000", "2000", "3000", "4000"]
    assert cast(Impatient, parts.stopping).waits == 2


@pytest.mark.parametrize("begins", [1, 2])
def test_a_gateway_that_stays_away_is_an_error(world: World, begins: int) -> None:
    def away(number: int) -> None:
        if number >= begins:
            raise Unavailable("no answer")

    xendit = LongList(5 * PAGE, away)
    with pytest.raises(Unavailable):
        look_up.compare_day(with_list(world, xendit), TODAY)
    assert len(xendit.asked) == (1 if begins == 1 else 2 + len(look_up.PAGE_WAITS_SECONDS))


def test_a_list_that_goes_round_in_circles_is_an_error(world: World) -> None:
    xendit = LongList(5 * PAGE)
    xendit.transactions_page = lambda **asked: TransactionPage([], "b" if asked["after"] == "a" else "a")  # type: ignore[method-assign,assignment]
    with pytest.raises(Unavailable, match="repeats itself"):
        look_up.compare_day(with_list(world, xendit), TODAY)
