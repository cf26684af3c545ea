"""Terminals: an empty one, one with a database, one with a database, a test clock and a simulated Xendit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.cli.terminal import KEY, NO_LIMIT, Terminal, Xendit, simulated_xendit


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder without .env, no setting in the environment, and logging left as it was."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("BILLING_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    before = structlog.get_config()
    monkeypatch.setattr("billing.log.configure", lambda *_args, **_options: None)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)


@pytest.fixture
def bare() -> Terminal:
    """Nothing is set."""
    return Terminal()


@pytest.fixture
def billing(database_url: str) -> Terminal:
    """A database and a test clock."""
    return Terminal({"BILLING_DATABASE_URL": database_url, "BILLING_TEST_CLOCK": "true"})


@pytest.fixture(scope="module")
def xendit() -> Iterator[Xendit]:
    with simulated_xendit() as running:
        yield running


@pytest.fixture
def shop(billing: Terminal, xendit: Xendit) -> Terminal:
    """A database, a test clock, a simulated Xendit, one plan and one customer."""
    billing.environment |= {
        "BILLING_XENDIT_BASE_URL": xendit.url,
        "BILLING_XENDIT_SECRET_KEY": KEY,
        "BILLING_XENDIT_REQUESTS_PER_MINUTE": NO_LIMIT,
        "BILLING_PUBLIC_URL": "https://shop.example.com",
    }
    billing.json(
        "plan", "create", "gold", "--name", "Gold", "--amount", "99000", "--currency", "IDR", "--every", "month"
    )
    billing.json("customer", "create", "ana", "--name", "Ana Putri", "--email", "ana@example.com", "--country", "ID")
    return billing
