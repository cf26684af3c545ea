"""What goes over the wire: Xendit's answers and webhook data turned into the reports of the port (domain/gateway.py),
and the port's requests turned into bodies.

The only place that knows the names of Xendit's members. Unknown members are ignored, both spellings of the documents
are read, and a report that lacks what it cannot do without is None. Reading a member never raises: one that is missing,
null or of the wrong type counts as not there. What Xendit would refuse and can be left out, such as an http:// link, is
left out. No float survives: numbers with a point are Decimal on the way in and on the way out. Called by client.py,
connection.py, webhook.py.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

import simplejson

from billing.domain.gateway import (
    ChargeReport,
    ChargeRequest,
    ChargeStatus,
    NewCustomer,
    RecurringTerms,
    RefundReport,
    RefundStatus,
    SessionMode,
    SessionReport,
    SessionRequest,
    TokenReport,
    TransactionRow,
)
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


# ------------------------------------------------------------------------------------------------- reports

_CHARGE_STATUS: Mapping[str, ChargeStatus] = {
    "SUCCEEDED": ChargeStatus.SUCCEEDED,
    "FAILED": ChargeStatus.FAILED,
    "PENDING": ChargeStatus.PENDING,
    "ACCEPTING_PAYMENTS": ChargeStatus.PENDING,
    "AUTHORIZED": ChargeStatus.PENDING,  # we capture automatically: the money has not moved yet
    "REQUIRES_ACTION": ChargeStatus.REQUIRES_ACTION,
    "CANCELED": ChargeStatus.CANCELED,
    "CANCELLED": ChargeStatus.CANCELED,
    "EXPIRED": ChargeStatus.EXPIRED,
}
_REFUND_STATUS: Mapping[str, RefundStatus] = {
    "PENDING": RefundStatus.PENDING,
    "SUCCEEDED": RefundStatus.SUCCEEDED,
    "FAILED": RefundStatus.FAILED,
    "CANCELLED": RefundStatus.CANCELLED,
    "CANCELED": RefundStatus.CANCELLED,
}
_SESSION_STATUS: Mapping[str, str] = {
    "ACTIVE": "ACTIVE",
    "PENDING": "ACTIVE",  # known to one SDK only
    "COMPLETED": "COMPLETED",
    "EXPIRED": "EXPIRED",
    "CANCELED": "CANCELED",
    "CANCELLED": "CANCELED",
}
_MONTHS = range(1, 13)
_CENTURY = 2000
# The reference says CANCELED, a migration guide INACTIVE, for the same thing.
_TOKEN_SPELLINGS = {"INACTIVE": "CANCELED", "CANCELLED": "CANCELED"}


def charge_report(payload: Payload, fallback: ChargeStatus | None = None) -> ChargeReport | None:
    """From a payment request or a payment. `fallback` is the status an event's name stands for.

    A status we do not know yet is PENDING: Xendit has the request, so it is asked again, never charged again.
    """
    request_id = identifier(payload, "payment_request_id")
    latest = member(payload, "latest_payment")
    payment_id = identifier(payload, "payment_id", "latest_payment_id") or identifier(latest, "payment_id")
    printed = code(payload, "status")
    status = _CHARGE_STATUS.get(printed or "") or fallback or (ChargeStatus.PENDING if printed else None)
    if status is None or (request_id is None and payment_id is None):
        return None
    network_code, advice_code = _authorization_codes(payload, latest)
    captured = _captured(payload)
    return ChargeReport(
        status=status,
        reference_id=identifier(payload, "reference_id"),
        payment_request_id=request_id,
        payment_id=payment_id,
        payment_token_id=identifier(payload, "payment_token_id"),
        customer_id=identifier(payload, "customer_id"),
        amount=captured or money(payload, "request_amount", "amount"),
        amount_is_captured=captured is not None,
        captured_at=_captured_at(payload, status),
        failure_code=code(payload, "failure_code"),
        network_code=network_code,
        advice_code=advice_code,
        action_url=_action_url(payload),
        channel_code=code(payload, "channel_code"),
    )


def refused_charge(request: ChargeRequest, failure_code: str) -> ChargeReport:
    """A 4xx that is about the token is a decline: nothing was created at Xendit."""
    return ChargeReport(
        status=ChargeStatus.FAILED,
        reference_id=request.reference_id,
        payment_token_id=request.payment_token_id,
        amount=request.amount,
        failure_code=failure_code,
        channel_code=request.channel_code,
    )


def session_report(payload: Payload, fallback: str = "ACTIVE") -> SessionReport | None:
    """A status we do not know yet is no end: the session stays what `fallback` says, by default ACTIVE."""
    session_id = identifier(payload, "payment_session_id")
    if session_id is None:
        return None
    return SessionReport(
        session_id=session_id,
        reference_id=identifier(payload, "reference_id"),
        type=code(payload, "session_type"),
        status=_SESSION_STATUS.get(code(payload, "status") or "", fallback),
        customer_id=identifier(payload, "customer_id"),
        payment_link_url=web_link(payload, "payment_link_url"),
        components_sdk_key=text(payload, "components_sdk_key"),
        payment_token_id=identifier(payload, "payment_token_id"),
        payment_request_id=identifier(payload, "payment_request_id"),
        payment_id=identifier(payload, "payment_id"),
        amount=money(payload, "amount"),
        expires_at=instant(payload, "expires_at"),
        updated_at=instant(payload, "updated"),
    )


def token_report(payload: Payload, fallback: str | None = None) -> TokenReport | None:
    token_id = identifier(payload, "payment_token_id")
    status = code(payload, "status") or fallback
    if token_id is None or status is None:
        return None
    card = member(payload, "channel_properties", "card_details")
    return TokenReport(
        payment_token_id=token_id,
        status=_TOKEN_SPELLINGS.get(status, status),
        reference_id=identifier(payload, "reference_id"),
        customer_id=identifier(payload, "customer_id"),
        channel_code=code(payload, "channel_code"),
        country=code(payload, "country"),
        currency=code(payload, "currency"),
        card_last4=_last4(identifier(card, "masked_card_number")),
        card_expiry=_card_expiry(card),
        network=code(card, "network"),
        card_type=code(card, "type"),
        issuer=identifier(card, "issuer"),
        fingerprint=identifier(card, "fingerprint"),
        failure_code=code(payload, "failure_code"),
        updated_at=instant(payload, "updated"),
    )


def refund_report(payload: Payload, fallback: RefundStatus = RefundStatus.PENDING) -> RefundReport | None:
    refund_id = identifier(payload, "id")
    if refund_id is None:
        return None
    return RefundReport(
        refund_id=refund_id,
        status=_REFUND_STATUS.get(code(payload, "status") or "", fallback),
        reference_id=identifier(payload, "reference_id"),
        payment_request_id=identifier(payload, "payment_request_id"),
        payment_id=identifier(payload, "payment_id"),
        amount=money(payload, "amount"),
        failure_code=code(payload, "failure_code"),
    )


def transaction_row(payload: Payload) -> TransactionRow | None:
    transaction_id, kind, status = identifier(payload, "id"), code(payload, "type"), code(payload, "status")
    if transaction_id is None or kind is None or status is None:
        return None
    return TransactionRow(
        transaction_id=transaction_id,
        type=kind,
        status=status,
        reference_id=identifier(payload, "reference_id"),
        payment_id=identifier(payload, "product_id"),
        amount=money(payload, "amount"),
        created_at=instant(payload, "created"),
    )


def customer_id_of(payload: object, reference_id: str) -> str | None:
    """From a customer, from `{"data": [customers]}` or from a bare list: the one with our reference."""
    for customer in _customers(payload):
        if customer.get("reference_id") == reference_id and (found := identifier(customer, "id")):
            return found
    return None


def _customers(payload: object) -> Iterator[Payload]:
    listed = payload.get("data", payload) if isinstance(payload, Mapping) else payload
    for customer in listed if isinstance(listed, list) else [listed]:
        if isinstance(customer, Mapping):
            yield customer


def _authorization_codes(payload: Payload, latest: Payload) -> tuple[str | None, str | None]:
    """Network and Mastercard advice code. The reference and the guide on declines spell them differently."""
    data = (
        member(payload, "payment_details", "authorization_data")
        or member(payload, "authorization_data")
        or member(latest, "payment_details", "authorization_data")
    )
    network = _short_code(data, "network_response_code") or _short_code(data, "card_network_response_code")
    return network, _short_code(data, "merchant_advice_code")


def _short_code(data: Payload, name: str) -> str | None:
    """Two characters: `5`, `"5"` and `"05 "` are one code."""
    number = small_number(data, name)
    return f"{number:02d}" if number is not None else code(data, name)


def _captures(payload: Payload) -> list[Payload]:
    captures = payload.get("captures")
    return [entry for entry in captures if isinstance(entry, Mapping)] if isinstance(captures, list) else []


def capture_ids(payload: Payload) -> list[str]:
    return sorted(found for entry in _captures(payload) if (found := identifier(entry, "capture_id")))


def _captured(payload: Payload) -> Money | None:
    """The sum of all captures, when every one of them can be read. A capture names no currency. An amount with more
    decimals than its currency is rounded: it must not be taken for what was asked for."""
    currency = payload.get("currency")
    captured = [money({**entry, "currency": currency}, "capture_amount", rounded=True) for entry in _captures(payload)]
    known = [amount for amount in captured if amount is not None]
    return sum(known[1:], start=known[0]) if known and len(known) == len(captured) else None


def _captured_at(payload: Payload, status: ChargeStatus) -> datetime | None:
    if status is not ChargeStatus.SUCCEEDED:
        return None
    stamps = [found for entry in _captures(payload) if (found := instant(entry, "capture_timestamp"))]
    return max(stamps) if stamps else instant(payload, "updated")


def _action_url(payload: Payload) -> str | None:
    """Where the customer has to go: the web page if there is one, else the app's link."""
    actions = payload.get("actions")
    listed = [entry for entry in actions if isinstance(entry, Mapping)] if isinstance(actions, list) else []
    links = {code(action, "descriptor"): action for action in listed}
    return web_link(links.get("WEB_URL", {}), "value") or app_link(links.get("DEEPLINK_URL", {}), "value")


def _last4(masked: str | None) -> str | None:
    return masked[-4:] if masked and re.fullmatch(r"[0-9]{4}", masked[-4:]) else None


def _card_expiry(card: Payload) -> str | None:
    month, year = small_number(card, "expiry_month"), small_number(card, "expiry_year")
    if month is None or year is None or month not in _MONTHS:
        return None
    return f"{_CENTURY + year if year < _CENTURY else year}-{month:02d}"


# ------------------------------------------------------------------------------------------- what we send

CARDS = "CARDS"

# Xendit prints two sets of limits for metadata; these are the smaller ones.
METADATA_KEYS, METADATA_KEY_LENGTH, METADATA_VALUE_LENGTH = 20, 40, 80
DESCRIPTION_LENGTH = 1000
GIVEN_NAMES_LENGTH = 50
EMAIL_LENGTHS = range(4, 51)

_E164 = re.compile(r"\+[1-9][0-9]{5,14}")


def customer_body(customer: NewCustomer) -> dict[str, Any]:
    body: dict[str, Any] = {
        "reference_id": customer.reference_id,
        "type": "INDIVIDUAL",
        "individual_detail": {"given_names": given_names(customer.name)},
    }
    # Optional at Xendit: leaving out what it would refuse is better than no customer at all.
    if len(customer.email) in EMAIL_LENGTHS:
        body["email"] = customer.email
    mobile = re.sub(r"[ ()-]", "", customer.mobile or "")
    if _E164.fullmatch(mobile):
        body["mobile_number"] = mobile
    return body


def given_names(name: str) -> str:
    """Letters, digits and blanks only, at most 50: what Xendit takes. Marks stay: Thai vowels are marks."""
    kept = (char if _belongs_in_name(char) else " " for char in unicodedata.normalize("NFC", name))
    return " ".join("".join(kept).split())[:GIVEN_NAMES_LENGTH].strip() or "Customer"


def _belongs_in_name(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char).startswith("M")


def session_body(request: SessionRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "reference_id": request.reference_id,
        "session_type": request.type.value,
        "mode": request.mode.value,
        "customer_id": request.customer_id,
        "amount": request.amount.to_decimal(),
        "currency": request.amount.currency,
        "country": request.country,
        "expires_at": instant_text(request.expires_at),
        **_description_and_metadata(request.description, request.metadata),
    }
    if request.allow_save is not None:
        body["allow_save_payment_method"] = request.allow_save
    if request.allowed_channels:
        body["allowed_payment_channels"] = list(request.allowed_channels)
    if request.recurring is not None and (not request.allowed_channels or CARDS in request.allowed_channels):
        body["channel_properties"] = {"cards": _recurring_properties(request.recurring)}
    if request.mode is SessionMode.COMPONENTS:
        body["components_configuration"] = {"origins": [url for url in request.origins if _is_https(url)]}
    else:
        body |= _https_urls(success_return_url=request.success_return_url, cancel_return_url=request.cancel_return_url)
    return body


def charge_body(request: ChargeRequest) -> dict[str, Any]:
    """A renewal. `channel_code` is left out, as in all of Xendit's examples with a token."""
    properties: dict[str, Any] = {}
    if request.channel_code == CARDS:
        properties |= {"skip_three_ds": True, **_recurring_properties(request.recurring)}
    properties |= _https_urls(success_return_url=request.return_url, failure_return_url=request.return_url)
    body: dict[str, Any] = {
        "reference_id": request.reference_id,
        "type": "PAY",
        "payment_token_id": request.payment_token_id,
        "country": request.country,
        "currency": request.amount.currency,
        "request_amount": request.amount.to_decimal(),
        "capture_method": "AUTOMATIC",
        **_description_and_metadata(request.description, request.metadata),
    }
    if properties:
        body["channel_properties"] = properties
    return body


def refund_body(*, reference_id: str, payment_request_id: str, amount: Money, reason: str) -> dict[str, Any]:
    return {
        "reference_id": reference_id,
        "payment_request_id": payment_request_id,
        "amount": amount.to_decimal(),
        "currency": amount.currency,
        "reason": reason,
    }


def _recurring_properties(terms: RecurringTerms | None) -> dict[str, Any]:
    properties: dict[str, Any] = {"card_on_file_type": "RECURRING"}
    if terms is not None:
        properties["recurring_configuration"] = {
            "recurring_frequency": terms.frequency_days,
            "recurring_expiry": terms.expires_on.isoformat(),
        }
    return properties


def _description_and_metadata(description: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    if description.strip():
        members["description"] = description.strip()[:DESCRIPTION_LENGTH]
    fitting = [(key, value) for key, value in metadata.items() if 0 < len(key) <= METADATA_KEY_LENGTH]
    if fitting:
        members["metadata"] = {key: str(value)[:METADATA_VALUE_LENGTH] for key, value in fitting[:METADATA_KEYS]}
    return members


def _https_urls(**urls: str | None) -> dict[str, str]:
    """Xendit refuses a whole request for one http:// link (INVALID_URL), so such links are left out."""
    return {name: url for name, url in urls.items() if url is not None and _is_https(url)}


def _is_https(url: str) -> bool:
    return url.startswith("https://")
