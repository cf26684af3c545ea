"""A slice of the long run (`python -m tests.edges.fuzz`), and that it would notice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import structlog

from billing.errors import WebhookRejected
from billing.inbox import apply
from tests.edges.fuzz import Target, target
from tests.edges.hostile import hostile

SLICE = 1_000


@pytest.fixture
def aim(database_url: str) -> Iterator[Target]:
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
    with target(database_url) as aim:
        yield aim
    structlog.configure(**before)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_input_is_500_lost_or_parked(aim: Target, seed: int) -> None:
    asyncio.run(aim.fire_all(seed, range(SLICE)))

    assert aim.failures == []
    assert aim.statuses[200] > SLICE / 4
    assert aim.states().keys() == {"applied", "ignored", "unmatched"}
    assert aim.unapplicable() == []


def test_the_same_seed_is_the_same_input() -> None:
    ours = {"reference_id": ["att-1", "ses-1"]}
    assert [hostile(5, number, ours).body for number in range(200)] == [
        hostile(5, number, ours).body for number in range(200)
    ]
    assert len({hostile(seed, 1, ours).body for seed in range(50)}) > 40


def _loses(_session: Any, deliveries: Sequence[Any], _now: Any) -> list[None]:
    return [None for _ in deliveries]


def _breaks(*_arguments: Any) -> None:
    raise TypeError("a bug of ours")


@pytest.mark.parametrize(
    ("where", "what", "told"),
    [
        ("billing.inbox.apply.record_events", _loses, "accepted and not stored"),
        ("billing.inbox.apply.record_events", _breaks, "answered 500"),
        ("billing.inbox.apply._apply", _breaks, "parked: TypeError"),
    ],
)
def test_it_would_notice(aim: Target, monkeypatch: pytest.MonkeyPatch, where: str, what: Any, told: str) -> None:
    ours = aim.new_cast()
    monkeypatch.setattr(where, what)
    for number in range(40):
        aim.fire(hostile(1, number, ours))
    assert any(told in failure for failure in aim.failures)


def test_it_would_notice_an_open_door(aim: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.web.check_callback_token", lambda _received, _accepted: None)
    ours = aim.new_cast()
    for number in range(300):
        aim.fire(hostile(1, number, ours))
    assert any("to a wrong token" in failure for failure in aim.failures)


def test_a_body_that_is_refused_leaves_no_row(aim: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> None:
        raise WebhookRejected(400, "no")

    monkeypatch.setattr(apply, "record_events", refuse)
    for number in range(20):
        aim.fire(hostile(1, number, {}))
    assert aim.states() == {}
