"""Request bodies, built from the port's dataclasses (billing/domain/gateway.py). Called by client.py.

With responses.py the only place that knows the names of Xendit's members. What Xendit would refuse and can be
left out, such as an http:// link, is left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from billing.domain.gateway import ChargeRequest, NewCustomer, RecurringTerms, SessionMode, SessionRequest
from billing.domain.money import Money
from billing.xendit.responses import instant_text

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
