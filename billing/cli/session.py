"""`billing session`: Xendit-hosted (or embedded) pages on which a customer saves a payment method or pays."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.api.arguments import Mode, Via
from billing.cli import output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.values import After, AsJson, Limit
from billing.domain.gateway import SessionMode

app = typer.Typer(no_args_is_help=True)

COLUMNS = {
    "session": "id",
    "type": "type",
    "mode": "mode",
    "status": "status",
    "expires": "expires_at",
    "link": "payment_link_url",
}


SessionName = Annotated[str, typer.Argument(metavar="ID", help="Our id, or Xendit's ps-... id.", show_default=False)]
ModeOption = Annotated[
    Mode,
    typer.Option(help="payment_link: a page at Xendit. components: a form inside your own page.", case_sensitive=False),
]


@app.command("show")
def show(name: SessionName, as_json: AsJson = False) -> None:
    """Show a payment session as we know it; `refresh` asks Xendit."""
    with opened() as billing:
        public_url = billing.settings.public_url
        output.show(billing.sessions.show(name), lambda view: people(view, public_url), as_json=as_json)


@app.command("list")
def list_(
    customer: Annotated[str | None, typer.Option(help="Of this customer only.")] = None,
    subscription: Annotated[str | None, typer.Option(help="Of this subscription only.")] = None,
    limit: Limit = None,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List payment sessions, the oldest first."""
    with opened() as billing:
        found = billing.sessions.list(customer=customer, subscription=subscription, limit=limit, after=after)
        output.show_list(found, COLUMNS, limit=limit, as_json=as_json, empty="no payment session")


@app.command("refresh")
def refresh(name: SessionName, as_json: AsJson = False) -> None:
    """Read the session from Xendit and apply what it says, as its webhook would."""
    with opened() as billing:
        public_url = billing.settings.public_url
        output.show(billing.sessions.refresh(name), lambda view: people(view, public_url), as_json=as_json)


@app.command("cancel")
def cancel(name: SessionName, as_json: AsJson = False) -> None:
    """End the session at Xendit: nobody can pay through its link any more."""
    with opened() as billing:
        public_url = billing.settings.public_url
        output.show(billing.sessions.cancel(name), lambda view: people(view, public_url), as_json=as_json)


@app.command("create")
def create(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Reference or id.", show_default=False)],
    mode: ModeOption = Mode.PAYMENT_LINK,
    subscription: Annotated[
        str | None, typer.Option(help="Start this incomplete subscription again (its session ended unpaid).")
    ] = None,
    via: Annotated[
        Via, typer.Option(help="With --subscription: save only, or pay the first period.", case_sensitive=False)
    ] = Via.SAVE,
    as_json: AsJson = False,
) -> None:
    """Make a link (or form) through which a customer adds a payment method.

    Example: billing session create ana
    """
    with opened() as billing:
        public_url = billing.settings.public_url
        found = billing.sessions.create(customer, mode=mode, subscription=subscription, via=via)
        output.show(found, lambda view: people(view, public_url), as_json=as_json)


def people(view: Json, public_url: str) -> None:
    """The session, and what to do with it now."""
    output.card(f"Payment session {view['id']}", view)
    if view["status"] != "ACTIVE":
        return
    if view["mode"] == SessionMode.COMPONENTS:
        output.say("\nThe payment form for your page (good for trying it out as well):")
        output.say(f"  {public_url}/checkout/{view['id']}")
        output.say("Embedding it yourself: hand components_sdk_key to Xendit's Components SDK.")
    else:
        output.say("\nSend the customer this link:")
        output.say(f"  {view['payment_link_url']}")
    output.say(f"Webhook late? billing session refresh {view['id']}")
