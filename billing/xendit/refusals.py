"""What an answer that is no result means: sorts every status and error_code into billing.errors. Called by
client.py.

Sorted by error_code first, by status class last: 4xx is not always our fault and 5xx is not always a
failure. The one question that matters is whether money may have moved; where that cannot be known the error
is OutcomeUnknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from billing.errors import (
    BillingError,
    GatewayError,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    RequestRejected,
    Unavailable,
)
from billing.xendit.rates import WINDOW_SECONDS, Rates

# Refusals that are about this token, not about our request: a decline, settled like one.
_TOKEN_REFUSALS = frozenset(
    {"CARD_EXPIRED", "INVALID_PAYMENT_DETAILS", "INVALID_TOKEN", "BLOCKED_TOKEN", "ACCOUNT_ACCESS_BLOCKED"}
)
# A cancel that came too late: the record says how it ended.
ENDED_ALREADY = frozenset({"INACTIVE_PAYMENT_REQUEST", "INELIGIBLE_TRANSACTION_STATUS", "INVALID_SESSION_STATUS"})

# No charge can work until somebody acts. INVALID_MERCHANT_SETTINGS is not here: it concerns one channel only.
_STOPS_ACCOUNT = frozenset(
    {
        "INVALID_API_KEY",
        "REQUEST_FORBIDDEN_ERROR",
        "FORBIDDEN",
        "UNAUTHORIZED_SENDER_IP",
        "SKIP_3DS_FORBIDDEN",
    }
)
# Explicit refusals that say "later": nothing happened.
_TRY_LATER = frozenset(
    {
        (HTTPStatus.SERVICE_UNAVAILABLE, "CHANNEL_UNAVAILABLE"),
        (HTTPStatus.SERVICE_UNAVAILABLE, "ISSUER_UNAVAILABLE"),
        (HTTPStatus.BAD_REQUEST, "TEMPORARILY_UNAVAILABLE"),
        (HTTPStatus.BAD_REQUEST, "REFUND_IN_PROGRESS"),
    }
)

CHANNEL_WAIT_SECONDS = 300.0  # "after minutes": the channel's own limit names no time

_GIVE_PERMISSION = "give the key of BILLING_XENDIT_SECRET_KEY the permission in the Xendit dashboard"
_ADVICE: Mapping[str, str] = {
    "INVALID_API_KEY": "Xendit refused the key: check BILLING_XENDIT_SECRET_KEY",
    "UNAUTHORIZED_SENDER_IP": "add this machine's address to the IP allowlist in the Xendit dashboard",
    "REQUEST_FORBIDDEN_ERROR": _GIVE_PERMISSION,
    "FORBIDDEN": _GIVE_PERMISSION,
    "SKIP_3DS_FORBIDDEN": "ask Xendit to enable Optional 3DS: no card can be renewed without it",
    "INVALID_MERCHANT_SETTINGS": "check the channel's settings in the Xendit dashboard",
    "INVALID_PAYMENT_CHANNEL": "activate the channel in the Xendit dashboard, or offer another",
    "INVALID_VALUE_ERROR": "a value is out of range; check the amount against the limits of the channel",
    "INSUFFICIENT_BALANCE": "top up the Xendit balance, then repeat",
    "REFUND_NOT_SUPPORTED": "this channel takes no refunds: pay the customer back another way",
    "PARTIAL_REFUND_NOT_SUPPORTED": "this channel only refunds in full",
    "REFUND_AMOUNT_EXCEEDED": "less than this is left to refund",
    "INVALID_URL": "links must start with https://: check BILLING_PUBLIC_URL",
}


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of request. `what` begins its messages, `route` names the quota it counts against."""

    what: str
    method: str
    route: str
    names_a_record: bool = True  # a 404 then means that record, not a wrong address
    moves_money: bool = False

    @property
    def is_read(self) -> bool:
        return self.method == "GET"

    @property
    def is_charge(self) -> bool:
        return self.endpoint == "POST /v3/payment_requests"

    @property
    def endpoint(self) -> str:
        return f"{self.method} {self.route}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `payload` is None when it is not JSON; it stays out of every repr and message."""

    status: int
    headers: Mapping[str, str]
    payload: object | None = field(repr=False)

    @property
    def is_success(self) -> bool:
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def error_code(self) -> str | None:
        found = self.payload.get("error_code") if isinstance(self.payload, Mapping) else None
        cleaned = found.strip() if isinstance(found, str) else ""
        return cleaned if re.fullmatch(r"[A-Z0-9_]{1,64}", cleaned) else None

    @property
    def request_id(self) -> str | None:
        found = self.headers.get("request-id") or self.headers.get("x-request-id") or ""
        return found if re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", found) else None

    @property
    def invalid_members(self) -> str:
        """Where a validation error points to, such as `/body/session_type`. Never what was there."""
        errors = self.payload.get("errors") if isinstance(self.payload, Mapping) else None
        paths = (
            [entry.get("path") for entry in errors if isinstance(entry, Mapping)] if isinstance(errors, list) else []
        )
        return ", ".join(
            path for path in paths[:3] if isinstance(path, str) and re.fullmatch(r"[a-z0-9_./]{1,60}", path)
        )


def token_refusal(answer: Answer) -> str | None:
    """The failure code, when a charge was refused because of its token."""
    refused = answer.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
    return answer.error_code if refused and answer.error_code in _TOKEN_REFUSALS else None


def refusal(call: Call, answer: Answer, subject: str) -> BillingError:
    """The error an answer without a usable result stands for; `subject` names the record in a message."""
    status, code = answer.status, answer.error_code
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return _rate_limited(call, answer, default=WINDOW_SECONDS)
    if code == "PAYMENT_REQUEST_RATE_LIMITED" and status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return _rate_limited(call, answer, default=CHANNEL_WAIT_SECONDS)
    if (status, code) in _TRY_LATER:
        return _error(Unavailable, call, answer, "not possible at the moment; it can be repeated later")
    if status == HTTPStatus.NOT_FOUND and code is not None and call.names_a_record:
        return NotFound(
            f"Xendit does not know {subject} (HTTP 404 {code}): check the id, and that"
            " BILLING_XENDIT_SECRET_KEY belongs to the same account and mode (test or live)"
        )
    if _may_have_been_done(call, status):
        return lost(call, answer)
    return _rejected(call, answer)


def lost(call: Call, answer: Answer) -> GatewayError:
    """An answer that tells nothing. A read may be repeated; anything else may have been done."""
    if call.is_read:
        return _error(Unavailable, call, answer, "no usable answer; it can be repeated")
    return _error(OutcomeUnknown, call, answer, "no usable answer: whether it was done is unknown")


def _may_have_been_done(call: Call, status: int) -> bool:
    """Unreadable successes, server errors, a proxy's time-out; and a 409 where money moves, because it says
    that an earlier call with this reference was accepted. A 503 without a documented code is no clearer."""
    if status == HTTPStatus.CONFLICT:
        return call.moves_money
    return (
        status < HTTPStatus.MULTIPLE_CHOICES
        or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        or status == HTTPStatus.REQUEST_TIMEOUT
    )


def _rejected(call: Call, answer: Answer) -> RequestRejected:
    return RequestRejected(
        _message(call, answer, _advice(answer)),
        http_status=answer.status,
        error_code=answer.error_code,
        request_id=answer.request_id,
        stops_account=_stops_account(call, answer),
    )


def _stops_account(call: Call, answer: Answer) -> bool:
    """A 403 on anything but a charge may be a permission that charging does not need. An answer to a charge
    that has no error_code, such as a redirect or a bare 404, comes from a wrong address or a firewall."""
    if answer.status == HTTPStatus.UNAUTHORIZED or answer.error_code == "UNAUTHORIZED_SENDER_IP":
        return True
    if not call.is_charge:
        return False
    return answer.error_code in _STOPS_ACCOUNT or (
        answer.error_code is None and answer.status != HTTPStatus.BAD_REQUEST
    )


def _advice(answer: Answer) -> str:
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return _ADVICE["INVALID_API_KEY"]
    if answer.error_code is None:
        return "this is not an answer of Xendit's: check BILLING_XENDIT_BASE_URL and any proxy or firewall"
    if members := answer.invalid_members:
        return f"Xendit points to {members}"
    return _ADVICE.get(answer.error_code, "nothing was done; look the code up in Xendit's documentation")


def _error(kind: type[GatewayError], call: Call, answer: Answer, advice: str) -> GatewayError:
    return kind(
        _message(call, answer, advice),
        http_status=answer.status,
        error_code=answer.error_code,
        request_id=answer.request_id,
    )


def _message(call: Call, answer: Answer, advice: str) -> str:
    code = f" {answer.error_code}" if answer.error_code else ""
    return f"{call.what} failed: HTTP {answer.status}{code}; {advice}"


def _rate_limited(call: Call, answer: Answer, *, default: float) -> RateLimited:
    seconds = Rates.of(answer.headers).wait_or(default)
    return RateLimited(
        _message(call, answer, f"too many requests; again in {seconds:.0f} s"),
        retry_after_seconds=seconds,
        error_code=answer.error_code,
    )
