"""A clock that stands still until it is moved, and a gateway that says what it was told to say."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from billing.domain.gateway import TokenReport
from billing.errors import NotFound
from tests.factories import NOW


@dataclass
class Clock:
    """Stands still until it is moved."""

    at: datetime = NOW

    def now(self) -> datetime:
        return self.at


@dataclass
class Gateway:
    """Knows the tokens it was given; anything else a test needs it adds itself."""

    tokens: dict[str, TokenReport | Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def get_token(self, payment_token_id: str) -> TokenReport:
        self.asked.append(payment_token_id)
        answer = self.tokens.get(payment_token_id, NotFound("no such token"))
        if isinstance(answer, Exception):
            raise answer
        return answer
