"""`billing simulate`: seeded years in which everything goes wrong (billing/sandbox/simulation/)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from billing.cli import output
from billing.cli.values import AsJson
from billing.errors import BillingError
from billing.reading.views import Json

if TYPE_CHECKING:
    from billing.sandbox.simulation.runner import Totals

HISTORIES_SHOWN = 3
ENOUGH_SEEDS = 1_000  # from here on every cell of the table must have been passed


class PromiseBroken(BillingError):
    """Exit status 1, after the history."""


def simulate(
    seeds: Annotated[int, typer.Option(help="How many seeds, from --first on.", min=1, max=1_000_000)] = 100,
    first: Annotated[int, typer.Option(help="The first seed.", min=0)] = 0,
    seed: Annotated[int | None, typer.Option(help="Play this one seed again and show what led to its end.")] = None,
    subscribers: Annotated[int, typer.Option(help="Subscribers in each world.", min=1, max=50)] = 2,
    processes: Annotated[int | None, typer.Option(help="Processes; one a core if not given.", min=1, max=64)] = None,
    require_coverage: Annotated[
        bool | None,
        typer.Option(
            "--require-coverage/--no-require-coverage",
            help="Fail when something was never passed through; on from 1,000 seeds on if not given.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Live through seeded years in which everything goes wrong, and see that nobody is charged twice or forgotten.

    Brings its own PostgreSQL; touches no database and no account of yours. Processes die at every step, answers are
    lost, webhooks come late, twice or never, clocks jump. A seed that breaks a promise prints its history, and
    --seed plays it again, step by step. The table at the end says what was drawn and which moves, declines, orders of
    events and policies these years have passed through.

    Example: billing simulate --seeds 1000
    """
    from billing.sandbox.simulation.runner import simulate as live_through  # noqa: PLC0415 - only this command needs it

    chosen = [seed] if seed is not None else range(first, first + seeds)
    with output.progress("years") as moved:

        def follow(totals: Totals) -> None:
            moved(totals.years + len(totals.failures), len(chosen))

        totals = live_through(chosen, subscribers=subscribers, processes=processes, progress=follow)
    document = _document(totals)
    if as_json:
        output.print_json(document)
    else:
        _people(document)
    _judge(
        totals,
        len(chosen),
        alone=subscribers == 1,
        required=len(chosen) >= ENOUGH_SEEDS if require_coverage is None else require_coverage,
    )


def _judge(totals: Totals, seeds: int, *, alone: bool, required: bool) -> None:
    """Raises PromiseBroken: for a seed that broke one, or for a simulation that has not seen enough."""
    if totals.failures:
        raise PromiseBroken(f"{len(totals.failures)} of {seeds} seeds broke a promise; --seed N plays one again")
    from billing.sandbox.simulation import coverage  # noqa: PLC0415 - as above

    empty = coverage.empty_cells(totals.coverage, alone=alone)
    if required and empty:
        named = "; ".join(f"{what}: {cell}" for what, cell in empty)
        raise PromiseBroken(f"{len(empty)} of the cells were never passed in {seeds} seeds: {named}")


def _document(totals: Totals) -> Json:
    from billing.sandbox.simulation import coverage  # noqa: PLC0415 - as above

    return {
        "seeds": totals.years + len(totals.failures),
        "subscriber_years": totals.subscriber_years,
        "steps": totals.steps,
        "charges": totals.charges,
        "collected": totals.collected,
        "refunded": totals.refunded,
        "seconds": round(totals.seconds, 1),
        "subscriber_years_per_second": round(totals.subscriber_years / totals.seconds, 1) if totals.seconds else None,
        "faults": dict(totals.faults.most_common()),
        "coverage": coverage.as_rows(totals.coverage),
        "failures": totals.failures,
    }


def _people(document: Json) -> None:
    for history in document["failures"][:HISTORIES_SHOWN]:
        output.say(f"{history}\n")
    shown = {name: value for name, value in document.items() if name not in ("faults", "coverage", "failures")}
    output.card("simulated", shown)
    faults = [{"fault": name.replace("_", " "), "count": count} for name, count in document["faults"].items()]
    output.say("")
    output.table(faults, {"fault": "fault", "happened": "count"}, empty="nothing went wrong in these years")
    output.say("")
    passed = [row | {"count": row["count"] or "-"} for row in document["coverage"]]
    output.table(passed, {"passed": "what", "": "cell", "times": "count", "note": "note"}, empty="nothing was passed")
