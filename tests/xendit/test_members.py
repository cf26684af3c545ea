"""JSON in and out: exact numbers, instants in UTC, and nothing but ValueError for what cannot be read."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from billing.domain.money import Money
from billing.xendit.client import XenditGateway
from billing.xendit.wire import dump_json, instant, instant_text, money, parse_json


def test_numbers_are_exact_both_ways() -> None:
    parsed = parse_json(b'{"a": 10000.10, "b": 50000}')
    assert parsed == {"a": Decimal("10000.10"), "b": 50000}
    assert isinstance(parsed, dict)
    assert type(parsed["a"]) is Decimal
    assert dump_json(parsed) == b'{"a":10000.10,"b":50000}'


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"NaN", b"[Infinity]", b"[" * 200_000, b"1" * 5000, b"1e99999999999999999999"]
)
def test_what_cannot_be_read_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - JSON, UTF-8, nesting and length each say it in their own words
        parse_json(body)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-12-01T02:00:07.412Z", datetime(2026, 12, 1, 2, 0, 7, 412000, tzinfo=UTC)),
        ("2026-12-01T09:00:07+07:00", datetime(2026, 12, 1, 2, 0, 7, tzinfo=UTC)),
        ("2026-12-01T02:00:07", datetime(2026, 12, 1, 2, 0, 7, tzinfo=UTC)),
        ("0001-01-01T00:00:00+14:00", None),
        ("yesterday", None),
        (1793498407, None),
        (None, None),
    ],
)
def test_instants_are_utc_or_not_there(written: object, read: datetime | None) -> None:
    assert instant({"at": written}, "at") == read


def test_instants_are_written_in_utc() -> None:
    assert instant_text(datetime.fromisoformat("2026-12-01T09:00:00+07:00")) == "2026-12-01T02:00:00.000Z"


@pytest.mark.parametrize(
    ("value", "currency", "read"),
    [
        (0, "IDR", Money.zero("IDR")),
        (Decimal("10000.10"), "PHP", Money.parse("10000.10", "PHP")),
        (10000.1, "php ", Money.parse("10000.10", "PHP")),
        ("125000", "IDR", Money.parse("125000", "IDR")),
        (Decimal("0.5"), "IDR", None),
        (Decimal("1e999999"), "IDR", None),
        (10**40, "IDR", None),
        (float("nan"), "IDR", None),
        (True, "IDR", None),
        (-5, "IDR", None),
        ("many", "IDR", None),
        ([1], "IDR", None),
        (1, "XXX", None),
        (1, None, None),
    ],
)
def test_amounts_are_exact_or_not_there(*, value: object, currency: object, read: Money | None) -> None:
    assert money({"amount": value, "currency": currency}, "amount") == read


def test_no_log_shows_a_token(xendit: Any, gateway: XenditGateway, caplog: pytest.LogCaptureFixture) -> None:
    """httpx logs the URL of every request at level INFO."""
    token_id = "pt-3f9a1b7e-0c44-4d8e-a1f2-5b6c7d8e9f03"
    xendit.answers_with(200, {"payment_token_id": token_id, "status": "ACTIVE"})
    with caplog.at_level(logging.DEBUG):
        gateway.get_token(token_id)
    assert token_id not in caplog.text
