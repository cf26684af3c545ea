"""The port: what billing asks of a payment gateway, and its answers in our words.

billing/xendit/client.py implements it. Amounts are Money, instants aware UTC datetimes. A decline is a
`ChargeReport`; what brought no result is a GatewayError (billing/errors.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum, StrEnum
from typing import Protocol

from billing.domain.money import Money

CHARGE_ENDPOINT = "POST /v3/payment_requests"
READ_TOKEN_ENDPOINT = "GET /v3/payment_tokens/{id}"  # noqa: S105 - no password
# Nothing that a gateway sends closes an endpoint for longer: its header may be wrong, or its clock.
LONGEST_PAUSE_SECONDS = 3_600.0


class Lane(IntEnum):
    """Who goes first when the quota is short; every lane keeps a small share of its own, so none starves."""

    CUSTOMER = 0  # somebody waits: first charge, manual pay, changed method, a page that is looked at
    RENEWAL = 1
    RETRY = 2
    UPKEEP = 3  # look-ups, refunds, comparisons: nobody waits


class ChargeStatus(StrEnum):
    """What the gateway says of a payment request or a payment."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    PENDING = "PENDING"
    REQUIRES_ACTION = "REQUIRES_ACTION"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class RecurringTerms:
    """What the card schemes want to know of a series: days between charges, and the day the contract ends."""

    frequency_days: int
    expires_on: date


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """One charge of a stored token. `reference_id` is the attempt's name at the gateway for ever."""

    reference_id: str
    payment_token_id: str
    channel_code: str
    amount: Money
    country: str
    description: str
    metadata: Mapping[str, str]
    recurring: RecurringTerms | None = None
    return_url: str | None = None


@dataclass(frozen=True, slots=True)
class ChargeReport:
    """What the gateway said of one charge: from the answer to a call, a webhook, or a look-up.

    `payment_id` and `amount` may be missing in a synchronous answer. `amount` is what was captured when
    `amount_is_captured`, else what was asked for. Codes are stripped, upper case; `advice_code` has two digits.
    `reference_id` is as Xendit prints it (session-born ones carry a suffix).
    """

    status: ChargeStatus
    reference_id: str | None = None
    payment_request_id: str | None = None
    payment_id: str | None = None
    payment_token_id: str | None = None
    customer_id: str | None = None
    amount: Money | None = None
    amount_is_captured: bool = False
    captured_at: datetime | None = None
    failure_code: str | None = None
    network_code: str | None = None
    advice_code: str | None = None
    action_url: str | None = None
    channel_code: str | None = None


class SessionType(StrEnum):
    SAVE = "SAVE"
    PAY = "PAY"


class SessionMode(StrEnum):
    PAYMENT_LINK = "PAYMENT_LINK"
    COMPONENTS = "COMPONENTS"


@dataclass(frozen=True, slots=True)
class NewCustomer:
    reference_id: str
    name: str
    email: str
    country: str
    mobile: str | None


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """A hosted or embedded checkout. `amount` is zero for SAVE. `allow_save` is FORCED, OPTIONAL, DISABLED or None."""

    reference_id: str
    type: SessionType
    mode: SessionMode
    customer_id: str
    amount: Money
    country: str
    expires_at: datetime
    description: str
    allowed_channels: Sequence[str]
    metadata: Mapping[str, str]
    allow_save: str | None = None
    recurring: RecurringTerms | None = None
    success_return_url: str | None = None
    cancel_return_url: str | None = None
    origins: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SessionReport:
    """A payment session as Xendit shows it. `status` is ACTIVE, COMPLETED, EXPIRED or CANCELED."""

    session_id: str
    reference_id: str | None
    type: str | None
    status: str
    customer_id: str | None = None
    payment_link_url: str | None = None
    components_sdk_key: str | None = None
    payment_token_id: str | None = None
    payment_request_id: str | None = None
    payment_id: str | None = None
    amount: Money | None = None
    expires_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TokenReport:
    """A payment token as Xendit shows it. Only `ACTIVE` may be charged; INACTIVE arrives as CANCELED."""

    payment_token_id: str
    status: str
    reference_id: str | None = None
    customer_id: str | None = None
    channel_code: str | None = None
    country: str | None = None
    currency: str | None = None
    card_last4: str | None = None
    card_expiry: str | None = None  # "2029-12"
    network: str | None = None
    card_type: str | None = None
    issuer: str | None = None
    fingerprint: str | None = None
    failure_code: str | None = None
    updated_at: datetime | None = None
    unknown: bool = False  # Xendit says that it has no such token: dead, or the key is another account's


class RefundStatus(StrEnum):
    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class RefundReport:
    refund_id: str
    status: RefundStatus
    reference_id: str | None = None
    payment_request_id: str | None = None
    payment_id: str | None = None
    amount: Money | None = None
    failure_code: str | None = None


@dataclass(frozen=True, slots=True)
class TransactionRow:
    """One line of the gateway's list of transactions. `status`: PENDING SUCCESS FAILED VOIDED REVERSED."""

    transaction_id: str
    type: str
    status: str
    reference_id: str | None
    payment_id: str | None
    amount: Money | None
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class TransactionPage:
    """Some rows of the gateway's list, and where the next page begins; None = there is none."""

    rows: Sequence[TransactionRow]
    next_after: str | None


class EventKind(StrEnum):
    """What a webhook event is about, after aliases are resolved."""

    PAYMENT = "payment"  # report: ChargeReport
    PAYMENT_REQUEST = "payment_request"  # report: ChargeReport
    TOKEN = "payment_token"  # report: TokenReport  # noqa: S105 - a kind, not a secret
    SESSION = "payment_session"  # report: SessionReport
    REFUND = "refund"  # report: RefundReport
    OTHER = "other"  # stored, answered 200, never applied


@dataclass(frozen=True, slots=True)
class GatewayEvent:
    """A webhook in our words. `name` is the event after aliases (`payment.capture`), `dedupe_key` is the same
    for every delivery of one fact."""

    name: str
    kind: EventKind
    dedupe_key: str
    primary_id: str | None
    report: ChargeReport | TokenReport | SessionReport | RefundReport | None
    is_sample: bool = False  # names an object of the gateway's documents, as its dashboard sends to try an address


class PaymentGateway(Protocol):
    """Each call is one HTTP request, sent once. Raises GatewayError; never retries a charge by itself."""

    def create_customer(self, customer: NewCustomer) -> str: ...

    def create_session(self, request: SessionRequest) -> SessionReport: ...

    def get_session(self, session_id: str) -> SessionReport: ...

    def cancel_session(self, session_id: str) -> SessionReport: ...

    def get_token(self, payment_token_id: str) -> TokenReport: ...

    def cancel_token(self, payment_token_id: str) -> TokenReport: ...

    def prepare(self, request: ChargeRequest) -> None:
        """Everything of `charge` that can fail before its first byte leaves, done without sending it. Raises NotSent:
        this charge cannot be sent now."""

    def charge(self, request: ChargeRequest) -> ChargeReport: ...

    def get_charge(self, payment_request_id: str) -> ChargeReport: ...

    def cancel_charge(self, payment_request_id: str) -> ChargeReport: ...

    def get_payment(self, payment_id: str) -> ChargeReport: ...

    def find_transactions(self, reference_id: str) -> Sequence[TransactionRow]: ...

    def find_refunds(self, reference_id: str) -> Sequence[TransactionRow]: ...

    def get_refund(self, refund_id: str) -> RefundReport: ...

    def transactions_page(
        self, *, created_from: datetime, created_to: datetime, after: str | None = None
    ) -> TransactionPage: ...

    def list_transactions(self, *, created_from: datetime, created_to: datetime) -> Sequence[TransactionRow]: ...

    def refund(self, *, reference_id: str, payment_request_id: str, amount: Money, reason: str) -> RefundReport: ...


class Quota(Protocol):
    """The gateway's request budget per endpoint, shared by all processes (billing/quota.py).

    Charges take their permits before they begin; for every other call the gateway's client takes one (billing/app.py).
    """

    def acquire(self, endpoint: str, lane: Lane, wanted: int = 1, *, wait_seconds: float) -> int:
        """How many of the `wanted` requests may be sent now, after waiting for their turn; 0 when none could within
        `wait_seconds`. A permit is good for this moment only."""

    def give_back(self, endpoint: str, permits: int) -> None:
        """Permits that were not used after all: for whoever asks next in this process."""

    def outlook(self, endpoint: str, seconds: float) -> int | None:
        """How many requests the budget lets through in the next seconds; None without a limit."""

    def learn(self, endpoint: str, *, limit: int | None, remaining: int | None) -> None:
        """What the gateway's answer says of its own window: its limit, and what is left of it for everybody."""

    def pause(self, endpoint: str, seconds: float) -> None:
        """The gateway said 429: nobody sends to this endpoint for so long."""
