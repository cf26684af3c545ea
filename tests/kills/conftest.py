"""One web server in front of the simulators of all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kills.served import Front, ServedWorld, running_front


@pytest.fixture(scope="session")
def front() -> Iterator[Front]:
    with running_front() as front:
        yield front


@pytest.fixture
def world(database_url: str, front: Front) -> Iterator[ServedWorld]:
    with ServedWorld(database_url, front) as world:
        yield world
