"""`billing demo`: a whole subscriber base lived through (billing/demo.py), with nothing to install."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli.values import AsJson


def demo(
    customers: Annotated[int, typer.Option(help="How many subscribers.", min=1, max=5_000)] = 60,
    months: Annotated[int, typer.Option(help="How many months are lived through.", min=1, max=60)] = 6,
    seed: Annotated[int, typer.Option(help="The same seed tells the same story.", min=0)] = 1,
    as_json: AsJson = False,
) -> None:
    """Live through some months of billing against the built-in Xendit simulator.

    Brings its own PostgreSQL; touches no database and no account of yours.
    """
    from billing.demo import run_demo  # noqa: PLC0415 - the demo's rooms are opened only for the demo

    raise typer.Exit(run_demo(customers=customers, months=months, seed=seed, as_json=as_json))
