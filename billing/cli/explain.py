"""`billing explain`: one subscriber's whole story, and why the next charge is when it is."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli import output
from billing.cli.opening import opened
from billing.cli.values import AsJson
from billing.services import catalog
from billing.services import explain as stories
from billing.services.views import Json

COLUMNS = {"when": "at", "what": "what"}


def explain(
    subscription: Annotated[str, typer.Argument(metavar="SUBSCRIPTION", help="Reference or id.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Tell everything that happened to a subscription, and why the next charge is when it is.

    Example: billing explain ana-gold
    """
    with opened() as billing, billing.parts.sessions() as session:
        found = catalog.find_subscription(session, subscription)
        document = stories.explain(session, found, billing.parts.clock.now())
    output.show(document, as_json=as_json, people=lambda: _people(document))


def _people(document: Json) -> None:
    view, upcoming = document["subscription"], document["next"]
    output.card(f"Subscription {view['reference']}", view)
    output.say("")
    output.table(document["events"], COLUMNS, empty="nothing has happened yet")
    when = f" {output.instant(upcoming['at'])}" if upcoming.get("at") else ""
    output.say(f"\nNext:{when} {upcoming['what']}")
    output.say(f"Why:  {upcoming['why']}")
