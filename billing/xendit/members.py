"""JSON in and out, and reading members that may be missing, null or of the wrong type. Called by wire.py.

Reading never raises: a member that cannot be used counts as not there. No float survives: numbers with a
point are Decimal on the way in and on the way out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

import simplejson

from billing.domain.money import DECIMALS, Money
from billing.errors import InvalidMoney

Payload = Mapping[str, Any]

_FOUR_DIGITS = 9999
_WEB_LINK = re.compile(r"https?://[^/?#]", re.IGNORECASE)
_LINK = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_NO_LINK = frozenset({"javascript", "vbscript", "data", "file", "blob", "about", "view-source"})


def parse_json(body: bytes | str) -> object:
    """Numbers with a point become Decimal, never float; NaN is no JSON. Raises ValueError, and nothing else."""
    try:
        return simplejson.loads(body, use_decimal=True)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except InvalidOperation:  # an exponent that not even Decimal can hold
        raise ValueError("a number without end") from None


def dump_json(value: object) -> bytes:
    return simplejson.dumps(value, use_decimal=True, separators=(",", ":")).encode("ascii")


def instant_text(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def member(payload: Payload, *path: str) -> Payload:
    """The object at the end of the path; empty when any step of it is something else."""
    found: Any = payload
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def text(payload: Payload, *names: str, longest: int = 2048) -> str | None:
    """The first of the members that is a usable string. Control characters and lone surrogates are not: no
    database stores them, and a message of one line must stay one line."""
    for name in names:
        value = payload.get(name)
        found = value.strip() if isinstance(value, str) else ""
        if found and len(found) <= longest and found.isprintable():
            return found
    return None


def identifier(payload: Payload, *names: str) -> str | None:
    return text(payload, *names, longest=255)


def web_link(payload: Payload, name: str) -> str | None:
    """An address a browser may be sent to."""
    found = text(payload, name)
    return found if found and _WEB_LINK.match(found) else None


def app_link(payload: Payload, name: str) -> str | None:
    """An address that opens an app or a web page; none that a browser would run as a script or read from a disk."""
    found = text(payload, name)
    scheme = _LINK.match(found) if found else None
    return found if scheme and scheme[1].lower() not in _NO_LINK else None


def code(payload: Payload, name: str) -> str | None:
    """Stripped and in upper case: Xendit prints at least one code with a blank behind it."""
    found = text(payload, name, longest=100)
    return found.upper() if found else None


def instant(payload: Payload, name: str) -> datetime | None:
    found = text(payload, name, longest=40)
    try:
        parsed = datetime.fromisoformat(found) if found else None
        if parsed is None:
            return None
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def money(payload: Payload, *names: str, rounded: bool = False) -> Money | None:
    currency = code(payload, "currency")
    value = next((payload[name] for name in names if payload.get(name) is not None), None)
    if isinstance(value, float):  # read by a parser that is not ours: its shortest form is what was sent
        value = Decimal(str(value))
    if currency is None or isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        return None
    try:
        if rounded and currency in DECIMALS:
            value = Decimal(value).quantize(Decimal(1).scaleb(-DECIMALS[currency]), ROUND_HALF_UP)
        return Money.from_gateway(value, currency)
    except (InvalidMoney, InvalidOperation):
        return None


def small_number(payload: Payload, name: str) -> int | None:
    """Up to four digits, as a number or as a string: years, months, and codes that may have lost a zero."""
    value = payload.get(name)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,4}", value.strip()):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _FOUR_DIGITS else None
