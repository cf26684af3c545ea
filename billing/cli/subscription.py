"""`billing subscription`: the standing agreements, and their pauses and ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from billing.app import App
from billing.cli import output
from billing.cli.opening import opened
from billing.cli.values import After, AsJson, Limit
from billing.domain.lifecycle import SubscriptionStatus
from billing.reading import lists, views
from billing.reading.views import Json
from billing.store.models import Plan, Subscription
from billing.subscribing import catalog, session_results
from billing.subscriptions import moves

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
Move = Callable[[Session, Subscription, datetime], None]


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
        found = lists.list_subscriptions(billing.parts, status=status, customer=customer)
        output.show_list(found, COLUMNS, limit=limit, after=after, as_json=as_json, empty=empty, row=_row)


def _row(view: Mapping[str, Any]) -> Json:
    return {**view, "next_billing_at": None if _ends_first(view) else view["next_billing_at"]}


@app.command("show")
def show(name: SubscriptionName, as_json: AsJson = False) -> None:
    """Show one subscription; `billing explain` tells its whole story."""
    with opened() as billing, billing.parts.reading() as session:
        view = views.show_subscription(session, catalog.find_subscription(session, name))
    output.show(view, as_json=as_json, people=lambda: _people(view))


@app.command("pause")
def pause(name: SubscriptionName, as_json: AsJson = False) -> None:
    """Stop billing until it is resumed; planned retries end, too."""
    with opened() as billing:
        view = _move(billing, name, moves.pause)
    done = f"{view['reference']} is paused; nothing is charged until `billing subscription resume {view['reference']}`."
    output.show(view, as_json=as_json, people=lambda: output.say(done))


@app.command("resume")
def resume(name: SubscriptionName, as_json: AsJson = False) -> None:
    """Go on with the next period (after a pause), or release a subscription that is on hold."""
    with opened() as billing:
        view = _move(billing, name, _resume)
    output.show(view, as_json=as_json, people=lambda: output.say(_resumed(view)))


@app.command("cancel")
def cancel(
    name: SubscriptionName,
    now: Annotated[bool, typer.Option("--now", help="At once, not at the end of the period.")] = False,
    as_json: AsJson = False,
) -> None:
    """Cancel at the end of the running period, or with --now at once. A canceled subscription never comes back."""

    def move(session: Session, subscription: Subscription, at: datetime) -> None:
        moves.cancel(session, subscription, at, at_once=now, reason="by request")

    with opened() as billing:
        view = _move(billing, name, move)
        if view["status"] == SubscriptionStatus.CANCELED and billing.settings.secret_key:
            session_results.cancel_open_sessions(billing.parts, view["id"])
    output.show(view, as_json=as_json, people=lambda: output.say(_canceled(view)))


@app.command("uncancel")
def uncancel(name: SubscriptionName, as_json: AsJson = False) -> None:
    """Take back a cancellation planned for the end of the period: it goes on as if nothing had been said.

    Example: billing subscription uncancel ana-gold
    """
    with opened() as billing:
        view = _move(billing, name, _uncancel)
    output.show(view, as_json=as_json, people=lambda: output.say(_uncanceled(view)))


def _move(billing: App, name: str, move: Move) -> Json:
    """Find, lock, move, show: one transaction."""
    now = billing.parts.clock.now()
    with billing.parts.transaction() as session:
        found = catalog.find_subscription(session, name)
        subscription = moves.lock_subscription(session, found.id)
        move(session, subscription, now)
        session.flush()
        return views.show_subscription(session, subscription)


def _resume(session: Session, subscription: Subscription, now: datetime) -> None:
    moves.resume(session, subscription, session.get_one(Plan, subscription.plan_id), now)


def _uncancel(session: Session, subscription: Subscription, now: datetime) -> None:
    moves.uncancel(session, subscription, session.get_one(Plan, subscription.plan_id), now)


def _ends_first(view: Mapping[str, Any]) -> bool:
    """The next period would begin when it has ended: nothing is billed any more."""
    return bool(view["cancel_at_period_end"] and view["ends_at"] and not view["next_billing_at"])


def _next_billing(view: Json) -> str:
    if _ends_first(view):
        take_back = f"`billing subscription uncancel {view['reference']}` takes that back"
        return f" until it ends {output.instant(view['ends_at'])}, as was planned; {take_back}"
    return f"; next billing {output.instant(view['next_billing_at'])}" if view["next_billing_at"] else ""


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
