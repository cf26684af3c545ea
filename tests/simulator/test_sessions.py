"""Sessions from creation to their end, and what a customer makes of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import simplejson

from billing.sandbox.simulator import SimulatorConfig
from tests.simulator.desk import HEADERS, PERSON, START, Desk, session_body

PAY = {"session_type": "PAY", "amount": 50_000}


def test_a_save_session_brings_a_token_with_its_card(desk: Desk) -> None:
    session = desk.open_session()
    assert session["status"] == "ACTIVE"
    assert len(session["payment_session_id"]) == 27
    assert session["payment_link_url"].endswith(f"/sessions/{session['payment_session_id']}")
    assert session["expires_at"] == "2026-01-15T09:30:00.000Z"

    desk.complete(session, card_number="5123456789012346", expiry_month=6, expiry_year=2028)

    events = dict(desk.received())
    token, done = events["payment_token.activation"], events["payment_session.completed"]
    assert done["payment_token_id"] == token["payment_token_id"]
    assert done["reference_id"] == "ses-1"
    assert token["customer_id"] == session["customer_id"]
    card = token["channel_properties"]["card_details"]
    assert (card["masked_card_number"], card["network"]) == ("512345XXXXXX2346", "MASTERCARD")
    assert (card["expiry_month"], card["expiry_year"]) == ("06", "2028")
    assert desk.session(session)["payment_token_id"] == token["payment_token_id"]


def test_session_born_references_carry_a_suffix_and_no_session_id(desk: Desk) -> None:
    desk.complete(desk.open_session(**PAY, allow_save_payment_method="FORCED"))

    for event, born in desk.received():
        if event != "payment_session.completed":
            reference, _, suffix = born["reference_id"].rpartition("_")
            assert (reference, len(suffix)) == ("ses-1", 10)
            assert "payment_session_id" not in born


@pytest.mark.parametrize(
    ("saving", "ticked", "has_token"),
    [("FORCED", False, True), ("OPTIONAL", True, True), ("OPTIONAL", False, False), ("DISABLED", True, False)],
)
def test_a_pay_session_saves_what_was_agreed(desk: Desk, saving: str, ticked: bool, has_token: bool) -> None:
    session = desk.open_session(**PAY, allow_save_payment_method=saving)

    desk.complete(session, save=ticked)

    events = dict(desk.received())
    assert ("payment_token.activation" in events) is has_token
    done = events["payment_session.completed"]
    assert done["payment_id"] == events["payment.capture"]["payment_id"]
    assert done["payment_request_id"] == events["payment.capture"]["payment_request_id"]
    assert (done["payment_token_id"] is not None) is has_token
    assert desk.collected() == 50_000


def test_a_token_from_a_pay_session_can_be_charged_and_counts_as_used(desk: Desk) -> None:
    session = desk.open_session(**PAY, allow_save_payment_method="FORCED")
    token = desk.complete(session)["session"]["payment_token_id"]

    assert desk.charge(token)["channel_properties"]["transaction_sequence"] == "SUBSEQUENT"


def test_the_same_card_has_the_same_fingerprint(desk: Desk) -> None:
    first = desk.get(f"/v3/payment_tokens/{desk.new_token()}")["channel_properties"]["card_details"]
    second = desk.get(f"/v3/payment_tokens/{desk.new_token()}")["channel_properties"]["card_details"]
    other = desk.get(f"/v3/payment_tokens/{desk.new_token(card_number='5200000000001005')}")

    assert first["fingerprint"] == second["fingerprint"]
    assert len(first["fingerprint"]) == 24
    assert other["channel_properties"]["card_details"]["fingerprint"] != first["fingerprint"]


def test_a_failed_try_leaves_the_session_open_for_another(desk: Desk) -> None:
    session = desk.open_session(**PAY, allow_save_payment_method="FORCED")
    path = f"/_simulator/sessions/{session['payment_session_id']}/fail"

    answer = desk.post(path, {"failure_code": "INSUFFICIENT_BALANCE"})

    assert answer["failure_code"] == "INSUFFICIENT_BALANCE"
    assert answer["session"]["status"] == "ACTIVE"
    assert desk.event_names() == ["payment.failure"]
    desk.complete(session)
    assert desk.session(session)["status"] == "COMPLETED"
    assert desk.collected() == 50_000


def test_a_magic_amount_fails_in_a_session_too(desk: Desk) -> None:
    session = desk.open_session(session_type="PAY", amount=10054)

    assert desk.complete(session)["failure_code"] == "INSUFFICIENT_BALANCE"


def test_a_session_expires_by_the_clock_even_when_nobody_looks(desk: Desk) -> None:
    session = desk.open_session()

    desk.later(days=100)

    [(event, expired)] = desk.received()
    assert (event, expired["status"]) == ("payment_session.expired", "EXPIRED")
    assert expired["updated"] == "2026-01-15T09:30:00.000Z"
    assert desk.session(session)["status"] == "EXPIRED"


def test_a_session_is_cancelled_once_and_no_webhook_tells(desk: Desk) -> None:
    session = desk.open_session()
    path = f"/sessions/{session['payment_session_id']}/cancel"

    assert desk.post(path, status=200)["status"] == "CANCELED"
    again = desk.post(path, status=422)

    assert again["message"] == "Session status is CANCELED, expecting ACTIVE"
    assert desk.received() == []
    desk.later(hours=1)
    assert desk.received() == []


def test_a_pending_payment_completes_its_session_later(desk: Desk) -> None:
    session = desk.open_session(**PAY)
    desk.complete(session, outcome="PENDING:SUCCEEDED")
    assert desk.session(session)["status"] == "ACTIVE"

    desk.later(minutes=2)

    assert desk.event_names() == ["payment.capture", "payment_session.completed"]


def test_a_components_session_has_a_key_instead_of_a_link(desk: Desk) -> None:
    session = desk.open_session(
        mode="COMPONENTS", components_configuration={"origins": ["https://shop.example"]}, success_return_url=None
    )

    assert session["payment_link_url"] is None
    assert session["components_sdk_key"].startswith("session-")


def test_control_calls_expire_a_session_and_decide_an_open_payment(desk: Desk) -> None:
    session = desk.open_session(**PAY)
    desk.complete(session, outcome="PENDING")
    request = desk.get("/transactions")["data"][0]
    payment = desk.get(f"/v3/payments/{request['product_id']}")
    desk.post(f"/_simulator/sessions/{session['payment_session_id']}/expire", status=200)

    desk.post(f"/_simulator/payment_requests/{payment['payment_request_id']}/resolve", {"outcome": "SUCCEEDED"})

    assert desk.event_names() == ["payment_session.expired", "payment.capture"]
    assert desk.session(session)["status"] == "EXPIRED"


def test_a_channel_the_session_does_not_offer(desk: Desk) -> None:
    session = desk.open_session(allowed_payment_channels=["OVO"])
    path = f"/_simulator/sessions/{session['payment_session_id']}/complete"

    assert desk.refusal(path, {"channel_code": "CARDS"}) == (400, "INVALID_PAYMENT_CHANNEL")
    assert desk.complete(session)["session"]["status"] == "COMPLETED"


def test_an_amount_beyond_all_reason_is_no_crash(desk: Desk) -> None:
    answer = desk.simulator.answer("POST", "/v3/payment_requests", "", HEADERS, b'{"request_amount": 1e4000}')

    assert answer.status == 400


def test_a_manual_session_only_reserves(desk: Desk) -> None:
    session = desk.open_session(**PAY, capture_method="MANUAL")
    desk.complete(session)

    assert desk.event_names() == ["payment.authorization", "payment_session.completed"]
    assert desk.collected() == 0


def _at(minutes: float) -> str:
    return (START + timedelta(minutes=minutes)).isoformat()


COMPONENTS = {"mode": "COMPONENTS", "components_configuration": {"origins": ["http://shop.example"]}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"session_type": None}, "API_VALIDATION_ERROR"),
    ({"reference_id": "x" * 65}, "API_VALIDATION_ERROR"),
    ({"surprise": 1}, "API_VALIDATION_ERROR"),
    ({"session_type": "AUTHORIZATION"}, "SESSION_TYPE_NOT_SUPPORTED"),
    ({"mode": "CARDS_SESSION_JS"}, "MODE_NOT_SUPPORTED"),
    ({"country": "US"}, "INVALID_COUNTRY"),
    ({"currency": "JPY"}, "INVALID_CURRENCY"),
    ({"amount": 1}, "INVALID_AMOUNT"),
    ({"amount": "0"}, "API_VALIDATION_ERROR"),
    ({"session_type": "PAY"}, "INVALID_AMOUNT"),
    ({"session_type": "PAY", "amount": 10.5}, "INVALID_AMOUNT"),
    ({"customer": None}, "MISSING_CUSTOMER"),
    ({**PAY, "customer": None, "allow_save_payment_method": "OPTIONAL"}, "MISSING_CUSTOMER"),
    ({"customer": None, "customer_id": "123"}, "INVALID_CUSTOMER_ID"),
    ({"customer_id": "cust-" + "0" * 35}, "API_VALIDATION_ERROR"),
    ({"customer": {**PERSON, "individual_detail": {"given_names": "Ana <ana>"}}}, "API_VALIDATION_ERROR"),
    ({"customer": {**PERSON, "individual_detail": {"given_names": "Ana\x1b"}}}, "API_VALIDATION_ERROR"),
    ({"customer": {**PERSON, "individual_detail": {"given_names": "A" * 51}}}, "API_VALIDATION_ERROR"),
    ({"customer": {**PERSON, "reference_id": "not unique!"}}, "API_VALIDATION_ERROR"),
    ({"customer": {**PERSON, "type": "BUSINESS"}}, "API_VALIDATION_ERROR"),
    ({"customer": {**PERSON, "mobile_number": "0812"}}, "API_VALIDATION_ERROR"),
    ({"customer": {**PERSON, "individual_detail": {}}}, "API_VALIDATION_ERROR"),
    ({"capture_method": "AUTOMATIC"}, "DISALLOWED_CAPTURE_METHOD"),
    ({"items": []}, "ITEMS_NOT_SUPPORTED"),
    ({"allow_save_payment_method": "FORCED"}, "API_VALIDATION_ERROR"),
    ({**PAY, "allow_save_payment_method": "forced"}, "API_VALIDATION_ERROR"),
    ({"success_return_url": "http://localhost:8000/ok"}, "INVALID_URL"),
    (COMPONENTS, "INVALID_URL"),
    ({"mode": "COMPONENTS"}, "API_VALIDATION_ERROR"),
    ({"allowed_payment_channels": ["CARDS", "GCASH"]}, "INVALID_PAYMENT_CHANNEL"),
    ({"allowed_payment_channels": ["QRIS"]}, "INVALID_PAYMENT_CHANNEL"),
    ({"currency": "PHP"}, "INVALID_PAYMENT_CHANNEL"),
    (
        {
            "allowed_payment_channels": ["CARDS"],
            "payment_link_configuration": {"primary_payment_channels": ["OVO"]},
        },
        "INVALID_PRIMARY_PAYMENT_CHANNEL",
    ),
    ({"metadata": {"k": "v" * 81}}, "INVALID_METADATA"),
    ({"expires_at": _at(9)}, "INVALID_EXPIRY_DATE"),
    ({"expires_at": _at(25 * 60)}, "INVALID_EXPIRY_DATE"),
    ({"expires_at": "tomorrow"}, "API_VALIDATION_ERROR"),
    ({"channel_properties": {"cards": {"card_on_file_type": "RECURRING"}}}, "API_VALIDATION_ERROR"),
    ({"channel_properties": {"cards": {"card_details": {"card_number": "4"}}}}, "API_VALIDATION_ERROR"),
]


@pytest.mark.parametrize(("change", "code"), REFUSED)
def test_invalid_sessions_are_refused_as_documented(desk: Desk, change: dict[str, Any], code: str) -> None:
    assert desk.refusal("/sessions", session_body(**change)) == (400, code)


def test_items_metadata_has_an_error_of_its_own(desk: Desk) -> None:
    item = {
        "reference_id": "i",
        "name": "n",
        "net_unit_amount": 1,
        "quantity": 1,
        "category": "c",
        "metadata": {"k": 1},
    }

    assert desk.refusal("/sessions", session_body(**PAY, items=[item])) == (400, "INVALID_ITEM_METADATA")


def test_the_missing_member_is_named_in_xendits_words(desk: Desk) -> None:
    answer = desk.post("/sessions", session_body(session_type=None), status=400)

    assert answer == {
        "error_code": "API_VALIDATION_ERROR",
        "message": "request/body must have required property 'session_type'",
        "errors": [{"message": "must have required property 'session_type'", "path": "/body/session_type"}],
    }


def test_a_customer_is_created_once_and_then_named_by_id(desk: Desk) -> None:
    customer_id = desk.open_session()["customer_id"]

    assert desk.refusal("/sessions", session_body(reference_id="ses-2")) == (409, "DUPLICATE_ERROR")
    by_id = desk.open_session(reference_id="ses-2", customer=None, customer_id=customer_id)
    assert by_id["customer_id"] == customer_id
    unknown = session_body(reference_id="ses-3", customer=None, customer_id="cust-" + "0" * 36)
    assert desk.refusal("/sessions", unknown) == (404, "DATA_NOT_FOUND")


@pytest.mark.parametrize(
    "name",
    ["สมชาย ใจดี", "ณัฐวุฒิ น้ำผึ้ง", "Nguye\u0302\u0303n", "Nguyễn", "Seán O'Neill-Putri", "श्री", "க்\u200cஷ", "7"],
)
def test_names_of_every_script_are_taken_with_their_marks(desk: Desk, name: str) -> None:
    session = desk.open_session(customer={**PERSON, "individual_detail": {"given_names": name}})

    customer = desk.raw("GET", f"/customers/{session['customer_id']}", api_version="2020-10-31")
    assert simplejson.loads(customer.body)["individual_detail"]["given_names"] == name


def test_customer_and_id_together_are_let_through_with_a_warning(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The documents do not say: a simulator that refuses more than Xendit keeps customers out."""
    customer_id = desk.open_session()["customer_id"]

    assert desk.open_session(reference_id="ses-2", customer_id=customer_id)["customer_id"] == customer_id
    assert "customer and customer_id" in caplog.text


def test_a_session_reference_is_used_once_unless_told_otherwise() -> None:
    strict, lenient = Desk(), Desk(SimulatorConfig(unique_session_references=False))
    for desk in (strict, lenient):
        desk.open_session()
    again = session_body(customer=None, **PAY)

    assert strict.refusal("/sessions", again) == (400, "DUPLICATE_ERROR")
    assert lenient.post("/sessions", again)["status"] == "ACTIVE"


def test_an_unknown_session(desk: Desk) -> None:
    assert desk.get("/sessions/ps-nobody", status=404) == {"error_code": "NOT_FOUND", "message": "Session not found"}
