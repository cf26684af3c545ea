"""`billing explain`: one subscriber's whole story, and why the next charge is when it is."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from billing.cli import output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.values import AsJson
from billing.domain.schedule import stored_zone

COLUMNS = {"when": "when", "what": "what"}


def explain(
    subscription: Annotated[str, typer.Argument(metavar="SUBSCRIPTION", help="Reference or id.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Tell everything that happened to a subscription, and why the next charge is when it is.

    Example: billing explain ana-gold
    """
    with opened() as billing:
        output.show(billing.explain(subscription), _people, as_json=as_json)


def _people(document: Json) -> None:
    output.card(f"Subscription {document['subscription']['reference']}", document["subscription"])
    output.say("")
    zone = stored_zone(document["subscription"]["timezone"])
    rows = [{"when": _local(event["at"], zone), "what": event["what"]} for event in document["events"]]
    output.table(rows, COLUMNS, empty="nothing has happened yet")
    _upcoming("Next", document["next"], zone)
    if document["then"]:
        _upcoming("Then", document["then"], zone)


def _upcoming(title: str, upcoming: Json, zone: ZoneInfo) -> None:
    when = f", {_local(upcoming['at'], zone)}" if upcoming["at"] else ""
    output.say(f"\n{title}: {upcoming['what']}{when}")
    output.say(f"  {upcoming['why']}")


def _local(at: str, zone: ZoneInfo) -> str:
    """As the story's own words have it: on the subscription's wall clock."""
    return datetime.fromisoformat(at).astimezone(zone).isoformat(" ", "minutes")
