"""`billing invoice`: what each period owes, with every attempt to collect it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from billing.app import App
from billing.charging import pay_by_hand
from billing.cli import output
from billing.cli.opening import GATEWAY, opened, sender
from billing.cli.values import After, AsJson, Limit
from billing.domain.declines import DeclineClass
from billing.domain.gateway import Lane
from billing.domain.lifecycle import AttemptStatus, InvoiceStatus
from billing.errors import Conflict, ServiceUnavailable
from billing.parts import Send
from billing.reading import lists, views
from billing.reading.views import Json
from billing.runs import tick
from billing.store.models import ChargeAttempt
from billing.subscribing import catalog

app = typer.Typer(no_args_is_help=True)

COLUMNS = {
    "number": "number",
    "status": "status",
    "amount": "amount",
    "paid": "amount_paid",
    "period from": "period_start",
    "tries": "attempt_count",
}
ATTEMPT_COLUMNS = {
    "no": "number",
    "status": "status",
    "origin": "origin",
    "planned": "scheduled_at",
    "settled": "settled_at",
    "failure": "failure_code",
    "reference": "reference_id",
    "payment": "payment_id",
}
POLL_SECONDS = 0.2
WORKERS_ANSWER_SECONDS = 60.0

InvoiceName = Annotated[str, typer.Argument(metavar="ID", help="Number or id.", show_default=False)]


@app.command("list")
def list_(
    subscription: Annotated[str | None, typer.Option(help="Of this subscription only: reference or id.")] = None,
    status: Annotated[InvoiceStatus | None, typer.Option(help="Only those.", case_sensitive=False)] = None,
    limit: Limit = None,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List invoices, the oldest first.

    Example: billing invoice list --subscription ana-gold --status open
    """
    with opened() as billing:
        found = lists.list_invoices(billing.parts, subscription=subscription, status=status)
        output.show_list(found, COLUMNS, limit=limit, after=after, as_json=as_json, empty="no such invoice", row=_row)


def _row(view: Mapping[str, Any]) -> Json:
    return {**view, "attempt_count": len(view["attempts"])}


@app.command("show")
def show(name: InvoiceName, as_json: AsJson = False) -> None:
    """Show one invoice with its lines, attempts and payments."""
    with opened() as billing, billing.parts.reading() as session:
        view = views.show_invoice(session, catalog.find_invoice(session, name))
    output.show(view, as_json=as_json, people=lambda: _people(view))


@app.command("pay")
def pay(
    name: InvoiceName,
    token: Annotated[
        str | None, typer.Option(help="Charge this token (id or pt-...); without it, the customer's first.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try to collect an invoice now. An extra attempt: it does not use up the retry ladder.

    Refused while another attempt is unfinished, because that one may still bring the money. Exit status 1 when the
    attempt was declined or did not leave, 0 when it is paid or may still be (pending, in doubt: stderr says so).

    Example: billing invoice pay ana-gold-3
    """
    with opened(GATEWAY) as billing:
        with billing.parts.reading() as session:
            invoice = catalog.find_invoice(session, name)
            token_id = catalog.find_token(session, token).id if token else None
        with sender(billing) as (send, by_workers):
            attempt_id = pay_by_hand.pay_invoice(billing.parts, invoice.id, token_id)
            _hand_over(billing, send, attempt_id)
            if by_workers:
                _wait(billing, attempt_id)
        with billing.parts.reading() as session:
            view = views.show_invoice(session, catalog.find_invoice(session, invoice.id))
    output.show(view, as_json=as_json, people=lambda: _people(view))
    nobody = "no worker has taken it up" if by_workers else "the request quota to Xendit is used up for the moment"
    _refuse_if_not_paid(view, attempt_id, why_not_begun=nobody)


def _hand_over(billing: App, send: Send, attempt_id: str) -> None:
    try:
        tick.send_charges(billing.parts, send, [(Lane.CUSTOMER, [attempt_id])])
    except ServiceUnavailable as error:
        raise ServiceUnavailable(f"the attempt is planned and has not left: {error}") from None


def _wait(billing: App, attempt_id: str) -> None:
    deadline = time.monotonic() + WORKERS_ANSWER_SECONDS
    while time.monotonic() < deadline and not _is_answered(billing, attempt_id):
        time.sleep(POLL_SECONDS)


def _is_answered(billing: App, attempt_id: str) -> bool:
    """Tried: what is scheduled again for later (the gateway said wait) counts as well."""
    now: datetime = billing.parts.clock.now()
    with billing.parts.reading() as session:
        attempt = session.get_one(ChargeAttempt, attempt_id)
    planned_for_later = attempt.status == AttemptStatus.SCHEDULED and attempt.scheduled_at > now
    return planned_for_later or attempt.status not in (AttemptStatus.SCHEDULED, AttemptStatus.SUBMITTED)


def _refuse_if_not_paid(view: Json, attempt_id: str, *, why_not_begun: str) -> None:
    """Beside the invoice, on stderr: how this attempt ended. Exit status 0 when it brought the money or still may."""
    attempt = next(attempt for attempt in view["attempts"] if attempt["id"] == attempt_id)
    name, number = f"attempt {attempt['number']}", view["number"]
    reason = attempt["failure_code"] or attempt["error"] or "no reason given"
    match attempt["status"]:
        case AttemptStatus.SUCCEEDED:
            output.note(f"{name} succeeded")
        case AttemptStatus.FAILED if attempt["decline_class"] == DeclineClass.OUR_FAULT:
            raise Conflict(
                f"{name} was refused by Xendit, and invoice {number} is held: {reason}"
                f"{_more(attempt)}; put it right, then `billing invoice pay {number}`"
            )
        case AttemptStatus.FAILED:
            raise Conflict(
                f"{name} was declined: {reason}; `billing invoice pay {number} --token ID` tries another payment"
                f" method, `billing explain {view['subscription_id']}` says what happens by itself"
            )
        case AttemptStatus.CANCELED:
            raise Conflict(
                f"{name} was not made: {reason}; `billing session create CUSTOMER` makes a link for another payment"
                " method, `billing token list --customer CUSTOMER` shows those there are"
            )
        case AttemptStatus.SCHEDULED:
            raise ServiceUnavailable(
                f"{name} has not left: {attempt['error'] or why_not_begun};"
                " it stays planned, and the next run or worker sends it"
            )
        case AttemptStatus.IN_DOUBT:
            output.warn(
                f"{name} is in doubt: nobody knows yet whether money moved, and nothing else is charged until that is"
                f" known; `billing reconcile` asks now, `billing invoice show {number}` shows the end"
            )
        case AttemptStatus.SUBMITTED:
            output.warn(f"{name} is under way; `billing invoice show {number}` shows the end")
        case status:
            output.warn(
                f"{name} is {status}: not paid yet; its webhook or a look-up brings the end,"
                f" `billing invoice show {number}` shows it"
            )


def _more(attempt: Json) -> str:
    """What was said beside the code."""
    return f" ({attempt['error']})" if attempt["failure_code"] and attempt["error"] else ""


def _people(view: Json) -> None:
    output.card(f"Invoice {view['number']}", view)
    output.some_of(view["attempts"], ATTEMPT_COLUMNS, title="Attempts")
    for capture in view["captures"]:
        paid = output.money(capture["amount"], capture["currency"])
        kind = "Overpaid" if capture["overpayment"] else "Collected"
        output.say(f"\n{kind} {paid}, {output.instant(capture['captured_at'])}, {capture['payment_id'] or '-'}")
        for refund in capture["refunds"]:
            by = ", made outside this software" if refund["made_elsewhere"] else ""
            error = f": {refund['error']}" if refund["error"] else ""
            name = refund["refund_id"] or refund["reference_id"]
            amount = output.money(refund["amount"], refund["currency"])
            output.say(f"  refund {refund['status']}, {amount}, {name}{by}{error}")
