"""Amounts go in and out without losing or inventing a cent."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.domain.money import DECIMALS, MAX_MINOR, Money, format_money
from billing.errors import InvalidMoney

currencies = st.sampled_from(sorted(DECIMALS))
amounts = st.builds(Money, st.integers(0, MAX_MINOR), currencies)


@given(amounts)
def test_what_is_printed_can_be_read_back(money: Money) -> None:
    assert Money.parse(str(money), money.currency) == money


@given(amounts)
def test_what_goes_to_the_gateway_comes_back_the_same(money: Money) -> None:
    sent = money.to_decimal()
    assert Money.from_gateway(sent, money.currency) == money
    assert -int(sent.as_tuple().exponent) == DECIMALS[money.currency]


@given(amounts, st.integers(0, MAX_MINOR))
def test_adding_and_subtracting_is_exact(money: Money, minor: int) -> None:
    other = Money(minor, money.currency)
    assert money + other - other == money
    assert (money < other) == (money.amount_minor < minor)
    assert (money >= other) != (money < other)
    assert (money > other) != (money <= other)


@pytest.mark.parametrize(
    ("text", "currency", "minor"),
    [
        ("50000", "IDR", 50000),
        ("10000.01", "PHP", 1000001),
        ("10000.1", "PHP", 1000010),
        ("10000", "PHP", 1000000),
        ("0", "IDR", 0),
        (" 499 ", "THB", 49900),
    ],
)
def test_people_write_major_units(text: str, currency: str, minor: int) -> None:
    assert Money.parse(text, currency) == Money(minor, currency)


@pytest.mark.parametrize(
    ("text", "currency", "advice"),
    [
        ("50000.00", "IDR", "IDR has no decimals; write the whole amount in digits only"),
        ("10.005", "PHP", "PHP has 2 decimals; write the whole amount in digits with a point before the cents"),
        ("-5", "IDR", "is negative"),
        ("50,000", "IDR", "no separators, such as 125000"),
        ("5e4", "IDR", "such as 125000"),
        ("", "IDR", "such as 50000"),
        (".5", "PHP", "such as 499.50"),
        ("NaN", "PHP", "such as 499.50"),
        ("１００", "IDR", "such as 50000"),  # noqa: RUF001 - full-width digits are what is tested
        ("9" * 30, "IDR", "too large"),
        ("5", "idr", "write IDR"),
        ("5", "XXX", "write one of IDR"),
    ],
)
def test_a_refused_amount_says_in_one_line_what_to_write(text: str, currency: str, advice: str) -> None:
    with pytest.raises(InvalidMoney) as refusal:
        Money.parse(text, currency)
    assert advice in str(refusal.value)
    assert "\n" not in str(refusal.value)


SEPARATED = [
    *(("50.000", "IDR"), ("1.500", "VND"), ("50,000", "IDR"), ("50 000", "IDR"), ("50_000", "IDR"), ("50'000", "IDR")),
    *(("Rp50000", "IDR"), ("IDR 50000", "IDR"), ("5e4", "IDR"), ("125.000", "IDR"), ("1.250.000", "IDR")),
    *(("1,500.00", "PHP"), ("1.500,00", "PHP"), ("499,50", "PHP"), ("1.500", "PHP"), ("1,250.75", "PHP")),
    *(("５００００", "IDR"), ("٥٠٠٠٠", "IDR"), ("50.00", "IDR"), ("0.5", "VND"), ("50000.00", "IDR")),  # noqa: RUF001
]


@pytest.mark.parametrize(("text", "currency"), SEPARATED)
def test_no_amount_is_guessed_from_what_was_written(text: str, currency: str) -> None:
    """Whoever follows a guess sells at a thousandth: the only number in the advice is another one."""
    with pytest.raises(InvalidMoney) as refusal:
        Money.parse(text, currency)
    said = str(refusal.value).replace(repr(text), "").replace("has 2 decimals", "")
    (example,) = re.findall(r"[0-9][0-9.,]*", said)
    meant = "".join(str(unicodedata.decimal(letter)) for letter in text if letter.isdecimal()).strip("0")
    assert example.replace(".", "").strip("0") != meant
    assert example[0] != meant[0]
    Money.parse(example, currency)


@pytest.mark.parametrize("value", [50000, Decimal("50000"), Decimal("50000.0"), Decimal("5E+4"), "50000.00"])
def test_the_gateway_may_write_a_number_its_own_way(value: int | Decimal | str) -> None:
    assert Money.from_gateway(value, "IDR") == Money(50000, "IDR")


@pytest.mark.parametrize(
    "value",
    [
        *(Decimal("50000.5"), Decimal("-1"), Decimal("NaN"), Decimal("Infinity")),
        *(Decimal("1E+900000"), Decimal("1E-900000"), Decimal("1.00000000000000000000000000000000001")),
        *("junk", "", True, 0.5),
    ],
)
def test_a_number_that_is_no_amount_is_refused(value: int | Decimal | str) -> None:
    with pytest.raises(InvalidMoney):
        Money.from_gateway(value, "IDR")


def test_no_float_becomes_money() -> None:
    with pytest.raises(InvalidMoney):
        Money(0.5, "PHP")  # type: ignore[arg-type]


def test_currencies_do_not_mix() -> None:
    rupiah, pesos = Money(1, "IDR"), Money(1, "PHP")
    assert rupiah != pesos
    for mixing in (Money.__add__, Money.__sub__, Money.__lt__, Money.__le__, Money.__gt__, Money.__ge__):
        with pytest.raises(InvalidMoney, match="IDR and PHP"):
            mixing(rupiah, pesos)


def test_people_read_thousands() -> None:
    assert format_money(Money(1234567, "IDR")) == "IDR 1,234,567"
    assert format_money(Money(123456789, "PHP")) == "PHP 1,234,567.89"
    assert format_money(Money(-50, "PHP")) == "PHP -0.50"
    assert str(Money.zero("PHP") - Money(5, "PHP")) == "-0.05"
