"""The `error_code`s that Xendit documents for a refused call, with their source. Read by error_mapping.py.

What carries none of these is no answer of Xendit's: a proxy, a firewall or a captive page answered in its place, before
Xendit had the request or after. So it says nothing about money. (What a *decline* means: domain/declines.py.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

API = "Xendit API reference v3, the error list of each call, April 2026"
GENERAL = "Xendit guides 'Integration security' and 'Rate limits', April 2026"
SESSIONS = "Xendit API reference, sessions, April 2026"
REFUNDS = "Xendit API reference, refunds, April 2026"
CUSTOMERS = "Xendit API reference, customers, April 2026"
OLDER = "Xendit's older error lists: may still come from some channels"


@dataclass(frozen=True, slots=True)
class Documented:
    """`certain`: the code itself says that nothing was done, whatever 4xx it comes with. The others mean that only with
    the status they are documented for: a 404 `DATA_NOT_FOUND` is a refusal, a 409 of that name a duplicate."""

    statuses: frozenset[int]
    source: str
    certain: bool = True


def _codes(source: str, status: int, *codes: str, certain: bool = True) -> dict[str, Documented]:
    return dict.fromkeys(codes, Documented(frozenset({status}), source, certain))


CODES: Mapping[str, Documented] = MappingProxyType(
    _codes(
        OLDER, 400, "BLOCKED_TOKEN", "MAX_AMOUNT_LIMIT_ERROR", "MAXIMUM_LIMIT_REACHED", "CHANNEL_NOT_ACTIVATED",
        "INVALID_PAYMENT_METHOD", "MAX_ACCOUNT_LINKING", "CALLBACK_URL_NOT_FOUND", "UNSUPPORTED_CONTENT_TYPE",
    )
    | _codes(OLDER, 404, "CUSTOMER_NOT_FOUND_ERROR")
    | _codes(OLDER, 400, "OTP_DELIVERY_ERROR", "PARTNER_CHANNEL_ERROR", "REFUND_FAILED", certain=False)
    | _codes(OLDER, 409, "DUPLICATE_TRANSACTION_ERROR", certain=False)
    | _codes(GENERAL, 401, "INVALID_API_KEY")
    | _codes(GENERAL, 403, "REQUEST_FORBIDDEN_ERROR", "FORBIDDEN", "UNAUTHORIZED_SENDER_IP")
    | _codes(GENERAL, 429, "RATE_LIMIT_EXCEEDED")
    | _codes(
        API, 400, "API_VALIDATION_ERROR", "INVALID_VALUE_ERROR", "CARD_EXPIRED", "INVALID_PAYMENT_DETAILS",
        "PAYMENT_REQUEST_RATE_LIMITED", "INVALID_TOKEN", "INACTIVE_PAYMENT_REQUEST", "INELIGIBLE_TRANSACTION_STATUS",
        "CAPTURE_AMOUNT_EXCEEDED", "TEMPORARILY_UNAVAILABLE",
    )
    | _codes(API, 403, "SKIP_3DS_FORBIDDEN", "INVALID_MERCHANT_SETTINGS", "ACCOUNT_ACCESS_BLOCKED")
    | _codes(API, 404, "NOT_FOUND", certain=False)
    | {"DATA_NOT_FOUND": Documented(frozenset({404, 409}), API, certain=False)}
    | _codes(API, 409, "DUPLICATE_ERROR", "ACCOUNT_ALREADY_LINKED", certain=False)
    | _codes(API, 500, "SERVER_ERROR", certain=False)
    | _codes(API, 503, "CHANNEL_UNAVAILABLE", "ISSUER_UNAVAILABLE", certain=False)
    | _codes(
        REFUNDS, 400, "REFUND_AMOUNT_EXCEEDED", "REFUND_IN_PROGRESS", "INSUFFICIENT_BALANCE",
        "PARTIAL_REFUND_COUNTS_EXCEEDED",
    )
    | _codes(REFUNDS, 403, "REFUND_NOT_SUPPORTED", "PARTIAL_REFUND_NOT_SUPPORTED")
    | _codes(
        SESSIONS, 400, "INVALID_AMOUNT", "INVALID_PAYMENT_CHANNEL", "INVALID_PRIMARY_PAYMENT_CHANNEL",
        "INVALID_METADATA", "INVALID_ITEM_METADATA", "INVALID_COUNTRY", "INVALID_CURRENCY", "INVALID_CUSTOMER_ID",
        "INVALID_URL", "MISSING_CUSTOMER", "DISALLOWED_CAPTURE_METHOD", "INVALID_EXPIRY_DATE", "ITEMS_NOT_SUPPORTED",
        "SESSION_TYPE_NOT_SUPPORTED", "MODE_NOT_SUPPORTED",
    )
    | _codes(SESSIONS, 422, "INVALID_SESSION_STATUS")
    | _codes(CUSTOMERS, 409, "IDEMPOTENCY_ERROR", certain=False)
)  # fmt: skip

_A_CLASS = 100


def is_xendits(code: str | None) -> bool:
    """Whether an answer with this `error_code` comes from Xendit."""
    return code in CODES


def says_refused(status: int, code: str | None) -> bool:
    """Whether this answer says that nothing was done. A 408 and a 409 never do: something may have come before them."""
    known = CODES.get(code or "")
    if known is None or status // _A_CLASS != 4 or status in (408, 409):  # noqa: PLR2004 - HTTP
        return False
    return known.certain or status in known.statuses


def says_not_there(status: int, code: str | None) -> bool:
    """Whether Xendit itself says that it has no such record. A page that is missing at a wrong address does not."""
    known = CODES.get(code or "")
    return status == 404 and known is not None and status in known.statuses  # noqa: PLR2004 - HTTP
