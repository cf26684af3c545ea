from __future__ import annotations

import pytest

from tests.simulator.desk import Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()
