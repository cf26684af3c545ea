"""Headers that others write: plain numbers are believed, nothing closes an endpoint for more than an hour."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import text

from billing.app import App, build, make_gateway
from billing.domain.gateway import Lane
from billing.errors import GatewayError, RateLimited
from billing.settings import load_settings
from billing.xendit.client import XenditGateway
from billing.xendit.connection import Rates

TOKEN = "GET /v3/payment_tokens/{id}"
NONSENSE = [
    "1795737600", "-5", "nan", "NaN", "inf", "1e400", "1e3", "", " ", "10, 20", "100;w=60", "0x10", "\u0661\u0660",
    "Fri, 27 Nov 2026 04:00:00 GMT", "2026-11-27T04:00:00Z", "9" * 400, "1_000", "+7",
]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "seconds"), [("58.37", 58.37), (" 7 ", 7), ("0", 1), ("999999", 3600), ("3601", 3600)]
)
def test_a_number_is_believed_up_to_an_hour(header: str, seconds: float) -> None:
    assert Rates.of({"rate-limit-reset": header}).wait_or() == seconds
    assert Rates.of({"retry-after": header}).wait_or() == seconds


@pytest.mark.parametrize("header", NONSENSE)
def test_nonsense_is_as_good_as_nothing(header: str) -> None:
    rates = Rates.of({"rate-limit-reset": header, "rate-limit-limit": header, "rate-limit-remaining": header})
    assert rates == Rates(None, None, None)
    assert rates.wait_or(300.0) == 300.0
    assert Rates.of({"rate-limit-reset": header, "retry-after": "9"}).wait_or() == 9


# ------------------------------------------------------------------------------------ through the whole of it


@pytest.fixture
def app(database_url: str) -> Iterator[App]:
    app = build(load_settings(database_url=database_url, xendit_secret_key="xnd_development_x"))
    yield app
    app.close()


def gateway_that_answers(app: App, status: int, headers: dict[str, str]) -> XenditGateway:
    gateway = make_gateway(app.settings, app.parts.quota)
    answer = httpx.MockTransport(lambda _request: httpx.Response(status, headers=headers, json={}))
    gateway._connection._transport = answer
    return gateway


def closed_for(app: App) -> float:
    with app.parts.reading() as session:
        query = text("SELECT extract(epoch FROM paused_until - clock_timestamp()) FROM quota_budgets")
        return float(session.scalar(query) or 0)


@pytest.mark.parametrize("header", [value for value in NONSENSE if value.isascii()] + ["999999", "86400"])
def test_no_429_closes_an_endpoint_for_more_than_an_hour(app: App, header: str) -> None:
    gateway = gateway_that_answers(app, 429, {"rate-limit-reset": header, "retry-after": header})
    with pytest.raises(RateLimited) as refused:
        gateway.get_token("pt-1")
    assert 0 < closed_for(app) <= 3_600
    assert refused.value.retry_after_seconds <= 3_600
    gateway.close()


@pytest.mark.parametrize("header", ["0", "-1", "1", "1" + "0" * 30, "999999"])
def test_no_limit_in_a_header_closes_an_endpoint(app: App, header: str) -> None:
    gateway = gateway_that_answers(app, 500, {"rate-limit-limit": header, "rate-limit-remaining": header})
    with pytest.raises(GatewayError):
        gateway.get_token("pt-1")
    assert app.parts.quota.acquire(TOKEN, Lane.CUSTOMER, wait_seconds=0) == 1
    gateway.close()
