"""Xendit as billing sees it: XenditGateway implements the port of billing/domain/gateway.py. Built by
billing/app.py.

One method per call. Bodies are built and read by wire.py and sent by connection.py; what is no result is sorted by
error_mapping.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import NoReturn

import httpx

from billing.domain.gateway import (
    ChargeReport,
    ChargeRequest,
    NewCustomer,
    RefundReport,
    SessionReport,
    SessionRequest,
    TokenReport,
    TransactionPage,
    TransactionRow,
)
from billing.domain.money import Money
from billing.errors import RequestRejected, Unavailable
from billing.xendit import wire
from billing.xendit.connection import Answer, BeforeRequest, Call, Connection, OnResponse, shortened
from billing.xendit.error_mapping import ENDED_ALREADY, lost, refusal, token_refusal
from billing.xendit.wire import Payload, identifier, instant_text

CUSTOMERS_API_VERSION = "2020-10-31"
PAGE_SIZE = 50
MOST_PAGES = 2000

CREATE_CUSTOMER = Call("creating the customer at Xendit", "POST", "/customers", names_a_record=False)
FIND_CUSTOMER = Call("looking the customer up at Xendit", "GET", "/customers")
CREATE_SESSION = Call("opening the payment session", "POST", "/sessions")
GET_SESSION = Call("reading the payment session", "GET", "/sessions/{id}")
CANCEL_SESSION = Call("cancelling the payment session", "POST", "/sessions/{id}/cancel")
GET_TOKEN = Call("reading the payment token", "GET", "/v3/payment_tokens/{id}")
CANCEL_TOKEN = Call("cancelling the payment token", "POST", "/v3/payment_tokens/{id}/cancel")
CHARGE = Call("the charge", "POST", "/v3/payment_requests", names_a_record=False, moves_money=True)
GET_CHARGE = Call("reading the payment request", "GET", "/v3/payment_requests/{id}")
CANCEL_CHARGE = Call("cancelling the payment request", "POST", "/v3/payment_requests/{id}/cancel")
GET_PAYMENT = Call("reading the payment", "GET", "/v3/payments/{id}")
LIST_TRANSACTIONS = Call("reading the list of transactions", "GET", "/transactions", names_a_record=False)
GET_REFUND = Call("reading the refund", "GET", "/refunds/{id}")
REFUND = Call("the refund", "POST", "/refunds", names_a_record=False, moves_money=True)


class XenditGateway:
    """One per process, for all its threads; close() at shutdown.

    `on_response(endpoint, status, rate_limit_headers, seconds)` is told of every answer; it must not raise.
    `before_request(endpoint)` is asked before every request; it may wait, or raise a GatewayError to stop it.
    Endpoints read like `POST /v3/payment_requests` and `GET /v3/payments/{id}`: the unit of Xendit's quota.
    """

    def __init__(
        self,
        *,
        base_url: str,
        secret_key: str,
        timeout_seconds: float,
        on_response: OnResponse | None = None,
        before_request: BeforeRequest | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(
            base_url=base_url,
            secret_key=secret_key,
            timeout_seconds=timeout_seconds,
            on_response=on_response,
            before_request=before_request,
            transport=transport,
        )
        self._send = self._connection.send

    def __repr__(self) -> str:
        return f"XenditGateway({self._connection.address!r})"

    def ready(self) -> None:
        """Called where a process begins. Raises InvalidSetting when no request could ever leave this machine."""
        self._connection.ready()

    def close(self) -> None:
        """Closes the connections of all threads. A later call opens new ones."""
        self._connection.close()

    # Customers ---------------------------------------------------------------------------------------------

    def create_customer(self, customer: NewCustomer) -> str:
        """The id of the new customer, or of the one who has this reference already."""
        headers = {
            "api-version": CUSTOMERS_API_VERSION,
            "idempotency-key": _idempotency_key(customer.reference_id),
        }
        answer = self._send(CREATE_CUSTOMER, body=partial(wire.customer_body, customer), headers=headers)
        if answer.status == HTTPStatus.CONFLICT:
            return self._find_customer(customer.reference_id, duplicate=answer)
        payload = _payload(CREATE_CUSTOMER, answer)
        return identifier(payload, "id") or _unreadable(CREATE_CUSTOMER, answer)

    def _find_customer(self, reference_id: str, *, duplicate: Answer) -> str:
        answer = self._send(
            FIND_CUSTOMER,
            params={"reference_id": reference_id},
            headers={"api-version": CUSTOMERS_API_VERSION},
        )
        found = wire.customer_id_of(answer.payload, reference_id) if answer.is_success else None
        if found is not None:
            return found
        if not answer.is_success and not answer.not_there:
            raise refusal(FIND_CUSTOMER, answer, f"customer {reference_id}")
        raise RequestRejected(
            f"Xendit says that customer reference {reference_id!r} is taken, but does not show that customer:"
            " another business uses it; create the customer under another reference",
            http_status=duplicate.status,
            error_code=duplicate.error_code,
        )

    # Payment sessions --------------------------------------------------------------------------------------

    def create_session(self, request: SessionRequest) -> SessionReport:
        answer = self._send(CREATE_SESSION, body=partial(wire.session_body, request))
        payload = _payload(CREATE_SESSION, answer, f"customer {request.customer_id}")
        return wire.session_report(payload) or _unreadable(CREATE_SESSION, answer)

    def get_session(self, session_id: str) -> SessionReport:
        answer = self._send(GET_SESSION, record_id=session_id)
        payload = _payload(GET_SESSION, answer, f"payment session {session_id}")
        return wire.session_report(payload) or _unreadable(GET_SESSION, answer)

    def cancel_session(self, session_id: str) -> SessionReport:
        """A session that has ended already is reported as it is."""
        answer = self._send(CANCEL_SESSION, record_id=session_id)
        if answer.status == HTTPStatus.UNPROCESSABLE_ENTITY:
            return self.get_session(session_id)
        payload = _payload(CANCEL_SESSION, answer, f"payment session {session_id}")
        return wire.session_report(payload) or _unreadable(CANCEL_SESSION, answer)

    # Payment tokens ----------------------------------------------------------------------------------------

    def get_token(self, payment_token_id: str) -> TokenReport:
        answer = self._send(GET_TOKEN, record_id=payment_token_id)
        payload = _payload(GET_TOKEN, answer, f"payment token {shortened(payment_token_id)}")
        return wire.token_report(payload) or _unreadable(GET_TOKEN, answer)

    def cancel_token(self, payment_token_id: str) -> TokenReport:
        """A token that has ended already is reported as it is."""
        answer = self._send(CANCEL_TOKEN, record_id=payment_token_id)
        if _ended_already(answer):
            return self.get_token(payment_token_id)
        payload = _payload(CANCEL_TOKEN, answer, f"payment token {shortened(payment_token_id)}")
        return wire.token_report(payload) or _unreadable(CANCEL_TOKEN, answer)

    # Charges -----------------------------------------------------------------------------------------------

    def prepare(self, request: ChargeRequest) -> None:
        self._connection.prepare(CHARGE, partial(wire.charge_body, request))

    def charge(self, request: ChargeRequest) -> ChargeReport:
        answer = self._send(CHARGE, body=partial(wire.charge_body, request))
        if not answer.is_success:
            if (declined := token_refusal(answer)) is not None:
                return wire.refused_charge(request, declined)
            raise refusal(CHARGE, answer, "this")
        report = wire.charge_report(_object(CHARGE, answer))
        # An answer about another charge says nothing about ours.
        if report is None or report.reference_id not in (None, request.reference_id):
            _unreadable(CHARGE, answer)
        return report

    def get_charge(self, payment_request_id: str) -> ChargeReport:
        return self._charge_report(GET_CHARGE, payment_request_id)

    def cancel_charge(self, payment_request_id: str) -> ChargeReport:
        """A request that has ended already is reported as it is, which may be SUCCEEDED."""
        answer = self._send(CANCEL_CHARGE, record_id=payment_request_id)
        if _ended_already(answer):
            return self.get_charge(payment_request_id)
        payload = _payload(CANCEL_CHARGE, answer, f"payment request {payment_request_id}")
        return wire.charge_report(payload) or _unreadable(CANCEL_CHARGE, answer)

    def get_payment(self, payment_id: str) -> ChargeReport:
        return self._charge_report(GET_PAYMENT, payment_id)

    def _charge_report(self, call: Call, record_id: str) -> ChargeReport:
        answer = self._send(call, record_id=record_id)
        payload = _payload(call, answer, record_id)
        return wire.charge_report(payload) or _unreadable(call, answer)

    def refund(self, *, reference_id: str, payment_request_id: str, amount: Money, reason: str) -> RefundReport:
        body = partial(
            wire.refund_body,
            reference_id=reference_id,
            payment_request_id=payment_request_id,
            amount=amount,
            reason=reason,
        )
        answer = self._send(REFUND, body=body)
        return wire.refund_report(_payload(REFUND, answer)) or _unreadable(REFUND, answer)

    def get_refund(self, refund_id: str) -> RefundReport:
        """Whether v3 still has this call is not documented; without it a refund can only be told of."""
        answer = self._send(GET_REFUND, record_id=refund_id)
        payload = _payload(GET_REFUND, answer, f"refund {refund_id}")
        return wire.refund_report(payload) or _unreadable(GET_REFUND, answer)

    # Transactions ------------------------------------------------------------------------------------------

    def find_transactions(self, reference_id: str) -> Sequence[TransactionRow]:
        return self._transactions({"reference_id": reference_id})

    def find_refunds(self, reference_id: str) -> Sequence[TransactionRow]:
        """`payment_id` of a row is the refund's own id."""
        return self._transactions({"reference_id": reference_id}, types="REFUND")

    def transactions_page(
        self, *, created_from: datetime, created_to: datetime, after: str | None = None
    ) -> TransactionPage:
        """Fifty payments and refunds created in the time, both ends included, from the one after `after` on."""
        return self._page(_created(created_from, created_to), after, types=("PAYMENT", "REFUND"))

    def list_transactions(self, *, created_from: datetime, created_to: datetime) -> Sequence[TransactionRow]:
        """All payments created in the time, both ends included: for times in which there are few."""
        return self._transactions(_created(created_from, created_to))

    def _transactions(self, filters: Mapping[str, str], *, types: str = "PAYMENT") -> list[TransactionRow]:
        rows: list[TransactionRow] = []
        after: str | None = None
        for _ in range(MOST_PAGES):
            page = self._page(filters, after, types=types)
            rows.extend(page.rows)
            after = page.next_after
            if after is None:
                return rows
        raise Unavailable(
            f"{LIST_TRANSACTIONS.what} failed: more than {MOST_PAGES * PAGE_SIZE} rows; ask for less time"
        )

    def _page(self, filters: Mapping[str, str], after: str | None, *, types: str | Sequence[str]) -> TransactionPage:
        behind = {} if after is None else {"after_id": after}
        answer = self._send(LIST_TRANSACTIONS, params={"types": types, "limit": str(PAGE_SIZE), **filters, **behind})
        payload = _payload(LIST_TRANSACTIONS, answer)
        rows = list(_rows(payload, answer))
        if payload.get("has_more") is not True:
            return TransactionPage(rows, None)
        # A list cut short would look like missing payments, so paging that stands still is an error.
        if not rows or after == rows[-1].transaction_id:
            _unreadable(LIST_TRANSACTIONS, answer)
        return TransactionPage(rows, rows[-1].transaction_id)


def _created(start: datetime, end: datetime) -> Mapping[str, str]:
    return {"created[gte]": instant_text(start), "created[lte]": instant_text(end)}


def _payload(call: Call, answer: Answer, subject: str = "this") -> Payload:
    if not answer.is_success:
        raise refusal(call, answer, subject)
    return _object(call, answer)


def _object(call: Call, answer: Answer) -> Payload:
    if not isinstance(answer.payload, Mapping):
        _unreadable(call, answer)
    return answer.payload


def _rows(payload: Payload, answer: Answer) -> Iterator[TransactionRow]:
    listed = payload.get("data")
    if not isinstance(listed, list):
        _unreadable(LIST_TRANSACTIONS, answer)
    for entry in listed:
        if isinstance(entry, Mapping) and (row := wire.transaction_row(entry)):
            yield row


def _unreadable(call: Call, answer: Answer) -> NoReturn:
    raise lost(call, answer)


def _ended_already(answer: Answer) -> bool:
    return answer.status == HTTPStatus.BAD_REQUEST and answer.error_code in ENDED_ALREADY


def _idempotency_key(reference_id: str) -> str:
    """The reference where a header can hold it (1 to 100 ASCII characters), else a name made from it."""
    if re.fullmatch(r"[!-~]{1,100}", reference_id):
        return reference_id
    return hashlib.sha256(reference_id.encode("utf-8", "replace")).hexdigest()
