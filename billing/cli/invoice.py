"""`billing invoice`: what each period owes, with every attempt to collect it."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli import output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.values import After, AsJson, Limit
from billing.domain.lifecycle import InvoiceStatus

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
        found = billing.invoices.list(subscription=subscription, status=status, limit=limit, after=after)
        output.show_list(found, COLUMNS, limit=limit, as_json=as_json, empty="no such invoice", row=_row)


def _row(view: Json) -> Json:
    return {**view, "attempt_count": len(view["attempts"])}


@app.command("show")
def show(name: InvoiceName, as_json: AsJson = False) -> None:
    """Show one invoice with its lines, attempts and payments."""
    with opened() as billing:
        output.show(billing.invoices.show(name), _people, as_json=as_json)


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
    with opened() as billing:
        output.show(billing.invoices.pay(name, token=token), _people, as_json=as_json)


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
