"""`billing.invoices`: what each period owes, with every attempt to collect it."""

from __future__ import annotations

import time

from billing.api import arguments
from billing.api.opening import Entries, Operations, read_one
from billing.charging import pay_by_hand
from billing.domain.declines import DeclineClass
from billing.domain.gateway import Lane
from billing.domain.lifecycle import AttemptStatus, InvoiceStatus
from billing.errors import ServiceUnavailable
from billing.parts import Parts, Send
from billing.reading import lists, views
from billing.runs import tick
from billing.shapes import Attempt, Invoice, InvoiceDetails
from billing.store.models import ChargeAttempt
from billing.subscribing import catalog

POLL_SECONDS = 0.2
WORKERS_ANSWER_SECONDS = 60.0


class Invoices(Operations):
    def list(
        self,
        *,
        subscription: str | None = None,
        status: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Entries[Invoice]:
        """Invoices with their attempts, the oldest first; of this `subscription`, with this `status`. Raises
        NotFound."""
        wanted = arguments.maybe_one_of("--status", InvoiceStatus, status)
        found = lists.list_invoices(self._opened.parts, subscription=subscription, status=wanted)
        return self._opened.shown(found, Invoice, limit, after)

    def show(self, name: str) -> InvoiceDetails:
        """One invoice, by number or id, with its lines, attempts and payments. Raises NotFound."""
        return read_one(
            self._opened.parts,
            InvoiceDetails,
            lambda session: views.show_invoice(session, catalog.find_invoice(session, name)),
        )

    def pay(self, name: str, *, token: str | None = None) -> InvoiceDetails:
        """Try to collect an invoice now, with this `token` or the customer's first. An extra attempt: it does not use
        up the retry ladder.

        Its `problem` says that the attempt was declined or did not leave; one that may still bring the money (pending,
        in doubt) is a warning. Raises Conflict while another attempt is unfinished, because that one may still bring
        the money; NotFound, IllegalTransition.
        """
        parts = self._opened.with_gateway()
        with parts.reading() as session:
            invoice = catalog.find_invoice(session, name)
            token_id = catalog.find_token(session, token).id if token else None
        with self._opened.sender() as (send, by_workers):
            attempt_id = pay_by_hand.pay_invoice(parts, invoice.id, token_id)
            _hand_over(parts, send, attempt_id)
            if by_workers:
                _wait(parts, attempt_id)
        found = self.show(invoice.id)
        attempt = next(attempt for attempt in found.attempts if attempt.id == attempt_id)
        nobody = "no worker has taken it up" if by_workers else "the request quota to Xendit is used up for the moment"
        found.told(_why_not_paid(found, attempt, why_not_begun=nobody))
        if attempt.status == AttemptStatus.SUCCEEDED:
            self._opened.note(f"attempt {attempt.number} succeeded")
        may_be = _may_still_be_paid(found, attempt)
        if may_be is not None:
            self._opened.warn(may_be)
        return found


def _hand_over(parts: Parts, send: Send, attempt_id: str) -> None:
    try:
        tick.send_charges(parts, send, [(Lane.CUSTOMER, [attempt_id])])
    except ServiceUnavailable as error:
        raise ServiceUnavailable(f"the attempt is planned and has not left: {error}") from None


def _wait(parts: Parts, attempt_id: str) -> None:
    deadline = time.monotonic() + WORKERS_ANSWER_SECONDS
    while time.monotonic() < deadline and not _is_answered(parts, attempt_id):
        time.sleep(POLL_SECONDS)


def _is_answered(parts: Parts, attempt_id: str) -> bool:
    """Tried: what is scheduled again for later (the gateway said wait) counts as well."""
    now = parts.clock.now()
    with parts.reading() as session:
        attempt = session.get_one(ChargeAttempt, attempt_id)
    planned_for_later = attempt.status == AttemptStatus.SCHEDULED and attempt.scheduled_at > now
    return planned_for_later or attempt.status not in (AttemptStatus.SCHEDULED, AttemptStatus.SUBMITTED)


def _why_not_paid(invoice: Invoice, attempt: Attempt, *, why_not_begun: str) -> str | None:
    """How this attempt ended, where it brought no money and brings none any more, or has not left."""
    name, number = f"attempt {attempt.number}", invoice.number
    reason = attempt.failure_code or attempt.error or "no reason given"
    match attempt.status:
        case AttemptStatus.FAILED if attempt.decline_class == DeclineClass.OUR_FAULT:
            more = f" ({attempt.error})" if attempt.failure_code and attempt.error else ""
            return (
                f"{name} was refused by Xendit, and invoice {number} is held: {reason}{more};"
                f" put it right, then `billing invoice pay {number}`"
            )
        case AttemptStatus.FAILED:
            return (
                f"{name} was declined: {reason}; `billing invoice pay {number} --token ID` tries another payment"
                f" method, `billing explain {invoice.subscription_id}` says what happens by itself"
            )
        case AttemptStatus.CANCELED:
            return (
                f"{name} was not made: {reason}; `billing session create CUSTOMER` makes a link for another payment"
                " method, `billing token list --customer CUSTOMER` shows those there are"
            )
        case AttemptStatus.SCHEDULED:
            return (
                f"{name} has not left: {attempt.error or why_not_begun};"
                " it stays planned, and the next run or worker sends it"
            )
        case _:
            return None


def _may_still_be_paid(invoice: Invoice, attempt: Attempt) -> str | None:
    name, number = f"attempt {attempt.number}", invoice.number
    match attempt.status:
        case AttemptStatus.IN_DOUBT:
            return (
                f"{name} is in doubt: nobody knows yet whether money moved, and nothing else is charged until that is"
                f" known; `billing reconcile` asks now, `billing invoice show {number}` shows the end"
            )
        case AttemptStatus.SUBMITTED:
            return f"{name} is under way; `billing invoice show {number}` shows the end"
        case AttemptStatus.PENDING | AttemptStatus.REQUIRES_ACTION:
            return (
                f"{name} is {attempt.status}: not paid yet; its webhook or a look-up brings the end,"
                f" `billing invoice show {number}` shows it"
            )
        case _:
            return None
