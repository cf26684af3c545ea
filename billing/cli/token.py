"""`billing token`: saved payment methods."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli import output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.values import After, AsJson, Limit

app = typer.Typer(no_args_is_help=True)

COLUMNS = {
    "token": "payment_token_id",
    "status": "status",
    "channel": "channel_code",
    "card": "card_last4",
    "expires": "card_expiry",
    "network": "network",
    "verified": "verified",
    "blocked": "blocked_reason",
    "replaced": "replaced_at",
}

TokenName = Annotated[str, typer.Argument(metavar="ID", help="Our id, or Xendit's pt-... id.", show_default=False)]


@app.command("list")
def list_(
    customer: Annotated[str, typer.Option(help="Whose: reference or id.", show_default=False)],
    limit: Limit = None,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List the saved payment methods of a customer, the first to be charged on top.

    Example: billing token list --customer ana
    """
    start = f"no payment method saved; `billing session create {customer}` makes a link for one"
    empty = "no such payment method" if after else start
    with opened() as billing:
        found = billing.tokens.list(customer, limit=limit, after=after)
        output.show_list(found, COLUMNS, limit=limit, as_json=as_json, empty=empty)


@app.command("refresh")
def refresh(name: TokenName, as_json: AsJson = False) -> None:
    """Read the token from Xendit and store what it says."""
    with opened() as billing:
        output.show(billing.tokens.refresh(name), _one, as_json=as_json)


@app.command("cancel")
def cancel(name: TokenName, as_json: AsJson = False) -> None:
    """Cancel the token at Xendit: it can never be charged again."""
    with opened() as billing:
        output.show(billing.tokens.cancel(name), _one, as_json=as_json)


@app.command("unblock")
def unblock(name: TokenName, as_json: AsJson = False) -> None:
    """Undo what keeps us from charging it: a block after a decline, a replacement, an unknown token.

    What waits for a payment method is tried with it by the next run. What Xendit itself has ended stays ended.
    """
    with opened() as billing:
        output.show(billing.tokens.unblock(name), _one, as_json=as_json)


@app.command("prefer")
def prefer(name: TokenName, as_json: AsJson = False) -> None:
    """Make it the first to be charged, for all of the customer's subscriptions."""
    with opened() as billing:
        output.show(billing.tokens.prefer(name), _one, as_json=as_json)


def _one(view: Json) -> None:
    output.card(f"Payment token {view['payment_token_id']}", view)
