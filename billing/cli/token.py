"""`billing token`: saved payment methods."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.charging import tokens
from billing.cli import output
from billing.cli.opening import GATEWAY, opened
from billing.cli.values import After, AsJson, Limit
from billing.reading import lists
from billing.reading.views import Json
from billing.store import queries
from billing.subscribing import catalog

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
    with opened() as billing:
        found = lists.list_tokens(billing.parts, customer)
        empty = "no such payment method" if after else start
        output.show_list(found, COLUMNS, limit=limit, after=after, as_json=as_json, empty=empty)


@app.command("refresh")
def refresh(name: TokenName, as_json: AsJson = False) -> None:
    """Read the token from Xendit and store what it says."""
    with opened(GATEWAY) as billing:
        with billing.parts.reading() as session:
            token = catalog.find_token(session, name)
        tokens.refresh_token(billing.parts, token.payment_token_id)
        with billing.parts.reading() as session:
            view = lists.show_token(session, token.id)
    if view["unknown_since"] is not None:
        output.warn(tokens.unknown_in_words(token))
    output.show(view, as_json=as_json, people=lambda: _one(view))


@app.command("cancel")
def cancel(name: TokenName, as_json: AsJson = False) -> None:
    """Cancel the token at Xendit: it can never be charged again."""
    with opened(GATEWAY) as billing:
        with billing.parts.reading() as session:
            token = catalog.find_token(session, name)
        tokens.cancel_token(billing.parts, token.id)
        with billing.parts.reading() as session:
            view = lists.show_token(session, token.id)
            left = queries.without_token(session, token.customer_id)
    if left:
        output.warn(
            f"no payment method is left for {', '.join(left)};"
            f" `billing session create {view['customer']}` makes a link for another"
        )
    output.show(view, as_json=as_json, people=lambda: _one(view))


@app.command("unblock")
def unblock(name: TokenName, as_json: AsJson = False) -> None:
    """Undo what keeps us from charging it: a block after a decline, a replacement, an unknown token.

    What waits for a payment method is tried with it by the next run. What Xendit itself has ended stays ended.
    """
    with opened() as billing, billing.parts.transaction() as session:
        token = catalog.find_token(session, name)
        undone = tokens.unblock(session, token, billing.parts.clock.now())
        session.flush()
        view = lists.show_token(session, token.id)
    output.note(f"undone: {'; '.join(undone)}")
    output.show(view, as_json=as_json, people=lambda: _one(view))


@app.command("prefer")
def prefer(name: TokenName, as_json: AsJson = False) -> None:
    """Make it the first to be charged, for all of the customer's subscriptions."""
    with opened() as billing, billing.parts.transaction() as session:
        token = catalog.find_token(session, name)
        tokens.make_first(session, token, billing.parts.clock.now())
        session.flush()
        view = lists.show_token(session, token.id)
    output.show(view, as_json=as_json, people=lambda: _one(view))


def _one(view: Json) -> None:
    output.card(f"Payment token {view['payment_token_id']}", view)
