"""Worlds on other people's databases."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases.pgbouncer import find_pgbouncer, pgbouncer


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Sockets need short paths, and servers a folder that they can reach."""
    with tempfile.TemporaryDirectory(prefix="billing-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def _pgbouncer() -> None:
    """Skips a test where there is no PgBouncer, and fails it in continuous integration."""
    if find_pgbouncer() is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no pgbouncer here; apt-get install pgbouncer")


@pytest.fixture
def pooled_url(_pgbouncer: None, database_url: str, short_folder: Path) -> Iterator[str]:
    """A migrated database behind a PgBouncer in transaction mode."""
    with pgbouncer(database_url, short_folder) as url:
        yield url
