"""One rule for names, one for mail addresses, one for references; and nothing that steers a terminal is ever shown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.domain.names import LONGEST_NAME, check_email, check_reference, check_text, visible
from billing.errors import InvalidInput
from tests.odd_names import EMAILS, NAMES, NO_EMAILS, NO_NAMES, NO_REFERENCES, REFERENCES


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_kept_as_it_is_written(name: str) -> None:
    assert check_text("name", name, longest=LONGEST_NAME) == name
    assert visible(name) == name


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_nobody_can_be_called_is_refused_in_one_line_without_repeating_it(name: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_text("name", name, longest=LONGEST_NAME)
    said = str(refusal.value)
    assert said.startswith("name")
    assert said.isascii()
    assert said.isprintable()


def test_blanks_around_a_name_are_not_kept() -> None:
    assert check_text("name", "  Ana Putri ", longest=LONGEST_NAME) == "Ana Putri"


@pytest.mark.parametrize("email", EMAILS)
def test_a_mail_address_is_taken(email: str) -> None:
    check_email(email)


@pytest.mark.parametrize("email", NO_EMAILS, ids=ascii)
def test_what_is_no_mail_address_is_refused_in_one_line(email: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_email(email)
    assert str(refusal.value).startswith("email")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_is_taken(reference: str) -> None:
    check_reference("customer reference", reference)


@pytest.mark.parametrize("reference", NO_REFERENCES, ids=ascii)
def test_what_is_no_reference_is_refused_in_one_line(reference: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_reference("customer reference", reference)
    assert str(refusal.value).isprintable()


# --------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ana", "Ana"),
        ("\x1b[31mAna", r"\x1b[31mAna"),
        ("Ana\u202eavE", r"Ana\u202eavE"),
        ("one\ntwo\rthree\t", r"one\ntwo\rthree\t"),
        ("\x9b2J", r"\x9b2J"),
        ("a\u2028b", r"a\u2028b"),
        ("Ana\u200b", r"Ana\u200b"),
        ("\U000e0041", r"\U000e0041"),
        ("สมชาย ใจดี", "สมชาย ใจดี"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # noqa: RUF001 - Persian
    ],
)
def test_what_is_no_text_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(max_size=60))
def test_nothing_that_is_shown_steers_a_terminal(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in shown)
    assert visible(shown) == shown


def test_line_breaks_are_kept_where_they_are_ours() -> None:
    assert visible("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"
