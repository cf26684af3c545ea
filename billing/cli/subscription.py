"""`billing subscription`: the standing agreements, and their pauses and ends."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli import output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.values import After, AsJson, Limit
from billing.domain.lifecycle import SubscriptionStatus

app = typer.Typer(no_args_is_help=True)

COLUMNS = {
    "reference": "reference",
    "customer": "customer",
    "plan": "plan",
    "status": "status",
    "amount": "amount",
    "next billing": "next_billing_at",
}

SubscriptionName = Annotated[str, typer.Argument(metavar="ID", help="Reference or id.", show_default=False)]


@app.command("list")
def list_(
    status: Annotated[SubscriptionStatus | None, typer.Option(help="Only those.", case_sensitive=False)] = None,
    customer: Annotated[str | None, typer.Option(help="Of this customer only.")] = None,
    limit: Limit = None,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List subscriptions, the oldest first.

    Example: billing subscription list --status past_due
    """
    narrowed = status or customer or after
    empty = "no such subscription" if narrowed else "no subscription yet; see `billing subscribe --help`"
    with opened() as billing:
        found = billing.subscriptions.list(status=status, customer=customer, limit=limit, after=after)
        output.show_list(found, COLUMNS, limit=limit, as_json=as_json, empty=empty, row=_row)


def _row(view: Json) -> Json:
    return {**view, "next_billing_at": None if _ends_first(view) else view["next_billing_at"]}


@app.command("show")
def show(name: SubscriptionName, as_json: AsJson = False) -> None:
    """Show one subscription; `billing explain` tells its whole story."""
    with opened() as billing:
        output.show(billing.subscriptions.show(name), _people, as_json=as_json)


@app.command("pause")
def pause(name: SubscriptionName, as_json: AsJson = False) -> None:
    """Stop billing until it is resumed; planned retries end, too."""
    with opened() as billing:
        output.show(billing.subscriptions.pause(name), lambda view: output.say(_paused(view)), as_json=as_json)


@app.command("resume")
def resume(name: SubscriptionName, as_json: AsJson = False) -> None:
    """Go on with the next period (after a pause), or release a subscription that is on hold."""
    with opened() as billing:
        output.show(billing.subscriptions.resume(name), lambda view: output.say(_resumed(view)), as_json=as_json)


@app.command("cancel")
def cancel(
    name: SubscriptionName,
    now: Annotated[bool, typer.Option("--now", help="At once, not at the end of the period.")] = False,
    as_json: AsJson = False,
) -> None:
    """Cancel at the end of the running period, or with --now at once. A canceled subscription never comes back."""
    with opened() as billing:
        found = billing.subscriptions.cancel(name, now=now)
        output.show(found, lambda view: output.say(_canceled(view)), as_json=as_json)


@app.command("uncancel")
def uncancel(name: SubscriptionName, as_json: AsJson = False) -> None:
    """Take back a cancellation planned for the end of the period: it goes on as if nothing had been said.

    Example: billing subscription uncancel ana-gold
    """
    with opened() as billing:
        output.show(billing.subscriptions.uncancel(name), lambda view: output.say(_uncanceled(view)), as_json=as_json)


def _ends_first(view: Json) -> bool:
    """The next period would begin when it has ended: nothing is billed any more."""
    return bool(view["cancel_at_period_end"] and view["ends_at"] and not view["next_billing_at"])


def _next_billing(view: Json) -> str:
    if _ends_first(view):
        take_back = f"`billing subscription uncancel {view['reference']}` takes that back"
        return f" until it ends {output.instant(view['ends_at'])}, as was planned; {take_back}"
    return f"; next billing {output.instant(view['next_billing_at'])}" if view["next_billing_at"] else ""


def _paused(view: Json) -> str:
    name = view["reference"]
    return f"{name} is paused; nothing is charged until `billing subscription resume {name}`."


def _resumed(view: Json) -> str:
    if view["status"] == SubscriptionStatus.CANCELED:
        return _canceled(view)
    return f"{view['reference']} is {view['status']} again{_next_billing(view)}."


def _uncanceled(view: Json) -> str:
    if view["status"] == SubscriptionStatus.PAUSED:
        go_on = f"`billing subscription resume {view['reference']}` goes on"
        return f"{view['reference']} does not end any more. It is paused; {go_on}."
    return f"{view['reference']} goes on: it is {view['status']}{_next_billing(view)}."


def _canceled(view: Json) -> str:
    if view["status"] == SubscriptionStatus.CANCELED:
        return f"{view['reference']} is canceled."
    until = output.instant(view["ends_at"]) if view["ends_at"] else "at the end of its period"
    take_back = f"`billing subscription uncancel {view['reference']}` takes that back"
    return f"{view['reference']} ends {until} and is not charged again; --now ends it at once, {take_back}."


def _people(view: Json) -> None:
    output.card(f"Subscription {view['reference']}", view)
    output.say(f"\nIts story: billing explain {view['reference']}")
