"""`billing invoice`: what each period owes, with every attempt to collect it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from billing.app import App
from billing.cli import output
from billing.cli.opening import GATEWAY, opened, sender
from billing.cli.values import After, AsJson, Limit
from billing.domain.lifecycle import AttemptStatus, InvoiceStatus
from billing.errors import Conflict
from billing.services import catalog, dispatch, listings, paying, views
from billing.services.views import Json
from billing.store.models import ChargeAttempt

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
        found = listings.list_invoices(billing.parts, subscription=subscription, status=status)
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

    Refused while another attempt is unfinished, because that one may still bring the money.

    Example: billing invoice pay ana-gold-3
    """
    with opened(GATEWAY) as billing:
        with billing.parts.reading() as session:
            invoice = catalog.find_invoice(session, name)
            token_id = catalog.find_token(session, token).id if token else None
        with sender(billing) as (send, by_workers):
            attempt_id = paying.pay_invoice(billing.parts, invoice.id, token_id)
            send(dispatch.CHARGE_NOW, [attempt_id])
            if by_workers:
                _wait(billing, attempt_id)
        with billing.parts.reading() as session:
            view = views.show_invoice(session, catalog.find_invoice(session, invoice.id))
    _tell_outcome(view, attempt_id)
    output.show(view, as_json=as_json, people=lambda: _people(view))
    _refuse_if_not_made(view, attempt_id)


def _refuse_if_not_made(view: Json, attempt_id: str) -> None:
    attempt = next(attempt for attempt in view["attempts"] if attempt["id"] == attempt_id)
    if attempt["status"] == AttemptStatus.CANCELED and attempt["submitted_at"] is None:
        raise Conflict(
            f"nothing was charged: {attempt['error']};"
            f" `billing explain {view['subscription_id']}` says what can be done"
        )


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


def _tell_outcome(view: Json, attempt_id: str) -> None:
    """Beside the invoice, on stderr: how this attempt ended. A decline is a result, not an error."""
    attempt = next(attempt for attempt in view["attempts"] if attempt["id"] == attempt_id)
    match attempt["status"]:
        case AttemptStatus.SUCCEEDED:
            output.note(f"attempt {attempt['number']} succeeded")
        case AttemptStatus.CANCELED if attempt["submitted_at"] is None:
            pass  # it was not made: said at the end
        case AttemptStatus.FAILED | AttemptStatus.CANCELED:
            reason = attempt["failure_code"] or attempt["error"] or "no reason given"
            output.warn(f"attempt {attempt['number']} {attempt['status']}: {reason}")
        case AttemptStatus.IN_DOUBT:
            output.warn(f"attempt {attempt['number']} is in doubt: nothing else is charged until the truth is found")
        case AttemptStatus.SCHEDULED:
            output.warn(f"attempt {attempt['number']} waits: {attempt['error'] or 'the next run takes it up'}")
        case status:
            output.note(f"attempt {attempt['number']} is {status}; its webhook or a look-up brings the end")


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
