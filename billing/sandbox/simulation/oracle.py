"""What should have happened, worked out from the calendar, from what people did and from Xendit's own ledger.

Not from the code under test: periods are counted by a calendar of the simulation's own (periods.py), money is counted
at the simulator, and our tables are only asked what they say of each period. The law is design.md, invariant 11:

    periods due = collected + skipped with a reason + given up after a full ladder + still open within it

Every due period has exactly one of these fates, and Xendit has kept its money in the first of them only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, text

from billing.checks import doctor
from billing.sandbox.simulation.periods import days_later, period_starts
from billing.sandbox.simulation.population import Subscriber
from billing.sandbox.simulator.catalogue import WHOLE_UNIT_CURRENCIES
from billing.sandbox.simulator.state import Payment

if TYPE_CHECKING:
    from billing.sandbox.simulation.play import Play

SLACK = timedelta(minutes=20)  # how wrong our clocks may have been, and how long work may take
ON_TIME = timedelta(minutes=10)  # of the end of the year, when nothing goes wrong
AN_HOUR = timedelta(hours=1)  # what a time zone that changes its rules is wrong by
A_DAY = timedelta(days=1)
MOST_AT_ONCE = 12  # periods that are caught up without asking
GRACE = {name: timedelta(days=days) for name, days in (
    ("standard", 21), ("gentle", 45), ("strict", 7), ("pause", 21), ("none", 0),
)}  # fmt: skip
ENDS_THE_SUBSCRIPTION = frozenset({"standard", "strict"})  # policies whose last word is "cancel"


@dataclass(frozen=True, slots=True)
class End:
    """How a subscription came to be canceled: `now` or `period` (a person), `dunning` or `cycles` (its plan)."""

    kind: str
    at: datetime


@dataclass(slots=True)
class Books:
    """Of one subscriber: what our tables say, and what Xendit has."""

    subscription: Any
    invoices: list[Any] = field(default_factory=list)
    skipped: dict[datetime, Any] = field(default_factory=dict)
    paused: list[tuple[datetime, datetime]] = field(default_factory=list)
    came_in_at: datetime | None = None  # as we heard of it
    cancel_planned_at: list[datetime] = field(default_factory=list)
    paid_on_page_at: datetime | None = None  # Xendit's time of the capture
    token_made_at: datetime | None = None  # at Xendit, by the session that started the subscription


def judge(play: Play) -> list[str]:
    """Everything that is wrong at the end of a year; empty when every promise was kept."""
    with play.engine.connect() as connection:
        judged = [_Judged(play, connection, who) for who in play.subscribers]
        wrong = [problem for each in judged for problem in each.problems()]
        wrong += _judge_money(play, connection)
        wrong += _judge_refunds_elsewhere(play, connection)
        wrong += _judge_doctor(play, connection)
    return wrong


def status_of(engine: Engine, reference: str) -> str | None:
    """Of a subscription; None when there is none yet."""
    query = text("SELECT status FROM subscriptions WHERE reference = :reference")
    with engine.connect() as connection:
        found: str | None = connection.scalar(query, {"reference": reference})
    return found


# ---------------------------------------------------------------------------------------- one subscriber


class _Judged:
    """One subscriber at the end of the year."""

    def __init__(self, play: Play, connection: Connection, who: Subscriber) -> None:
        self.play, self.who, self.now = play, who, play.stage.now
        self.books = _open_books(play, connection, who.reference)
        self.kept = _kept_by_invoice(play, connection)
        self.went_back = _refunded_elsewhere(play, connection)
        self.starts: list[datetime] = []

    def problems(self) -> Iterator[str]:
        books, who = self.books, self.who
        if books is None or books.subscription.status == "incomplete":
            yield f"{who.reference} never came in"
            return
        for problem in self._problems(books):
            yield f"{who.reference}: {problem}"

    def _problems(self, books: Books) -> Iterator[str]:
        if books.came_in_at is not None or self.who.via == "import":
            anchor, complaint = self._anchor(books)
            if complaint:
                yield complaint
            found = period_starts(self.who.rhythm, anchor, self.who.zone, self.who.anchor_day)
            self.starts = list(takewhile(lambda start: start <= self.now + 400 * A_DAY, found))
            yield from self._check_periods(books)
        elif books.subscription.status not in ("canceled", "paused"):
            yield "it has neither a period nor a start"
        yield from self._check_hold(books)
        yield from self._check_cycles(books)
        yield from self._check_invoices(books)

    # Where the calendar begins --------------------------------------------------------------------------------

    def _anchor(self, books: Books) -> tuple[datetime, str]:
        """The first period's beginning, and what is wrong with it. Taken from the books where it is lawful."""
        who, asked = self.who, self.play.people.starts.get(self.who.reference)
        if who.via == "import":
            assert asked is not None  # noqa: S101 - an import says when
            return asked, ""
        actual = min([*(invoice.period_start for invoice in books.invoices), *books.skipped], default=None)
        earliest, latest = self._may_begin(books, asked)
        if actual is None:
            return latest, ""
        if who.rhythm.cron is not None:
            earliest, latest = (
                next(period_starts(who.rhythm, bound, who.zone)) for bound in (earliest, latest)
            )  # the first tick from then on
        if earliest - timedelta(seconds=1) <= actual <= latest + timedelta(seconds=1):
            return actual, ""
        when = f"at {earliest}" if earliest == latest else f"between {earliest} and {latest}"
        return actual, f"its first period begins at {actual}, and should begin {when}"

    def _may_begin(self, books: Books, asked: datetime | None) -> tuple[datetime, datetime]:
        """Never before the payment method came. Paid on the page: at the capture, or when asked, if that is later.
        Saved: when asked, or when the method came (at Xendit, or here), if that is later."""
        if books.paid_on_page_at is not None:
            begins = max(books.paid_on_page_at, asked or books.paid_on_page_at)
            return begins, begins
        heard = books.came_in_at or self.now
        came = min(books.token_made_at or heard, heard)
        earliest, latest = came - SLACK, heard + SLACK
        if asked is not None:
            earliest, latest = max(asked, earliest), max(asked, latest)
        zone, days = self.who.zone, self.who.trial_days
        return days_later(earliest, days, zone), days_later(latest, days, zone)

    # Each period ----------------------------------------------------------------------------------------------

    def _check_periods(self, books: Books) -> Iterator[str]:
        """Each period that has begun is billed, or skipped for a reason; and there are no others."""
        billed = {invoice.period_start for invoice in books.invoices}
        end = self._end(books)
        if books.subscription.status == "canceled" and end is None:
            yield f"it was canceled at {books.subscription.canceled_at} and nobody and no policy asked for it"
        until = self._planned_end(books)
        owed_until = self._owed_until(books, end)
        expected: set[datetime] = set()
        cycles = 0
        for start in takewhile(lambda start: start <= self.now + SLACK, self.starts):
            if self.who.cycles is not None and cycles >= self.who.cycles:
                break  # the last cycle has been billed
            expected.add(start)
            cycles += start in billed
            if start in billed and start in books.skipped:
                yield f"the period from {start} is billed and skipped"
            elif start in books.skipped:
                yield from self._check_skip(books, start, end)
            elif start in billed and cycles == 1 and self.who.via == "pay":
                continue  # paid on the page, before its time if that was to come: it is bought, whatever ends later
            elif start in billed:
                if until is not None and start >= until[1]:
                    yield f"the period from {start} is billed though it was canceled for {until[1]}"
                elif end is not None and start > end.at + SLACK:
                    yield f"the period from {start} is billed though it ended at {end.at}"
            elif start <= owed_until - SLACK:
                yield f"the period from {start} was forgotten"
        for start in sorted({*billed, *books.skipped} - expected):
            yield f"there is no period from {start}"
        yield from self._check_catch_up(books)

    def _owed_until(self, books: Books, end: End | None) -> datetime:
        """Periods that begin later need not be billed."""
        subscription, until = books.subscription, self._planned_end(books)
        owed: datetime = min(subscription.paused_at or self.now, self.now)
        if until is not None:
            owed = min(owed, until[0])
        if end is not None:
            owed = min(owed, end.at)
        if subscription.hold_reason is not None:
            owed = min(owed, subscription.next_billing_at or owed)
        return owed

    def _planned_end(self, books: Books) -> tuple[datetime, datetime] | None:
        """Asked for at the end of a period: of the one that runs by the calendar at that moment. Two instants: asked
        for in the very minutes in which a period begins, it may be this beginning or the next."""
        if not books.cancel_planned_at:
            return None
        asked = books.cancel_planned_at[0]
        ends = (start for start in self.starts if start > asked - SLACK)
        earliest = next(ends)
        return earliest, earliest if earliest > asked + SLACK else next(ends)

    def _end(self, books: Books) -> End | None:
        """What ended it, as far as that was lawful."""
        at = books.subscription.canceled_at
        if books.subscription.status != "canceled" or at is None:
            return None
        asked = self.play.people.cancellations[self.who.reference]
        if any(each.at_once and abs(each.at - at) <= SLACK for each in asked):
            return End("now", at)
        given_up = [invoice.closed_at for invoice in books.invoices if invoice.status == "uncollectible"]
        if self.who.dunning in ENDS_THE_SUBSCRIPTION and any(abs(closed - at) <= SLACK for closed in given_up):
            return End("dunning", at)
        until = self._planned_end(books)
        slack = SLACK + (AN_HOUR if self.who.reference in self.play.shifted else timedelta())
        if until is not None and at >= until[0] - slack:
            return End("period", at)
        last = self._end_of_last_cycle(books)
        if last is not None and at >= last - slack:
            # Asked for when its last period was over already, and only what is owed kept it open: it ends at once.
            by_request = any(not each.at_once and abs(each.at - at) <= SLACK for each in asked)
            return End("period" if by_request else "cycles", at)
        return None

    def _end_of_last_cycle(self, books: Books) -> datetime | None:
        if self.who.cycles is None or len(books.invoices) < self.who.cycles:
            return None
        last = max(invoice.period_start for invoice in books.invoices)
        return next((start for start in self.starts if start > last), None)

    def _check_skip(self, books: Books, start: datetime, end: End | None) -> Iterator[str]:
        """The record says why, and that was so: the policy's word over missed periods, a pause, or the end."""
        record = books.skipped[start]
        at_once = sum(each.created_at == record.created_at for each in books.skipped.values())
        later = next((other for other in self.starts if other > start), self.now)
        missed = later <= record.created_at + SLACK or (self.who.catch_up == "skip" and at_once > 1)
        by_policy = self.who.catch_up in ("latest", "skip") and missed
        was_paused = any(start <= ended + SLACK for _, ended in books.paused)
        has_ended = end is not None and start <= end.at + SLACK and abs(record.created_at - end.at) <= SLACK
        if not (by_policy or was_paused or has_ended):
            yield f"the period from {start} was skipped ({record.reason}) for no reason"

    def _check_catch_up(self, books: Books) -> Iterator[str]:
        """Nothing is billed that the policy forgives: a period is missed when the next one begins before it is opened.
        What a person has released from a hold is billed, whatever the policy."""
        for invoice in books.invoices:
            later = next((start for start in self.starts if start > invoice.period_start), self.now)
            missed = invoice.opened_at >= later + SLACK
            if missed and self.who.catch_up != "all" and books.subscription.catch_up_until is None:
                yield f"the period from {invoice.period_start} was missed and is billed ({self.who.catch_up})"

    # The subscription -----------------------------------------------------------------------------------------

    def _check_hold(self, books: Books) -> Iterator[str]:
        """What is held waits for a person: the catch-up policy says so, or it is more than is caught up unasked. A hold
        for a token that Xendit did not know ends by itself, and nothing in these years is an error of one row."""
        subscription = books.subscription
        if subscription.hold_reason is None:
            return
        if subscription.hold_kind != "catch_up":
            yield f"it is still held ({subscription.hold_kind}): {subscription.hold_reason}"
            return
        due = [start for start in self.starts if (subscription.next_billing_at or self.now) <= start <= self.now]
        if self.who.catch_up != "hold" and not (
            self.who.catch_up == "all" and len(due) > 0 and len(self.starts) > MOST_AT_ONCE
        ):
            yield f"it is held though its policy is {self.who.catch_up}: {subscription.hold_reason}"

    def _check_cycles(self, books: Books) -> Iterator[str]:
        """`--cycles N` is N billed periods; then nothing is next, and the end comes when they are over and settled."""
        subscription, last = books.subscription, self._end_of_last_cycle(books)
        if last is None:
            return
        if len(books.invoices) > (self.who.cycles or 0):
            yield f"{len(books.invoices)} periods are billed, of {self.who.cycles} cycles"
        if subscription.next_billing_at is not None:
            yield f"its last cycle is open and yet something is next, at {subscription.next_billing_at}"
        settled = all(invoice.status in ("paid", "uncollectible", "void") for invoice in books.invoices)
        over = last < self.now - A_DAY and not any(
            i.closed_at and i.closed_at > self.now - A_DAY for i in books.invoices
        )
        if settled and over and subscription.status not in ("canceled", "paused"):
            yield f"all its cycles were over at {last} and settled, and it is {subscription.status}"

    # Invoices and their money ---------------------------------------------------------------------------------

    def _check_invoices(self, books: Books) -> Iterator[str]:
        for invoice in books.invoices:
            name = f"{invoice.number} ({invoice.status})"
            problems = [*self._money_of(invoice), *self._fate_of(books, invoice)]
            yield from (f"{name}: {problem}" for problem in problems)

    def _money_of(self, invoice: Any) -> Iterator[str]:
        """Kept at Xendit, but for what waits for a person to be given back. All or nothing; a part, which the invoice
        must know of, only while the rest is owed (it waits for a person, or a person has released it) or was given
        up: money that was owed and paid stays. What a person has given back in the dashboard stays given back."""
        kept, elsewhere = self._kept(invoice), self._elsewhere(invoice)
        if elsewhere and invoice.amount_paid_minor != kept + int(invoice.held_minor):
            yield f"{elsewhere} went back in Xendit's dashboard, and it says that {invoice.amount_paid_minor} are paid"
        if invoice.status == "paid":
            if not invoice.amount_minor - elsewhere <= kept <= invoice.amount_minor:
                yield f"Xendit has collected and kept {kept} of {invoice.amount_minor}"
        elif kept != 0 and not (
            0 < kept < invoice.amount_minor
            and invoice.status in ("open", "uncollectible")
            and kept == invoice.amount_paid_minor
        ):
            yield f"Xendit has collected and kept {kept}"
        foreign = self._foreign(invoice)
        if foreign != invoice.held_foreign_minor:
            yield (
                f"Xendit has kept {foreign} in another currency,"
                f" and {invoice.held_foreign_minor} of it wait for a person's word"
            )

    def _kept(self, invoice: Any) -> int:
        return self.kept.get((invoice.id, invoice.currency), 0) - int(invoice.held_minor)

    def _elsewhere(self, invoice: Any) -> int:
        return self.went_back.get(invoice.id, 0)

    def _foreign(self, invoice: Any) -> int:
        """Other money than is owed pays nothing, and only a person gives it back: all of it is kept at Xendit and held
        here, whatever becomes of the invoice."""
        return sum(
            minor
            for (owner, currency), minor in self.kept.items()
            if owner == invoice.id and currency != invoice.currency
        )

    def _fate_of(self, books: Books, invoice: Any) -> Iterator[str]:
        match invoice.status:
            case "open":
                yield from self._may_be_open(books, invoice)
            case "uncollectible":
                if not self._was_given_up_rightly(books, invoice):
                    yield f"given up at {invoice.closed_at}, before its ladder was over ({self.who.dunning})"
            case "void":
                if not self._was_voided_rightly(books, invoice):
                    yield f"void since {invoice.closed_at}: only `cancel --now` forgives what is owed"

    def _may_be_open(self, books: Books, invoice: Any) -> Iterator[str]:
        if invoice.hold_reason is not None:
            if not self._may_wait_for_a_person(invoice):
                yield f"waits for a person: {invoice.hold_reason}"
            return
        young = invoice.opened_at > self.now - ON_TIME
        on_its_ladder = invoice.first_failed_at is not None and (invoice.grace_ends_at or self.now) > self.now
        if not (young or on_its_ladder or invoice.under_way or books.subscription.status == "paused"):
            yield f"opened at {invoice.opened_at} and never ended"
        if books.subscription.status == "canceled" and not invoice.under_way:
            yield "open though its subscription is canceled"

    def _may_wait_for_a_person(self, invoice: Any) -> bool:
        """The merchant chose so, our own request was refused, or Xendit captured something else than was asked for."""
        kept = self.kept.get((invoice.id, invoice.currency), 0) + self._elsewhere(invoice)
        chosen = self.play.merchant.hold_in_doubt or self.play.merchant.guards == "subscriber daily cap"
        return chosen or invoice.our_fault or 0 < kept < invoice.amount_minor or self._foreign(invoice) > 0

    def _was_given_up_rightly(self, books: Books, invoice: Any) -> bool:
        """After its full ladder; or because the subscription ended: at a period's end, or by another invoice's."""
        end = self._end(books)
        idle = any(each.idle for each in self.play.people.cancellations[self.who.reference])
        by_the_end = end is not None and (end.kind in ("period", "dunning") or idle)
        if end is not None and by_the_end and invoice.closed_at >= end.at - SLACK:
            return True
        if end is not None and end.kind == "now" and self._kept(invoice) + self._elsewhere(invoice) > 0:
            return True  # of a void invoice no money is kept: where a part was paid the rest is given up
        until = self._planned_end(books)
        if until is not None and invoice.closed_at >= until[0] - SLACK:
            return True
        failed: datetime | None = invoice.first_failed_at
        return failed is not None and bool(invoice.closed_at >= failed + GRACE[self.who.dunning] - SLACK)

    def _was_voided_rightly(self, books: Books, invoice: Any) -> bool:
        if invoice.period_key == "first":
            return True  # a page that nobody paid
        asked = self.play.people.cancellations[self.who.reference]
        at_once = [each.at for each in asked if each.at_once]
        return books.subscription.status == "canceled" and any(invoice.closed_at >= at - SLACK for at in at_once)


# -------------------------------------------------------------------------------------------------- money


def _minor(amount: Any, currency: str) -> int:
    return int(amount if currency in WHOLE_UNIT_CURRENCIES else amount * 100)


def _kept_by_invoice(play: Play, connection: Connection) -> dict[tuple[str, str], int]:
    """Captured minus refunded at Xendit, in the smallest unit; by invoice (that of our reference) and currency."""
    invoice_of = _invoices_by_reference(connection)
    kept: dict[tuple[str, str], int] = {}
    for payment in play.simulator.world.payments.values():
        currency = str(payment.document["currency"])
        invoice = _invoice_of(payment, invoice_of)
        if invoice is not None:
            minor = _minor(payment.captured - payment.refunded, currency)
            kept[invoice, currency] = kept.get((invoice, currency), 0) + minor
    return kept


def _refunded_elsewhere(play: Play, connection: Connection) -> dict[str, int]:
    """What people gave back in Xendit's dashboard, by invoice."""
    invoice_of = _invoices_by_reference(connection)
    found: dict[str, int] = {}
    for refund_id in play.people.refunds:
        refund = play.simulator.world.refunds[refund_id]
        invoice = _invoice_of(refund.payment, invoice_of)
        if invoice is not None:
            found[invoice] = found.get(invoice, 0) + _minor(refund.amount, str(refund.document["currency"]))
    return found


def _invoices_by_reference(connection: Connection) -> dict[str, str]:
    rows = connection.execute(text("SELECT reference_id, invoice_id FROM charge_attempts"))
    return {row[0]: row[1] for row in rows}


def _invoice_of(payment: Payment, by_reference: dict[str, str]) -> str | None:
    reference = str(payment.document["reference_id"])
    return by_reference.get(reference) or by_reference.get(reference.rpartition("_")[0])


def _judge_refunds_elsewhere(play: Play, connection: Connection) -> Iterator[str]:
    """Each refund made in the dashboard is recorded once, as what it is, on the capture of its payment. That nothing is
    charged for it again is judged where charges arrive (line.py): its payment counts as paid for ever."""
    for refund_id in play.people.refunds:
        document = play.simulator.world.refunds[refund_id].document
        minor = _minor(Decimal(str(document["amount"])), str(document["currency"]))
        expected = (document["payment_id"], minor, document["currency"], "succeeded", True)
        rows = [tuple(row) for row in connection.execute(_REFUND, {"refund": refund_id})]
        if rows != [expected]:
            yield f"refund {refund_id} was made in Xendit's dashboard: {expected}, our books say {rows}"


def _judge_money(play: Play, connection: Connection) -> Iterator[str]:
    """Every capture Xendit has is known here with its amount and currency, and every one known here is there."""
    rows = connection.execute(text("SELECT payment_id, sum(amount_minor), min(currency) FROM captures GROUP BY 1"))
    ours = {row[0]: (int(row[1]), row[2]) for row in rows}
    payments = {name: payment for name, payment in play.simulator.world.payments.items() if payment.captured}
    for payment_id in sorted(payments.keys() - ours.keys()):
        reference = payments[payment_id].document["reference_id"]
        yield f"payment {payment_id} of {reference} was collected and is unknown here"
    for payment_id in sorted(str(unknown) for unknown in ours.keys() - payments.keys()):
        yield f"payment {payment_id} is in our books and not in Xendit's"
    for payment_id in sorted(payments.keys() & ours.keys()):
        currency = str(payments[payment_id].document["currency"])
        theirs = (_minor(payments[payment_id].captured, currency), currency)
        if ours[payment_id] != theirs:
            yield f"payment {payment_id}: Xendit captured {theirs}, our books say {ours[payment_id]}"


# ------------------------------------------------------------------------------------------------- doctor


def _judge_doctor(play: Play, connection: Connection) -> Iterator[str]:
    """What the doctor finds, but for what a year may well end with."""
    for check in doctor.examine(play.parts)["checks"]:
        may_wait = MAY_WAIT.get(check["name"])
        if not check["ok"] and (may_wait is None or not may_wait(play, connection)):
            yield f"doctor: {check['name']}: {check['detail']}"


def _any(query: str) -> Callable[[Play, Connection], bool]:
    statement = text(query)
    return lambda _play, connection: bool(connection.scalar(statement))


def _just_now(query: str) -> Callable[[Play, Connection], bool]:
    """Something of the last minutes: it is due this very moment."""
    statement = text(query)
    return lambda play, connection: not connection.scalar(statement, {"late": play.now() - ON_TIME})


# Findings of the doctor that are no broken promise, each for its own reason: the first three wait for a person and are
# judged one by one above, the others are due this very moment.
MAY_WAIT: dict[str, Callable[[Play, Connection], bool]] = {
    "no_subscription_is_held": _any("SELECT 1 FROM subscriptions WHERE hold_reason IS NOT NULL LIMIT 1"),
    "no_invoice_is_held": _any("SELECT 1 FROM invoices WHERE status = 'open' AND hold_reason IS NOT NULL LIMIT 1"),
    "no_refund_is_stuck": lambda play, _: (
        not play.merchant.refund_overpayments or play.fate.rates["other_currency"] > 0
    ),
    "due_periods_on_time": _just_now(
        "SELECT 1 FROM subscriptions WHERE next_billing_at < :late AND hold_reason IS NULL"
        " AND status IN ('trialing', 'active', 'past_due') LIMIT 1"
    ),
    "due_attempts_on_time": _just_now(
        "SELECT 1 FROM charge_attempts WHERE status = 'scheduled' AND scheduled_at < :late LIMIT 1"
    ),
    "due_follow_ups_on_time": _just_now("SELECT 1 FROM charge_attempts WHERE next_check_at < :late LIMIT 1"),
    "runs_have_an_end": _just_now(
        "SELECT 1 FROM charge_attempts WHERE status = 'scheduled' AND scheduled_at < :late LIMIT 1"
    ),
}


# -------------------------------------------------------------------------------------------------- books


def _open_books(play: Play, connection: Connection, reference: str) -> Books | None:
    subscription = connection.execute(
        text("SELECT * FROM subscriptions WHERE reference = :reference"), {"reference": reference}
    ).first()
    if subscription is None:
        return None
    books = Books(subscription)
    who = {"subscription": subscription.id}
    books.invoices = list(connection.execute(_INVOICES, who))
    for row in connection.execute(text("SELECT * FROM skipped_periods WHERE subscription_id = :subscription"), who):
        books.skipped[row.period_start] = row
    _read_story(books, connection, play.stage.now)
    _read_beginning(play, books, connection)
    return books


def _read_story(books: Books, connection: Connection, now: datetime) -> None:
    began: datetime | None = None
    for row in connection.execute(_STORY, {"subscription": books.subscription.id}):
        match row.kind:
            case "subscription.activated" | "subscription.trialing":
                books.came_in_at = books.came_in_at or row.at
            case "subscription.cancel_planned":
                books.cancel_planned_at.append(row.at)
            case "subscription.paused":
                began = row.at
            case "subscription.resumed" if began is not None:
                books.paused.append((began, row.at))
                began = None
    if began is not None:
        books.paused.append((began, books.subscription.canceled_at or now))


def _read_beginning(play: Play, books: Books, connection: Connection) -> None:
    """Which session brought it in, and when that was at Xendit."""
    first = books.invoices[0] if books.invoices else None
    for row in connection.execute(_SESSIONS, {"subscription": books.subscription.id}):
        token = play.simulator.world.tokens.get(row.payment_token_id)
        if token is not None:
            made_at = datetime.fromisoformat(token.document["created"])
            books.token_made_at = min(books.token_made_at or made_at, made_at)
    if first is None or not first.paid_on_page:
        return
    captured = [
        payment.captured_at
        for payment in play.simulator.world.payments.values()
        if payment.captured_at and str(payment.document["reference_id"]).rpartition("_")[0] in first.page_references
    ]
    if captured:
        books.paid_on_page_at = datetime.fromisoformat(min(captured).isoformat())


# A draft that never collected anything is no period.
_INVOICES = text("""
    SELECT i.*, (
        SELECT coalesce(sum(r.amount_minor), 0) FROM refunds r JOIN captures c ON c.id = r.capture_id
        WHERE c.invoice_id = i.id AND r.status IN ('held', 'failed') AND c.currency = i.currency
    ) AS held_minor, (
        SELECT coalesce(sum(r.amount_minor), 0) FROM refunds r JOIN captures c ON c.id = r.capture_id
        WHERE c.invoice_id = i.id AND r.status = 'held' AND c.currency <> i.currency
    ) AS held_foreign_minor, EXISTS (
        SELECT 1 FROM charge_attempts a WHERE a.invoice_id = i.id
            AND a.status IN ('scheduled', 'submitted', 'pending', 'requires_action', 'in_doubt')
    ) AS under_way, EXISTS (
        SELECT 1 FROM charge_attempts a WHERE a.invoice_id = i.id AND a.decline_class = 'our_fault'
    ) AS our_fault, EXISTS (
        SELECT 1 FROM charge_attempts a WHERE a.invoice_id = i.id AND a.origin = 'session' AND a.status = 'succeeded'
    ) AS paid_on_page, ARRAY (
        SELECT a.reference_id FROM charge_attempts a WHERE a.invoice_id = i.id AND a.origin = 'session'
    ) AS page_references
    FROM invoices i WHERE i.subscription_id = :subscription
        AND (i.period_key <> 'first' OR i.status NOT IN ('draft', 'void'))
    ORDER BY i.period_start
""")
_REFUND = text("""
    SELECT c.payment_id, r.amount_minor, r.currency, r.status, r.made_elsewhere
    FROM refunds r JOIN captures c ON c.id = r.capture_id WHERE r.xendit_refund_id = :refund
""")
_STORY = text("SELECT kind, at FROM facts WHERE subscription_id = :subscription ORDER BY id")
_SESSIONS = text(
    "SELECT payment_token_id FROM payment_sessions WHERE subscription_id = :subscription AND status = 'COMPLETED'"
)
