"""What a payload from outside may look like before it is stored: no full card number, no CVV. Called by
webhook.py.

Xendit sends neither, a stranger or a mistaken integration might. Card numbers are found by their digits
wherever they are, also inside longer strings and as numbers; security codes by the name of their member,
for three digits alone could be anything. What PostgreSQL cannot store or would blow up is made storable on the
way: NUL, half a surrogate pair, nesting without end, and numbers such as 1e131000, nine characters that come back
from jsonb as 131,001 digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate

HIDDEN = "****"
TOO_DEEP = "[nested too deeply]"
DEEPEST = 48
LONGEST_KNOWN_NAME = 64
LONGEST_NUMBER = 64  # digits, with the zeros an exponent stands for; longer ones are kept as text

_CARD_LENGTHS = range(13, 20)

# Names are compared in lower case without punctuation: `cardCvv`, `card_cvv` and `card-cvv` are one name.
_SECURITY_CODE = re.compile(r"(cv[vcn]2?|csc|securitycode|verification(value|code))(code|number|value)?")
_CARD_PREFIX = re.compile(r"^(credit|debit|bank|payment)?card")
_CARD_NUMBER = re.compile(r"(cc|creditcard|debitcard|card)(number|num|no)|pan|primaryaccountnumber|track[12]?(data)?")

# Digits that are known to be something else and could pass the check digit by chance.
_NEVER_A_CARD = frozenset(
    {
        "networktransactionid",
        "reconciliationid",
        "retrievalreferencenumber",
        "acquirermerchantid",
        "authorizationcode",
        "receiptid",
    }
)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # Luhn: twice the digit, and the two digits of that added
_LONGEST_PHONE_NUMBER = 15  # E.164

# UUIDs and hex ids of 24 and more: one in a thousand holds digits that would pass for a card number.
_HEX_ID = re.compile(
    r"(?<![0-9A-Za-z])"
    r"(?:[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{24,64})"
    r"(?![0-9A-Za-z])"
)
# Digits in groups with at most three blanks or dashes between them.
_DIGIT_GROUPS = re.compile(r"[0-9]+(?:[ \u00a0-]{1,3}[0-9]+)*")
_ENOUGH_DIGITS = re.compile(r"[0-9](?:[ \u00a0-]{0,3}[0-9]){12}")  # for the shortest card number
_MASKED_ALREADY = re.compile(r"[0-9]{0,6}[Xx*\u2022. -]{4,}[0-9]{0,4}")
_DIGITS = re.compile(r"[0-9]+")
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def mask_payload(value: object) -> object:
    """A copy that is safe to keep. Everything that is no card data keeps its value and its type."""
    return _mask(value, "", 0)


def mask_text(value: str) -> str:
    """The text with every full card number in it cut to its first six and last four digits."""
    return _mask_text(value, shortest=_CARD_LENGTHS.start)


@dataclass(frozen=True, slots=True)
class _Name:
    """What the name of a member says of its value."""

    masked: str
    plain: str
    hides: bool  # a security code


def _name(key: str) -> _Name:
    return _known_name(key) if len(key) <= LONGEST_KNOWN_NAME else _read_name(key)


def _read_name(key: str) -> _Name:
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    return _Name(mask_text(key), plain, _is_security_code(plain))


_known_name = lru_cache(1_024)(_read_name)  # Xendit's few hundred, read for every event


def _mask(value: object, name: str, depth: int) -> object:
    if depth > DEEPEST:
        return TOO_DEEP
    match value:
        case str():
            return _mask_member(value, name)
        case int() | Decimal() | float() if not isinstance(value, bool):
            return _mask_number(value, name)
        case Mapping():
            return {
                name.masked: HIDDEN if name.hides and entry is not None else _mask(entry, name.plain, depth + 1)
                for name, entry in ((_name(str(key)), entry) for key, entry in value.items())
            }
        case list() | tuple():
            return [_mask(entry, name, depth + 1) for entry in value]
        case _:
            return value


def _mask_number(value: int | Decimal | float, name: str) -> object:
    written = str(value)
    masked = _mask_member(written, name)
    return value if masked == written and not _is_long(value, written) else masked


def _is_long(value: int | Decimal | float, written: str) -> bool:
    return len(written) > LONGEST_NUMBER or (isinstance(value, Decimal) and abs(value.adjusted()) > LONGEST_NUMBER)


def _mask_member(value: str, name: str) -> str:
    if name in _NEVER_A_CARD:
        return _NOT_STORABLE.sub("\ufffd", value)
    if "phone" in name or "mobile" in name:
        return _mask_text(value, shortest=_LONGEST_PHONE_NUMBER + 1)
    if _CARD_NUMBER.fullmatch(name):
        return _mask_card_number(value)
    return _mask_text(value, shortest=_CARD_LENGTHS.start)


def _is_security_code(name: str) -> bool:
    return bool(name) and _SECURITY_CODE.fullmatch(_CARD_PREFIX.sub("", name) or name) is not None


def _mask_card_number(value: str) -> str:
    """In a member that says it is a card number, the check digit does not matter."""
    digits = "".join(_DIGITS.findall(value))
    if len(digits) in _CARD_LENGTHS:
        return _shown(digits)
    return _NOT_STORABLE.sub("\ufffd", value) if _MASKED_ALREADY.fullmatch(value) else HIDDEN


def _mask_text(value: str, *, shortest: int) -> str:
    storable = _NOT_STORABLE.sub("\ufffd", value)
    if _ENOUGH_DIGITS.search(storable) is None:
        return storable
    kept, position = [], 0
    for hex_id in _HEX_ID.finditer(storable):
        kept += [_mask_groups(storable[position : hex_id.start()], shortest), hex_id.group()]
        position = hex_id.end()
    return "".join([*kept, _mask_groups(storable[position:], shortest)])


def _mask_groups(value: str, shortest: int) -> str:
    return _DIGIT_GROUPS.sub(lambda found: _mask_run(found.group(), shortest), value)


def _mask_run(run: str, shortest: int) -> str:
    """A card number may have other digits beside it, such as its expiry: try every series of whole groups."""
    groups = [found.span() for found in _DIGITS.finditer(run)]
    digits = _Digits("".join(run[start:end] for start, end in groups))
    kept, position, first, before = [], 0, 0, 0
    while first < len(groups):
        start, end = groups[first]
        used, length = _card_from(groups, first, digits, before, shortest)
        if used:
            kept += [run[position:start], _shown(digits.text[before : before + length])]
            position = groups[first + used - 1][1]
        first += used or 1
        before += length or end - start
    return "".join([*kept, run[position:]])


def _card_from(
    groups: list[tuple[int, int]], first: int, digits: _Digits, before: int, shortest: int
) -> tuple[int, int]:
    """How many groups and digits a card number has that begins with group `first`; (0, 0) for none."""
    length = 0
    for used, (start, end) in enumerate(groups[first : first + _CARD_LENGTHS.stop], start=1):
        length += end - start
        if length >= _CARD_LENGTHS.stop:
            break
        if length >= shortest and digits.pass_check(before, before + length):
            return used, length
    return 0, 0


class _Digits:
    """Luhn for any part of a row of digits in one subtraction: a body may be nothing but single digits."""

    __slots__ = ("_sums", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        plain = [ord(digit) - ord("0") for digit in text]
        # One series of sums doubles the digits at even places, the other those at odd places.
        self._sums = [
            list(accumulate((_DOUBLED[n] if at % 2 == parity else n for at, n in enumerate(plain)), initial=0))
            for parity in (0, 1)
        ]

    def pass_check(self, start: int, end: int) -> bool:
        """A row of zeros passes it and is no card."""
        sums = self._sums[end % 2]  # the last digit is not doubled, the one before it is
        return (sums[end] - sums[start]) % 10 == 0 and self.text[start:end].strip("0") != ""


def _shown(digits: str) -> str:
    return f"{digits[:6]}{'*' * (len(digits) - 10)}{digits[-4:]}"
