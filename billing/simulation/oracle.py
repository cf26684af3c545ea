"""What should have happened, worked out from the calendar, from what people did and from Xendit's own ledger.

Not from the code under test: periods are counted here once more with nothing but the calendar, money is counted at the
simulator, and our tables are only asked what they say of each period.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine, text

from billing.services import doctor
from billing.simulation.people import AMOUNT, Rhythm, Subscriber

if TYPE_CHECKING:
    from billing.simulation.play import Play

SLACK = timedelta(minutes=20)  # how wrong our clocks may have been, and how long work may take
ON_TIME = timedelta(minutes=10)  # of the end of the year, when nothing goes wrong
# What the doctor tells of and a year may well end with: it waits for a person because the merchant chose so, or is due
# this very moment.
MAY_WAIT = frozenset({
    "no_subscription_is_held", "no_invoice_is_held", "no_refund_is_stuck",
    "due_attempts_on_time", "due_periods_on_time", "due_follow_ups_on_time", "runs_have_an_end",
})  # fmt: skip


@dataclass(slots=True)
class Books:
    """Of one subscriber: what Xendit collected for each of his invoices, and what our tables say."""

    subscription: Any
    invoices: list[Any] = field(default_factory=list)
    skipped: dict[datetime, str] = field(default_factory=dict)
    paused: list[tuple[datetime, datetime]] = field(default_factory=list)


def judge(play: Play) -> list[str]:
    """Everything that is wrong at the end of a year; empty when every promise was kept."""
    with play.engine.connect() as connection:
        wrong = [problem for who in play.subscribers for problem in _judge_one(play, connection, who)]
        wrong += _judge_money(play, connection)
    wrong += [
        f"doctor: {check['name']}: {check['detail']}"
        for check in doctor.examine(play.parts)["checks"]
        if not check["ok"] and check["name"] not in MAY_WAIT
    ]
    return wrong


def has_come_in(engine: Engine, reference: str) -> bool:
    query = text("SELECT 1 FROM subscriptions WHERE reference = :reference AND status <> 'incomplete'")
    with engine.connect() as connection:
        return connection.scalar(query, {"reference": reference}) is not None


# ------------------------------------------------------------------------------------------- the calendar


def period_starts(rhythm: Rhythm, anchor: datetime, zone: str) -> Iterator[datetime]:
    """When each period begins, for ever. `anchor`: the first one. Wall clock in `zone`; a short month has its last
    day, and the day comes back with a longer one; an hour that a change to summer time leaves out is an hour later."""
    local = anchor.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    number = 0
    while True:
        yield _instant(_moved(local, rhythm, number), zone)
        number += 1


def _moved(local: datetime, rhythm: Rhythm, number: int) -> datetime:
    if rhythm.days:
        return local + timedelta(days=rhythm.days * number)
    months = local.year * 12 + local.month - 1 + rhythm.months * number
    year, month = divmod(months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return local.replace(year=year, month=month + 1, day=min(local.day, last))


def _instant(local: datetime, zone: str) -> datetime:
    return local.replace(tzinfo=ZoneInfo(zone), fold=0).astimezone(UTC)


def _first_of_month(after: datetime, hour: int, zone: str) -> datetime:
    """The first such hour at or after `after`."""
    local = after.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    candidate = local.replace(day=1, hour=hour, minute=0, second=0, microsecond=0)
    if candidate < local:
        candidate = _moved(candidate, Rhythm("", months=1), 1)
    return _instant(candidate, zone)


# ---------------------------------------------------------------------------------------- one subscriber


def _judge_one(play: Play, connection: Connection, who: Subscriber) -> Iterator[str]:
    books = _open_books(connection, who.reference)
    if books is None or books.subscription.status == "incomplete":
        yield f"{who.reference} never came in"
        return
    anchor = _anchor(who, books)
    if anchor is not None:
        yield from _check_periods(play, who, books, anchor)
    elif books.subscription.status not in ("canceled", "paused"):
        yield f"{who.reference} has neither a period nor a start"
    if books.subscription.hold_reason is not None and who.catch_up != "hold":
        yield f"{who.reference} is held though its policy is {who.catch_up}: {books.subscription.hold_reason}"
    yield from _check_invoices(play, connection, books)


def _check_periods(play: Play, who: Subscriber, books: Books, anchor: datetime) -> Iterator[str]:
    """Each period that has begun is billed, or skipped for a reason; and there are no others."""
    billed = {invoice.period_start for invoice in books.invoices}
    owed_until = _owed_until(play, who, books.subscription) - SLACK
    expected: set[datetime] = set()
    for start in period_starts(who.rhythm, anchor, who.zone):
        if start > play.stage.now + SLACK:
            break
        expected.add(start)
        if start > owed_until:
            continue
        if start in billed and start in books.skipped:
            yield f"{who.reference}: the period from {start} is billed and skipped"
        elif start in books.skipped:
            yield from _check_skip(who, books, start)
        elif start not in billed:
            yield f"{who.reference}: the period from {start} was forgotten"
    for start in sorted({*billed, *books.skipped} - expected):
        yield f"{who.reference}: there is no period from {start}"


def _owed_until(play: Play, who: Subscriber, subscription: Any) -> datetime:
    """Periods that begin later need not be billed."""
    end: datetime = subscription.paused_at or subscription.canceled_at or play.stage.now
    if subscription.status == "canceled":
        # Asked for at the end of a period: none that begins later is owed, however late anybody looked.
        end = min(end, play.people.cancellations.get(who.reference, end))
    if subscription.hold_reason is not None:
        end = min(end, subscription.next_billing_at or end)
    return end


def _anchor(who: Subscriber, books: Books) -> datetime | None:
    if who.start_at is None:
        # Begins with the capture of the first payment: whenever that was, the rest follows from it.
        starts = [invoice.period_start for invoice in books.invoices] + list(books.skipped)
        return min(starts, default=None)
    if who.rhythm.first_of_month_at is not None:
        return _first_of_month(who.start_at, who.rhythm.first_of_month_at, who.zone)
    return who.start_at


def _check_skip(who: Subscriber, books: Books, start: datetime) -> Iterator[str]:
    was_paused = any(began - SLACK <= start <= ended + SLACK for began, ended in books.paused)
    if not was_paused and who.catch_up not in ("latest", "skip"):
        yield f"{who.reference}: the period from {start} was skipped ({books.skipped[start]}) for no reason"


def _check_invoices(play: Play, connection: Connection, books: Books) -> Iterator[str]:
    kept = _kept_by_invoice(play, connection)
    for invoice in books.invoices:
        money = kept.get(invoice.id, 0)
        name = f"{invoice.number} ({invoice.status})"
        held_refund = invoice.held_minor
        if money - held_refund not in (0, AMOUNT):
            yield f"{name}: Xendit has collected and kept {money}"
        if (invoice.status == "paid") != (money - held_refund == AMOUNT):
            yield f"{name}: Xendit has collected and kept {money}"
        if invoice.status == "open" and not _may_be_open(play, books.subscription, invoice):
            yield f"{name}: opened at {invoice.opened_at} and never ended"
        if invoice.status == "open" and invoice.hold_reason is not None and not play.parts.rules.hold_in_doubt:
            yield f"{name}: waits for a person: {invoice.hold_reason}"
        if invoice.status == "void" and books.subscription.status != "canceled" and invoice.period_key != "first":
            yield f"{name}: void though the subscription is {books.subscription.status}"


def _may_be_open(play: Play, subscription: Any, invoice: Any) -> bool:
    if subscription.status == "paused" or invoice.hold_reason is not None:
        return True
    young = invoice.opened_at > play.stage.now - ON_TIME
    waiting = invoice.first_failed_at is not None and (invoice.grace_ends_at or play.stage.now) > play.stage.now
    return young or waiting


# -------------------------------------------------------------------------------------------------- money


def _kept_by_invoice(play: Play, connection: Connection) -> dict[str, int]:
    """Captured minus refunded at Xendit, in rupiah; by the invoice our reference stands for."""
    rows = connection.execute(text("SELECT reference_id, invoice_id FROM charge_attempts"))
    invoice_of = {row[0]: row[1] for row in rows}
    kept: dict[str, int] = {}
    for payment in play.simulator.world.payments.values():
        reference = str(payment.document["reference_id"])
        invoice = invoice_of.get(reference) or invoice_of.get(reference.rpartition("_")[0])
        if invoice is not None:
            kept[invoice] = kept.get(invoice, 0) + int(payment.captured - payment.refunded)
    return kept


def _judge_money(play: Play, connection: Connection) -> Iterator[str]:
    """Every capture Xendit has is known here, and every one known here is there."""
    ours = {row[0] for row in connection.execute(text("SELECT payment_id FROM captures"))}
    theirs = {name for name, payment in play.simulator.world.payments.items() if payment.captured}
    for payment_id in sorted(theirs - ours):
        reference = play.simulator.world.payments[payment_id].document["reference_id"]
        yield f"payment {payment_id} of {reference} was collected and is unknown here"
    for payment_id in sorted(str(unknown) for unknown in ours - theirs):
        yield f"payment {payment_id} is in our books and not in Xendit's"


# -------------------------------------------------------------------------------------------------- books


def _open_books(connection: Connection, reference: str) -> Books | None:
    subscription = connection.execute(
        text("SELECT * FROM subscriptions WHERE reference = :reference"), {"reference": reference}
    ).first()
    if subscription is None:
        return None
    books = Books(subscription)
    who = {"subscription": subscription.id}
    books.invoices = list(connection.execute(_INVOICES, who))
    for row in connection.execute(text("SELECT * FROM skipped_periods WHERE subscription_id = :subscription"), who):
        books.skipped[row.period_start] = row.reason
    began: datetime | None = None
    for row in connection.execute(_PAUSES, who):
        if row.kind == "subscription.paused":
            began = row.at
        elif began is not None:
            books.paused.append((began, row.at))
            began = None
    return books


# A draft that never collected anything is no period.
_INVOICES = text("""
    SELECT i.*, (
        SELECT coalesce(sum(r.amount_minor), 0) FROM refunds r JOIN captures c ON c.id = r.capture_id
        WHERE c.invoice_id = i.id AND r.status IN ('held', 'failed')
    ) AS held_minor
    FROM invoices i WHERE i.subscription_id = :subscription
        AND (i.period_key <> 'first' OR i.status NOT IN ('draft', 'void'))
    ORDER BY i.period_start
""")
_PAUSES = text("""
    SELECT kind, at FROM facts WHERE subscription_id = :subscription
        AND kind IN ('subscription.paused', 'subscription.resumed') ORDER BY id
""")
