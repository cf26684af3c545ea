"""Customers, sessions, tokens, refunds and the list of transactions, against the documented shapes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import httpx
import pytest

from billing.domain.gateway import (
    ChargeRequest,
    NewCustomer,
    RecurringTerms,
    RefundStatus,
    SessionMode,
    SessionRequest,
    SessionType,
)
from billing.domain.money import Money
from billing.errors import (
    BillingError,
    GatewayError,
    InvalidSetting,
    NotFound,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    RequestRejected,
    Unavailable,
)
from billing.xendit.client import XenditGateway
from billing.xendit.wire import given_names
from tests.xendit.strangers import SOMEBODY_ELSE

CUSTOMER = "cust-c1d2e3f4-a5b6-4c7d-8e9f-0a1b2c3d4e04"
SESSION = "ps-6721c0ffee15dead2b00b1f6"
TOKEN = "pt-3f9a1b7e-0c44-4d8e-a1f2-5b6c7d8e9f03"
PAYMENT_REQUEST = "pr-9e21c6f4-58a7-4f0d-8b5c-61a0a3d7c202"

SARI = NewCustomer(
    reference_id="sari-1", name="Sari Wijaya", email="sari@shop.example", country="ID", mobile="+62 812-3456-7890"
)


def session_request(**changes: Any) -> SessionRequest:
    members: dict[str, Any] = {
        "reference_id": "ses-01K9ZQ3A5B6C7D8E9F0G1H2J3K",
        "type": SessionType.SAVE,
        "mode": SessionMode.PAYMENT_LINK,
        "customer_id": CUSTOMER,
        "amount": Money.zero("IDR"),
        "country": "ID",
        "expires_at": datetime(2026, 12, 1, 3, 45, tzinfo=UTC),
        "description": "Gym membership",
        "allowed_channels": ["CARDS", "DANA"],
        "metadata": {"subscription_id": "sub-1"},
        "recurring": RecurringTerms(frequency_days=30, expires_on=date(2029, 11, 30)),
        "success_return_url": "https://shop.example/ok",
        "cancel_return_url": "https://shop.example/no",
    }
    return SessionRequest(**members | changes)


def session(**changes: Any) -> dict[str, Any]:
    members = {
        "payment_session_id": SESSION,
        "created": "2026-12-01T01:45:00.000Z",
        "updated": "2026-12-01T01:50:05.000Z",
        "reference_id": "ses-01K9ZQ3A5B6C7D8E9F0G1H2J3K",
        "customer_id": CUSTOMER,
        "session_type": "SAVE",
        "currency": "IDR",
        "amount": 0,
        "country": "ID",
        "mode": "PAYMENT_LINK",
        "expires_at": "2026-12-01T03:45:00.000Z",
        "status": "ACTIVE",
        "payment_link_url": "https://xen.to/aBcDeF12",
        "payment_token_id": None,
        "payment_request_id": None,
    }
    return members | changes


def token(**changes: Any) -> dict[str, Any]:
    card = {
        "masked_card_number": "5200****1005",
        "expiry_month": "9",
        "expiry_year": "29",
        "network": "MASTERCARD",
        "type": "CREDIT",
        "issuer": "PT BANK CONTOH",
        "fingerprint": "6721c0ffee15dead2b00b207",
    }
    members = {
        "payment_token_id": TOKEN,
        "customer_id": CUSTOMER,
        "country": "ID",
        "currency": "IDR",
        "channel_code": "CARDS",
        "channel_properties": {"card_details": card},
        "status": "ACTIVE",
    }
    return members | changes


# Customers


def test_a_customer_is_created_with_its_reference_as_idempotency_key(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, {"id": CUSTOMER, "reference_id": "sari-1"})
    assert gateway.create_customer(SARI) == CUSTOMER
    assert xendit.last.url.path == "/customers"
    assert xendit.last.headers["api-version"] == "2020-10-31"
    assert xendit.last.headers["idempotency-key"] == "sari-1"
    assert xendit.last_body == {
        "reference_id": "sari-1",
        "type": "INDIVIDUAL",
        "individual_detail": {"given_names": "Sari Wijaya"},
        "email": "sari@shop.example",
        "mobile_number": "+6281234567890",
    }


@pytest.mark.parametrize("reference", ["müller-çelik", "two words", "r" * 200, "line\nbreak"])
def test_a_reference_that_no_header_can_hold_still_makes_a_customer(
    xendit: Any, gateway: XenditGateway, reference: str
) -> None:
    xendit.answers_with(200, {"id": CUSTOMER})
    customer = NewCustomer(reference_id=reference, name="A", email="x", country="ID", mobile="0812")
    assert gateway.create_customer(customer) == CUSTOMER
    assert 1 <= len(xendit.last.headers["idempotency-key"]) <= 100
    assert xendit.last_body["reference_id"] == reference
    assert not {"email", "mobile_number"} & xendit.last_body.keys()


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("Siti O'Neill-Hassan", "Siti O Neill Hassan"),
        ("Nguyễn Thị Hoà", "Nguyễn Thị Hoà"),
        ("กิ่งแก้ว", "กิ่งแก้ว"),
        ("  a\tb  ", "a b"),
        ("!!!", "Customer"),
        ("x" * 80, "x" * 50),
    ],
)
def test_names_keep_letters_digits_and_blanks(name: str, sent: str) -> None:
    assert given_names(name) == sent


@pytest.mark.parametrize(
    "found",
    [
        {"data": [{"id": "cust-other", "reference_id": "else"}, {"id": CUSTOMER, "reference_id": "sari-1"}]},
        [{"id": CUSTOMER, "reference_id": "sari-1"}],
        {"id": CUSTOMER, "reference_id": "sari-1"},
    ],
)
@pytest.mark.parametrize("error_code", ["DUPLICATE_ERROR", "IDEMPOTENCY_ERROR"])
def test_a_customer_who_exists_is_found_by_reference(
    xendit: Any, gateway: XenditGateway, found: object, error_code: str
) -> None:
    xendit.refuses_with(409, error_code)
    xendit.answers_with(200, found)
    assert gateway.create_customer(SARI) == CUSTOMER
    assert xendit.last.url.params["reference_id"] == "sari-1"
    assert xendit.last.headers["api-version"] == "2020-10-31"


@pytest.mark.parametrize("answer", [(200, {"data": []}), (200, []), (404, {"error_code": "DATA_NOT_FOUND"})])
def test_a_reference_of_another_business_is_refused(
    xendit: Any, gateway: XenditGateway, answer: tuple[int, object]
) -> None:
    xendit.refuses_with(409, "DUPLICATE_ERROR")
    xendit.answers_with(*answer)
    with pytest.raises(RequestRejected, match="another reference"):
        gateway.create_customer(SARI)


def test_a_look_up_that_fails_is_not_taken_for_absence(xendit: Any, gateway: XenditGateway) -> None:
    xendit.refuses_with(409, "DUPLICATE_ERROR")
    xendit.refuses_with(500, "SERVER_ERROR")
    with pytest.raises(Unavailable):
        gateway.create_customer(SARI)


# Payment sessions


def test_a_save_session_asks_for_nothing_and_announces_renewals(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(201, session())
    report = gateway.create_session(session_request())
    assert (report.session_id, report.status, report.amount) == (SESSION, "ACTIVE", Money.zero("IDR"))
    assert report.payment_link_url == "https://xen.to/aBcDeF12"
    assert report.expires_at == datetime(2026, 12, 1, 3, 45, tzinfo=UTC)
    assert xendit.last_body == {
        "reference_id": "ses-01K9ZQ3A5B6C7D8E9F0G1H2J3K",
        "session_type": "SAVE",
        "mode": "PAYMENT_LINK",
        "customer_id": CUSTOMER,
        "amount": 0,
        "currency": "IDR",
        "country": "ID",
        "expires_at": "2026-12-01T03:45:00.000Z",
        "description": "Gym membership",
        "metadata": {"subscription_id": "sub-1"},
        "allowed_payment_channels": ["CARDS", "DANA"],
        "channel_properties": {
            "cards": {
                "card_on_file_type": "RECURRING",
                "recurring_configuration": {"recurring_frequency": 30, "recurring_expiry": "2029-11-30"},
            }
        },
        "success_return_url": "https://shop.example/ok",
        "cancel_return_url": "https://shop.example/no",
    }


def test_a_pay_session_forces_saving(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(201, session(session_type="PAY", amount=125000))
    amount = Money.parse("125000", "IDR")
    report = gateway.create_session(session_request(type=SessionType.PAY, amount=amount, allow_save="FORCED"))
    assert xendit.last_body["allow_save_payment_method"] == "FORCED"
    assert xendit.last_body["amount"] == 125000
    assert report.amount == amount


def test_without_https_there_are_no_return_urls(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(201, session())
    gateway.create_session(session_request(success_return_url="http://localhost:8000/ok", cancel_return_url=None))
    assert not {"success_return_url", "cancel_return_url"} & xendit.last_body.keys()


def test_components_get_their_origins(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(201, session(mode="COMPONENTS", payment_link_url=None, components_sdk_key="sdk-1"))
    report = gateway.create_session(
        session_request(mode=SessionMode.COMPONENTS, origins=["https://shop.example", "http://localhost"])
    )
    assert xendit.last_body["components_configuration"] == {"origins": ["https://shop.example"]}
    assert report.components_sdk_key == "sdk-1"
    assert report.payment_link_url is None


def test_a_wallet_only_session_has_no_card_properties(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(201, session())
    gateway.create_session(session_request(allowed_channels=["DANA"]))
    assert "channel_properties" not in xendit.last_body


@pytest.mark.parametrize(
    ("status", "read_as"),
    [
        ("COMPLETED", "COMPLETED"),
        ("EXPIRED", "EXPIRED"),
        ("CANCELED", "CANCELED"),
        ("PENDING", "ACTIVE"),
        ("SOMETHING_NEW", "ACTIVE"),
        (None, "ACTIVE"),
    ],
)
def test_a_session_only_ends_in_a_documented_way(
    xendit: Any, gateway: XenditGateway, status: str | None, read_as: str
) -> None:
    xendit.answers_with(200, session(status=status))
    assert gateway.get_session(SESSION).status == read_as


def test_a_completed_session_shows_what_it_brought(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(
        200, session(status="COMPLETED", payment_token_id=TOKEN, payment_request_id=PAYMENT_REQUEST, payment_id="py-1")
    )
    report = gateway.get_session(SESSION)
    assert (report.payment_token_id, report.payment_request_id, report.payment_id) == (TOKEN, PAYMENT_REQUEST, "py-1")


def test_cancelling_a_session_that_ended_shows_how(xendit: Any, gateway: XenditGateway) -> None:
    xendit.refuses_with(422, "INVALID_SESSION_STATUS")
    xendit.answers_with(200, session(status="COMPLETED"))
    assert gateway.cancel_session(SESSION).status == "COMPLETED"


def test_a_session_is_cancelled(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, session(status="CANCELED"))
    assert gateway.cancel_session(SESSION).status == "CANCELED"
    assert (xendit.last.method, xendit.last.url.path) == ("POST", f"/sessions/{SESSION}/cancel")


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        (400, "INVALID_AMOUNT", RequestRejected),
        (400, "INVALID_PAYMENT_CHANNEL", RequestRejected),
        (401, "INVALID_API_KEY", RequestRejected),
        (404, "DATA_NOT_FOUND", NotFound),
        (409, "DUPLICATE_ERROR", RequestRejected),
        (429, "RATE_LIMIT_EXCEEDED", RateLimited),
        (500, "SERVER_ERROR", OutcomeUnknown),
        (503, "SERVER_ERROR", OutcomeUnknown),
    ],
)
def test_a_session_that_cannot_be_opened_is_sorted(
    xendit: Any, gateway: XenditGateway, status: int, error_code: str, expected: type
) -> None:
    xendit.refuses_with(status, error_code)
    with pytest.raises(BillingError) as caught:
        gateway.create_session(session_request())
    assert type(caught.value) is expected


# Payment tokens


def test_a_card_token_shows_its_card(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, token())
    report = gateway.get_token(TOKEN)
    assert (report.status, report.channel_code, report.card_last4) == ("ACTIVE", "CARDS", "1005")
    assert (report.card_expiry, report.network, report.card_type) == ("2029-09", "MASTERCARD", "CREDIT")
    assert report.fingerprint == "6721c0ffee15dead2b00b207"
    assert xendit.last.headers["api-version"] == "2024-11-11"


@pytest.mark.parametrize("spelling", ["CANCELED", "INACTIVE", "CANCELLED"])
def test_an_ended_token_has_one_name(xendit: Any, gateway: XenditGateway, spelling: str) -> None:
    xendit.answers_with(200, token(status=spelling))
    assert gateway.cancel_token(TOKEN).status == "CANCELED"
    assert xendit.last.url.path == f"/v3/payment_tokens/{TOKEN}/cancel"


def test_cancelling_a_token_that_ended_shows_how(xendit: Any, gateway: XenditGateway) -> None:
    xendit.refuses_with(400, "INACTIVE_PAYMENT_REQUEST")
    xendit.answers_with(200, token(status="EXPIRED"))
    assert gateway.cancel_token(TOKEN).status == "EXPIRED"


@pytest.mark.parametrize(
    "card",
    [
        None,
        [],
        "4000",
        {"expiry_month": "13", "expiry_year": "2029"},
        {"expiry_month": None, "expiry_year": "2029"},
        {"expiry_month": {}, "expiry_year": []},
        {"masked_card_number": "4000****10"},
    ],
)
def test_odd_card_details_are_simply_not_there(xendit: Any, gateway: XenditGateway, card: object) -> None:
    xendit.answers_with(200, token(channel_properties={"card_details": card}))
    report = gateway.get_token(TOKEN)
    assert (report.card_expiry, report.card_last4) == (None, None)


# Reads in general


@pytest.mark.parametrize(
    "read",
    [
        lambda gateway: gateway.get_session(SESSION),
        lambda gateway: gateway.get_token(TOKEN),
        lambda gateway: gateway.get_charge(PAYMENT_REQUEST),
        lambda gateway: gateway.get_payment("py-1"),
        lambda gateway: gateway.find_transactions("att-1"),
    ],
)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((500, {"error_code": "SERVER_ERROR"}), Unavailable),
        ((502, b"<html>"), Unavailable),
        ((503, {"error_code": "CHANNEL_UNAVAILABLE"}), Unavailable),
        ((200, b"<html>"), Unavailable),
        ((200, {}), Unavailable),
        ((429, {}), RateLimited),
        ((401, {"error_code": "INVALID_API_KEY"}), RequestRejected),
        ((403, {"error_code": "REQUEST_FORBIDDEN_ERROR"}), RequestRejected),
        (httpx.ReadTimeout("x"), Unavailable),
        (httpx.RemoteProtocolError("x"), Unavailable),
        (httpx.ConnectError("x"), NotSent),
    ],
)
def test_a_read_that_fails_can_always_be_repeated_or_explained(
    xendit: Any, gateway: XenditGateway, read: Callable[[XenditGateway], object], answer: Any, expected: type
) -> None:
    if isinstance(answer, Exception):
        xendit.breaks_with(answer)
    else:
        xendit.answers_with(*answer)
    with pytest.raises(GatewayError) as caught:
        read(gateway)
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("read", "named"),
    [
        (lambda gateway: gateway.get_session(SESSION), SESSION),
        (lambda gateway: gateway.cancel_session(SESSION), SESSION),
        (lambda gateway: gateway.get_token(TOKEN), "pt-3f9a...9f03"),
        (lambda gateway: gateway.get_charge(PAYMENT_REQUEST), PAYMENT_REQUEST),
    ],
)
def test_what_xendit_does_not_know_is_not_found(
    xendit: Any, gateway: XenditGateway, read: Callable[[XenditGateway], object], named: str
) -> None:
    xendit.refuses_with(404, "NOT_FOUND")
    with pytest.raises(NotFound) as caught:
        read(gateway)
    assert named in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>nginx</html>", {"message": "no Route matched"}, {"error_code": "ROUTE_UNKNOWN"}, {"error_code": 404}],
)
@pytest.mark.parametrize(
    "read",
    [
        lambda gateway: gateway.get_session(SESSION),
        lambda gateway: gateway.cancel_session(SESSION),
        lambda gateway: gateway.get_token(TOKEN),
        lambda gateway: gateway.get_charge(PAYMENT_REQUEST),
        lambda gateway: gateway.get_payment("py-1"),
    ],
)
def test_a_missing_page_is_a_wrong_address_not_a_missing_record(
    xendit: Any, gateway: XenditGateway, read: Callable[[XenditGateway], object], body: Any
) -> None:
    xendit.answers_with(404, body)
    with pytest.raises(RequestRejected, match="check BILLING_XENDIT_BASE_URL and any proxy") as caught:
        read(gateway)
    assert not caught.value.stops_account


def test_a_missing_page_does_not_make_a_customer_somebody_elses(xendit: Any, gateway: XenditGateway) -> None:
    xendit.refuses_with(409, "DUPLICATE_ERROR")
    xendit.answers_with(404, b"<html>nginx</html>")
    with pytest.raises(RequestRejected, match="not an answer of Xendit's"):
        gateway.create_customer(SARI)


def test_a_key_refused_by_a_proxy_is_not_called_refused(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(401, b"<html>log in to the proxy</html>")
    with pytest.raises(RequestRejected, match="not an answer of Xendit's") as caught:
        gateway.get_token(TOKEN)
    assert not caught.value.stops_account


@pytest.mark.parametrize("record_id", ["..", "../customers", "ps 1", "", "ps-1?x=1", "ps-1#", "ü", "x" * 65])
def test_what_is_no_id_never_becomes_a_path(xendit: Any, gateway: XenditGateway, record_id: str) -> None:
    with pytest.raises(NotFound):
        gateway.get_session(record_id)
    assert xendit.requests == []


def test_a_permission_that_charging_does_not_need_stops_nothing(xendit: Any, gateway: XenditGateway) -> None:
    xendit.refuses_with(403, "REQUEST_FORBIDDEN_ERROR")
    with pytest.raises(RequestRejected) as caught:
        gateway.find_transactions("att-1")
    assert not caught.value.stops_account


# Refunds


def refund(gateway: XenditGateway) -> Any:
    return gateway.refund(
        reference_id="rfn-1",
        payment_request_id=PAYMENT_REQUEST,
        amount=Money.parse("10.50", "PHP"),
        reason="DUPLICATE",
    )


def test_a_refund_is_asked_for_and_stays_pending(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, {"id": "rfd-1", "status": "PENDING", "currency": "PHP", "amount": 10.5})
    report = refund(gateway)
    assert (report.refund_id, report.status) == ("rfd-1", RefundStatus.PENDING)
    assert b'"amount":10.50,' in xendit.last.content
    assert xendit.last_body["reason"] == "DUPLICATE"
    assert xendit.last.url.path == "/refunds"


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        (400, "REFUND_IN_PROGRESS", Unavailable),
        (400, "TEMPORARILY_UNAVAILABLE", Unavailable),
        (503, "CHANNEL_UNAVAILABLE", Unavailable),
        (400, "INSUFFICIENT_BALANCE", RequestRejected),
        (400, "REFUND_AMOUNT_EXCEEDED", RequestRejected),
        (400, "INELIGIBLE_TRANSACTION_STATUS", RequestRejected),
        (403, "REFUND_NOT_SUPPORTED", RequestRejected),
        (404, "DATA_NOT_FOUND", RequestRejected),
        (409, "DUPLICATE_ERROR", OutcomeUnknown),
        (500, "SERVER_ERROR", OutcomeUnknown),
    ],
)
def test_a_refund_that_fails_is_sorted_and_never_stops_charging(
    xendit: Any, gateway: XenditGateway, status: int, error_code: str, expected: type
) -> None:
    xendit.refuses_with(status, error_code)
    with pytest.raises(GatewayError) as caught:
        refund(gateway)
    assert type(caught.value) is expected
    assert not getattr(caught.value, "stops_account", False)


@pytest.mark.parametrize(("status", "body"), SOMEBODY_ELSE)
def test_an_answer_of_somebody_else_leaves_the_outcome_of_a_refund_unknown(
    xendit: Any, gateway: XenditGateway, status: int, body: Any
) -> None:
    """Called refused, a person would refund it once more in the dashboard."""
    xendit.answers_with(status, body)
    with pytest.raises(OutcomeUnknown, match="check BILLING_XENDIT_BASE_URL and any proxy"):
        refund(gateway)


# Transactions


def transaction(number: int, **changes: Any) -> dict[str, Any]:
    members = {
        "id": f"txn_{number}",
        "product_id": f"py-{number}",
        "type": "PAYMENT",
        "status": "SUCCESS",
        "reference_id": "att-1",
        "currency": "IDR",
        "amount": 125000,
        "created": "2026-12-01T02:00:01Z",
    }
    return members | changes


def test_a_payment_is_found_by_its_reference(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, {"has_more": False, "data": [transaction(1)], "links": []})
    (row,) = gateway.find_transactions("att-1")
    assert (row.transaction_id, row.payment_id, row.status) == ("txn_1", "py-1", "SUCCESS")
    assert row.amount == Money.parse("125000", "IDR")
    assert dict(xendit.last.url.params) == {"types": "PAYMENT", "limit": "50", "reference_id": "att-1"}


def test_a_day_is_read_page_by_page(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, {"has_more": True, "data": [transaction(1), transaction(2)]})
    xendit.answers_with(200, {"has_more": True, "data": [transaction(3), "junk", {"id": 5}]})
    xendit.answers_with(200, {"has_more": False, "data": [transaction(4)]})
    rows = gateway.list_transactions(
        created_from=datetime(2026, 12, 1, tzinfo=UTC), created_to=datetime(2026, 12, 2, tzinfo=UTC)
    )
    assert [row.transaction_id for row in rows] == ["txn_1", "txn_2", "txn_3", "txn_4"]
    assert [request.url.params.get("after_id") for request in xendit.requests] == [None, "txn_2", "txn_3"]
    assert xendit.last.url.params["created[gte]"] == "2026-12-01T00:00:00.000Z"
    assert xendit.last.url.params["created[lte]"] == "2026-12-02T00:00:00.000Z"


def test_a_page_of_a_day_has_payments_and_refunds(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, {"has_more": False, "data": [transaction(1), transaction(2, type="REFUND")]})
    day = datetime(2026, 12, 1, tzinfo=UTC)
    page = gateway.transactions_page(created_from=day, created_to=day)
    assert [row.type for row in page.rows] == ["PAYMENT", "REFUND"]
    assert xendit.last.url.params.get_list("types") == ["PAYMENT", "REFUND"]


def test_a_refund_is_read_by_its_id(xendit: Any, gateway: XenditGateway) -> None:
    xendit.answers_with(200, {"id": "rfd-1", "payment_id": "py-1", "status": "SUCCEEDED", "reference_id": None})
    report = gateway.get_refund("rfd-1")
    assert (report.refund_id, report.payment_id, report.status, report.reference_id) == (
        "rfd-1", "py-1", RefundStatus.SUCCEEDED, None,
    )  # fmt: skip
    assert xendit.last.url.path == "/refunds/rfd-1"
    xendit.answers_with(404, {"error_code": "NOT_FOUND"})
    with pytest.raises(NotFound, match="Xendit does not know refund rfd-2"):
        gateway.get_refund("rfd-2")


@pytest.mark.parametrize("second", [[transaction(1)], []])
def test_paging_that_stands_still_is_an_error_not_a_short_list(
    xendit: Any, gateway: XenditGateway, second: list[object]
) -> None:
    xendit.answers_with(200, {"has_more": True, "data": [transaction(1)]})
    xendit.answers_with(200, {"has_more": True, "data": second})
    with pytest.raises(Unavailable):
        gateway.find_transactions("att-1")


# Secrets, hooks and threads


@pytest.mark.parametrize(
    "answer",
    [
        (400, {"error_code": "API_VALIDATION_ERROR", "message": "xnd_development_k3yThatMustNeverShow"}),
        (500, b"xnd_development_k3yThatMustNeverShow"),
        (401, {"error_code": "xnd_development_k3yThatMustNeverShow"}),
        (429, {"message": TOKEN}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("x"),
    ],
)
def test_no_message_shows_key_token_or_body(
    xendit: Any, gateway: XenditGateway, renewal: Callable[..., ChargeRequest], answer: Any
) -> None:
    if isinstance(answer, Exception):
        xendit.breaks_with(answer)
    else:
        xendit.answers_with(*answer)
    with pytest.raises(GatewayError) as caught:
        gateway.charge(renewal())
    shown = f"{caught.value} {caught.value!r} {vars(caught.value)} {gateway!r}"
    assert "NeverShow".lower() not in shown.lower()
    assert TOKEN not in shown
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ((401, {"error_code": "INVALID_API_KEY"}), "check BILLING_XENDIT_SECRET_KEY"),
        ((403, {"error_code": "SKIP_3DS_FORBIDDEN"}), "Optional 3DS"),
        ((404, b"<html>"), "check BILLING_XENDIT_BASE_URL"),
        (
            (400, {"error_code": "API_VALIDATION_ERROR", "errors": [{"path": "/body/country", "message": "x"}]}),
            "/body/country",
        ),
    ],
)
def test_messages_say_what_to_do(
    xendit: Any, gateway: XenditGateway, renewal: Callable[..., ChargeRequest], answer: Any, advice: str
) -> None:
    xendit.answers_with(*answer)
    with pytest.raises(GatewayError, match=advice) as caught:
        gateway.charge(renewal())
    assert f"HTTP {answer[0]}" in str(caught.value)


def test_listeners_learn_endpoint_status_and_quota(xendit: Any) -> None:
    told: list[tuple[str, int, Mapping[str, str]]] = []
    asked: list[str] = []
    gateway = XenditGateway(
        base_url="https://api.xendit.example/",
        secret_key="xnd_development_x",
        timeout_seconds=5,
        on_response=lambda endpoint, status, rates, _seconds: told.append((endpoint, status, rates)),
        before_request=asked.append,
        transport=httpx.MockTransport(xendit),
    )
    xendit.answers_with(200, token(), rate_limit_limit="600", rate_limit_remaining="599", x_other="no")
    gateway.get_token(TOKEN)
    assert asked == ["GET /v3/payment_tokens/{id}"]
    assert told == [("GET /v3/payment_tokens/{id}", 200, {"rate-limit-limit": "600", "rate-limit-remaining": "599"})]


def test_a_listener_can_stop_a_request_before_it_is_sent(xendit: Any) -> None:
    def refuse(endpoint: str) -> None:
        raise RateLimited(f"no budget for {endpoint}", retry_after_seconds=2)

    gateway = XenditGateway(
        base_url="https://api.xendit.example",
        secret_key="xnd_development_x",
        timeout_seconds=5,
        before_request=refuse,
        transport=httpx.MockTransport(xendit),
    )
    with pytest.raises(RateLimited):
        gateway.get_token(TOKEN)
    assert xendit.requests == []


def test_threads_share_no_client_and_closing_is_not_the_end(xendit: Any, gateway: XenditGateway) -> None:
    for _ in range(5):
        xendit.answers_with(200, token())
    started = threading.Barrier(4)

    def read() -> None:
        started.wait(timeout=10)
        gateway.get_token(TOKEN)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(xendit.requests) == 4
    gateway.close()
    assert gateway.get_token(TOKEN).status == "ACTIVE"


@pytest.mark.parametrize("base_url", ["", "https://", "ftp://x", "http://[bad", f"http://{'a' * 80}.example", "x"])
def test_a_base_url_that_is_none_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(InvalidSetting, match="BILLING_XENDIT_BASE_URL"):
        XenditGateway(base_url=base_url, secret_key="xnd_development_x", timeout_seconds=5)
