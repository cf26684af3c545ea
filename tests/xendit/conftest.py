"""A gateway whose network is a list of answers, and the requests it sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
import simplejson

from billing.domain.gateway import ChargeRequest, RecurringTerms
from billing.domain.money import Money
from billing.xendit.client import XenditGateway

SECRET_KEY = "xnd_development_k3yThatMustNeverShow"
TOKEN = "pt-3f9a1b7e-0c44-4d8e-a1f2-5b6c7d8e9f03"


@dataclass
class Xendit:
    """Answers in the order they were lined up; fails the test when asked more often."""

    answers: list[httpx.Response | Exception] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)

    def answers_with(self, status: int, body: object = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else simplejson.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append(httpx.Response(status, content=content, headers=sent))

    def refuses_with(self, status: int, error_code: str, **headers: str) -> None:
        self.answers_with(status, {"error_code": error_code, "message": "no"}, **headers)

    def breaks_with(self, error: Exception) -> None:
        self.answers.append(error)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def last(self) -> httpx.Request:
        return self.requests[-1]

    @property
    def last_body(self) -> dict[str, Any]:
        return simplejson.loads(self.last.content, use_decimal=True)


@pytest.fixture
def xendit() -> Xendit:
    return Xendit()


@pytest.fixture
def gateway(xendit: Xendit) -> Iterator[XenditGateway]:
    gateway = XenditGateway(
        base_url="https://api.xendit.example",
        secret_key=SECRET_KEY,
        timeout_seconds=5,
        transport=httpx.MockTransport(xendit),
    )
    yield gateway
    gateway.close()


@pytest.fixture
def renewal() -> Callable[..., ChargeRequest]:
    """A card renewal of IDR 125,000, with what a test wants different."""

    def make(**changes: Any) -> ChargeRequest:
        members: dict[str, Any] = {
            "reference_id": "att-01K9ZQ4T7M2V5C8D1E3F6G7H8J",
            "payment_token_id": TOKEN,
            "channel_code": "CARDS",
            "amount": Money.parse("125000", "IDR"),
            "country": "ID",
            "description": "Gym, December",
            "metadata": {"invoice_id": "inv-77"},
            "recurring": RecurringTerms(frequency_days=30, expires_on=date(2029, 11, 30)),
        }
        return ChargeRequest(**members | changes)

    return make


@pytest.fixture
def samples() -> Path:
    return Path(__file__).parent / "samples"
