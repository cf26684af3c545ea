"""Worlds on other people's databases."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases.pgbouncer import pgbouncer


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Sockets need short paths, and servers a folder that they can reach."""
    with tempfile.TemporaryDirectory(prefix="billing-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def pooled_url(database_url: str, short_folder: Path) -> Iterator[str]:
    """A migrated database behind a PgBouncer in transaction mode."""
    with pgbouncer(database_url, short_folder) as url:
        yield url
