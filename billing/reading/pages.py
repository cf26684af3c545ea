"""Lists of any length, read page by page. Read only; used by reading/lists.py and runs/report.py.

A page is a read of its own, and no transaction is open while its entries are shown: a slow reader (a pager, a full
disk, a network) would keep one open for minutes, which the database ends after seconds. Pages follow each other by
the key of the last row, so that the hundredth costs as much as the first. What is written meanwhile may or may not
be seen; nothing else is left out and nothing comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, Select, func, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from billing.parts import Parts
from billing.reading.views import Json

PAGE = 500  # rows held at once

Shape = Callable[[Session, Sequence[Row[Any]]], list[Json]]


@dataclass(frozen=True, slots=True)
class Listing:
    """One list: what is in it, in which order, and how its rows look.

    `key`: columns of the first entity of `query` that order it and that no two rows share. `shape` may read what
    belongs to the rows of a page, in a statement for all of them. `find` reads a row by its id or reference. `after`:
    the key behind which to begin.
    """

    parts: Parts
    query: Select[Any]
    key: Sequence[InstrumentedAttribute[Any]]
    shape: Shape
    find: Callable[[Session, str], object]
    newest_first: bool = False
    after: tuple[Any, ...] | None = None
    most_at_once: int | None = None  # for rows that are dear to shape

    def entries(self, limit: int | None = None) -> Iterator[Json]:
        """The entries in their order, at most `limit`."""
        size = min(PAGE, self.most_at_once or PAGE)
        rest, left = self, limit
        while left is None or left > 0:
            wanted = size if left is None else min(size, left)
            shaped, last = rest._page(wanted)
            yield from shaped
            if len(shaped) < wanted:
                return
            rest = replace(rest, after=last)
            left = None if left is None else left - len(shaped)

    def count(self) -> int:
        """How many entries there are."""
        counted = self._beginning().order_by(None).with_only_columns(func.count(), maintain_column_froms=True)
        with self.parts.reading() as session:
            return session.scalar(counted) or 0

    def behind(self, name: str | None) -> Listing:
        """The same list from the entry after that one (id or reference) on; all of it for None. Raises NotFound."""
        if name is None:
            return self
        with self.parts.reading() as session:
            return replace(self, after=self._key_of(self.find(session, name)))

    def _page(self, size: int) -> tuple[list[Json], tuple[Any, ...] | None]:
        order = [column.desc() for column in self.key] if self.newest_first else self.key
        with self.parts.reading() as session:
            rows = session.execute(self._beginning().order_by(*order).limit(size)).all()
            shaped = self.shape(session, rows)
            return shaped, self._key_of(rows[-1][0]) if rows else None

    def _beginning(self) -> Select[Any]:
        if self.after is None:
            return self.query
        here = tuple_(*self.key)
        return self.query.where(here < self.after if self.newest_first else here > self.after)

    def _key_of(self, row: object) -> tuple[Any, ...]:
        return tuple(getattr(row, column.key) for column in self.key)
