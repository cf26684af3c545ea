"""Every story gets a world of its own; its promises are checked when the story is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.world import World


@pytest.fixture
def new_world(database_url: str) -> Iterator[Callable[..., World]]:
    """For a world with other rules: `new_world(rules=Rules(hold_in_doubt=True))`."""
    with ExitStack() as worlds:
        yield lambda **wanted: worlds.enter_context(World(database_url, **wanted))


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    made: World = new_world()
    return made
