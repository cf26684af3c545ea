"""`billing subscribe`: the start of a subscriber: a subscription, and the page on which the customer begins it, or the
saved payment method it begins on."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from billing.app import App
from billing.cli import output, session
from billing.cli.opening import GATEWAY, opened
from billing.cli.session import Mode, ModeOption, Via
from billing.cli.values import INSTANT, INSTANT_HELP, AsJson, parse_instant
from billing.domain.gateway import SessionType
from billing.domain.names import check_reference
from billing.reading.views import Json, session_view, subscription_view
from billing.store.models import Customer, Plan, Subscription
from billing.subscribing import catalog, payment_sessions


def subscribe(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Reference or id.", show_default=False)],
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="Code or id.", show_default=False)],
    *,
    via: Annotated[
        Via | None,
        typer.Option(
            help="save: store a payment method, charge it when the first period is due."
            " pay: pay the first period on the page and store the method.",
            case_sensitive=False,
            show_default=False,
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Instead of --via: start at once on this saved payment method, without a page.",
            show_default=False,
        ),
    ] = None,
    mode: ModeOption = Mode.PAYMENT_LINK,
    start_at: Annotated[
        datetime | None,
        typer.Option(parser=parse_instant, metavar=INSTANT, help=f"First period; without it, at once. {INSTANT_HELP}"),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Your own name for the subscription; without it, its id.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also when the customer has this plan, or is about to have it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Subscribe a customer to a plan: creates the subscription (incomplete) and a payment session.

    The subscription starts when the customer has been through the session; with --token at once, and the next run
    charges the first period.

    Example: billing subscribe ana gold --via save --reference ana-gold
    """
    if reference is not None:
        check_reference("subscription reference", reference)
    if via is not None and token is None:
        _with_a_page(customer, plan, via, mode, start_at, reference, again=again, as_json=as_json)
    elif token is not None and via is None:
        _with_token(customer, plan, token, start_at, reference, again=again, as_json=as_json)
    else:
        wrong = "--via and --token exclude each other" if via else "how does it begin?"
        raise typer.BadParameter(f"{wrong}; give --via save, --via pay, or --token with a saved payment method")


def _with_a_page(
    customer: str,
    plan: str,
    via: Via,
    mode: Mode,
    start_at: datetime | None,
    reference: str | None,
    *,
    again: bool,
    as_json: bool,
) -> None:
    with opened(GATEWAY) as billing:
        session.require_origins(billing.settings, mode)
        payer, wanted = _find(billing, customer, plan)
        subscription, row = payment_sessions.subscribe(
            billing.parts,
            payer,
            wanted,
            via=SessionType(via.upper()),
            mode=session.gateway_mode(mode),
            start_at=start_at,
            reference=reference,
            again=again,
        )
    session.warn_of_missing_return_urls(billing.settings, mode)
    document = _document(subscription, payer, wanted, session_view(row))

    def people() -> None:
        output.card(f"Subscription {subscription.reference}", document["subscription"])
        session.people(document["session"], billing.settings)

    output.show(document, as_json=as_json, people=people)


def _with_token(
    customer: str,
    plan: str,
    token: str,
    start_at: datetime | None,
    reference: str | None,
    *,
    again: bool,
    as_json: bool,
) -> None:
    with opened() as billing:
        payer, wanted = _find(billing, customer, plan)
        with billing.parts.reading() as database:
            saved = catalog.find_token(database, token)
        subscription = payment_sessions.subscribe_with_token(
            billing.parts, payer, wanted, saved, start_at=start_at, reference=reference, again=again
        )
    document = _document(subscription, payer, wanted, None)
    title = f"Subscription {subscription.reference}"
    output.show(document, as_json=as_json, people=lambda: output.card(title, document["subscription"]))


def _find(billing: App, customer: str, plan: str) -> tuple[Customer, Plan]:
    with billing.parts.sessions() as database:
        return catalog.find_customer(database, customer), catalog.find_plan(database, plan)


def _document(subscription: Subscription, payer: Customer, plan: Plan, opened_session: Json | None) -> Json:
    view = subscription_view(subscription, payer.reference, plan.code, subscription.payment_token_id)
    return {"subscription": view, "session": opened_session}
