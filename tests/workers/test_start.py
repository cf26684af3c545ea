"""What a process does once when it starts."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from workers import scheduler


def test_the_scheduler_asks_about_a_stop_by_another_key_until_it_has_an_answer_and_then_never_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An old scheduler beside it must not lift a stop again and again while the new key is refused."""
    asked: list[object] = []
    turns: list[object] = []
    stop = threading.Event()

    def ask(parts: object) -> bool:
        asked.append(parts)
        return len(asked) > 1  # the database was away at first

    def turn(*_: object) -> None:
        turns.append(None)
        if len(turns) == 5:
            stop.set()

    monkeypatch.setattr(scheduler, "lift_stop_of_another_key", ask)
    monkeypatch.setattr(scheduler, "run_due_jobs", turn)
    monkeypatch.setattr(scheduler, "LOOP_SECONDS", 0.0)
    app: Any = SimpleNamespace(parts="parts")

    scheduler._loop(app, lambda _kind, _ids: None, stop)

    assert asked == ["parts", "parts"]
    assert len(turns) == 5
