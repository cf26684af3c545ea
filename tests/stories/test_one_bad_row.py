"""One bad row holds itself, visibly, and nothing else: everybody else is billed in the same tick."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text

from billing.checks import doctor
from billing.subscriptions import moves as lives
from billing.subscriptions import open_periods
from tests.world import Subscriber, World


def several(world: World, count: int = 5, **wanted: object) -> list[Subscriber]:
    return [world.subscribe_save(f"c{number}", **wanted) for number in range(count)]


def shift_stored_dates(world: World, hours: int, who: Subscriber | None = None) -> None:
    """What an update of the time zone data does: the wall clock that is stored means another instant now."""
    with world.parts.transaction() as session:
        session.execute(
            text(
                "UPDATE subscriptions SET next_billing_at = next_billing_at + make_interval(hours => :hours)"
                " WHERE CAST(:id AS text) IS NULL OR id = :id"
            ),
            {"hours": hours, "id": who.id if who else None},
        )


@pytest.mark.parametrize("hours", [-1, 1, -3])
def test_a_stored_date_that_no_longer_fits_its_zone_is_planned_again(world: World, hours: int) -> None:
    """Never skipped, never charged twice, by nobody's hand; the doctor is content with it."""
    everybody = several(world)
    world.run()
    shift_stored_dates(world, hours)
    world.live(days=62)

    assert [[invoice.status for invoice in who.invoices] for who in everybody] == [["paid"] * 3] * 5
    assert not any(who.skipped for who in everybody)
    assert [who.subscription.hold_reason for who in everybody] == [None] * 5


def test_one_that_was_released_from_a_hold_is_planned_again_like_the_others(world: World) -> None:
    everybody = several(world, start_at=world.now + timedelta(days=1))
    shift_stored_dates(world, -1)
    with world.parts.transaction() as session:
        session.execute(
            text("UPDATE subscriptions SET catch_up_until = :later WHERE id = :id"),
            {"later": world.now + timedelta(days=10), "id": everybody[0].id},
        )
    world.live(days=2)

    assert [[invoice.status for invoice in who.invoices] for who in everybody] == [["paid"]] * 5


@pytest.mark.parametrize("error", [IndexError("list index out of range"), RuntimeError(""), KeyError("anchor")])
def test_whatever_error_one_row_raises_the_others_are_billed_in_the_same_tick(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bad, *others = several(world)
    calendar_of = lives.calendar_of

    def breaks(subscription: lives.Subscription, schedule: str) -> lives.Calendar:
        if subscription.id == bad.id:
            raise error
        return calendar_of(subscription, schedule)

    monkeypatch.setattr(open_periods, "calendar_of", breaks)
    world.tick()

    assert [who.invoice.status for who in others] == ["paid"] * 4
    assert (bad.invoices, bad.subscription.hold_kind) == ([], "error")
    assert type(error).__name__ in (bad.subscription.hold_reason or "")
    found = {check["name"]: check for check in doctor.examine(world.parts)["checks"]}
    assert bad.id in found["no_subscription_is_held"]["detail"]

    monkeypatch.undo()
    bad.resume()
    world.tick()

    assert bad.invoice.status == "paid"


def test_one_whose_end_cannot_be_reached_holds_up_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, *others = several(world, plan=world.plan(every="every 1:week", cycles=1))
    end = lives.end

    def breaks(session: object, subscription: lives.Subscription, *rest: object, **more: object) -> None:
        if subscription.id == bad.id:
            raise KeyError("broken")
        end(session, subscription, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(lives, "end", breaks)
    world.live(days=8)

    assert [who.status for who in others] == ["canceled"] * 4
    assert (bad.status, bad.subscription.hold_kind) == ("active", "error")

    monkeypatch.undo()
    bad.resume()
    world.live(days=1)

    assert bad.status == "canceled"


def test_one_that_is_far_behind_costs_no_transaction_its_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch ends when it has computed for its time; the rest is opened by the next ones."""
    everybody = several(world, plan=world.plan("daily", every="every 1:day", catch_up="latest"))
    world.run()
    world.advance(days=1_500)
    monkeypatch.setattr(open_periods, "LONGEST_SECONDS", 0.0)
    batches = []
    with world.parts.transaction() as session:
        batches.append(open_periods.open_due_invoices(session, world.now))
    monkeypatch.undo()

    assert batches[0].more
    assert sum(len(who.skipped) > 0 for who in everybody) == 1

    world.run()

    assert [len(who.invoices) for who in everybody] == [2] * 5
    assert [len(who.skipped) for who in everybody] == [1_499] * 5
    assert {who.invoice.period_start for who in everybody} == {world.now}
