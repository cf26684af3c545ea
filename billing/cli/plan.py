"""`billing plan`: what is sold, at what price, and when it is billed."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli import output
from billing.cli.opening import opened
from billing.cli.output import Json
from billing.cli.values import After, AsJson, Limit
from billing.domain.catch_up import CatchUp
from billing.domain.dunning import DEFAULT_POLICY, POLICIES
from billing.errors import InvalidMoney

app = typer.Typer(no_args_is_help=True)

COLUMNS = {
    "code": "code",
    "name": "name",
    "amount": "amount",
    "schedule": "schedule",
    "time zone": "timezone",
    "catch-up": "catch_up",
}


@app.command("create")
def create(
    code: Annotated[
        str, typer.Argument(metavar="CODE", help="A short name of your own, such as gold-monthly.", show_default=False)
    ],
    *,
    name: Annotated[str, typer.Option(help="What customers read on their invoice.", show_default=False)],
    amount: Annotated[str, typer.Option(help="Price in digits only: 50000, or 499.50.", show_default=False)],
    currency: Annotated[str, typer.Option(help="IDR, PHP, THB, VND, MYR, SGD ...", show_default=False)],
    every: Annotated[
        str | None, typer.Option(help="day, week, month or year; several at once: 2:week.", metavar="PERIOD")
    ] = None,
    cron: Annotated[
        str | None, typer.Option(help='Instead of --every: "minute hour day month weekday".', metavar="EXPRESSION")
    ] = None,
    timezone: Annotated[str, typer.Option(help="IANA zone whose days and hours count.")] = "Asia/Jakarta",
    trial_days: Annotated[int, typer.Option(help="Free days before the first charge.")] = 0,
    cycles: Annotated[
        int | None, typer.Option(help="How many periods are billed in all; without it, until canceled.")
    ] = None,
    catch_up: Annotated[
        CatchUp, typer.Option(help="What happens to periods missed in an outage.", case_sensitive=False)
    ] = CatchUp.ALL,
    dunning: Annotated[str, typer.Option(help=f"How declines are retried: {', '.join(POLICIES)}.")] = DEFAULT_POLICY,
    as_json: AsJson = False,
) -> None:
    """Create a plan. Its price never changes: for a new price make a new plan.

    Example: billing plan create gold --name "Gold" --amount 99000 --currency IDR --every month
    """
    with opened() as billing:
        try:
            plan = billing.plans.create(
                code,
                name=name,
                amount=amount,
                currency=currency,
                every=every,
                cron=cron,
                timezone=timezone,
                trial_days=trial_days,
                cycles=cycles,
                catch_up=catch_up,
                dunning=dunning,
            )
        except InvalidMoney as error:  # a wrong use, as any other option's value that cannot be read
            raise typer.BadParameter(str(error)) from None
        output.show(plan, _created, as_json=as_json)


def _created(view: Json) -> None:
    price = output.money(view["amount"], view["currency"])
    output.say(f"Plan {view['code']} created: {price}, {view['schedule']} ({view['timezone']}).")


@app.command("list")
def list_(limit: Limit = None, after: After = None, as_json: AsJson = False) -> None:
    """List plans, by their codes."""
    empty = "no such plan" if after else "no plan yet; `billing plan create --help` shows how to make one"
    with opened() as billing:
        found = billing.plans.list(limit=limit, after=after)
        output.show_list(found, COLUMNS, limit=limit, as_json=as_json, empty=empty)


@app.command("show")
def show(
    code: Annotated[str, typer.Argument(metavar="CODE", help="Code or id.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show one plan."""
    with opened() as billing:
        found = billing.plans.show(code)
        output.show(found, lambda view: output.card(f"Plan {view['code']}", view), as_json=as_json)
