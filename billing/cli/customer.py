"""`billing customer`: who pays."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli import output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.token import COLUMNS as TOKEN_COLUMNS
from billing.cli.values import After, AsJson, Limit

app = typer.Typer(no_args_is_help=True)

COLUMNS = {
    "reference": "reference",
    "name": "name",
    "email": "email",
    "country": "country",
    "time zone": "timezone",
    "tokens": "token_count",
}


@app.command("create")
def create(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="Your own name for them, such as cust-1001.", show_default=False)
    ],
    *,
    name: Annotated[str, typer.Option(help="Full name.", show_default=False)],
    email: Annotated[str, typer.Option(help="Where Xendit writes to.", show_default=False)],
    country: Annotated[str, typer.Option(help="Two letters: ID, PH, VN, TH, MY, SG ...", show_default=False)],
    mobile: Annotated[str | None, typer.Option(help="International form: +628123456789.")] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA zone; without it that of the country's capital.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a customer here. Xendit learns of them with the first payment session.

    Example: billing customer create ana --name "Ana Putri" --email ana@example.com --country ID
    """
    text = f"Customer {reference} created. Next: billing subscribe {reference} PLAN --via save"
    with opened() as billing:
        found = billing.customers.create(
            reference, name=name, email=email, country=country, mobile=mobile, timezone=timezone
        )
        output.show(found, lambda _: output.say(text), as_json=as_json)


@app.command("update")
def update(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="Reference or id.", show_default=False)],
    *,
    name: Annotated[str | None, typer.Option(help="Full name.", show_default=False)] = None,
    email: Annotated[str | None, typer.Option(help="Where Xendit writes to.", show_default=False)] = None,
    country: Annotated[str | None, typer.Option(help="Two letters; the time zone stays.", show_default=False)] = None,
    mobile: Annotated[str | None, typer.Option(help="International; '' removes it.", show_default=False)] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA zone.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Change what is given, and nothing else.

    Subscriptions keep the time zone they began with. A customer whom Xendit knows already keeps the old name and mail
    there, because Xendit has no way to change them.

    Example: billing customer update ana --email ana.putri@example.com
    """
    with opened() as billing:
        found = billing.customers.update(
            reference, name=name, email=email, country=country, mobile=mobile, timezone=timezone
        )
        output.show(found, lambda view: output.card(f"Customer {view['reference']}", view), as_json=as_json)


@app.command("list")
def list_(limit: Limit = None, after: After = None, as_json: AsJson = False) -> None:
    """List customers with their saved payment methods, by their references."""
    empty = "no such customer" if after else "no customer yet; `billing customer create --help` shows how to make one"
    with opened() as billing:
        found = billing.customers.list(limit=limit, after=after)
        output.show_list(found, COLUMNS, limit=limit, as_json=as_json, empty=empty, row=_row)


def _row(view: Json) -> Json:
    return {**view, "token_count": len(view["tokens"])}


@app.command("show")
def show(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="Reference, id, or Xendit's cust-... id.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Show one customer with the saved payment methods."""
    with opened() as billing:
        output.show(billing.customers.show(reference), _people, as_json=as_json)


def _people(view: Json) -> None:
    output.card(f"Customer {view['reference']}", view)
    output.some_of(view["tokens"], TOKEN_COLUMNS, title="Payment tokens, the first to be charged on top")
