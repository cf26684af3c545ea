"""How commands speak: one JSON document, or tables for people, on stdout; everything else on stderr.

Called by every file of this folder. Text of others (names, Xendit's words, rows of earlier releases) is shown as text,
whatever it holds. Colours, boxes and widths belong to terminals: in a pipe lines are as long as they
are, so that ids stay whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from billing.domain.money import Money, format_money
from billing.domain.names import visible
from billing.errors import BillingError
from billing.streams import drop, holds_every_letter, readable

if TYPE_CHECKING:
    from billing.api.opening import Entries
    from billing.shapes import Shape

Json = Mapping[str, Any]
PIPE_WIDTH = 10_000
PROSE = ("what", "reason", "detail", "explanation", "repair", "error", "note", "remark")  # columns whose text may wrap
PROSE_WIDTH = 24  # and the least they need
NUMBERS = (
    *("amount", "amount_paid", "count", "tries", "deliveries"),
    *("charges", "planned", "attempted", "succeeded", "failed", "waiting", "periods"),
)
GAP = 3  # between two columns
FIRST_ROWS = 100  # of a list, unless --limit says more
ROWS_OF_A_TABLE = 1_000  # then its headings are said again: a table is laid out as a whole
MANY = 20  # rows a person reads of a side list; --json has them all

_STATUS_STYLES = {
    "green": ("active", "ACTIVE", "paid", "succeeded", "COMPLETED", "applied", "ok", "finished"),
    "yellow": (
        *("incomplete", "trialing", "past_due", "paused", "draft", "open", "scheduled", "submitted", "pending"),
        *("requires_action", "PENDING", "REQUIRES_ACTION", "received", "unmatched"),
    ),
    "cyan": ("running",),
    "red": ("in_doubt", "failed", "uncollectible", "FAILED", "EXPIRED", "parked", "stopped", "aborted"),
    "dim": ("canceled", "CANCELED", "void", "ignored"),
}
STYLE_OF = {word: style for style, words in _STATUS_STYLES.items() for word in words}


# ------------------------------------------------------------------------------------------- the two streams


class _Screen(Console):
    """Shows text as the stream can hold it and a terminal may have it, whoever wrote it and wherever it stands."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(readable(segment.text, self._stream, keep="\n"), segment.style)

    def on_broken_pipe(self) -> None:
        """Who reads the result has seen enough: the command ends. Messages beside it may be read by nobody."""
        drop(self._stream)
        if self._stream is not sys.stderr:
            raise BrokenPipeError

    @property
    def _stream(self) -> TextIO:
        return cast(TextIO, self.file)


def console(*, stderr: bool = False) -> Console:
    """Made for each use: tests and pipes change the streams."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return _Screen(file=stream, width=width, highlight=False, markup=False, emoji=False)


class Unsound(BillingError):
    """The command did its work, and what it found is not in order: exit status 1, after the result."""


def show(found: Shape, people: Callable[[Json], None], *, as_json: bool) -> None:
    """The one way results leave: the model's JSON, or what `people` prints of it. Raises Unsound for its problem."""
    document = found.model_dump(mode="json")
    if as_json:
        print_json(document)
    else:
        people(document)
    problem = getattr(found, "problem", None)
    if problem is not None:
        raise Unsound(problem)


def show_list(
    found: Entries[Any],
    columns: Mapping[str, str],
    *,
    limit: int | None,
    as_json: bool,
    empty: str,
    row: Callable[[Json], Json] | None = None,
) -> None:
    """A list of any length: as JSON all of it, or `limit`, written as it is read; for people the first hundred, or
    `limit`, and how many more there are. `row` adds what only the table shows."""
    entries = (entry.model_dump(mode="json") for entry in found)
    if as_json:
        stream_json(entries, sys.stdout)
        return
    name = next(iter(columns.values()))
    shown, last = 0, None
    for rows in _chunks(islice(entries, limit or FIRST_ROWS), ROWS_OF_A_TABLE):
        table([row(entry) if row else entry for entry in rows], columns, empty=empty)
        shown, last = shown + len(rows), rows[-1][name]
    if not shown:
        note(empty)
    if limit is None and shown == FIRST_ROWS and (more := found.count() - shown) > 0:
        say(f"... and {more:,} more; `--after {last}` goes on from there, --json lists them all")


def _chunks(rows: Iterable[Json], size: int) -> Iterator[list[Json]]:
    left = iter(rows)
    while chunk := list(islice(left, size)):
        yield chunk


def stream_json(entries: Iterable[Json], stream: TextIO) -> None:
    """One JSON array. Nothing is written before the first entry is there, so that a refusal leaves stdout empty; what
    breaks later leaves an array without its end, which no reader takes for the whole."""
    before = "[\n"
    for entry in entries:
        document = _json(entry, stream)
        stream.write(before + "  " + document.replace("\n", "\n  "))  # within a string JSON has no line break
        before = ",\n"
    stream.write("[]\n" if before == "[\n" else "\n]\n")
    stream.flush()


def print_json(document: object) -> None:
    sys.stdout.write(_json(document, sys.stdout) + "\n")
    sys.stdout.flush()


def _json(document: object, stream: TextIO) -> str:
    """Letters as they are where the stream holds them all; what steers a terminal is escaped in any case."""
    text = json.dumps(document, indent=2, ensure_ascii=not holds_every_letter(stream))
    return visible(text, keep="\n", spell=_json_escape)


def _json_escape(letter: str) -> str:
    pairs = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{pairs[place : place + 4]}" for place in range(0, len(pairs), 4))


def say(text: str) -> None:
    """A line of the result, for people."""
    console().print(text, soft_wrap=True)


def note(text: str) -> None:
    """A message beside the result: never on stdout."""
    console(stderr=True).print(text, style="dim", soft_wrap=True)


def warn(text: str) -> None:
    console(stderr=True).print(f"warning: {text}", style="yellow", soft_wrap=True)


def complain(text: str) -> None:
    """The one line of a refusal, whatever line breaks the reason holds. Nobody need be there to read it."""
    try:
        sys.stderr.write(f"billing: {readable(' '.join(text.split()), sys.stderr)}\n")
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)


# ---------------------------------------------------------------------------------------------------- tables


def table(rows: Sequence[Json], columns: Mapping[str, str], *, empty: str) -> None:
    """`columns`: heading -> member. Without rows: one line that says so, and what to do.

    On a terminal too narrow for whole ids, amounts and times each row becomes a block of lines instead.
    """
    if not rows:
        note(empty)
        return
    cells = [[cell(row, member) for member in columns.values()] for row in rows]
    widths = [
        max(cell_len(heading), *(line[place].cell_len for line in cells)) for place, heading in enumerate(columns)
    ]
    out = console()
    needed = sum(
        min(width, PROSE_WIDTH) if member in PROSE else width
        for member, width in zip(columns.values(), widths, strict=True)
    )
    if needed + GAP * len(columns) > out.width:
        _print_blocks(out, list(columns), cells)
    else:
        _print_grid(out, columns, cells, widths)


def _print_grid(out: Console, columns: Mapping[str, str], cells: list[list[Text]], widths: list[int]) -> None:
    grid = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, header_style="bold")
    for (heading, member), width in zip(columns.items(), widths, strict=True):
        prose = member in PROSE
        right = member in NUMBERS
        grid.add_column(heading, justify="right" if right else "left", min_width=None if prose else width)
    for line in cells:
        grid.add_row(*line)
    if out.is_terminal:
        out.print(grid)
        return
    # Without the blanks that fill up the last column where nobody sees a column.
    with out.capture() as captured:
        out.print(grid)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


def _print_blocks(out: Console, headings: list[str], cells: list[list[Text]]) -> None:
    width = max(len(heading) for heading in headings)
    for line in cells:
        for heading, value in zip(headings, line, strict=True):
            out.print(Text.assemble((f"{heading:<{width}}  ", "dim"), value), soft_wrap=True)
        out.print()


def card(title: str, document: Json) -> None:
    """One thing with all its members, one a line; lists and empty members are left to the caller and to --json."""
    shown = [member for member, value in document.items() if value is not None and not isinstance(value, list | dict)]
    width = max((len(member) for member in shown), default=0)
    out = console()
    out.print(Text(title, style="bold"))
    for member in shown:
        label = f"  {member.replace('_', ' '):<{width}}  "
        out.print(Text.assemble((label, "dim"), cell(document, member)), soft_wrap=True)


def cell(row: Json, member: str) -> Text:
    """A value as people read it: money with its currency, instants to the minute, statuses in colour."""
    value = row.get(member)
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no", style="bold red" if member == "ok" and not value else "")
    text = readable(str(value), sys.stdout)
    if member in ("amount", "amount_paid", "refunded") and row.get("currency"):
        return Text(money(text, row["currency"]))
    if member in ("at", "now") or member.endswith(("_at", "_start", "_end")):
        return Text(instant(text))
    if member in ("status", "state"):
        return Text(text, style=STYLE_OF.get(text, ""))
    return Text(text)


def money(amount: str, currency: str) -> str:
    return format_money(Money.parse(amount, currency))


def instant(text: str) -> str:
    """`2026-01-31T02:00:00.123Z` -> `2026-01-31 02:00 UTC`."""
    return f"{text[:16].replace('T', ' ')} UTC"


def second(text: str) -> str:
    """As `instant`, for what is near: `2026-01-31 02:00:45 UTC`."""
    return f"{text[:19].replace('T', ' ')} UTC"


def some_of(rows: Sequence[Json], columns: Mapping[str, str], *, title: str) -> None:
    """A side list: the first rows, and how many more there are."""
    if not rows:
        return
    say(f"\n{title}")
    table(rows[:MANY], columns, empty="")
    if len(rows) > MANY:
        say(f"... and {len(rows) - MANY} more; --json lists them all")


# ------------------------------------------------------------------------------------------------- progress


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr, only on a terminal. The block is handed `moved(completed, total)`."""
    if not sys.stderr.isatty():
        yield lambda _completed, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda completed, total: bar.update(task, completed=completed, total=total)
