"""Tokens and customers."""

from __future__ import annotations

import pytest

from tests.simulator.desk import PERSON, Desk


def test_a_token_ends_with_its_card_and_says_so(desk: Desk) -> None:
    token = desk.new_token(expiry_month=2, expiry_year=2026)
    desk.later(days=365)

    [(event, ended)] = desk.received()

    assert (event, ended["payment_token_id"]) == ("payment_token.expiry", token)
    assert ended["updated"] == "2026-03-01T00:00:00.000Z"
    assert desk.get(f"/v3/payment_tokens/{token}")["status"] == "EXPIRED"


def test_a_short_lived_bank_token_ends_after_three_months(desk: Desk) -> None:
    desk.new_token(country="PH", channel_code="BPI_RECURRING")

    desk.later(days=89)
    assert desk.received() == []
    desk.later(days=1)
    assert desk.event_names() == ["payment_token.expiry"]


def test_a_cancel_is_final_and_silent(desk: Desk) -> None:
    token = desk.new_token()

    assert desk.post(f"/v3/payment_tokens/{token}/cancel", status=200)["status"] == "CANCELED"
    assert desk.refusal(f"/v3/payment_tokens/{token}/cancel", None) == (400, "INACTIVE_PAYMENT_REQUEST")
    desk.later(days=4000)
    assert desk.received() == []


def test_control_calls_end_a_token(desk: Desk) -> None:
    expired, unlinked = desk.new_token(), desk.new_token(channel_code="OVO")
    desk.post(f"/_simulator/tokens/{expired}/expire", status=200)
    desk.post(f"/_simulator/tokens/{unlinked}/cancel", status=200)

    assert desk.event_names() == ["payment_token.expiry"]
    assert desk.refusal("/v3/payment_requests", desk.charge_body(expired)) == (400, "INVALID_TOKEN")
    assert desk.get(f"/v3/payment_tokens/{unlinked}")["status"] == "CANCELED"


def test_many_tokens_at_once_for_a_benchmark(desk: Desk) -> None:
    made = desk.post("/_simulator/tokens", {"count": 50}, status=201)["payment_token_ids"]

    assert len(set(made)) == 50
    assert desk.charge(made[49])["status"] == "SUCCEEDED"
    assert desk.event_names() == ["payment.capture"]


def test_a_token_can_have_the_id_an_import_file_names(desk: Desk) -> None:
    wanted = "pt-11111111-2222-4333-8444-555555555555"

    assert desk.new_token(payment_token_id=wanted) == wanted
    assert desk.get(f"/v3/payment_tokens/{wanted}")["status"] == "ACTIVE"


def test_a_wallet_is_linked_through_its_action_page(desk: Desk) -> None:
    body = {
        "reference_id": "tok-1", "country": "ID", "currency": "IDR", "channel_code": "OVO",
        "channel_properties": {"success_return_url": "https://shop.example/ok"}, "customer": PERSON,
    }  # fmt: skip
    token = desk.post("/v3/payment_tokens", body, status=201)
    assert token["status"] == "REQUIRES_ACTION"

    page = token["actions"][0]["value"].removeprefix(desk.config.base_url)
    desk.simulator.answer("POST", page, "", {}, b"result=AUTHENTICATED")

    [(event, active)] = desk.received()
    assert (event, active["status"]) == ("payment_token.activation", "ACTIVE")


def test_a_card_token_forgets_the_number(desk: Desk) -> None:
    details = {"card_number": "5200000000001005", "cvn": "123", "expiry_month": "09", "expiry_year": "2028"}
    body = {
        "reference_id": "tok-1", "country": "ID", "currency": "IDR", "channel_code": "CARDS",
        "channel_properties": {"card_details": details},
    }  # fmt: skip

    answer = desk.raw("POST", "/v3/payment_tokens", body)

    assert answer.status == 201
    assert b"5200000000001005" not in answer.body
    assert b"520000XXXXXX1005" in answer.body
    past = body | {"channel_properties": {"card_details": details | {"expiry_year": "2025"}}}
    assert desk.refusal("/v3/payment_tokens", past) == (400, "CARD_EXPIRED")
    wrong = body | {"channel_properties": {"card_details": details | {"card_number": "12"}}}
    assert desk.refusal("/v3/payment_tokens", wrong) == (400, "INVALID_PAYMENT_DETAILS")


@pytest.mark.parametrize("outcomes", [["NOPE!"], "SUCCEEDED", ["SLOW:long"]])
def test_a_script_in_no_known_word_is_refused(desk: Desk, outcomes: object) -> None:
    path = f"/_simulator/tokens/{desk.new_token()}/script"

    assert desk.refusal(path, {"outcomes": outcomes}) == (400, "API_VALIDATION_ERROR")


def test_customers_are_unique_and_found_by_reference(desk: Desk) -> None:
    made = desk.raw("POST", "/customers", PERSON, api_version="2020-10-31")
    again = desk.raw("POST", "/customers", PERSON, api_version="2020-10-31")
    found = desk.raw("GET", "/customers?reference_id=subscriber-1", api_version="2020-10-31")

    assert (made.status, again.status) == (201, 409)
    assert b'"DUPLICATE_ERROR"' in again.body
    assert b'"has_more":false' in found.body
    assert b"cust-" in found.body


def test_an_idempotency_key_repeats_the_answer_for_a_day(desk: Desk) -> None:
    def create(**change: str) -> tuple[int, bytes]:
        answer = desk.raw("POST", "/customers", PERSON | change, api_version="2020-10-31", idempotency_key="k-1")
        return answer.status, answer.body

    first = create()
    assert create() == first
    assert create(reference_id="subscriber-2")[0] == 409
    desk.later(hours=25)
    assert create(reference_id="subscriber-2")[0] == 201


def test_customers_have_api_versions_of_their_own(desk: Desk) -> None:
    assert desk.raw("GET", "/customers?reference_id=x", api_version="2024-11-11").status == 400
