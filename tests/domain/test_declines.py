"""Every code has a class and a source, and three codes about one decline end in one judgement (field notes U7, U8)."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.domain.declines import (
    ADVICE_CODES,
    FAILURE_CODES,
    NETWORK_CODES,
    REFUND_FAILURE_CODES,
    TOKEN_FAILURE_CODES,
    Classified,
    DeclineClass,
    classify,
    explain_for_people,
    normalise_advice_code,
)

SOFT, TECHNICAL, CUSTOMER, DEAD, OURS, DOUBT = (
    DeclineClass.RETRY_LATER,
    DeclineClass.RETRY_AFTER,
    DeclineClass.NEEDS_CUSTOMER,
    DeclineClass.DEAD_TOKEN,
    DeclineClass.OUR_FAULT,
    DeclineClass.UNKNOWN_FIRST,
)


def words(text: str) -> list[str]:
    return text.split()


V3_REFERENCE = words("""
INSUFFICIENT_BALANCE DECLINED_BY_ISSUER CARD_DECLINED DECLINED_BY_PROCESSOR PROCESSOR_ERROR ISSUER_UNAVAILABLE
CHANNEL_UNAVAILABLE PARTNER_TIMEOUT_ERROR TIMEOUT_ERROR SERVER_ERROR FAILURE_DETAILS_UNAVAILABLE
USER_DEVICE_UNREACHABLE PAYMENT_AMOUNT_LIMITS_EXCEEDED PAYMENT_ATTEMPT_COUNTS_EXCEEDED EXPIRED_CARD STOLEN_CARD
SUSPECTED_FRAUDULENT INACTIVE_OR_UNAUTHORIZED_CARD INVALID_CVV AUTHENTICATION_FAILED USER_DECLINED_PAYMENT
USER_DID_NOT_AUTHORIZE PAYMENT_REQUEST_EXPIRED EXPIRED_OTP INVALID_OTP OTP_ATTEMPT_COUNTS_EXCEEDED INVALID_TOKEN
ACCOUNT_ACCESS_BLOCKED ACCOUNT_NOT_ACTIVATED INVALID_ACCOUNT_DETAILS INVALID_MERCHANT_SETTINGS
INVALID_MERCHANT_CREDENTIALS CAPTURE_AMOUNT_EXCEEDED
""")
OUTSIDE_THE_REFERENCE = words("""
INVALID_CARD ISSUER_SUSPECT_FRAUD TRANSACTION_BLOCKED PARTIAL_APPROVAL PROCESS_ERROR SUCCESS
CARD_EXPIRED INVALID_PAYMENT_DETAILS BLOCKED_TOKEN
MAX_AMOUNT_LIMIT_ERROR MAXIMUM_LIMIT_REACHED CUSTOMER_NOT_FOUND_ERROR CHANNEL_NOT_ACTIVATED OTP_DELIVERY_ERROR
MAX_ACCOUNT_LINKING INVALID_PAYMENT_METHOD PARTNER_CHANNEL_ERROR DUPLICATE_TRANSACTION_ERROR
CALLBACK_URL_NOT_FOUND UNSUPPORTED_CONTENT_TYPE REFUND_FAILED
""")
NETWORK_TABLE = words("""
01 02 03 04 05 06 07 10 11 12 13 14 15 19 21 25 28 30 39 41 42 43 46 51 52 53 54 55 57 58 59 61 62 63 64 65 70
71 72 74 75 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 96 1A 1Z 9G 5C B1 B2 N0 N3 N4 N5 N7 N8 P6 Q1 R0
R1 R2 R3 Z3
""")
ADVICE_TABLE = words("01 02 03 04 08 21 22 24 25 26 27 28 29 30 40 41 42 43 99")
NEVER_AGAIN = words("04 07 12 14 15 41 43 46 57 R0 R1 R3")  # Visa category 1

HOW_HARD = (TECHNICAL, SOFT, CUSTOMER, DEAD, OURS, DOUBT)


def decline(code: str | None, network: str | None = None, advice: str | None = None) -> Classified:
    return classify(failure_code=code, network_code=network, advice_code=advice)


# ---------------------------------------------------------------------------------------------- tables


def test_the_published_lists_are_covered_exactly() -> None:
    assert len(V3_REFERENCE) == 33
    assert set(FAILURE_CODES) == {*V3_REFERENCE, *OUTSIDE_THE_REFERENCE}
    assert set(NETWORK_CODES) == set(NETWORK_TABLE)
    assert set(ADVICE_CODES) == set(ADVICE_TABLE)
    assert len(TOKEN_FAILURE_CODES) == 9
    assert len(REFUND_FAILURE_CODES) == 5


def test_every_row_names_its_source_and_a_meaning() -> None:
    tables = (FAILURE_CODES, NETWORK_CODES, ADVICE_CODES, TOKEN_FAILURE_CODES, REFUND_FAILURE_CODES)
    for code, rule in (row for table in tables for row in table.items()):
        assert rule.source, code
        assert rule.note, code


def test_a_network_code_is_as_hard_alone_as_with_the_failure_code_it_belongs_to() -> None:
    for network, rule in NETWORK_CODES.items():
        assert decline("A_CODE_OF_TOMORROW", network).cls == rule.cls


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("INSUFFICIENT_BALANCE", SOFT),
        ("DECLINED_BY_ISSUER", SOFT),
        ("PROCESSOR_ERROR", TECHNICAL),
        ("ISSUER_UNAVAILABLE", TECHNICAL),
        ("CHANNEL_UNAVAILABLE", TECHNICAL),
        ("TIMEOUT_ERROR", DOUBT),
        ("PARTNER_TIMEOUT_ERROR", DOUBT),
        ("SERVER_ERROR", DOUBT),
        ("EXPIRED_CARD", DEAD),
        ("STOLEN_CARD", DEAD),
        ("INVALID_TOKEN", DEAD),
        ("CARD_EXPIRED", DEAD),
        ("ACCOUNT_ACCESS_BLOCKED", DEAD),
        ("INVALID_PAYMENT_DETAILS", CUSTOMER),
        ("AUTHENTICATION_FAILED", CUSTOMER),
        ("INVALID_MERCHANT_SETTINGS", OURS),
    ],
)
def test_what_a_failure_code_allows(code: str, expected: DeclineClass) -> None:
    assert decline(code).cls == expected


def test_do_not_honor_is_a_soft_decline() -> None:  # U8
    verdict = decline("DECLINED_BY_ISSUER", "05")
    assert (verdict.cls, verdict.max_tries, verdict.code) == (SOFT, 3, "network 05")


# ---------------------------------------------------------------------------------------------- joining


def test_the_network_code_makes_a_vague_failure_precise() -> None:
    assert decline("DECLINED_BY_ISSUER", "R3").cls == DEAD
    assert decline("DECLINED_BY_ISSUER", "62").cls == CUSTOMER
    assert decline("PROCESSOR_ERROR", "30").cls == OURS
    assert decline("DECLINED_BY_PROCESSOR", "94").cls == DOUBT
    assert decline("INACTIVE_OR_UNAUTHORIZED_CARD", "92").cls == TECHNICAL


def test_a_network_code_of_another_failure_never_softens() -> None:
    assert decline("SUSPECTED_FRAUDULENT", "05").cls == DEAD
    assert decline("INSUFFICIENT_BALANCE", "54").cls == DEAD
    assert decline("TIMEOUT_ERROR", "05").cls == DOUBT


@pytest.mark.parametrize("network", NEVER_AGAIN)
def test_visa_category_1_blocks_the_card(network: str) -> None:
    verdict = decline("DECLINED_BY_ISSUER", network)
    assert (verdict.cls, verdict.blocks_card) == (DEAD, True)
    assert "Visa category 1" in verdict.source


def test_only_codes_about_the_card_itself_block_it() -> None:
    blocking = {code for code, rule in NETWORK_CODES.items() if rule.blocks_card}
    assert blocking == set(NEVER_AGAIN)
    assert {code for code, rule in ADVICE_CODES.items() if rule.blocks_card} == {"03", "21", "99"}
    assert not decline("EXPIRED_CARD").blocks_card  # its successor may have the same number


@pytest.mark.parametrize("advice", ["03", "21", "99", "3"])
def test_advice_to_stop_beats_a_soft_decline(advice: str) -> None:
    verdict = decline("INSUFFICIENT_BALANCE", "51", advice)
    assert (verdict.cls, verdict.blocks_card) == (DEAD, True)


def test_a_withdrawn_permission_is_known_as_such() -> None:
    assert decline("CARD_DECLINED", None, "21").revoked
    assert decline("TRANSACTION_BLOCKED", "R1").revoked
    assert not decline("STOLEN_CARD").revoked


def test_advice_to_wait_moves_a_soft_decline_but_leaves_it_on_its_ladder() -> None:
    verdict = decline("INSUFFICIENT_BALANCE", "51", "30")
    assert (verdict.cls, verdict.wait) == (SOFT, timedelta(days=10))


def test_of_two_waits_the_later_counts() -> None:
    assert decline("PAYMENT_AMOUNT_LIMITS_EXCEEDED", None, "24").wait == timedelta(days=1)
    assert decline("PAYMENT_AMOUNT_LIMITS_EXCEEDED", None, "02").wait == timedelta(days=3)
    assert decline("ISSUER_UNAVAILABLE", "91", "25") == decline("ISSUER_UNAVAILABLE", "91", " 25 ")
    assert decline("ISSUER_UNAVAILABLE", "91", "25").cls == TECHNICAL


def test_advice_to_wait_never_turns_a_refusal_into_a_retry() -> None:
    assert decline("EXPIRED_CARD", "54", "24").cls == DEAD
    assert decline("STOLEN_CARD", "43", "24").blocks_card
    assert decline("EXPIRED_CARD", "54", "24") == decline("EXPIRED_CARD", "54")


def test_a_doubt_is_never_given_up_but_remembers_the_block() -> None:  # W4
    verdict = decline("TIMEOUT_ERROR", None, "03")
    assert (verdict.cls, verdict.blocks_card) == (DOUBT, True)
    assert decline("TIMEOUT_ERROR", None, "25").cls == DOUBT


def test_an_unknown_code_is_soft_twice_and_reported() -> None:
    verdict = decline("A_CODE_OF_TOMORROW")
    assert (verdict.cls, verdict.max_tries, verdict.known) == (SOFT, 2, False)
    assert not decline("INSUFFICIENT_BALANCE", "XX").known
    assert not decline("INSUFFICIENT_BALANCE", "51", "77").known
    assert decline("INSUFFICIENT_BALANCE", "51", "24").known


def test_codes_are_compared_without_blanks_and_case() -> None:
    assert decline("CAPTURE_AMOUNT_EXCEEDED ") == decline("capture_amount_exceeded")
    assert decline(" ") == decline(None) == decline("FAILURE_DETAILS_UNAVAILABLE")
    assert decline("DECLINED_BY_ISSUER", "5").code == "network 05"
    assert [normalise_advice_code(code) for code in ("1", "01", " 24 ", "", None)] == ["01", "01", "24", None, None]


def test_all_three_codes_together_always_end_in_a_judgement_with_a_source() -> None:
    for code, network, advice in product(FAILURE_CODES, (None, *NETWORK_CODES), (None, *ADVICE_CODES)):
        verdict = decline(code, network, advice)
        assert verdict.source
        assert verdict.known
        if advice is None:
            continue
        without = decline(code, network)
        assert verdict.blocks_card >= without.blocks_card
        assert (verdict.cls == DOUBT) == (without.cls == DOUBT)
        if ADVICE_CODES[advice].cls == TECHNICAL:
            assert verdict.cls == without.cls
        elif without.cls in (SOFT, TECHNICAL):
            assert HOW_HARD.index(verdict.cls) > HOW_HARD.index(without.cls)


@given(st.text(max_size=30), st.text(max_size=5), st.text(max_size=5))
def test_no_text_breaks_the_judgement(code: str, network: str, advice: str) -> None:
    assert explain_for_people(decline(code, network, advice))


# ---------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (decline("INSUFFICIENT_BALANCE"), "not enough funds; the same payment method is tried again"),
        (decline("INSUFFICIENT_BALANCE", "51", "02"), "not before 3 days"),
        (decline("CARD_DECLINED"), "3 tries in all"),
        (decline("ISSUER_UNAVAILABLE"), "after some hours"),
        (decline("STOLEN_CARD"), "nor any other token of the same card"),
        (decline("INVALID_MERCHANT_SETTINGS"), "the merchant's set-up"),
        (decline("AUTHENTICATION_FAILED"), "only the customer"),
        (decline("TIMEOUT_ERROR"), "looked up"),
        (decline("A_CODE_OF_TOMORROW"), "does not know yet"),
    ],
)
def test_the_merchant_reads_what_follows(verdict: Classified, said: str) -> None:
    assert said in explain_for_people(verdict)


def test_no_note_speaks_of_fraud_or_security_codes() -> None:
    """A merchant passes such sentences on, and Xendit asks not to tell payers."""
    for rule in (*FAILURE_CODES.values(), *NETWORK_CODES.values(), *ADVICE_CODES.values()):
        assert not any(word in rule.note.lower() for word in ("fraud", "cvv", "cvn"))
