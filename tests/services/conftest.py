"""What the steps are handed, on a real database; clock and gateway are stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from sqlalchemy.orm import Session

from billing.domain.gateway import PaymentGateway
from billing.parts import Parts, Rules
from billing.quota import Unlimited
from billing.store.engine import Sessions, make_engine, make_sessions
from tests.services.stand_ins import Clock, Gateway


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    engine = make_engine(database_url, pool_size=4)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture
def session(sessions: Sessions) -> Iterator[Session]:
    """For arranging and looking; what a service is to see must be committed."""
    with sessions() as session:
        yield session


@pytest.fixture
def parts(sessions: Sessions, clock: Clock, gateway: Gateway) -> Parts:
    return Parts(
        sessions=sessions,
        clock=clock,
        gateway=cast(PaymentGateway, cast(Any, gateway)),
        quota=Unlimited(),
        rules=Rules(),
    )
