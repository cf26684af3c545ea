"""Charging a saved token: what is paid, declined, left open or refused."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from billing.sandbox.simulator import SimulatorConfig
from tests.simulator.desk import START, Desk


def test_a_charge_is_paid_at_once_and_told_again_by_webhook(desk: Desk) -> None:
    token = desk.new_token()

    request = desk.charge(token, metadata={"invoice_id": "inv-1"})

    assert request["status"] == "SUCCEEDED"
    assert request["payment_request_id"].startswith("pr-")
    assert len(request["payment_request_id"]) == 39
    [(event, payment)] = desk.received()
    assert event == "payment.capture"
    assert payment["payment_request_id"] == request["payment_request_id"]
    assert payment["reference_id"] == "att-1"
    assert payment["captures"][0]["capture_amount"] == 50_000
    assert payment["metadata"] == {"invoice_id": "inv-1"}
    assert desk.collected() == 50_000


def test_the_networks_answer_is_told_by_the_payment_and_not_by_the_sync_answer(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "DECLINED_BY_ISSUER/65/28")

    request = desk.charge(token)

    assert (request["status"], request["failure_code"]) == ("FAILED", "DECLINED_BY_ISSUER")
    assert "payment_details" not in request
    told = desk.payment_of(request)["payment_details"]["authorization_data"]
    assert told["network_response_code"] == "65"
    assert told["merchant_advice_code"] == "28"
    assert desk.event_names() == ["payment.failure"]
    assert desk.collected() == 0


def test_the_other_spelling_of_the_networks_answer() -> None:
    desk = Desk(SimulatorConfig(authorization_spelling="guide"))
    token = desk.new_token()
    desk.script(token, "INSUFFICIENT_BALANCE")

    told = desk.payment_of(desk.charge(token))["payment_details"]["authorization_data"]

    assert told["card_network_response_code"] == "51"
    assert "network_response_code" not in told


def test_a_script_is_used_up_one_result_per_charge(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "INSUFFICIENT_BALANCE", "STOLEN_CARD")

    codes = [desk.charge(token).get("failure_code") for _ in range(3)]

    assert codes == ["INSUFFICIENT_BALANCE", "STOLEN_CARD", None]


@pytest.mark.parametrize(
    ("where", "amount", "code"),
    [
        ({"country": "ID", "currency": "IDR"}, 10054, "INSUFFICIENT_BALANCE"),
        ({"country": "PH", "currency": "PHP"}, 10059, "DECLINED_BY_ISSUER"),
        ({"country": "MY", "currency": "MYR"}, Decimal("10.14"), "INVALID_CARD"),
        ({"country": "MY", "currency": "MYR"}, Decimal("10.65"), "DECLINED_BY_ISSUER"),
        ({"country": "VN", "currency": "VND"}, 405100, "INSUFFICIENT_BALANCE"),
        ({"country": "VN", "currency": "VND"}, 10054, None),
        ({"country": "ID", "currency": "IDR", "channel_code": "DANA"}, 20105, "USER_DECLINED_PAYMENT"),
        ({"country": "ID", "currency": "IDR", "channel_code": "DANA"}, 10054, None),
        ({"country": "ID", "currency": "IDR", "channel_code": "BRI_DIRECT_DEBIT"}, 11002, "INSUFFICIENT_BALANCE"),
    ],
)
def test_magic_amounts(desk: Desk, where: dict[str, str], amount: Decimal, code: str | None) -> None:
    token = desk.new_token(**where)

    request = desk.charge(token, request_amount=amount, channel_properties=None, **where)

    assert request.get("failure_code") == code


def test_a_wallet_amount_that_is_refused_by_the_channel(desk: Desk) -> None:
    token = desk.new_token(channel_code="OVO")
    body = desk.charge_body(token, request_amount=10101, channel_properties=None)

    assert desk.refusal("/v3/payment_requests", body) == (503, "CHANNEL_UNAVAILABLE")
    assert desk.collected() == 0


def test_the_demo_decides_what_scripts_and_amounts_leave_open() -> None:
    def decide(token: Mapping[str, Any], amount: Decimal, now: datetime) -> str | None:
        assert token["status"] == "ACTIVE"
        assert now == START
        return "CARD_DECLINED" if amount == 60_000 else None

    desk = Desk(SimulatorConfig(decide=decide))
    token = desk.new_token()

    assert desk.charge(token, request_amount=60_000)["failure_code"] == "CARD_DECLINED"
    assert desk.charge(token)["status"] == "SUCCEEDED"
    assert desk.charge(token, request_amount=10051)["failure_code"] == "EXPIRED_CARD"


def test_a_pending_charge_is_decided_later(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "PENDING:SUCCEEDED", "PENDING:CARD_DECLINED", "PENDING")

    requests = [desk.charge(token) for _ in range(3)]
    assert [request["status"] for request in requests] == ["PENDING"] * 3
    assert desk.received() == []

    desk.later(seconds=61)
    assert desk.event_names() == ["payment.capture", "payment.failure"]
    paths = [f"/v3/payment_requests/{request['payment_request_id']}" for request in requests]
    assert [desk.get(path)["status"] for path in paths] == ["SUCCEEDED", "FAILED", "PENDING"]


def test_a_decline_turns_into_a_capture_hours_later(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "LATE_CAPTURE:TIMEOUT_ERROR:7200")

    request = desk.charge(token)
    assert (request["status"], request["failure_code"]) == ("FAILED", "TIMEOUT_ERROR")
    assert desk.event_names() == ["payment.failure"]

    desk.later(days=40)
    [(event, payment)] = desk.received()
    assert (event, payment["status"]) == ("payment.capture", "SUCCEEDED")
    assert payment["captures"][0]["capture_timestamp"] == "2026-01-15T11:00:00.000Z"
    assert "failure_code" not in payment


def test_a_charge_that_needs_its_customer_can_be_cancelled_once(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "REQUIRES_ACTION")
    request = desk.charge(token)
    path = f"/v3/payment_requests/{request['payment_request_id']}/cancel"

    assert request["actions"][0]["type"] == "REDIRECT_CUSTOMER"
    assert desk.post(path)["status"] == "CANCELED"
    assert desk.refusal(path, None) == (400, "INACTIVE_PAYMENT_REQUEST")
    assert desk.received() == []


def test_a_charge_nobody_acted_on_expires(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "REQUIRES_ACTION")
    desk.charge(token)

    desk.later(days=2)

    [(event, request)] = desk.received()
    assert (event, request["status"]) == ("payment_request.expiry", "EXPIRED")


def test_a_challenge_card_is_only_asked_when_its_owner_is_there(desk: Desk) -> None:
    token = desk.new_token(card_number="4000000000002503")

    assert desk.charge(token)["status"] == "SUCCEEDED"
    present = {"card_on_file_type": "CUSTOMER_UNSCHEDULED"}
    assert desk.charge(token, channel_properties=present)["status"] == "REQUIRES_ACTION"


def test_first_and_later_charges_of_a_token_are_marked(desk: Desk) -> None:
    token = desk.new_token()

    marks = [desk.charge(token)["channel_properties"]["transaction_sequence"] for _ in range(2)]

    assert marks == ["INITIAL", "SUBSEQUENT"]


def test_a_card_reference_is_used_once_and_a_wallet_reference_charges_twice(desk: Desk) -> None:
    card, wallet = desk.new_token(), desk.new_token(channel_code="DANA")
    desk.charge(card, reference_id="att-same")
    desk.charge(wallet, reference_id="att-wallet", channel_properties=None)

    again = desk.charge_body(card, reference_id="att-same")
    assert desk.refusal("/v3/payment_requests", again) == (409, "DATA_NOT_FOUND")
    desk.charge(wallet, reference_id="att-wallet", channel_properties=None)
    assert desk.collected() == 150_000


def test_a_refused_card_reference_is_free_again(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "HTTP:503:ISSUER_UNAVAILABLE")
    body = desk.charge_body(token)

    assert desk.refusal("/v3/payment_requests", body) == (503, "ISSUER_UNAVAILABLE")
    assert desk.post("/v3/payment_requests", body)["status"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"reference_id": None}, (400, "API_VALIDATION_ERROR")),
        ({"reference_id": "x" * 256}, (400, "API_VALIDATION_ERROR")),
        ({"type": "PAY_AND_SAVE"}, (400, "API_VALIDATION_ERROR")),
        ({"payment_token_id": "pt-short"}, (400, "API_VALIDATION_ERROR")),
        ({"payment_token_id": "pt-" + "0" * 36}, (400, "INVALID_TOKEN")),
        ({"currency": "XXX"}, (400, "API_VALIDATION_ERROR")),
        ({"currency": "USD"}, (400, "INVALID_VALUE_ERROR")),
        ({"country": "PH"}, (400, "INVALID_VALUE_ERROR")),
        ({"channel_code": "OVO"}, (400, "INVALID_VALUE_ERROR")),
        ({"request_amount": "50000"}, (400, "API_VALIDATION_ERROR")),
        ({"request_amount": -1}, (400, "API_VALIDATION_ERROR")),
        ({"request_amount": 4_999}, (400, "INVALID_VALUE_ERROR")),
        ({"request_amount": 200_000_001}, (400, "INVALID_VALUE_ERROR")),
        ({"request_amount": Decimal("50000.5")}, (400, "INVALID_VALUE_ERROR")),
        ({"amount": 50_000}, (400, "API_VALIDATION_ERROR")),
        ({"capture_method": "automatic"}, (400, "API_VALIDATION_ERROR")),
        ({"description": ""}, (400, "API_VALIDATION_ERROR")),
        ({"metadata": {"n": 1}}, (400, "API_VALIDATION_ERROR")),
        ({"metadata": {"k": "v" * 81}}, (400, "API_VALIDATION_ERROR")),
        ({"metadata": {"k" * 41: "v"}}, (400, "API_VALIDATION_ERROR")),
        ({"metadata": {f"k{n}": "v" for n in range(21)}}, (400, "API_VALIDATION_ERROR")),
        ({"channel_properties": {"card_on_file_type": "RECURRING"}}, (400, "API_VALIDATION_ERROR")),
        ({"channel_properties": {"card_on_file_type": "SOMETIMES"}}, (400, "API_VALIDATION_ERROR")),
        ({"items": [{"name": "no reference"}]}, (400, "API_VALIDATION_ERROR")),
    ],
)
def test_invalid_charges_are_refused_as_documented(
    desk: Desk, change: dict[str, object], refusal: tuple[int, str]
) -> None:
    body = desk.charge_body(desk.new_token(), **change)

    assert desk.refusal("/v3/payment_requests", body) == refusal
    assert desk.collected() == 0


def test_every_breach_of_a_body_is_named(desk: Desk) -> None:
    answer = desk.post("/v3/payment_requests", {"type": "PAY", "request_amount": "1"}, status=400)

    assert {"message": "must be number", "path": "/body/request_amount"} in answer["errors"]
    assert "request/body must have required property 'reference_id'" in answer["message"]


def test_without_the_optional_3ds_permission_renewals_are_forbidden() -> None:
    desk = Desk(SimulatorConfig(skip_three_ds_allowed=False))
    body = desk.charge_body(desk.new_token())

    assert desk.refusal("/v3/payment_requests", body) == (403, "SKIP_3DS_FORBIDDEN")


def test_what_the_documents_leave_open_is_let_through_with_a_warning(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    card = desk.new_token(country="PH", currency="PHP")
    in_dollars = desk.charge_body(card, country="PH", currency="USD", request_amount=5, customer_id="cust-" + "0" * 36)

    assert desk.post("/v3/payment_requests", in_dollars, status=201)["currency"] == "USD"
    assert "another currency of the channel" in caplog.text
    assert "another customer_id" in caplog.text


def test_a_card_past_its_date_and_a_cancelled_token_are_refused(desk: Desk) -> None:
    cancelled = desk.new_token()
    desk.post(f"/v3/payment_tokens/{cancelled}/cancel", status=200)
    dated = desk.new_token(expiry_month=3, expiry_year=2026)
    desk.later(days=90)

    assert desk.refusal("/v3/payment_requests", desk.charge_body(cancelled)) == (400, "INVALID_TOKEN")
    assert desk.refusal("/v3/payment_requests", desk.charge_body(dated)) == (400, "CARD_EXPIRED")


def test_a_network_transaction_id_from_test_mode_must_not_be_sent_back(desk: Desk) -> None:
    token = desk.new_token()
    known = desk.payment_of(desk.charge(token))["payment_details"]["authorization_data"]["network_transaction_id"]

    request = desk.charge(token, channel_properties={"network_transaction_id": known})

    assert request["failure_code"] == "PROCESSOR_ERROR"
    assert desk.charge(token, channel_properties={"network_transaction_id": "016153570198200"})["status"] == "SUCCEEDED"


def test_a_manual_capture_takes_at_most_what_was_reserved(desk: Desk) -> None:
    request = desk.charge(desk.new_token(), capture_method="MANUAL")
    path = f"/v3/payments/{request['latest_payment_id']}/capture"

    assert request["status"] == "AUTHORIZED"
    assert desk.refusal(path, {"capture_amount": 50_001}) == (400, "CAPTURE_AMOUNT_EXCEEDED")
    desk.post(path, {"capture_amount": 40_000}, status=200)
    assert desk.refusal(path, {"capture_amount": 1}) == (400, "INELIGIBLE_TRANSACTION_STATUS")
    assert desk.event_names() == ["payment.authorization", "payment.capture"]
    assert desk.collected() == 40_000


def test_simulate_pays_an_open_request(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "REQUIRES_ACTION")
    request = desk.charge(token)

    answer = desk.post(f"/v3/payment_requests/{request['payment_request_id']}/simulate", {"amount": 50_000}, status=200)

    assert answer["status"] == "PENDING"
    assert desk.event_names() == ["payment.capture"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v3/payment_requests/pr-short", 400, "API_VALIDATION_ERROR"),
        ("/v3/payment_requests/pr-" + "0" * 36, 404, "DATA_NOT_FOUND"),
        ("/v3/payments/py-" + "0" * 36, 404, "DATA_NOT_FOUND"),
        ("/v3/payment_tokens/pt-" + "0" * 36, 404, "DATA_NOT_FOUND"),
        ("/v3/payment_requests", 404, "NOT_FOUND"),
        ("/refunds/rfd-1", 404, "NOT_FOUND"),
    ],
)
def test_what_is_not_there(desk: Desk, path: str, status: int, code: str) -> None:
    assert desk.get(path, status=status)["error_code"] == code


def test_an_operator_can_make_late_truths(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "CARD_DECLINED", "SUCCEEDED")
    failed, paid = desk.charge(token), desk.charge(token)
    desk.received()

    desk.post(f"/_simulator/payments/{failed['latest_payment_id']}/capture", status=200)
    desk.post(f"/_simulator/payments/{paid['latest_payment_id']}/capture", status=409)
    desk.post(f"/_simulator/payments/{paid['latest_payment_id']}/capture", {"again": True}, status=200)

    first, second = desk.received()
    assert first[1]["payment_id"] == failed["latest_payment_id"]
    assert len(second[1]["captures"]) == 2
    assert desk.collected() == 150_000
