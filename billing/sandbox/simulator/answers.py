"""What goes back over the wire: answers, the documented errors with their messages, JSON with exact amounts.

Every other module of the simulator uses this one; it imports none of them.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import simplejson

Json = dict[str, Any]
Headers = tuple[tuple[str, str], ...]
_GARBAGE = b'{"payment_request_id":"pr-'
JSON_TYPE = ("content-type", "application/json")
HTML_TYPE = ("content-type", "text/html; charset=utf-8")

MESSAGES: dict[str, str] = {
    "ACCOUNT_ACCESS_BLOCKED": "Payment token ID specified in the request was denied access "
    "by the payment method provider.",
    "ACCOUNT_ALREADY_LINKED": "The end user has already linked their account previously.",
    "API_VALIDATION_ERROR": "The request does not match the API specification",
    "CAPTURE_AMOUNT_EXCEEDED": "The capture amount exceeds the authorized amount.",
    "CARD_EXPIRED": "Card expiry specified in the request should not be earlier than current month.",
    "CHANNEL_NOT_ACTIVATED": "The payment channel is not activated for this account.",
    "CHANNEL_UNAVAILABLE": "The channel requested is currently experiencing unexpected issues. "
    "The provider will be notified to resolve this issue.",
    "DATA_NOT_FOUND": "ID specified in request cannot be found.",
    "IDEMPOTENCY_ERROR": "Idempotency key has been used before",
    "INACTIVE_PAYMENT_REQUEST": "The resource specified in the request is already inactive.",
    "INELIGIBLE_TRANSACTION_STATUS": "The transaction is not in an eligible status for this request.",
    "INVALID_API_KEY": "API key is not authorized for this API",
    "INVALID_MERCHANT_SETTINGS": "Merchant credentials met with an error with the provider. "
    "Please contact Xendit customer support to resolve this issue.",
    "INVALID_PAYMENT_DETAILS": "The payment details of the end user are invalid.",
    "INVALID_TOKEN": "Payment token ID specified in the payment request has expired or has been cancelled. "
    "Please reinitiate linking before retrying.",
    "INVALID_VALUE_ERROR": "A value in the request is out of the expected range or configuration.",
    "ISSUER_UNAVAILABLE": "The end user's payment method provider is currently experiencing "
    "unexpected issues. The provider will be notified to resolve this issue.",
    "NOT_FOUND": "The requested resource was not found",
    "PARTIAL_REFUND_NOT_SUPPORTED": "The payment channel does not support partial refunds.",
    "PAYMENT_REQUEST_RATE_LIMITED": "Maximum number of requests to this payment channel has been exceeded "
    "in a given time frame.",
    "RATE_LIMIT_EXCEEDED": "Rate limit exceeded",
    "REFUND_AMOUNT_EXCEEDED": "The refund amount exceeds the amount that is left to refund.",
    "REFUND_IN_PROGRESS": "Another refund of this payment is in progress.",
    "REFUND_NOT_SUPPORTED": "The payment channel does not support refunds.",
    "SERVER_ERROR": "An unexpected error occured, our team has been notified and will troubleshoot the issue",
    "SKIP_3DS_FORBIDDEN": "Non 3DS card payment requests is not allowed. "
    "Please activate the feature on Xendit dashboard before proceeding",
    "TEMPORARILY_UNAVAILABLE": "The feature is temporarily unavailable.",
}
DUPLICATE_CHARGE = "Duplication is not allowed. Check specific error message for debugging."
REFERENCE_USED = "The reference_id entered has been used before. Please enter a unique reference_id"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller sees. `drop`: the connection ends without an answer, whatever `status` says."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    delay_seconds: float = 0
    drop: bool = False


@dataclass(frozen=True, slots=True)
class Disturbance:
    """How the answer to a call that *was* carried out gets lost or spoilt. `stranger`: the page of something that
    answers in Xendit's place, such as a proxy; it may be empty."""

    drop: bool = False
    status: int | None = None
    garbage: bool = False
    delay_seconds: float = 0
    stranger: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What an API function returns; the simulator adds headers and applies the disturbance."""

    status: int
    document: Any
    disturbance: Disturbance | None = None


class ApiError(Exception):
    """A refusal in Xendit's shape: {"error_code", "message", "errors"?}."""

    def __init__(
        self, status: int, error_code: str, message: str | None = None, errors: list[Json] | None = None
    ) -> None:
        self.status = status
        self.error_code = error_code
        self.message = message or MESSAGES.get(error_code, error_code.replace("_", " ").capitalize())
        self.errors = errors
        super().__init__(f"{status} {error_code}: {self.message}")

    def reply(self) -> Reply:
        document: Json = {"error_code": self.error_code, "message": self.message}
        if self.errors:
            document["errors"] = self.errors
        return Reply(self.status, document)


class AnsweredByStranger(ApiError):
    """A proxy or a firewall refuses the call before Xendit has it."""

    def __init__(self, status: int, page: bytes) -> None:
        super().__init__(status, "SERVER_ERROR")
        self._page = page

    def reply(self) -> Reply:
        return Reply(self.status, None, Disturbance(status=self.status, stranger=self._page))


class ConnectionDropped(Exception):
    """The call is cut before anything happened."""


def validation_error(path: str, message: str) -> ApiError:
    """One breach of the API specification, worded as Xendit words it."""
    return ApiError(400, "API_VALIDATION_ERROR", f"request{path} {message}", [{"message": message, "path": path}])


def encode(document: Any) -> bytes:
    return simplejson.dumps(document, separators=(",", ":"), use_decimal=True).encode()


def decode(body: bytes) -> Any:
    """JSON with numbers as int or Decimal, never binary floats. ValueError when unreadable."""
    return simplejson.loads(body.decode(), use_decimal=True)


def json_amount(amount: Decimal) -> int | Decimal:
    """As Xendit prints amounts: 50000, 10.5, 10000.01."""
    whole = int(amount)
    return whole if whole == amount else amount.normalize()


def iso(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def finish(reply: Reply, headers: Headers) -> Answer:
    """A reply as it goes out: with its headers, and spoilt when a fault says so."""
    if reply.disturbance is not None:
        return _disturbed(reply, reply.disturbance, headers)
    if reply.status == 429:  # noqa: PLR2004 - Too Many Requests
        headers = _used_up(headers)
    return Answer(reply.status, (JSON_TYPE, *headers), encode(reply.document))


def _disturbed(reply: Reply, disturbance: Disturbance, headers: Headers) -> Answer:
    if disturbance.drop:
        return Answer(reply.status, drop=True)
    if disturbance.stranger is not None:
        return _by_a_stranger(disturbance.status or reply.status, disturbance.stranger)
    if disturbance.status is not None:
        error = ApiError(disturbance.status, "SERVER_ERROR").reply()
        return Answer(error.status, (JSON_TYPE, *headers), encode(error.document))
    body = _GARBAGE if disturbance.garbage else encode(reply.document)
    return Answer(reply.status, (JSON_TYPE, *headers), body, disturbance.delay_seconds)


def _by_a_stranger(status: int, page: bytes) -> Answer:
    """None of Xendit's headers; a redirect says where to, as a captive page does."""
    moved = (("location", "https://login.proxy.example/"),) if status // 100 == 3 else ()  # noqa: PLR2004 - HTTP
    return Answer(status, ((HTML_TYPE,) if page else ()) + moved, page)


def _used_up(headers: Headers) -> Headers:
    return tuple((name, "0" if name == "rate-limit-remaining" else value) for name, value in headers)
