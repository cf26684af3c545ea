"""`billing demo`: a whole subscriber base lived through (billing/sandbox/demo/), with nothing to install."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli.values import AsJson


def demo(
    customers: Annotated[
        int | None, typer.Option(help="How many subscribers; 100 if not given.", min=1, max=5_000)
    ] = None,
    months: Annotated[int | None, typer.Option(help="How many months; 12 if not given.", min=1, max=60)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed tells the same story.", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Live through some months of billing against the built-in Xendit simulator.

    Brings its own servers; touches no database and no account of yours. Example: billing demo --customers 30 --months 3
    """
    from billing.sandbox.demo import run_demo  # noqa: PLC0415 - the demo's rooms are opened only for the demo

    raise typer.Exit(run_demo(customers=customers, months=months, seed=seed, as_json=as_json))
