"""Our books against Xendit's list of a day; and one look-up seen from close by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

import pytest
from sqlalchemy import text

from billing.charging import look_up
from billing.domain.gateway import TransactionRow
from billing.runs import tick
from tests.world import START, World

TODAY = date(2026, 1, 31)


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


def test_on_a_good_day_nothing_differs(world: World) -> None:
    for number in range(60):  # more than one page of Xendit's list
        world.subscribe_save(f"customer{number}")
    world.run()
    world.deliver_webhooks()

    assert look_up.compare_day(world.parts, TODAY) == []


def test_what_xendit_collected_and_we_do_not_know_is_settled(world: World) -> None:
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_AFTER")
    world.run()
    world.deliver_webhooks(lose=["payment.capture"])

    (difference,) = look_up.compare_day(world.parts, TODAY)

    assert (difference.kind, difference.reference_id) == ("missing_here", ana.attempt.reference_id)
    assert (ana.status, ana.invoice.status) == ("active", "paid")
    assert look_up.compare_day(world.parts, TODAY) == [], "the second time there is nothing left"


def test_money_collected_after_a_failure_is_found_in_the_list(world: World) -> None:
    """W4, with the webhook lost as well."""
    ana = world.subscribe_save()
    ana.script("NO_WEBHOOK:LATE_CAPTURE:INSUFFICIENT_BALANCE:3600")
    world.run()
    world.advance(hours=2)
    world.deliver_webhooks(lose=["payment.capture", "payment.failure"])
    assert ana.outcomes == ["failed", "scheduled"]

    look_up.compare_day(world.parts, TODAY)

    assert ana.outcomes == ["succeeded", "canceled"]
    assert world.collected() == [50_000]


def test_money_that_came_during_a_long_outage_is_found_by_itself(world: World) -> None:
    """Two weeks down: Xendit gave the webhook up long ago, and the day is no longer among the last."""
    ana = world.subscribe_save()
    ana.script("NO_WEBHOOK:LATE_CAPTURE:INSUFFICIENT_BALANCE:3600")
    world.run()
    world.advance(days=14)
    world.deliver_webhooks(lose=["payment.capture", "payment.failure"])
    assert ana.outcomes == ["failed", "scheduled"]

    tick.hand_out_days(world.parts, world.send)

    assert ana.outcomes == ["succeeded", "canceled"]
    assert world.collected() == [50_000]


def test_a_day_is_compared_until_somebody_has_done_it_late_enough(world: World) -> None:
    world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    world.advance(days=1)
    asked: list[date] = []

    def nobody_works(_kind: str, days: Sequence[str]) -> None:
        asked.extend(date.fromisoformat(day) for day in days)

    for _ in range(5):  # the messages of five days are lost
        tick.hand_out_days(world.parts, nobody_works)
        world.advance(days=1)
    assert asked.count(TODAY) == 5

    tick.hand_out_days(world.parts, world.send)

    left = tick.days_to_compare(world.parts)
    assert left == [date(2026, 2, 5), date(2026, 2, 4)], "Xendit may list a payment late: those come again"


def test_a_day_with_a_payment_that_could_not_be_read_is_not_done(world: World) -> None:
    """The comparison is the last of its day: what could not be read then is read another time."""
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:STOLEN_CARD:200")
    world.run()
    world.advance(minutes=10)
    world.deliver_webhooks(lose=["payment.capture"])
    world.advance(days=3)
    world.break_calls("HTTP:503:CHANNEL_UNAVAILABLE", endpoint="GET /v3/payments/{id}")
    (found,) = look_up.compare_day(world.parts, TODAY)
    assert (found.kind, "cannot be read now" in found.explanation) == ("missing_here", True)

    tick.hand_out_days(world.parts, world.send)

    assert ana.invoice.amount_paid_minor == 50_000


def test_what_we_count_and_xendit_does_not_is_listed(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    with world.parts.transaction() as session:
        session.execute(text("UPDATE captures SET payment_id = 'py-nobody-knows'"))
        session.execute(text("UPDATE charge_attempts SET reference_id = 'att-nobody-knows'"))

    kinds = {difference.kind for difference in look_up.compare_day(world.parts, TODAY)}

    assert kinds == {"unknown_payment", "missing_there"}
    with world.parts.transaction() as session:
        session.execute(
            text("UPDATE charge_attempts SET reference_id = :known"), {"known": world.ledger()[0]["reference_id"]}
        )
    assert ana.invoice.status == "paid", "nothing is changed by it: a person asks Xendit"


def test_amounts_that_differ_are_listed(world: World) -> None:
    world.waive("paid_stays_paid")  # that is the difference
    world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    with world.parts.transaction() as session:
        session.execute(text("UPDATE captures SET amount_minor = 49999"))
        session.execute(text("UPDATE invoices SET amount_paid_minor = 49999"))

    (difference,) = look_up.compare_day(world.parts, TODAY)

    assert (difference.kind, difference.ours) == ("amount", "49999")


def test_comparing_charges_nobody(world: World) -> None:
    """U5."""
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE")
    world.run()
    before = world.calls()

    look_up.compare_day(world.parts, TODAY)

    assert world.calls() == before


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ([], "in_doubt"),
        (["FAILED without payment"], "pending"),
        (["PENDING without payment"], "pending"),
        (["REFUND"], "in_doubt"),
        (["FAILED", "SUCCESS"], "succeeded"),
        (["SUCCESS", "FAILED"], "succeeded"),
    ],
)
def test_the_list_is_read_for_money_first(
    world: World, monkeypatch: pytest.MonkeyPatch, rows: list[str], status: str
) -> None:
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_AFTER")
    world.run()
    paid = world.ledger()[0]["payment_id"]
    listed = [_row(name, ana.attempt.reference_id, paid) for name in rows]
    monkeypatch.setattr(world.gateway, "find_transactions", lambda _reference: listed)

    world.advance(minutes=1)
    ana.look_up()

    assert ana.outcomes == [status]
    world.deliver_webhooks()


def _row(name: str, reference: str, payment_id: str) -> TransactionRow:
    kind = "REFUND" if name == "REFUND" else "PAYMENT"
    known = payment_id if name == "SUCCESS" else None
    return TransactionRow("txn-1", kind, name.split(" ", maxsplit=1)[0], reference, known, None, START)


@pytest.mark.parametrize("change", ["attempt_is_gone", "nothing_to_check"])
def test_a_late_message_to_look_up_does_nothing(world: World, change: str) -> None:
    ana = world.subscribe_save()
    world.run()
    before = world.calls("GET /v3/payment_requests/{id}")

    look_up.check_attempt(world.parts, ana.attempt.id if change == "nothing_to_check" else "att-unknown")

    assert world.calls("GET /v3/payment_requests/{id}") == before


def test_look_ups_become_rare(world: World) -> None:
    """Minutes at first, then hours: seven in the first day, not one a minute."""
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_BEFORE")
    world.run()

    world.live(hours=25)

    assert ana.outcomes == ["in_doubt"]
    assert world.calls("GET /transactions") == 7
