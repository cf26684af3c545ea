"""`billing session`: Xendit-hosted (or embedded) pages on which a customer saves a payment method or pays."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import typer

from billing.cli import output
from billing.cli.opening import GATEWAY, opened
from billing.cli.values import After, AsJson, Limit
from billing.domain.gateway import SessionMode, SessionType
from billing.errors import InvalidSetting
from billing.reading import lists
from billing.reading.views import Json, session_view
from billing.settings import Settings
from billing.subscribing import catalog, payment_sessions, session_results

app = typer.Typer(no_args_is_help=True)

COLUMNS = {
    "session": "id",
    "type": "type",
    "mode": "mode",
    "status": "status",
    "expires": "expires_at",
    "link": "payment_link_url",
}


class Mode(StrEnum):
    PAYMENT_LINK = "payment_link"
    COMPONENTS = "components"


class Via(StrEnum):
    SAVE = "save"
    PAY = "pay"


SessionName = Annotated[str, typer.Argument(metavar="ID", help="Our id, or Xendit's ps-... id.", show_default=False)]
ModeOption = Annotated[
    Mode,
    typer.Option(help="payment_link: a page at Xendit. components: a form inside your own page.", case_sensitive=False),
]


@app.command("show")
def show(name: SessionName, as_json: AsJson = False) -> None:
    """Show a payment session as we know it; `refresh` asks Xendit."""
    with opened() as billing, billing.parts.reading() as session:
        view = session_view(catalog.find_session(session, name))
    output.show(view, as_json=as_json, people=lambda: people(view, billing.settings))


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
        found = lists.list_sessions(billing.parts, subscription=subscription, customer=customer)
        output.show_list(found, COLUMNS, limit=limit, after=after, as_json=as_json, empty="no payment session")


@app.command("refresh")
def refresh(name: SessionName, as_json: AsJson = False) -> None:
    """Read the session from Xendit and apply what it says, as its webhook would."""
    with opened(GATEWAY) as billing:
        with billing.parts.reading() as session:
            found = catalog.find_session(session, name)
        view = session_view(session_results.refresh_session(billing.parts, found.id))
    output.show(view, as_json=as_json, people=lambda: people(view, billing.settings))


@app.command("cancel")
def cancel(name: SessionName, as_json: AsJson = False) -> None:
    """End the session at Xendit: nobody can pay through its link any more."""
    with opened(GATEWAY) as billing:
        with billing.parts.reading() as session:
            found = catalog.find_session(session, name)
        view = session_view(session_results.cancel_session(billing.parts, found.id))
    output.show(view, as_json=as_json, people=lambda: people(view, billing.settings))


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
    with opened(GATEWAY) as billing:
        require_origins(billing.settings, mode)
        with billing.parts.reading() as session:
            payer = catalog.find_customer(session, customer)
            started = catalog.find_subscription(session, subscription) if subscription else None
        if started is not None and started.customer_id != payer.id:
            raise typer.BadParameter(f"subscription {subscription} belongs to another customer")
        row = payment_sessions.open_session(
            billing.parts, payer, mode=gateway_mode(mode), subscription=started, via=SessionType(via.upper())
        )
        view = session_view(row)
    warn_of_missing_return_urls(billing.settings, mode)
    output.show(view, as_json=as_json, people=lambda: people(view, billing.settings))


def gateway_mode(mode: Mode) -> SessionMode:
    return SessionMode(mode.upper())


def require_origins(settings: Settings, mode: Mode) -> None:
    """Xendit's form works only on pages it was told of, and those must be https."""
    if mode == Mode.COMPONENTS and not _https((*settings.components_origins, settings.public_url)):
        raise InvalidSetting(
            "BILLING_COMPONENTS_ORIGINS: not set; name the https pages that hold the form, for example"
            " BILLING_COMPONENTS_ORIGINS=https://shop.example.com"
        )


def _https(urls: Iterable[str]) -> bool:
    return any(url.startswith("https://") for url in urls)


def warn_of_missing_return_urls(settings: Settings, mode: Mode) -> None:
    if mode == Mode.PAYMENT_LINK and settings.return_base is None:
        output.warn(
            "BILLING_PUBLIC_URL is not https, which Xendit insists on: the session has no return URLs,"
            " so customers are not sent back to your site"
        )


def people(view: Json, settings: Settings) -> None:
    """The session, and what to do with it now."""
    output.card(f"Payment session {view['id']}", view)
    if view["status"] != "ACTIVE":
        return
    if view["mode"] == SessionMode.COMPONENTS:
        output.say("\nThe payment form for your page (good for trying it out as well):")
        output.say(f"  {settings.public_url}/checkout/{view['id']}")
        output.say("Embedding it yourself: hand components_sdk_key to Xendit's Components SDK.")
    else:
        output.say("\nSend the customer this link:")
        output.say(f"  {view['payment_link_url']}")
    output.say(f"Webhook late? billing session refresh {view['id']}")
