"""What an answer that is no result means: sorts every status and error_code into billing.errors. Called by
client.py.

Sorted by error_code first, by status class last: 4xx is not always our fault and 5xx is not always a
failure. The one question that matters is whether money may have moved; where that cannot be known the error
is OutcomeUnknown. Only a code that Xendit documents (codes.py) is an answer of Xendit's.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from billing.xendit.codes import says_refused
from billing.xendit.connection import WINDOW_SECONDS, Answer, Call, Rates

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

_RATE_LIMITS = frozenset({"RATE_LIMIT_EXCEEDED", "PAYMENT_REQUEST_RATE_LIMITED"})

CHANNEL_WAIT_SECONDS = 300.0  # "after minutes": the channel's own limit names no time

_NOT_XENDITS = "this is not an answer of Xendit's: check BILLING_XENDIT_BASE_URL and any proxy or firewall"
_UNKNOWN_CODE = "Xendit documents no such code: should it not be new, check BILLING_XENDIT_BASE_URL and any proxy"
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


def token_refusal(answer: Answer) -> str | None:
    """The failure code, when a charge was refused because of its token. A 401 is about the key, whatever it says."""
    if answer.error_code not in _TOKEN_REFUSALS or answer.status == HTTPStatus.UNAUTHORIZED:
        return None
    return answer.error_code if says_refused(answer.status, answer.error_code) else None


def refusal(call: Call, answer: Answer, subject: str) -> BillingError:
    """The error an answer without a usable result stands for; `subject` names the record in a message."""
    status, code = answer.status, answer.error_code
    if _is_rate_limit(call, answer):
        channel = code == "PAYMENT_REQUEST_RATE_LIMITED"
        return _rate_limited(call, answer, default=CHANNEL_WAIT_SECONDS if channel else WINDOW_SECONDS)
    if (status, code) in _TRY_LATER:
        return _error(Unavailable, call, answer, "not possible at the moment; it can be repeated later")
    if answer.not_there and call.names_a_record:
        return NotFound(
            f"Xendit does not know {subject} (HTTP 404 {code}): check the id, and that"
            " BILLING_XENDIT_SECRET_KEY belongs to the same account and mode (test or live)"
        )
    if _may_have_been_done(call, answer):
        return lost(call, answer)
    return _rejected(call, answer)


def _is_rate_limit(call: Call, answer: Answer) -> bool:
    """Nothing was done, says Xendit. Where money moves it has to be Xendit that says so."""
    said = answer.error_code in _RATE_LIMITS and says_refused(answer.status, answer.error_code)
    return said or (answer.status == HTTPStatus.TOO_MANY_REQUESTS and not call.moves_money)


def lost(call: Call, answer: Answer) -> GatewayError:
    """An answer that tells nothing. A read may be repeated; anything else may have been done."""
    happened = "no usable answer" if answer.is_success or not answer.from_stranger else _stranger_advice(answer)
    if call.is_read:
        return _error(Unavailable, call, answer, f"{happened}; it can be repeated")
    advice = f"{happened}; whether it was done is unknown"
    return OutcomeUnknown(
        _message(call, answer, advice),
        http_status=answer.status,
        error_code=answer.error_code,
        request_id=answer.request_id,
        from_stranger=answer.from_stranger,
    )


def _may_have_been_done(call: Call, answer: Answer) -> bool:
    """Where money moves: everything that does not say that nothing was done; also a 409, because it says that an
    earlier call with this reference was accepted. Elsewhere: unreadable successes, server errors, a time-out."""
    if call.moves_money:
        return not says_refused(answer.status, answer.error_code)
    return (
        answer.status < HTTPStatus.MULTIPLE_CHOICES
        or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        or answer.status == HTTPStatus.REQUEST_TIMEOUT
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
    """Xendit's own 401, and its codes about the account. A 403 on anything but a charge may be a permission that
    charging does not need."""
    if answer.from_stranger:
        return False
    if answer.status == HTTPStatus.UNAUTHORIZED or answer.error_code in ("INVALID_API_KEY", "UNAUTHORIZED_SENDER_IP"):
        return True
    return call.is_charge and answer.error_code in _STOPS_ACCOUNT


def _advice(answer: Answer) -> str:
    if answer.from_stranger or answer.error_code is None:
        return _stranger_advice(answer)
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return _ADVICE["INVALID_API_KEY"]
    if members := answer.invalid_members:
        return f"Xendit points to {members}"
    return _ADVICE.get(answer.error_code, "nothing was done; look the code up in Xendit's documentation")


def _stranger_advice(answer: Answer) -> str:
    return _NOT_XENDITS if answer.error_code is None else _UNKNOWN_CODE


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
