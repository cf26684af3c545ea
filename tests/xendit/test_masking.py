"""What is stored of a payload: no full card number, no security code, everything else untouched."""

from __future__ import annotations

import random
import time
import uuid
from decimal import Decimal
from typing import Any

import pytest
import simplejson

from billing.xendit.masking import DEEPEST, mask_payload, mask_text

VISA = "4000000000001091"
CARDS = {
    "4000000000001091": "400000******1091",
    "5200000000001096": "520000******1096",
    "378282246310005": "378282*****0005",
    "3337000000000008": "333700******0008",
    "4222222222222": "422222***2222",
    "6304000000000000000": "630400*********0000",
}


@pytest.mark.parametrize(("number", "masked"), CARDS.items())
def test_full_card_numbers_keep_six_and_four_digits(number: str, masked: str) -> None:
    assert mask_payload({"note": number}) == {"note": masked}
    assert mask_payload({"note": int(number)}) == {"note": masked}
    assert mask_payload({"reference_id": f"paid with {number}, thanks"}) == {
        "reference_id": f"paid with {masked}, thanks"
    }


@pytest.mark.parametrize(
    "written",
    [
        "4000 0000 0000 1091",
        "4000-0000-0000-1091",
        "4000 - 0000 - 0000 - 1091",
        "4000\u00a00000\u00a00000\u00a01091",
        "4000000000001091 12/29 123",
        "2026-12-01 4000000000001091",
        "card4000000000001091x",
        "[4000000000001091]",
        "a 4000000000001091 b 5200 0000 0000 1096 c",
    ],
)
def test_card_numbers_are_found_however_they_are_written(written: str) -> None:
    masked = mask_text(written)
    assert "400000******1091" in masked
    assert "0000 1091" not in masked
    assert "5200 0000" not in masked


def test_card_numbers_are_found_wherever_they_are() -> None:
    payload = {
        "data": [{"deep": {"er": [VISA]}}],
        VISA: "as a key",
        "id": VISA,
        "masked_card_number": VISA,
        "mobile_number": VISA,
    }
    assert VISA not in simplejson.dumps(mask_payload(payload))


@pytest.mark.parametrize(
    "name",
    ["cvv", "CVC", "cvn", "cvv2", "cardCvv", "card_cvn", "card-cvc", "security_code", "card_security_code", "cvv_code"],
)
@pytest.mark.parametrize("value", ["123", 123, ["1", "2"], {"value": "123"}])
def test_security_codes_go_by_the_name_of_their_member(name: str, value: object) -> None:
    assert mask_payload({"card": {name: value}}) == {"card": {name: "****"}}


@pytest.mark.parametrize("name", ["card_number", "cardNumber", "pan", "credit_card_number", "cc_number"])
def test_a_member_that_says_card_number_needs_no_check_digit(name: str) -> None:
    assert mask_payload({name: "4000000000001090"}) == {name: "400000******1090"}
    assert mask_payload({name: 4000000000001090}) == {name: "400000******1090"}
    assert mask_payload({name: "4000 0000"}) == {name: "****"}
    assert mask_payload({name: "400000XXXXXX1091"}) == {name: "400000XXXXXX1091"}
    assert mask_payload({name: None}) == {name: None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("masked_card_number", "400000XXXXXX1091"),
        ("masked_card_number", "4000****1091"),
        ("cvn_verification_result", "M"),
        ("reconciliation_id", "7731902846150077203981"),
        ("network_transaction_id", "378282246310005"),
        ("retrieval_reference_number", "633502004417"),
        ("cardholder_phone_number", "+4222222222222"),
        ("mobile_number", "4222222222222"),
        ("payment_id", "py-12345678-1234-4123-8123-400000000000"),
        ("authentication_value", "AAIBBYNoEwAAACcKhAJkdQAAAAA="),
        ("created", "2026-12-01T02:00:07.412Z"),
        ("request_amount", 125000),
        ("request_amount", Decimal("10000.10")),
        ("capture_amount", 0.5),
        ("skip_three_ds", True),
        ("failure_code", None),
        ("zeros", "0000000000000000"),
        ("not_a_card", "4000000000001090"),
        ("too_long", "40000000000010910000"),
        ("empty", {}),
        ("none", []),
    ],
)
def test_everything_else_keeps_its_value_and_type(name: str, value: object) -> None:
    masked = mask_payload({name: value})
    assert masked == {name: value}
    assert isinstance(masked, dict)
    assert type(masked[name]) is type(value)


def test_ids_survive_by_the_thousand() -> None:
    """One in some thousand random ids holds digits that pass for a card number."""
    dice = random.Random(20261201)
    for _ in range(20_000):
        number = dice.getrandbits(128)
        ids = [f"py-{uuid.UUID(int=number, version=4)}", f"ps-{number:032x}"[:27], f"att-{number:032x}"]
        assert mask_payload(ids) == ids


@pytest.mark.parametrize("written", ["1E+131000", "-1E+65", "1E-16000", "0E+999999", "9" * 65, "0." + "1" * 64])
def test_a_number_that_would_grow_in_the_database_is_kept_as_text(written: str) -> None:
    """jsonb writes 1e131000 out: a body of 256 KiB would come back as some gigabytes."""
    value = int(written) if written.isdecimal() else Decimal(written)
    assert mask_payload({"amount": value}) == {"amount": written}
    assert mask_payload(mask_payload({"amount": value})) == {"amount": written}


def test_what_postgresql_cannot_store_is_replaced() -> None:
    masked = mask_payload({"a\x00b": "c\x00d\ud800"})
    assert masked == {"a\ufffdb": "c\ufffdd\ufffd"}


def test_nesting_is_bounded() -> None:
    value: Any = VISA
    for _ in range(100_000):
        value = [value]
    masked: Any = mask_payload(value)
    for _ in range(DEEPEST + 1):
        (masked,) = masked
    assert masked == "[nested too deeply]"


def test_the_payload_itself_is_left_alone() -> None:
    payload = {"card_number": VISA, "list": [VISA]}
    mask_payload(payload)
    assert payload == {"card_number": VISA, "list": [VISA]}


def test_a_flood_of_digits_is_read_in_reasonable_time() -> None:
    assert mask_text("1 " * 20_000 + "7" * 20_000).startswith("1 1 1")
    started = time.process_time()
    mask_text("1 " * 130_000)  # as much as a webhook may hold
    assert time.process_time() - started < 5
