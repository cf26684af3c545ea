"""A run as people watch it: the live view of `billing run` and `billing runs show --follow`, and the report at its end.

Drawn from the JSON of runs/report.py, so that what scripts read and what people see are the same figures.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from billing.cli import output
from billing.cli.output import Json
from billing.errors import BillingError

if TYPE_CHECKING:
    from billing.shapes import Run

REFRESH_SECONDS = 0.5
QUERY_SHARE = 10  # asking may take one part in so many of the time
LABEL = 11  # width of the labels at the left
LISTED = 6  # reasons, channels
BAR = 32
FULL = 0.9  # of the quota: as it should be

STATE_STYLES = {
    "running": "bold cyan",
    "finished": "bold green",
    "paused": "bold yellow",
    "stopped": "bold red",
    "aborted": "bold red",
}
RESULTS = (
    ("succeeded", "green"),
    ("failed", "red"),
    ("pending", "yellow"),
    ("in_doubt", "magenta"),
    ("waiting", "dim"),
)


@contextmanager
def watching(read: Callable[[], Run | None], *, wanted: bool = True) -> Iterator[None]:
    """While the block runs, what `read` returns is shown on a terminal's stderr, twice a second. Elsewhere nothing."""
    if not wanted or not sys.stderr.isatty():
        yield
        return
    view = _View(read)
    with Live(
        get_renderable=view.render,
        console=output.console(stderr=True),
        refresh_per_second=1 / REFRESH_SECONDS,
        transient=True,
    ):
        yield


class _View:
    """Asks the database no more often than it can answer, and shows the last answer while it cannot."""

    def __init__(self, read: Callable[[], Run | None]) -> None:
        self._read = read
        self._last: Json | None = None
        self._rest_until = 0.0
        self._lock = threading.Lock()

    def render(self) -> RenderableType:
        with self._lock:
            before = time.monotonic()
            if before >= self._rest_until:
                with suppress(BillingError):  # the command itself meets the same trouble and says so
                    found = self._read()
                    self._last = self._last if found is None else found.model_dump(mode="json")
                self._rest_until = time.monotonic() + QUERY_SHARE * (time.monotonic() - before)
        return Text("counting what is due ...", style="dim") if self._last is None else draw(self._last)


def draw(view: Json) -> Group:
    """One run, in some twenty lines of at most eighty columns."""
    lines: list[RenderableType] = [_title(view), Text(), _facts(view), Text(), _results(view)]
    tables = [table for table in (_declines(view), _channels(view)) if table is not None]
    for table in tables:
        lines += [Text(), table]
    lines += _alarms(view)
    return Group(*lines)


def _title(view: Json) -> Text:
    state = str(view["state"])
    kind = "daily run" if view["kind"] == "daily" else "billing run"
    return Text.assemble((f"{kind}  {view['run_id']}  ", "bold"), (state, STATE_STYLES.get(state, "")))


def expected_total(view: Json) -> int:
    """Charges there will be: those there are, and while it opens at least those that were planned."""
    known = int(view["attempted"]) + int(view["waiting"])
    over = view["state"] in ("finished", "aborted")
    return known if over else max(known, int((view["plan"] or {}).get("charges", 0)))


def _facts(view: Json) -> Table:
    """Label and value, a line each: how far, how fast, until when."""
    rows = Table.grid(padding=(0, 1))
    rows.add_column(width=LABEL, style="dim")
    rows.add_column()
    rows.add_row("as of", output.instant(view["at"]))
    if view["plan"] is not None:
        rows.add_row("planned", f"{view['plan']['charges']:,} charge(s), {sums(view['plan']['totals'])}")
    rows.add_row("sent", _bar(view))
    if view["finished_at"] is None:
        rows.add_row("pace", f"{view['rate_per_minute']:,} charges in the last minute")
        rows.add_row("quota", _quota(view["quota"]))
        if view["eta_seconds"]:
            rows.add_row("done at", f"{output.instant(view['eta_at'])}, in {span(view['eta_seconds'])}")
    if view["collected"]:
        rows.add_row("collected", Text(sums(view["collected"]), style="bold"))
    return rows


def _bar(view: Json) -> Table:
    total, sent = expected_total(view), int(view["attempted"])
    share = 1.0 if total == 0 else sent / total
    bar = ProgressBar(total=max(total, 1), completed=sent if total else 1, width=BAR, complete_style="cyan")
    row = Table.grid(padding=(0, 1))
    row.add_column(width=BAR)
    row.add_column()
    row.add_row(bar, f"{sent:,} of {total:,}  {share:.0%}")
    return row


def _quota(quota: Json) -> Text:
    if quota["limit"] is None:
        return Text("no limit: as fast as the workers")
    use = float(quota["use"])
    style = "bold green" if use >= FULL else "bold"
    return Text.assemble(
        (f"{use:.0%}", style), f" of {quota['limit']:,.0f} requests a minute, by all processes together"
    )


def _results(view: Json) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in RESULTS:
        table.add_column(justify="right", min_width=9)
    table.add_row(*(Text(name.replace("_", " "), style="dim") for name, _ in RESULTS))
    table.add_row(
        *(Text(f"{view[name]:,}", style=style if view[name] else "dim") for name, style in RESULTS),
    )
    if view["parked"]:
        table.add_row("", "", "", "", Text(f"{view['parked']:,} parked", style="yellow"))
    return table


def _declines(view: Json) -> Table | None:
    if not view["declines"]:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", min_width=9)
    table.add_column(overflow="fold")
    table.add_column(style="dim")
    table.add_row(Text("declined", style="dim"), Text("reason", style="dim"), "")
    for row in view["declines"][:LISTED]:
        words = str(row["decline_class"] or "").replace("_", " ")
        table.add_row(f"{row['count']:,}", str(row["failure_code"] or "no code"), words)
    return table


def _channels(view: Json) -> Table | None:
    if not view["by_channel"]:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=16)
    for _ in range(3):
        table.add_column(justify="right", min_width=9)
    table.add_column(justify="right")
    heads = ("channel", "charges", "succeeded", "failed", "collected")
    table.add_row(*(Text(head, style="dim") for head in heads))
    for row in view["by_channel"][:LISTED]:
        table.add_row(
            str(row["channel_code"] or "no token"),
            *(f"{row[name]:,}" for name in ("charges", "succeeded", "failed")),
            output.money(row["collected"], row["currency"]),
        )
    return table


def _alarms(view: Json) -> list[RenderableType]:
    lines = [
        Text(f"{channel['channel_code']} is down ({channel['reason']}): its charges wait", style="yellow")
        for channel in view["channels_down"]
    ]
    lines += [
        Text(
            f"near its {near['guard'].replace('_', ' ')}: {near['used']:.0%} of it, {near['currency']}", style="yellow"
        )
        for near in view["guards_near"]
    ]
    if view["reason"]:
        lines.append(Text(f"{view['state']}: {view['reason']}", style="red"))
    if view["charging_stopped"]:
        lines.append(Text(f"all charging is stopped: {view['charging_stopped']}", style="red"))
        lines.append(Text("  `billing charging resume`, when it is put right", style="bold"))
    if view["how_to_go_on"]:
        lines += [Text(f"  {way}", style="bold") for way in str(view["how_to_go_on"]).split("; ")]
    return [Text(), *lines] if lines else []


def span(seconds: int) -> str:
    """`2 h 47 min`, `3 min 20 s`, `12 s`."""
    hours, rest = divmod(int(seconds), 3_600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


# --------------------------------------------------------------------------------------------------- report


NOT_AS_PLANNED = ("failed", "in_doubt", "waiting")
TOTALS = ("opened", "attempted", "succeeded", "failed", "pending", "in_doubt", "waiting")
DECLINE_COLUMNS = {"count": "count", "reason": "failure_code", "class": "decline_class"}
CHANNEL_COLUMNS = {
    "channel": "channel_code",
    "charges": "charges",
    "succeeded": "succeeded",
    "failed": "failed",
    "collected": "amount",
}


def report(view: Json) -> None:
    """A run at its end (or as it stands), on stdout, compared with its plan."""
    totals = {"at": view["at"]} | {name: view.get(name, 0) for name in TOTALS}
    kind = "Daily run" if view["kind"] == "daily" else "Billing run"
    output.card(f"{kind} {view['run_id']}: {view['state']}", totals)
    compared = _compared(view)
    if compared:
        output.say(f"\n{compared}")
    rows = [row | {"amount": row["collected"]} for row in view["by_channel"]]
    output.some_of(rows, CHANNEL_COLUMNS, title="By channel")
    output.some_of(view["declines"], DECLINE_COLUMNS, title="Declined")
    if view["reason"]:
        output.say(f"\n{str(view['state']).capitalize()}: {view['reason']}.")
    if view["charging_stopped"]:
        output.say(
            f"\nAll charging is stopped: {view['charging_stopped']}; put it right, then `billing charging resume`."
        )
    if view["how_to_go_on"]:
        output.say("\n".join(f"  {way}" for way in str(view["how_to_go_on"]).split("; ")))


def _compared(view: Json) -> str:
    """`Planned: 120 charges, IDR 6,000,000. Sent: 118, 2 fewer. Collected: IDR 5,900,000.`"""
    if view["against_plan"] is None:
        return ""
    planned, difference = view["plan"]["charges"], view["against_plan"]["charges"]
    run = view.get("whole_run", view)
    words = [f"{abs(difference):,} {'more' if difference > 0 else 'fewer'} than planned"] if difference else []
    words += [f"{run[name]:,} {name.replace('_', ' ')}" for name in NOT_AS_PLANNED if run[name]]
    return (
        f"Planned:   {planned:,} charge(s), {sums(view['plan']['totals'])}\n"
        f"Sent:      {run['attempted']:,} charge(s), {', '.join(words) or 'as planned'}\n"
        f"Collected: {sums(run['collected'])}"
    )


def sums(totals: Json) -> str:
    return ", ".join(output.money(amount, currency) for currency, amount in totals.items()) or "nothing"
