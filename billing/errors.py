"""Every way this software says no. Imports nothing; everybody may import it.

    BillingError                 one line that says what is wrong and what to do
      InvalidSetting             a BILLING_ variable is malformed or missing          (exit status 2)
      InvalidInput               what a person typed or a file holds is wrong         (exit status 1)
        InvalidMoney, InvalidSchedule
        InvalidArgument          an option cannot be so, or not beside the others (exit status 2)
      NotFound                   no such plan, customer, subscription ...
      Conflict                   exists already, or lost a race
      IllegalTransition          a move that domain/lifecycle.py does not list
      ServiceUnavailable         database, Redis or an embedded server does not answer
        EmbeddedServerFailed
        CopyOfDatabase           nothing is charged from a copy until `billing adopt`
      WebhookRejected            400, 401, 408 or 413 to the sender
      GatewayError               the call to Xendit did not end in an answer we can act on
        NotSent                  nothing left us            -> attempt scheduled again, same reference
        RateLimited              429, channel's own limit   -> scheduled again after the reset, not counted
        Unavailable              503 CHANNEL_/ISSUER_       -> failed, technical; a later attempt
        OutcomeUnknown           time-out, 500, 502, 504, unreadable, 409, not Xendit's -> in doubt
        RequestRejected          our bug or account set-up  -> hold and alert, never dunned

A decline is not an error: it is what the gateway answered (domain/gateway.py, ChargeReport).
"""

from __future__ import annotations

from typing import TypedDict, Unpack


class BillingError(Exception):
    """Its text is the one line a user sees."""

    exit_status = 1


class InvalidSetting(BillingError):
    exit_status = 2


class InvalidInput(BillingError):
    pass


class InvalidMoney(InvalidInput):
    pass


class InvalidSchedule(InvalidInput):
    pass


class InvalidArgument(InvalidInput):
    exit_status = 2


class NotFound(BillingError):
    pass


class Conflict(BillingError):
    pass


class IllegalTransition(BillingError):
    pass


class ServiceUnavailable(BillingError):
    pass


class EmbeddedServerFailed(ServiceUnavailable):
    pass


class CopyOfDatabase(ServiceUnavailable):
    pass


class WebhookRejected(BillingError):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Answer(TypedDict, total=False):
    """What a call was answered with."""

    http_status: int | None
    error_code: str | None
    request_id: str | None


class GatewayError(BillingError):
    """A call to Xendit that brought no result. Never carries a key, a token or a body."""

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        error_code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.error_code = error_code
        self.request_id = request_id


class NotSent(GatewayError):
    pass


class RateLimited(GatewayError):
    def __init__(self, message: str, *, retry_after_seconds: float, error_code: str | None = None) -> None:
        super().__init__(message, http_status=429, error_code=error_code)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(GatewayError):
    pass


class OutcomeUnknown(GatewayError):
    """`from_stranger` is true when something answered that is not Xendit: a proxy, a firewall, a wrong address."""

    def __init__(self, message: str, *, from_stranger: bool = False, **answer: Unpack[Answer]) -> None:
        super().__init__(message, **answer)
        self.from_stranger = from_stranger


class RequestRejected(GatewayError):
    """`stops_account` is true for Xendit's own 401 and 403 of the account: no charge can work until someone acts."""

    def __init__(self, message: str, *, stops_account: bool = False, **answer: Unpack[Answer]) -> None:
        super().__init__(message, **answer)
        self.stops_account = stops_account
