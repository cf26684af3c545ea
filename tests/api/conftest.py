"""Shops: an empty one, and one in which everything has happened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.api.shop import Shop, environment, open_shop
from tests.cli.terminal import Terminal, Xendit, simulated_xendit


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder without .env, no setting in the environment, and logging left as it was."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("BILLING_")]:
        monkeypatch.delenv(name)
    before = structlog.get_config()
    monkeypatch.setattr("billing.log.configure", lambda *_args, **_options: None)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)


@pytest.fixture(scope="module")
def xendit() -> Iterator[Xendit]:
    with simulated_xendit() as running:
        yield running


@pytest.fixture
def terminal(database_url: str, xendit: Xendit) -> Terminal:
    return Terminal(environment(database_url, xendit))


@pytest.fixture
def shop(terminal: Terminal, xendit: Xendit) -> Iterator[Shop]:
    """A plan, and nobody yet."""
    with open_shop(terminal, xendit) as shop:
        shop.plan()
        yield shop
