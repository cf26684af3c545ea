"""`billing subscribe`: the start of a subscriber: a subscription, and the page on which the customer begins it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from billing.cli import output, session
from billing.cli.opening import GATEWAY, opened
from billing.cli.session import Mode, ModeOption, Via
from billing.cli.values import INSTANT, INSTANT_HELP, AsJson, parse_instant
from billing.domain.gateway import SessionType
from billing.domain.names import check_reference
from billing.services import catalog, onboarding
from billing.services.views import session_view, subscription_view


def subscribe(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Reference or id.", show_default=False)],
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="Code or id.", show_default=False)],
    *,
    via: Annotated[
        Via,
        typer.Option(
            help="save: store a payment method, charge it when the first period is due."
            " pay: pay the first period on the page and store the method.",
            case_sensitive=False,
            show_default=False,
        ),
    ],
    mode: ModeOption = Mode.PAYMENT_LINK,
    start_at: Annotated[
        datetime | None,
        typer.Option(parser=parse_instant, metavar=INSTANT, help=f"First period; without it, at once. {INSTANT_HELP}"),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Your own name for the subscription; without it, its id.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Subscribe a customer to a plan: creates the subscription (incomplete) and a payment session.

    The subscription starts when the customer has been through the session.

    Example: billing subscribe ana gold --via save --reference ana-gold
    """
    if reference is not None:
        check_reference("subscription reference", reference)
    with opened(GATEWAY) as billing:
        session.require_origins(billing.settings, mode)
        with billing.parts.sessions() as database:
            payer = catalog.find_customer(database, customer)
            wanted = catalog.find_plan(database, plan)
        subscription, row = onboarding.subscribe(
            billing.parts,
            payer,
            wanted,
            via=SessionType(via.upper()),
            mode=session.gateway_mode(mode),
            start_at=start_at,
            reference=reference,
        )
    session.warn_of_missing_return_urls(billing.settings, mode)
    document = {
        "subscription": subscription_view(subscription, payer.reference, wanted.code),
        "session": session_view(row),
    }

    def people() -> None:
        output.card(f"Subscription {subscription.reference}", document["subscription"])
        session.people(document["session"], billing.settings)

    output.show(document, as_json=as_json, people=people)
