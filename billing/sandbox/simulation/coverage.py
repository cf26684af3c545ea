"""What the years of a simulation have passed through, as a table: what was drawn, every move of a status, every class
of decline, every order of events, every policy that had something to decide.

A simulation that never comes past a place proves nothing about it. With many seeds an empty cell is a failure; a move
that no year can make is named in `CANNOT_HAPPEN`, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from billing.domain.declines import DeclineClass
from billing.domain.lifecycle import ATTEMPT_MOVES, INVOICE_MOVES, SUBSCRIPTION_MOVES
from billing.sandbox.simulation import guards, population

if TYPE_CHECKING:
    from billing.sandbox.simulation.play import Play

Cell = tuple[str, str]  # what is covered, and which of it
Counts = Counter[Cell]

ORDERS = ("answer before webhook", "webhook before answer", "webhook lost")
SOURCES = ("answer", "webhook", "lookup")
ELSEWHERE = ("whole", "part", "webhook lost")
DECLINES = (*(str(cls) for cls in DeclineClass), "not_sent")
CATCH_UPS = tuple(name for name, _ in population.CATCH_UPS)
DUNNINGS = tuple(name for name, _ in population.DUNNINGS)
OF_NEIGHBOURS = frozenset({"drawn: second subscriber"})
_MOVES: Mapping[str, tuple[str, Mapping[Any, frozenset[Any]]]] = {
    "subscriptions": ("subscription", SUBSCRIPTION_MOVES),
    "invoices": ("invoice", INVOICE_MOVES),
    "charge_attempts": ("attempt", ATTEMPT_MOVES),
}
# Legal moves that no simulated year makes.
CANNOT_HAPPEN: Mapping[Cell, str] = {
    ("subscription", "trialing -> past_due"): "opening ends the trial first; only an old worker does both in one step",
    ("attempt", "scheduled -> succeeded"): "only when Xendit has done what its own answer said it had not",
    ("attempt", "scheduled -> failed"): "only when Xendit has done what its own answer said it had not",
    ("attempt", "submitted -> canceled"): "nobody cancels a charge that is unanswered; Xendit's dashboard could",
    ("attempt", "in_doubt -> canceled"): "nobody cancels a charge that is in doubt; Xendit's dashboard could",
    ("attempt", "in_doubt -> requires_action"): "Xendit lists no charge that waits for its customer: its id is unknown",
}


def cells() -> Iterator[Cell]:
    """Every cell of the table, in the order it is shown."""
    yield from ((f"drawn: {kind}", option) for kind, option in population.options())
    for name, moves in _MOVES.values():
        yield from ((name, _move(old, new)) for old, news in moves.items() for new in _in_order(moves, news))
    yield from (("refund in the dashboard", kind) for kind in ELSEWHERE)
    yield from (("decline class", cls) for cls in DECLINES)
    yield from (("order", order) for order in ORDERS)
    yield from (("told first by", source) for source in SOURCES)
    yield from (("catch-up decides", policy) for policy in CATCH_UPS)
    yield from (("dunning decides", policy) for policy in DUNNINGS)
    yield from (("catch-up decides x dunning", f"{one} x {other}") for one in CATCH_UPS for other in DUNNINGS)


def _in_order(moves: Mapping[Any, frozenset[Any]], news: frozenset[Any]) -> list[StrEnum]:
    return [status for status in moves if status in news]


def _move(old: str, new: str) -> str:
    return f"{old} -> {new}"


def of_year(play: Play) -> Counts:
    """What one year has passed; asked at its end."""
    counts: Counts = Counter({(f"drawn: {kind}", option): count for (kind, option), count in play.fate.drawn.items()})
    counts += Counter({("order", order): count for order, count in play.heard.items()})
    counts += Counter(("refund in the dashboard", kind) for kinds in play.people.refunds.values() for kind in kinds)
    with play.engine.connect() as connection:
        counts += _moves(connection)
        counts += _pairs("decline class", connection, _DECLINES)
        counts += _pairs("told first by", connection, _SOURCES)
        for row in connection.execute(_POLICIES):
            counts["catch-up decides", row.catch_up] += row.caught_up
            counts["dunning decides", row.dunning] += row.dunned
            counts["catch-up decides x dunning", f"{row.catch_up} x {row.dunning}"] += row.caught_up
    return counts


def _moves(connection: Connection) -> Counts:
    rows = connection.execute(text(f"SELECT name, old, new, count(*) FROM {guards.MOVES_TABLE} GROUP BY 1, 2, 3"))  # noqa: S608 - our own name
    return Counter({(_MOVES[name][0], _move(old, new)): count for name, old, new, count in rows})


def _pairs(what: str, connection: Connection, query: Any) -> Counts:
    return Counter({(what, row[0]): row[1] for row in connection.execute(query)})


def empty_cells(counts: Counts, *, alone: bool = False) -> list[Cell]:
    """What should have been passed and was not. `alone`: one subscriber in each world, who has no neighbour."""
    left_out = set(CANNOT_HAPPEN) | {cell for cell in cells() if alone and cell[0] in OF_NEIGHBOURS}
    return [cell for cell in cells() if not counts[cell] and cell not in left_out]


def as_rows(counts: Counts) -> list[dict[str, Any]]:
    """The table: every cell, in order; then whatever was passed that the table has no cell for."""
    known = list(cells())
    others = sorted(cell for cell in counts if cell not in set(known) and counts[cell])
    return [
        {"what": what, "cell": cell, "count": counts[what, cell], "note": CANNOT_HAPPEN.get((what, cell), "")}
        for what, cell in [*known, *others]
    ]


_DECLINES = text("SELECT decline_class, count(*) FROM charge_attempts WHERE decline_class IS NOT NULL GROUP BY 1")
_SOURCES = text(
    "SELECT detail ->> 'source', count(*) FROM facts"
    " WHERE kind = 'invoice.paid' AND detail ->> 'source' IS NOT NULL GROUP BY 1"
)
# A policy decides where there is something to decide: more than one period due, or a charge that failed.
_POLICIES = text("""
    SELECT p.catch_up, p.dunning, EXISTS (
        SELECT 1 FROM invoices one JOIN invoices other
            ON other.subscription_id = one.subscription_id AND other.opened_at = one.opened_at AND other.id <> one.id
        WHERE one.subscription_id = s.id
    ) OR EXISTS (
        SELECT 1 FROM skipped_periods k WHERE k.subscription_id = s.id AND k.reason LIKE 'missed%'
    ) OR EXISTS (
        SELECT 1 FROM facts f WHERE f.subscription_id = s.id AND f.kind = 'subscription.held'
    ) AS caught_up, EXISTS (
        SELECT 1 FROM charge_attempts a WHERE a.subscription_id = s.id AND a.status = 'failed' AND a.origin <> 'session'
            AND a.decline_class IS NOT NULL
    ) AS dunned
    FROM subscriptions s JOIN plans p ON p.id = s.plan_id
""")
