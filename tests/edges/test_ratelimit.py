"""How often a stranger may do something: never more in any window, and in bounded memory."""

from __future__ import annotations

import random

import pytest

from billing.ratelimit import RateLimit


class Hand:
    """A clock moved by hand."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hand() -> Hand:
    return Hand()


def test_so_many_then_wait(hand: Hand) -> None:
    limit = RateLimit(3, 60, clock=hand)
    assert [limit.wait("a") for _ in range(5)] == [0, 0, 0, 60, 60]
    hand.now += 45.5
    assert limit.wait("a") == 15
    hand.now += 14.5
    assert limit.wait("a") == 0


def test_who_keeps_asking_waits_no_longer(hand: Hand) -> None:
    limit = RateLimit(1, 10, clock=hand)
    limit.wait("a")
    for _ in range(100):
        hand.now += 0.0999
        assert limit.wait("a") >= 1
    hand.now += 0.011
    assert limit.wait("a") == 0


def test_keys_do_not_share(hand: Hand) -> None:
    limit = RateLimit(1, 60, clock=hand)
    assert [limit.wait("a"), limit.wait("b"), limit.wait("a")] == [0, 0, 60]


def test_never_more_in_any_window(hand: Hand) -> None:
    dice, limit, let_in = random.Random(7), RateLimit(5, 60, clock=hand), list[float]()
    for _ in range(3_000):
        hand.now += dice.choice((0, 0.1, 1, 7, 30))
        if limit.wait("a") == 0:
            let_in.append(hand.now)
    assert len(let_in) > 500
    assert all(sixth - first >= 60 for first, sixth in zip(let_in, let_in[5:], strict=False))


def test_memory_is_bounded_and_who_is_active_is_not_forgotten(hand: Hand) -> None:
    limit = RateLimit(2, 60, clock=hand, most_keys=10)
    limit.wait("attacker")
    limit.wait("attacker")
    for number in range(1_000):
        limit.wait(f"other-{number}")
        assert limit.wait("attacker") > 0
    assert len(limit._times) == 10
