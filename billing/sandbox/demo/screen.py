"""What is seen of the demo while it runs, and the report at its end. On a terminal, in a pipe and in ASCII."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from billing.domain.money import Money, format_money
from billing.sandbox.demo import phrases
from billing.sandbox.demo.cast import HOME, OPENING_DAY, end_of
from billing.sandbox.demo.figures import Debt, Figures, Proof, Recovery, Story
from billing.store.models import Fact

WIDTH = 100
BAR = 40
DEBTS_SHOWN = 6
# What a subscriber is followed for in the ticker, until it ends well or badly; of each kind only the first.
TROUBLE = frozenset({"attempt.failed", "attempt.in_doubt", "customer.asked"})
FOLLOWED = TROUBLE | {"attempt.never_arrived", "customer.new_method", "invoice.paid", "invoice.uncollectible"}
ENDS = frozenset({"invoice.paid", "invoice.uncollectible"})
ONCE = frozenset(
    {"token.saved", "session.try_failed", "session.expired", "subscription.trialing", "subscription.paused"}
    | {"subscription.resumed", "subscription.cancel_planned"}
)
PARTS = ("first_try", "recovered", "lost", "owed")
STYLES = {"first_try": "green", "recovered": "yellow", "lost": "red", "owed": "cyan"}
NAMES = {"first_try": "first try", "recovered": "recovered", "lost": "lost", "owed": "still owed"}


class Screen:
    """The audience of the year (billing/sandbox/demo/year.py), and the report."""

    def __init__(self, *, months: int, to_stderr: bool = False) -> None:
        stream = sys.stderr if to_stderr else sys.stdout
        width = min(WIDTH, Console(file=stream).width) if stream.isatty() else WIDTH
        self.console = Console(file=stream, width=width, highlight=False, emoji=False, markup=False)
        unicode = (self.console.encoding or "ascii").lower().startswith("utf")
        self.glyphs = dict(zip(PARTS, "█▓▒░" if unicode else "#+-.", strict=True))
        self.tick, self.cross, self.dash = ("✓", "✗", "·") if unicode else ("ok", "NO", "-")
        self._months = months
        self._span = "a month" if months == 1 else f"{months} months"
        self._started = time.monotonic()
        self._ticker = Ticker()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._month = ""
        self._counted = (0, 0)

    # -------------------------------------------------------------------------------------------- while it runs

    def opening(self, *, customers: int, seed: int) -> None:
        told = Text.assemble(
            (
                f"{customers} subscribers and {self._months} months of their renewals, lived through while you wait\n",
                "bold",
            ),
            "PostgreSQL, Valkey, a simulated Xendit, web, dramatiq workers and the scheduler: real processes,\n"
            "gone when it ends. Nothing of yours is read or changed, and no money moves.\n",
            (f"The same seed tells the same story: this is seed {seed}.", "dim"),
        )
        self.console.print(Panel(told, title="billing demo", title_align="left", border_style="cyan", padding=(0, 1)))

    def ready(self) -> None:
        seconds = time.monotonic() - self._started
        self.console.print(f"  {self.tick} everything is running, after {seconds:.1f} s\n", style="green")

    @contextmanager
    def playing(self) -> Iterator[None]:
        """A bar at the bottom while the ticker runs above it; in a pipe a line for each month instead."""
        self._started = time.monotonic()
        if not self.console.is_terminal:
            yield
            self._month_is_over("")
            return
        words = TextColumn("{task.fields[date]}", style="bold"), BarColumn(32), TextColumn("{task.fields[counted]}")
        with Progress(*words, console=self.console, transient=True, refresh_per_second=8) as self._bar:
            self._task = self._bar.add_task("", total=1, date="", counted="")
            yield

    def advanced(self, at: datetime, *, paid: int, failed: int) -> None:
        month = (at - timedelta(seconds=1)).astimezone(HOME).strftime("%b %Y")
        self._month_is_over(month)
        self._counted = paid, failed
        if self._bar is not None:
            done = (at - OPENING_DAY) / (end_of(self._months) - OPENING_DAY)
            per_second = paid / max(time.monotonic() - self._started, 1)
            counted = f"{paid:,} payments {self.dash} {failed:,} declines {self.dash} {per_second:.0f}/s"
            self._bar.update(self._task, completed=done, date=at.strftime("%d %b %Y"), counted=counted)

    def _month_is_over(self, month: str) -> None:
        if self._month not in ("", month) and not self.console.is_terminal:
            paid, failed = self._counted
            self.console.print(f"  {self._month:<9} {paid:>6,} payments, {failed:>4,} declines so far", style="dim")
        self._month = month

    def noticed(self, who: str, currency: str, fact: Fact) -> None:
        if not self._ticker.wants(who, fact):
            return
        told = phrases.phrase(fact.kind, fact.detail, currency)
        if told is not None:
            self._say(_short_date(fact.at), who, *told)

    def announced(self, at: datetime, what: str) -> None:
        self._say(_short_date(at), "(Xendit)", what, phrases.NEWS)

    def _say(self, date: str, who: str, words: str, style: str) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=8, justify="right", style="dim", no_wrap=True)
        grid.add_column(width=17, no_wrap=True)
        grid.add_column()
        grid.add_row(date, who, Text(words, style=style))
        self.console.print(grid)

    # ------------------------------------------------------------------------------------------------ the report

    def report(self, figures: Figures, *, customers: int, seconds: float) -> None:
        self._headline(figures, customers, seconds)
        if figures.story is not None:
            self._title(f"One of them: {figures.story.who}")
            self._tell(figures.story)
        self._title("Money by month")
        self._chart(figures)
        self._totals(figures)
        if figures.recoveries:
            self._title("What went wrong, and what became of it")
            self._recovered(figures.recoveries)
        if figures.debts:
            self._title("Still owed")
            self._owed(figures.debts)
        self._title("The proof")
        self._prove(figures)
        self._title("What next")
        self._what_next()

    def _title(self, text: str) -> None:
        self.console.print()
        self.console.print(Rule(Text(text, style="bold"), align="left", style="dim"))

    def _headline(self, figures: Figures, customers: int, seconds: float) -> None:
        counts = figures.counts
        self.console.print()
        self.console.print(Text(f"{self._span}, lived through in {seconds:.0f} seconds", style="bold cyan"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(justify="right", style="bold", no_wrap=True)
        for number, words in (
            (customers, "people came through payment pages, to save a payment method (SAVE session) or to pay the"
                        " first period and save it (PAY session)"),
            (counts["failed_tries"], f"tries there failed, {counts['expired_sessions']} pages expired unused and were"
                                     " opened again"),
            (len(figures.bills), f"invoices were opened by {counts['billing_runs']} billing runs"),
            (counts["attempts"], f"charges were sent by the workers, {counts['renewals']:,} of them renewals;"
                                 f" {counts['declined']} were declined"),
        ):  # fmt: skip
            grid.add_row(f"  {number:,}", words)
        self.console.print(grid)

    def _tell(self, story: Story) -> None:
        self.console.print(f"  {story.reference}, plan {story.plan}", style="dim")
        for date, words, style in _story_lines(story):
            self._line(date, words, style)
        upcoming = story.next
        when = phrases.day(datetime.fromisoformat(upcoming["at"])) if upcoming["at"] else ""
        self._line("next", f"{when}: {upcoming['why']}", "cyan")

    def _line(self, left: str, words: str, style: str) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=15, justify="right", style="dim", no_wrap=True)
        grid.add_column()
        grid.add_row(left, Text(words, style=style))
        self.console.print(grid)

    def _chart(self, figures: Figures) -> None:
        currency = max(figures.by_month, key=lambda known: sum(bill.money.currency == known for bill in figures.bills))
        months = figures.by_month[currency]
        most = max(sum(amounts.values()) for amounts in months.values())
        grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim", show_footer=False)
        grid.add_column("")
        grid.add_column(self._legend(), width=BAR + 2, no_wrap=True)
        grid.add_column("collected", justify="right")
        grid.add_column("recovered", justify="right", style=STYLES["recovered"])
        grid.add_column("not collected", justify="right", style=STYLES["lost"])
        for month, amounts in sorted(months.items()):
            collected = amounts["first_try"] + amounts["recovered"]
            missing = amounts["lost"] + amounts["owed"]
            grid.add_row(
                datetime.strptime(month, "%Y-%m").strftime("%b %Y"),  # noqa: DTZ007 - a month has no offset
                self._bar_of(amounts, most),
                format_money(Money(collected, currency)),
                _plain(amounts["recovered"], currency),
                _plain(missing, currency),
            )
        self.console.print(grid)

    def _legend(self) -> Text:
        return Text(" ").join(
            Text.assemble((self.glyphs[part], STYLES[part]), f" {NAMES[part].removeprefix('still ')}") for part in PARTS
        )

    def _bar_of(self, amounts: Mapping[str, int], most: int) -> Text:
        """Whatever there is shows as at least one cell, at the cost of the largest part."""
        cells = {part: max(round(amounts[part] * BAR / most), 1 if amounts[part] else 0) for part in PARTS}
        whole = round(sum(amounts.values()) * BAR / most)
        cells["first_try"] = max(0, whole - cells["recovered"] - cells["lost"] - cells["owed"])
        return Text.assemble(*((self.glyphs[part] * cells[part], STYLES[part]) for part in PARTS))

    def _totals(self, figures: Figures) -> None:
        grid = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
        grid.add_column("")
        for part in PARTS:
            grid.add_column(NAMES[part], justify="right", style=STYLES[part])
        totals = {part: figures.total(part) for part in PARTS}
        for currency in sorted(figures.by_month):
            cells = (_plain(_minor(totals[part], currency), currency) for part in PARTS)
            grid.add_row(f"  in all, {currency}", *cells)
        self.console.print()
        self.console.print(grid)

    def _recovered(self, recoveries: Iterable[Recovery]) -> None:
        grid = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
        for heading in ("  invoices that met with", "recovered", "after", "still owed", "lost"):
            grid.add_column(heading, justify="left" if heading.startswith(" ") else "right")
        for row in recoveries:
            after = "" if row.days is None else _duration(row.days)
            counts = (_count(row.recovered, STYLES["recovered"]), Text(after), _count(row.owed, STYLES["owed"]))
            grid.add_row(f"  {row.trouble}", *counts, _count(row.lost, STYLES["lost"]))
        self.console.print(grid)

    def _owed(self, debts: Sequence[Debt]) -> None:
        grid = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
        grid.add_column(no_wrap=True)
        grid.add_column(justify="right", no_wrap=True, style=STYLES["owed"])
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column()
        for debt in debts[:DEBTS_SHOWN]:
            grid.add_row(f"  {debt.who}", format_money(debt.money), f"since {phrases.day(debt.since)}", debt.why)
        self.console.print(grid)
        if len(debts) > DEBTS_SHOWN:
            self.console.print(f"  ... and {len(debts) - DEBTS_SHOWN} more", style="dim")

    def _prove(self, figures: Figures) -> None:
        proof, counts, webhooks = figures.proof, figures.counts, figures.webhooks
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column()
        for currency in sorted({*proof.theirs, *proof.ours}):
            theirs, ours = (side.get(currency, Money.zero(currency)) for side in (proof.theirs, proof.ours))
            sign = "=" if theirs == ours else "is not"
            words = f"gateway ledger {format_money(theirs)}  {sign}  our ledger {format_money(ours)}"
            self._check(grid, words, theirs == ours)
        rows = (
            (f"{proof.payments:,} payments, {proof.differences} that only one side knows", proof.differences == 0),
            (f"{proof.charged_twice} charged twice", proof.charged_twice == 0),
            (f"{proof.periods:,} periods were due, {proof.periods_missed} missed", proof.periods_missed == 0),
            (f"charges in doubt: {counts['in_doubt']}, resolved: {counts['in_doubt_resolved']}", True),
            (f"webhooks: {webhooks['events']:,}, lost: {webhooks['lost']}, came twice: {webhooks['doubled']}", True),
            (_doctor(proof), not proof.failed_checks),
        )
        for words, holds in rows:
            self._check(grid, words, holds)
        self.console.print(grid)
        if not proof.holds:
            words = "This must not happen. Please report it, with customers, months and seed of this demo."
            self.console.print(f"  {words}", style="bold red")

    def _check(self, grid: Table, words: str, holds: bool) -> None:
        mark = Text(f"  {self.tick}", style="bold green") if holds else Text(f"  {self.cross}", style="bold red")
        grid.add_row(mark, Text(words, style="" if holds else "bold red"))

    def _what_next(self) -> None:
        program = _program()
        grid = Table.grid(padding=(0, 3))
        for command, words in (
            ("dev", "the same system in your terminal, payment pages in your browser"),
            ("--help", "every command; `explain` and `doctor` are worth a look"),
            ("demo --seed 8", "another story; README.md says how it all works"),
        ):
            grid.add_row(Text(f"  {program} {command}", style="bold"), words)
        self.console.print(grid)


class Ticker:
    """Which facts are news: the first of each kind, and the rest of a story that was begun."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._followed: set[str] = set()

    def wants(self, who: str, fact: Fact) -> bool:
        if fact.kind in ONCE:
            return self._is_new(f"{fact.kind} {fact.detail.get('channel') == 'CARDS'}")
        if who in self._followed and fact.kind in FOLLOWED:
            if fact.kind in ENDS:
                self._followed.discard(who)
            return True
        if fact.kind in TROUBLE and self._is_new(f"{fact.kind} {fact.detail.get('failure_code')}"):
            self._followed.add(who)
            return True
        return False

    def _is_new(self, key: str) -> bool:
        if key in self._known:
            return False
        self._known.add(key)
        return True


def _story_lines(story: Story) -> list[tuple[str, str, str]]:
    """Months without trouble become one line."""
    told = []
    for event in story.events:
        line = phrases.phrase(event["kind"], event["detail"], story.currency)
        if line is not None:
            renewed = event["kind"] == "invoice.paid" and phrases.renews(event["detail"])
            told.append((datetime.fromisoformat(event["at"]), renewed, *line))
    lines: list[tuple[str, str, str]] = []
    for _, group in groupby(told, key=lambda row: row[1]):
        rows = list(group)
        if len(rows) > 2 and rows[0][1]:  # noqa: PLR2004 - two are not worth a summary
            first, last = rows[0][0], rows[-1][0]
            dates = f"{phrases.day(first)} - {phrases.day(last)}"
            lines.append((dates, f"{len(rows)} renewals, each on its day", phrases.GOOD))
        else:
            lines.extend((phrases.day(row[0]), row[2], row[3]) for row in rows)
    return lines


def _short_date(at: datetime) -> str:
    return at.astimezone(HOME).strftime("%d %b")


def _doctor(proof: Proof) -> str:
    if proof.failed_checks:
        return f"doctor: {len(proof.failed_checks)} of {proof.checks} checks fail: {', '.join(proof.failed_checks)}"
    return f"doctor: {proof.checks} checks, all in order"


def _plain(minor: int, currency: str) -> str:
    return format_money(Money(minor, currency)).partition(" ")[2] if minor else ""


def _minor(totals: Mapping[str, Money], currency: str) -> int:
    return totals[currency].amount_minor if currency in totals else 0


def _count(number: int, style: str) -> Text:
    return Text(str(number), style=style) if number else Text("")


def _duration(days: float) -> str:
    hours = round(days * 24)
    return f"{days:.1f} days" if days >= 1 else f"{hours} hour{'' if hours == 1 else 's'}"


def _program() -> str:
    """How to call us: by name if the shell finds it, else as `make` does."""
    beside = Path(sys.executable).with_name("billing")
    if shutil.which("billing") is None and beside.exists() and beside.parent.parent.name == ".venv":
        return ".venv/bin/billing"
    return "billing"
