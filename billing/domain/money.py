"""Amounts: whole numbers of a currency's smallest unit in use, decimal strings outside. Called by everybody.

No binary float comes near a price: `Money.parse` reads what people and files write, `Money.from_gateway` what
Xendit sent, `to_decimal` and `str` give back exactly the currency's decimals.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from types import MappingProxyType

from billing.errors import InvalidMoney

# What we send, not ISO 4217: that gives IDR two decimals nobody uses, and Xendit refuses.
DECIMALS: Mapping[str, int] = MappingProxyType(
    {
        "IDR": 0,
        "VND": 0,
        "JPY": 0,
        "PHP": 2,
        "THB": 2,
        "MYR": 2,
        "SGD": 2,
        "USD": 2,
        "HKD": 2,
        "AUD": 2,
        "GBP": 2,
        "EUR": 2,
        "MXN": 2,
    }
)

# Far above any price, far inside a bigint: a sum of ten thousand of these still fits the column.
MAX_MINOR = 10**14

# A number of the gateway with more digits than this behind the point is noise; exact arithmetic on it costs
# memory.
_DEEPEST_EXPONENT = -30

_PLAIN = re.compile(r"(?P<whole>[0-9]+)(?:\.(?P<fraction>[0-9]+))?")


@dataclass(frozen=True, slots=True)
class Money:
    """An amount of one currency. Differences may be negative; what is parsed never is."""

    amount_minor: int
    currency: str

    def __post_init__(self) -> None:
        if type(self.amount_minor) is not int:
            raise InvalidMoney(f"an amount is a whole number of minor units, not {self.amount_minor!r}")
        if self.currency not in DECIMALS:
            raise InvalidMoney(_unknown_currency(self.currency))

    @classmethod
    def parse(cls, text: str, currency: str) -> Money:
        """Read a decimal string in major units, as typed or found in a file. Raises InvalidMoney."""
        decimals = _decimals_of(currency)
        plain = _PLAIN.fullmatch(text.strip())
        if plain is None:
            raise InvalidMoney(_not_plain(text, currency))
        fraction = plain["fraction"] or ""
        if len(fraction) > decimals:
            raise InvalidMoney(_wrong_decimals(plain["whole"], fraction, currency))
        return cls(_within_bounds(int(plain["whole"] + fraction.ljust(decimals, "0")), text), currency)

    @classmethod
    def from_gateway(cls, value: int | Decimal | str, currency: str) -> Money:
        """Read a JSON number in major units. `50000.0` of IDR is 50000; `50000.5` of IDR is refused."""
        decimals = _decimals_of(currency)
        number = _exact(value)
        if number < 0:
            raise InvalidMoney(f"the gateway sent a negative amount of {currency}")
        numerator, denominator = number.as_integer_ratio()
        minor, rest = divmod(numerator * 10**decimals, denominator)
        if rest:
            raise InvalidMoney(f"the gateway sent {number} {currency}: more than {decimals} decimals")
        return cls(_within_bounds(minor, value), currency)

    @classmethod
    def zero(cls, currency: str) -> Money:
        return cls(0, currency)

    def to_decimal(self) -> Decimal:
        """Major units with exactly the currency's decimals: what goes into a JSON number."""
        return Decimal(str(self))

    def __str__(self) -> str:
        decimals = DECIMALS[self.currency]
        if decimals == 0:
            return str(self.amount_minor)
        whole, fraction = divmod(abs(self.amount_minor), 10**decimals)
        sign = "-" if self.amount_minor < 0 else ""
        return f"{sign}{whole}.{fraction:0{decimals}d}"

    def __add__(self, other: Money) -> Money:
        return Money(self.amount_minor + self._same_currency(other), self.currency)

    def __sub__(self, other: Money) -> Money:
        return Money(self.amount_minor - self._same_currency(other), self.currency)

    def __lt__(self, other: Money) -> bool:
        return self.amount_minor < self._same_currency(other)

    def __le__(self, other: Money) -> bool:
        return self.amount_minor <= self._same_currency(other)

    def __gt__(self, other: Money) -> bool:
        return self.amount_minor > self._same_currency(other)

    def __ge__(self, other: Money) -> bool:
        return self.amount_minor >= self._same_currency(other)

    def _same_currency(self, other: Money) -> int:
        if self.currency != other.currency:
            raise InvalidMoney(f"{self.currency} and {other.currency} cannot be added or compared")
        return other.amount_minor


def parse_amounts(text: str) -> dict[str, int]:
    """`IDR 500000, PHP 100.50` -> minor units by currency; empty = none. Raises InvalidMoney."""
    amounts: dict[str, int] = {}
    for part in text.split(",") if text.strip() else ():
        currency, _, amount = part.strip().partition(" ")
        if not amount:
            raise InvalidMoney(f"{_shown(part.strip())}: write a currency and an amount, such as IDR 50000000")
        if currency in amounts:
            raise InvalidMoney(f"{currency} is named twice; write one amount for each currency")
        amounts[currency] = Money.parse(amount, currency).amount_minor
    return amounts


def format_money(money: Money) -> str:
    """For people: `IDR 1,234,567`."""
    whole, point, fraction = str(money).removeprefix("-").partition(".")
    sign = "-" if money.amount_minor < 0 else ""
    return f"{money.currency} {sign}{int(whole):,}{point}{fraction}"


def _decimals_of(currency: str) -> int:
    decimals = DECIMALS.get(currency)
    if decimals is None:
        raise InvalidMoney(_unknown_currency(currency))
    return decimals


def _unknown_currency(currency: str) -> str:
    proper = currency.strip().upper()
    if proper in DECIMALS:
        return f"currency {_shown(currency)}: write {proper}"
    return f"currency {_shown(currency)} is not known; write one of {' '.join(DECIMALS)}"


# What is refused is never mended here: 1.500 may be meant as fifteen hundred or as one and a half, and whoever copies
# a suggestion sells at that price. So the examples are no reading of what was written either.
_EXAMPLES = {0: ("50000", "125000"), 2: ("499.50", "1250.75")}


def _example(written: str, currency: str) -> str:
    digits = "".join(str(unicodedata.decimal(letter)) for letter in written if letter.isdecimal()).lstrip("0")
    one, other = _EXAMPLES[DECIMALS[currency]]
    return other if digits.startswith(one[0]) else one


def _how_to_write(written: str, currency: str) -> str:
    form = "digits only" if DECIMALS[currency] == 0 else "digits with a point before the cents"
    return f"write the whole amount in {form} and no separators, such as {_example(written, currency)}"


def _not_plain(text: str, currency: str) -> str:
    stripped = text.strip()
    if _PLAIN.fullmatch(stripped.removeprefix("-")):
        return f"amount {_shown(text)} is negative; {_how_to_write(text, currency)}"
    return f"amount {_shown(text)} is not a plain amount of {currency}; {_how_to_write(text, currency)}"


def _wrong_decimals(whole: str, fraction: str, currency: str) -> str:
    written = f"{whole}.{fraction}"
    known = "no decimals" if DECIMALS[currency] == 0 else f"{DECIMALS[currency]} decimals"
    return f"amount {_shown(written)}: {currency} has {known}; {_how_to_write(written, currency)}"


def _within_bounds(minor: int, written: object) -> int:
    if minor > MAX_MINOR:
        raise InvalidMoney(f"amount {_shown(str(written))} is too large; write fewer digits")
    return minor


def _exact(value: int | Decimal | str) -> Decimal:
    if isinstance(value, bool | float):
        raise InvalidMoney("an amount of the gateway must be read as a decimal, never as a float")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise InvalidMoney(f"the gateway sent {_shown(str(value))} as an amount") from None
    if not number.is_finite() or (number and not _DEEPEST_EXPONENT < number.adjusted() < len(str(MAX_MINOR))):
        raise InvalidMoney(f"the gateway sent {_shown(str(value))} as an amount")
    return number


def _shown(text: str) -> str:
    """Quoted and short: what a stranger wrote must not flood a terminal or break the line."""
    return repr(text if len(text) <= 40 else text[:37] + "...")  # noqa: PLR2004 - a width
