"""One guarded database for all simulations of a test worker: every seed empties it first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from billing.sandbox.simulation.runner import simulated_database


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    with simulated_database(empty_database_url) as engine:
        yield engine
