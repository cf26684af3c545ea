"""Charging a stored token: what is sent, and what each documented answer means for the money."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

from billing.domain.gateway import ChargeRequest, ChargeStatus
from billing.domain.money import Money
from billing.errors import (
    GatewayError,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    RequestRejected,
    Unavailable,
)
from billing.xendit.client import XenditGateway
from tests.xendit.strangers import SOMEBODY_ELSE

Renewal = Callable[..., ChargeRequest]

PAYMENT_REQUEST = "pr-9e21c6f4-58a7-4f0d-8b5c-61a0a3d7c202"
PAYMENT = "py-7b0d4c52-3c1e-4f0a-9a55-2d1f8f6c9e01"


def accepted(status: str, **members: Any) -> dict[str, Any]:
    return {
        "payment_request_id": PAYMENT_REQUEST,
        "business_id": "6721c0ffee15dead2b00b1e5",
        "reference_id": "att-01K9ZQ4T7M2V5C8D1E3F6G7H8J",
        "payment_token_id": "pt-3f9a1b7e-0c44-4d8e-a1f2-5b6c7d8e9f03",
        "customer_id": "cust-c1d2e3f4-a5b6-4c7d-8e9f-0a1b2c3d4e04",
        "latest_payment_id": PAYMENT,
        "type": "PAY",
        "country": "ID",
        "currency": "IDR",
        "request_amount": 125000,
        "capture_method": "AUTOMATIC",
        "channel_code": "CARDS",
        "actions": [],
        "status": status,
        "created": "2026-12-01T02:00:01.005Z",
        "updated": "2026-12-01T02:00:04.120Z",
        **members,
    }


# What is sent


def test_a_card_renewal_is_flagged_as_recurring_and_skips_3ds(
    xendit: Any, gateway: XenditGateway, renewal: Renewal
) -> None:
    xendit.answers_with(201, accepted("SUCCEEDED"))
    gateway.charge(renewal(return_url="https://shop.example/back"))

    assert xendit.last.method == "POST"
    assert xendit.last.url.path == "/v3/payment_requests"
    assert xendit.last.headers["api-version"] == "2024-11-11"
    assert xendit.last.headers["authorization"].startswith("Basic ")
    assert xendit.last_body == {
        "reference_id": "att-01K9ZQ4T7M2V5C8D1E3F6G7H8J",
        "type": "PAY",
        "payment_token_id": "pt-3f9a1b7e-0c44-4d8e-a1f2-5b6c7d8e9f03",
        "country": "ID",
        "currency": "IDR",
        "request_amount": 125000,
        "capture_method": "AUTOMATIC",
        "channel_properties": {
            "skip_three_ds": True,
            "card_on_file_type": "RECURRING",
            "recurring_configuration": {"recurring_frequency": 30, "recurring_expiry": "2029-11-30"},
            "success_return_url": "https://shop.example/back",
            "failure_return_url": "https://shop.example/back",
        },
        "description": "Gym, December",
        "metadata": {"invoice_id": "inv-77"},
    }


def test_a_wallet_gets_no_card_properties_and_no_http_link(
    xendit: Any, gateway: XenditGateway, renewal: Renewal
) -> None:
    xendit.answers_with(201, accepted("PENDING", channel_code="OVO"))
    gateway.charge(renewal(channel_code="OVO", return_url="http://localhost:8000/back"))
    assert "channel_properties" not in xendit.last_body
    assert "channel_code" not in xendit.last_body


@pytest.mark.parametrize(
    ("amount", "currency", "written"),
    [("50000", "IDR", b"50000"), ("10000.10", "PHP", b"10000.10"), ("499", "THB", b"499.00"), ("80", "JPY", b"80")],
)
def test_amounts_are_json_numbers_with_the_decimals_of_the_currency(
    xendit: Any, gateway: XenditGateway, renewal: Renewal, *, amount: str, currency: str, written: bytes
) -> None:
    xendit.answers_with(201, accepted("PENDING"))
    gateway.charge(renewal(amount=Money.parse(amount, currency)))
    assert b'"request_amount":' + written + b"," in xendit.last.content


def test_metadata_and_description_are_cut_to_the_smaller_documented_limits(
    xendit: Any, gateway: XenditGateway, renewal: Renewal
) -> None:
    xendit.answers_with(201, accepted("PENDING"))
    metadata = {"k" * 41: "dropped", "long": "v" * 200} | {f"key{number}": "v" for number in range(30)}
    gateway.charge(renewal(metadata=metadata, description="d" * 2000))

    sent = xendit.last_body["metadata"]
    assert len(sent) == 20
    assert sent["long"] == "v" * 80
    assert max(map(len, sent)) <= 40
    assert xendit.last_body["description"] == "d" * 1000


# What 201 means


def test_a_success_carries_ids_and_amount(xendit: Any, gateway: XenditGateway, renewal: Renewal) -> None:
    xendit.answers_with(201, accepted("SUCCEEDED"))
    report = gateway.charge(renewal())
    assert report.status is ChargeStatus.SUCCEEDED
    assert (report.payment_request_id, report.payment_id) == (PAYMENT_REQUEST, PAYMENT)
    assert report.amount == Money.parse("125000", "IDR")
    assert report.captured_at == datetime(2026, 12, 1, 2, 0, 4, 120000, tzinfo=UTC)


def test_a_decline_is_a_result_and_its_code_is_stripped(xendit: Any, gateway: XenditGateway, renewal: Renewal) -> None:
    xendit.answers_with(201, accepted("FAILED", failure_code="CAPTURE_AMOUNT_EXCEEDED "))
    report = gateway.charge(renewal())
    assert report.status is ChargeStatus.FAILED
    assert report.failure_code == "CAPTURE_AMOUNT_EXCEEDED"
    assert report.captured_at is None


@pytest.mark.parametrize("status", ["PENDING", "ACCEPTING_PAYMENTS", "AUTHORIZED", "A_STATUS_OF_NEXT_YEAR"])
def test_undecided_and_unknown_statuses_are_pending(
    xendit: Any, gateway: XenditGateway, renewal: Renewal, status: str
) -> None:
    xendit.answers_with(201, accepted(status))
    assert gateway.charge(renewal()).status is ChargeStatus.PENDING


def test_an_action_shows_where_the_customer_has_to_go(xendit: Any, gateway: XenditGateway, renewal: Renewal) -> None:
    actions = [
        {"type": "REDIRECT_CUSTOMER", "descriptor": "DEEPLINK_URL", "value": "wallet://pay"},
        {"type": "REDIRECT_CUSTOMER", "descriptor": "WEB_URL", "value": "https://3ds.example/x"},
    ]
    xendit.answers_with(201, accepted("REQUIRES_ACTION", actions=actions))
    report = gateway.charge(renewal())
    assert report.status is ChargeStatus.REQUIRES_ACTION
    assert report.action_url == "https://3ds.example/x"


def test_cents_arrive_exactly(xendit: Any, gateway: XenditGateway, renewal: Renewal) -> None:
    body = accepted("SUCCEEDED", currency="PHP", request_amount=Decimal("10000.10"))
    xendit.answers_with(201, body)
    assert str(gateway.charge(renewal()).amount) == "10000.10"


# What is not 201


@pytest.mark.parametrize(
    ("status", "error_code"),
    [
        (400, "CARD_EXPIRED"),
        (400, "INVALID_PAYMENT_DETAILS"),
        (400, "INVALID_TOKEN"),
        (400, "BLOCKED_TOKEN"),
        (403, "ACCOUNT_ACCESS_BLOCKED"),
    ],
)
def test_a_refusal_because_of_the_token_is_a_decline(
    xendit: Any, gateway: XenditGateway, renewal: Renewal, status: int, error_code: str
) -> None:
    xendit.refuses_with(status, error_code)
    report = gateway.charge(renewal())
    assert report.status is ChargeStatus.FAILED
    assert report.failure_code == error_code
    assert report.reference_id == renewal().reference_id


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        (429, "RATE_LIMIT_EXCEEDED", RateLimited),
        (400, "PAYMENT_REQUEST_RATE_LIMITED", RateLimited),
        (503, "CHANNEL_UNAVAILABLE", Unavailable),
        (503, "ISSUER_UNAVAILABLE", Unavailable),
        (503, "SERVER_ERROR", OutcomeUnknown),
        (500, "SERVER_ERROR", OutcomeUnknown),
        (500, "CHANNEL_UNAVAILABLE", OutcomeUnknown),
        (502, "", OutcomeUnknown),
        (504, "", OutcomeUnknown),
        (408, "", OutcomeUnknown),
        (409, "DATA_NOT_FOUND", OutcomeUnknown),
        (409, "DUPLICATE_ERROR", OutcomeUnknown),
        (409, "INVALID_TOKEN", OutcomeUnknown),
        (400, "API_VALIDATION_ERROR", RequestRejected),
        (400, "INVALID_VALUE_ERROR", RequestRejected),
        (400, "A_CODE_OF_NEXT_YEAR", OutcomeUnknown),
        (403, "INVALID_API_KEY", RequestRejected),
        (422, "API_VALIDATION_ERROR", RequestRejected),
        (500, "INVALID_TOKEN", OutcomeUnknown),
        (503, "INVALID_API_KEY", OutcomeUnknown),
        (302, "INVALID_API_KEY", OutcomeUnknown),
        (400, "SERVER_ERROR", OutcomeUnknown),
        (400, "CHANNEL_UNAVAILABLE", OutcomeUnknown),
        (400, "DUPLICATE_ERROR", OutcomeUnknown),
        (400, "DUPLICATE_TRANSACTION_ERROR", OutcomeUnknown),
        (408, "API_VALIDATION_ERROR", OutcomeUnknown),
        (429, "", OutcomeUnknown),
        (429, "SLOW_DOWN", OutcomeUnknown),
        (400, "RATE_LIMIT_EXCEEDED", RateLimited),
        (401, "INVALID_API_KEY", RequestRejected),
        (403, "SKIP_3DS_FORBIDDEN", RequestRejected),
        (403, "INVALID_MERCHANT_SETTINGS", RequestRejected),
        (404, "DATA_NOT_FOUND", RequestRejected),
    ],
)
def test_every_documented_refusal_is_sorted(
    xendit: Any, gateway: XenditGateway, renewal: Renewal, *, status: int, error_code: str, expected: type
) -> None:
    """A documented code under another status than its own counts only where it says that nothing was done."""
    xendit.refuses_with(status, error_code, request_id="req-42")
    with pytest.raises(GatewayError) as caught:
        gateway.charge(renewal())
    assert type(caught.value) is expected
    assert caught.value.error_code == (error_code or None)
    assert len(xendit.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "stops"),
    [
        (401, {"error_code": "INVALID_API_KEY"}, True),
        (403, {"error_code": "REQUEST_FORBIDDEN_ERROR"}, True),
        (403, {"error_code": "FORBIDDEN"}, True),
        (403, {"error_code": "UNAUTHORIZED_SENDER_IP"}, True),
        (400, {"error_code": "UNAUTHORIZED_SENDER_IP"}, True),
        (403, {"error_code": "SKIP_3DS_FORBIDDEN"}, True),
        (403, {"error_code": "INVALID_MERCHANT_SETTINGS"}, False),
        (400, {"error_code": "API_VALIDATION_ERROR"}, False),
        (401, {"error_code": "REQUEST_FORBIDDEN_ERROR"}, True),
        (403, {"error_code": "INVALID_API_KEY"}, True),
        (404, {"error_code": "DATA_NOT_FOUND"}, False),
    ],
)
def test_only_what_concerns_the_whole_account_stops_it(
    xendit: Any, gateway: XenditGateway, renewal: Renewal, *, status: int, body: Any, stops: bool
) -> None:
    xendit.answers_with(status, body)
    with pytest.raises(RequestRejected) as caught:
        gateway.charge(renewal())
    assert caught.value.stops_account is stops


@pytest.mark.parametrize(("status", "body"), SOMEBODY_ELSE)
def test_an_answer_of_somebody_else_leaves_the_outcome_of_a_charge_unknown(
    xendit: Any, gateway: XenditGateway, renewal: Renewal, *, status: int, body: Any
) -> None:
    """A proxy or a firewall may answer before Xendit has the request, or after: nobody can tell which."""
    xendit.answers_with(status, body)
    with pytest.raises(OutcomeUnknown, match="check BILLING_XENDIT_BASE_URL and any proxy") as caught:
        gateway.charge(renewal())
    assert caught.value.from_stranger
    assert len(xendit.requests) == 1


def test_xendits_own_trouble_is_not_taken_for_somebody_elses(
    xendit: Any, gateway: XenditGateway, renewal: Renewal
) -> None:
    xendit.refuses_with(500, "SERVER_ERROR")
    with pytest.raises(OutcomeUnknown) as caught:
        gateway.charge(renewal())
    assert not caught.value.from_stranger


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"[1, 2]",
        b"[" * 100_000,
        b'"text"',
        b"{}",
        b'{"status": "SUCCEEDED"}',
        b'{"payment_request_id": "pr-1"}',
        b'{"payment_request_id": 7, "status": "SUCCEEDED"}',
        b'{"payment_request_id": "pr-1", "status": null}',
        b'{"payment_request_id": "pr-1", "status": "SUCCEEDED", "reference_id": "att-of-somebody-else"}',
    ],
)
def test_a_success_that_cannot_be_understood_leaves_the_outcome_unknown(
    xendit: Any, gateway: XenditGateway, renewal: Renewal, body: bytes
) -> None:
    xendit.answers_with(201, body)
    with pytest.raises(OutcomeUnknown):
        gateway.charge(renewal())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"rate_limit_reset": "58.37"}, 58.37),
        ({"rate_limit_reset": "0"}, 1),
        ({"rate_limit_reset": "99999"}, 3600),
        ({"rate_limit_reset": "soon"}, 60),
        ({"rate_limit_reset": "-5"}, 60),
        ({"retry_after": "12"}, 12),
        ({}, 60),
    ],
)
def test_a_rate_limit_says_when_to_come_back(
    xendit: Any, gateway: XenditGateway, renewal: Renewal, headers: dict[str, str], seconds: float
) -> None:
    xendit.refuses_with(429, "RATE_LIMIT_EXCEEDED", **headers)
    with pytest.raises(RateLimited) as caught:
        gateway.charge(renewal())
    assert caught.value.retry_after_seconds == seconds


def test_the_limit_of_a_channel_waits_for_minutes(xendit: Any, gateway: XenditGateway, renewal: Renewal) -> None:
    xendit.refuses_with(400, "PAYMENT_REQUEST_RATE_LIMITED")
    with pytest.raises(RateLimited) as caught:
        gateway.charge(renewal())
    assert caught.value.retry_after_seconds == 300


# What never arrives


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), NotSent),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]"), NotSent),
        (httpx.ConnectTimeout("timed out"), NotSent),
        (httpx.PoolTimeout("timed out"), NotSent),
        (httpx.ProxyError("403 Forbidden"), NotSent),
        (httpx.ReadTimeout("timed out"), OutcomeUnknown),
        (httpx.WriteTimeout("timed out"), OutcomeUnknown),
        (httpx.ReadError("reset by peer"), OutcomeUnknown),
        (httpx.WriteError("broken pipe"), OutcomeUnknown),
        (httpx.CloseError("closed"), OutcomeUnknown),
        (httpx.RemoteProtocolError("server disconnected"), OutcomeUnknown),
        (httpx.LocalProtocolError("too little data"), OutcomeUnknown),
        (httpx.DecodingError("bad gzip"), OutcomeUnknown),
    ],
)
def test_a_broken_connection_is_only_harmless_before_anything_was_sent(
    xendit: Any, gateway: XenditGateway, renewal: Renewal, error: Exception, expected: type
) -> None:
    xendit.breaks_with(error)
    with pytest.raises(GatewayError) as caught:
        gateway.charge(renewal())
    assert type(caught.value) is expected
    assert len(xendit.requests) == 1


def test_every_transport_error_of_httpx_is_covered() -> None:
    """A class that a new httpx brings must be put on one side or the other."""

    def family(kind: type[Exception]) -> set[str]:
        return {kind.__name__}.union(*(family(child) for child in kind.__subclasses__()))

    assert family(httpx.RequestError) == {
        "RequestError", "TransportError", "DecodingError", "TooManyRedirects",
        "TimeoutException", "ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout",
        "NetworkError", "ConnectError", "ReadError", "WriteError", "CloseError",
        "ProtocolError", "LocalProtocolError", "RemoteProtocolError", "ProxyError", "UnsupportedProtocol",
    }  # fmt: skip


# Looking at a charge, and cancelling it


def test_a_charge_is_read_by_its_id(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, accepted("SUCCEEDED"))
    assert gateway.get_charge(PAYMENT_REQUEST).status is ChargeStatus.SUCCEEDED
    assert (xendit.last.method, xendit.last.url.path) == ("GET", f"/v3/payment_requests/{PAYMENT_REQUEST}")


def test_a_payment_shows_network_and_advice_codes(xendit: Any, gateway: XenditGateway) -> None:
    payment = accepted("FAILED", payment_id=PAYMENT, failure_code="DECLINED_BY_ISSUER")
    codes = {"card_network_response_code": "65", "merchant_advice_code": 3}
    xendit.answers_with(200, payment | {"payment_details": {"authorization_data": codes}})
    report = gateway.get_payment(PAYMENT)
    assert (report.network_code, report.advice_code) == ("65", "03")
    assert xendit.last.url.path == f"/v3/payments/{PAYMENT}"


def test_captures_say_how_much_and_when(xendit: Any, gateway: XenditGateway) -> None:
    captures = [
        {"capture_id": "cap-1", "capture_amount": 100000, "capture_timestamp": "2026-12-01T02:00:03Z"},
        {"capture_id": "cap-2", "capture_amount": 25000, "capture_timestamp": "2026-12-01T05:00:00+07:00"},
    ]
    xendit.answers_with(200, accepted("SUCCEEDED", payment_id=PAYMENT, captures=captures, request_amount=999))
    report = gateway.get_payment(PAYMENT)
    assert report.amount == Money.parse("125000", "IDR")
    assert report.captured_at == datetime(2026, 12, 1, 2, 0, 3, tzinfo=UTC)


def test_a_charge_is_cancelled(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, accepted("CANCELED"))
    assert gateway.cancel_charge(PAYMENT_REQUEST).status is ChargeStatus.CANCELED
    assert xendit.last.url.path == f"/v3/payment_requests/{PAYMENT_REQUEST}/cancel"


@pytest.mark.parametrize("error_code", ["INACTIVE_PAYMENT_REQUEST", "INELIGIBLE_TRANSACTION_STATUS"])
def test_cancelling_too_late_tells_how_it_ended(xendit: Any, gateway: XenditGateway, error_code: str) -> None:
    xendit.refuses_with(400, error_code)
    xendit.answers_with(200, accepted("SUCCEEDED"))
    assert gateway.cancel_charge(PAYMENT_REQUEST).status is ChargeStatus.SUCCEEDED
    assert [request.method for request in xendit.requests] == ["POST", "GET"]


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        (400, "TEMPORARILY_UNAVAILABLE", Unavailable),
        (503, "CHANNEL_UNAVAILABLE", Unavailable),
        (500, "SERVER_ERROR", OutcomeUnknown),
        (400, "API_VALIDATION_ERROR", RequestRejected),
    ],
)
def test_a_cancel_that_fails_is_sorted(
    xendit: Any, gateway: XenditGateway, status: int, error_code: str, expected: type
) -> None:
    xendit.refuses_with(status, error_code)
    with pytest.raises(GatewayError) as caught:
        gateway.cancel_charge(PAYMENT_REQUEST)
    assert type(caught.value) is expected
