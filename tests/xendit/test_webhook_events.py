"""Webhooks: who may send them, and what every documented event becomes."""

from __future__ import annotations

import copy
import hmac
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import simplejson

from billing.domain.gateway import ChargeReport, EventKind, GatewayEvent, RefundReport, SessionReport, TokenReport
from billing.domain.money import Money
from billing.errors import WebhookRejected
from billing.xendit.masking import mask_payload
from billing.xendit.webhook import check_callback_token, read_event, read_payload
from billing.xendit.wire import parse_json

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))

# sample -> name after aliases, kind, status of the report
EXPECTED = {
    "alias-payment.failed": ("payment.failure", "payment", "FAILED"),
    "alias-payment.succeeded": ("payment.capture", "payment", "SUCCEEDED"),
    "alias-payment_token.activated": ("payment_token.activation", "payment_token", "ACTIVE"),
    "alias-recurring.plan.activation": ("recurring.plan.activated", "other", None),
    "alias-recurring_cycle.succeeded": ("recurring.cycle.succeeded", "other", None),
    "alias-recurring_plan.activated": ("recurring.plan.activated", "other", None),
    "payment.authorization": ("payment.authorization", "payment", "PENDING"),
    "payment.capture-card": ("payment.capture", "payment", "SUCCEEDED"),
    "payment.capture-from-session": ("payment.capture", "payment", "SUCCEEDED"),
    "payment.capture-sparse": ("payment.capture", "payment", "SUCCEEDED"),
    "payment.capture-wallet": ("payment.capture", "payment", "SUCCEEDED"),
    "payment.expiry": ("payment.expiry", "payment", "EXPIRED"),
    "payment.failure-guide-spelling": ("payment.failure", "payment", "FAILED"),
    "payment.failure-reference-spelling": ("payment.failure", "payment", "FAILED"),
    "payment_request.expiry": ("payment_request.expiry", "payment_request", "EXPIRED"),
    "payment_session.completed-pay": ("payment_session.completed", "payment_session", "COMPLETED"),
    "payment_session.completed-save": ("payment_session.completed", "payment_session", "COMPLETED"),
    "payment_session.completed-subscription": ("payment_session.completed", "payment_session", "COMPLETED"),
    "payment_session.expired": ("payment_session.expired", "payment_session", "EXPIRED"),
    "payment_token.activation-card": ("payment_token.activation", "payment_token", "ACTIVE"),
    "payment_token.activation-wallet": ("payment_token.activation", "payment_token", "ACTIVE"),
    "payment_token.expiry": ("payment_token.expiry", "payment_token", "EXPIRED"),
    "payment_token.failure": ("payment_token.failure", "payment_token", "FAILED"),
    "recurring.cycle.created": ("recurring.cycle.created", "other", None),
    "recurring.cycle.failed": ("recurring.cycle.failed", "other", None),
    "recurring.cycle.force_attempt_failed": ("recurring.cycle.force_attempt_failed", "other", None),
    "recurring.cycle.retrying": ("recurring.cycle.retrying", "other", None),
    "recurring.cycle.succeeded": ("recurring.cycle.succeeded", "other", None),
    "recurring.plan.activated": ("recurring.plan.activated", "other", None),
    "recurring.plan.inactivated": ("recurring.plan.inactivated", "other", None),
    "refund.failed-nested": ("refund.failed", "refund", "FAILED"),
    "refund.succeeded-flat": ("refund.succeeded", "refund", "SUCCEEDED"),
    "refund.succeeded-nested": ("refund.succeeded", "refund", "SUCCEEDED"),
}
ODD_VALUES = [None, 0, -1, True, "", " ", "x" * 5000, "\x00", "\ud800", [], [[]], {}, {"a": 1}, Decimal("1e999"), 1.5]


def sample(name: str) -> dict[str, Any]:
    path = next(path for path in SAMPLES if path.stem == name)
    payload = parse_json(path.read_bytes())
    assert isinstance(payload, dict)
    return payload


# The callback token


def test_any_accepted_token_opens() -> None:
    check_callback_token("old", ["old", "new"])
    check_callback_token("new", ["old", "new"])


def test_a_token_that_was_taken_out_opens_no_more() -> None:
    with pytest.raises(WebhookRejected):
        check_callback_token("old", ["new"])


@pytest.mark.parametrize("received", ["first", "second", "third", "none of them", "", "geh\xe9im", None])
def test_how_long_it_takes_tells_nothing(received: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every accepted token is compared, in constant time, whichever matches."""
    compared: list[bytes] = []

    def compare(given: bytes, token: bytes) -> bool:
        compared.append(token)
        return hmac.compare_digest(given, token)

    monkeypatch.setattr("billing.xendit.webhook.hmac", SimpleNamespace(compare_digest=compare))
    with suppress(WebhookRejected):
        check_callback_token(received, ["first", "second", "third"])
    assert compared == [b"first", b"second", b"third"]


@pytest.mark.parametrize(
    ("received", "accepted"),
    [
        (None, ["secret"]),
        ("", ["secret"]),
        ("secre", ["secret"]),
        ("Secret", ["secret"]),
        ("secret ", ["secret"]),
        ("", [""]),
        ("x", []),
        (None, []),
        ("geh\xe9im", ["secret"]),
        ("\ud800", ["secret"]),
    ],
)
def test_everything_else_is_turned_away_without_showing_the_secret(received: str | None, accepted: list[str]) -> None:
    with pytest.raises(WebhookRejected) as caught:
        check_callback_token(received, accepted)
    assert caught.value.status == 401
    assert "secret" not in str(caught.value)


# Every documented event


def test_every_sample_is_expected_and_the_other_way_round() -> None:
    assert {path.stem for path in SAMPLES} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_every_documented_event_is_understood(name: str) -> None:
    event = read_event(sample(name))
    status = event.report.status if event.report else None
    assert (event.name, event.kind, status) == EXPECTED[name]
    assert 0 < len(event.dedupe_key) <= 255


def test_a_capture_brings_what_settling_needs() -> None:
    event = read_event(sample("payment.capture-card"))
    assert event.primary_id == "py-7b0d4c52-3c1e-4f0a-9a55-2d1f8f6c9e01"
    assert isinstance(event.report, ChargeReport)
    assert event.report.reference_id == "att-01K9ZQ4T7M2V5C8D1E3F6G7H8J"
    assert event.report.amount == Money.parse("125000", "IDR")
    assert event.report.failure_code is None


def test_both_spellings_of_network_codes_are_read() -> None:
    for name, codes in {
        "payment.failure-reference-spelling": ("INSUFFICIENT_BALANCE", "51", None),
        "payment.failure-guide-spelling": ("DECLINED_BY_ISSUER", "65", "28"),
    }.items():
        report = read_event(sample(name)).report
        assert isinstance(report, ChargeReport)
        assert (report.failure_code, report.network_code, report.advice_code) == codes


def test_a_session_brings_its_token_and_a_token_its_card() -> None:
    session = read_event(sample("payment_session.completed-save")).report
    assert isinstance(session, SessionReport)
    assert session.reference_id == "ses-01K9ZQ3A5B6C7D8E9F0G1H2J3K"
    token = read_event(sample("payment_token.activation-card")).report
    assert isinstance(token, TokenReport)
    assert token.payment_token_id == session.payment_token_id
    assert (token.card_last4, token.card_expiry) == ("1005", "2029-09")


def test_a_doubly_wrapped_refund_is_unwrapped() -> None:
    report = read_event(sample("refund.failed-nested")).report
    assert isinstance(report, RefundReport)
    assert report.failure_code == "ACCOUNT_NOT_FOUND"


# One fact, one key


@pytest.mark.parametrize("name", EXPECTED)
def test_a_repeated_delivery_has_the_same_key(name: str) -> None:
    first = sample(name)
    again = simplejson.loads(simplejson.dumps(first | {"created": "2027-01-01T00:00:00Z"}))  # floats, as jsonb gives
    assert read_event(again) == read_event(first)


def test_an_alias_is_the_same_fact() -> None:
    for alias, name in {
        "alias-payment.succeeded": "payment.capture-card",
        "alias-payment.failed": "payment.failure-reference-spelling",
        "alias-payment_token.activated": "payment_token.activation-card",
        "alias-recurring.plan.activation": "recurring.plan.activated",
        "alias-recurring_cycle.succeeded": "recurring.cycle.succeeded",
    }.items():
        assert read_event(sample(alias)) == read_event(sample(name))


def test_different_facts_have_different_keys() -> None:
    capture = sample("payment.capture-card")
    second_capture = copy.deepcopy(capture)
    second_capture["data"]["captures"].append({"capture_id": "cptr-2", "capture_amount": 1})
    other_payment = copy.deepcopy(capture)
    other_payment["data"]["payment_id"] = "py-2"
    unlike = [capture, second_capture, other_payment, *(sample(n) for n in EXPECTED if n.startswith("recurring"))]
    assert len({read_event(payload).dedupe_key for payload in unlike}) == len(unlike)


def test_the_stored_and_masked_payload_is_the_same_event() -> None:
    for name in EXPECTED:
        assert read_event(mask_payload(sample(name))) == read_event(sample(name))


# A body, before it is an event


def test_a_body_becomes_an_object_that_may_be_kept() -> None:
    body = (
        b'{"event": "x", "data": {"note": "4000000000001091\\u0000", "amount": 0.10, "deep": '
        + b"[" * 60
        + b"]" * 60
        + b"}}"
    )
    payload = read_payload(body)
    assert payload["data"]["note"] == "400000******1091\ufffd"
    assert payload["data"]["amount"] == Decimal("0.10")
    assert "nested too deeply" in str(payload)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"1", b"null", b"\xff", b"NaN", b'{"a": NaN}', b'{"a": Infinity}', b"[" * 100_000,
     b'{"a": 1e99999999999999999999}', b'{"a": -1e-99999999999999999999}', b'{"a": ' + b"9" * 5_000 + b"}"],
)  # fmt: skip
def test_what_is_no_object_is_turned_away(body: bytes) -> None:
    with pytest.raises(WebhookRejected) as caught:
        read_payload(body)
    assert caught.value.status == 400


# What nobody documented


@pytest.mark.parametrize(
    "payload",
    [
        None, [], "text", 7, {}, {"event": "payment.capture"}, {"data": {}}, {"event": "", "data": {}},
        {"event": 5, "data": {}}, {"event": ["payment.capture"], "data": {}}, {"event": "payment.capture", "data": []},
        {"event": "payment.capture", "data": None}, {"event": "payment.capture\n", "data": "x"},
        {"event": "x" * 101, "data": {}}, {"event": "a\x00b", "data": {}},
    ],
)  # fmt: skip
def test_what_is_no_event_is_turned_away(payload: object) -> None:
    with pytest.raises(WebhookRejected) as caught:
        read_event(payload)
    assert caught.value.status == 400


def test_an_unknown_event_is_kept() -> None:
    event = read_event({"event": "Invoice.Paid", "created": "now", "data": {"id": "inv-1"}})
    assert (event.name, event.kind, event.primary_id, event.report) == ("invoice.paid", "other", "inv-1", None)


@pytest.mark.parametrize("missing", [None, "", 5, [], {}, "x" * 300])
@pytest.mark.parametrize(
    ("name", "primary_id"),
    [
        ("payment.capture-card", "payment_id"),
        ("payment_request.expiry", "payment_request_id"),
        ("payment_token.activation-card", "payment_token_id"),
        ("payment_session.completed-save", "payment_session_id"),
        ("refund.succeeded-flat", "id"),
    ],
)
def test_without_its_primary_id_an_event_is_only_kept(name: str, primary_id: str, missing: object) -> None:
    payload = sample(name)
    payload["data"][primary_id] = missing
    assert read_event(payload).kind is EventKind.OTHER


def test_without_a_status_the_name_of_the_event_counts() -> None:
    for name in ("payment.capture-card", "payment_token.expiry", "payment_session.expired", "refund.failed-nested"):
        payload = sample(name)
        inner = payload["data"]["data"] if "data" in payload["data"] else payload["data"]
        del inner["status"]
        event = read_event(payload)
        assert event.report is not None
        assert event.report.status == EXPECTED[name][2]


def variations(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every member, however deep."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from variations(entry, (*path, key))


@pytest.mark.parametrize("name", EXPECTED)
def test_no_odd_member_makes_reading_fail(name: str) -> None:
    payload = sample(name)
    for path in list(variations(payload)):
        for odd in ODD_VALUES:
            broken = copy.deepcopy(payload)
            holder = broken
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = odd
            assert_an_event_or_a_refusal(broken)


def assert_an_event_or_a_refusal(payload: object) -> None:
    try:
        event = read_event(payload)
    except WebhookRejected:
        return
    assert isinstance(event, GatewayEvent)
    assert len(event.dedupe_key) <= 255
    assert event.dedupe_key.isprintable()
