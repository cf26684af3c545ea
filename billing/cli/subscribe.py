"""`billing subscribe`: the start of a subscriber: a subscription, and the page on which the customer begins it, or the
saved payment method it begins on."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from billing.api.arguments import Mode, Via
from billing.cli import output, session
from billing.cli.opening import opened
from billing.cli.session import ModeOption
from billing.cli.values import INSTANT, INSTANT_HELP, AsJson, parse_instant


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
    with opened() as billing:
        begun = billing.subscribe(
            customer, plan, via=via, token=token, mode=mode, start_at=start_at, reference=reference, again=again
        )
        public_url = billing.settings.public_url
        output.show(begun, lambda view: _people(view, public_url), as_json=as_json)


def _people(view: output.Json, public_url: str) -> None:
    output.card(f"Subscription {view['subscription']['reference']}", view["subscription"])
    if view["session"] is not None:
        session.people(view["session"], public_url)
