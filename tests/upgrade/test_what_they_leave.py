"""Rows as old workers leave them, before the upgrade and after it: the new software brings each to its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import simplejson
from sqlalchemy import text

from billing.checks import doctor
from billing.inbox import apply
from billing.store import migrate
from billing.xendit.masking import mask_payload
from billing.xendit.webhook import read_event
from tests.world import CHARGE, Subscriber, World

REFUND = "POST /refunds"
TOLD = ["refund.succeeded"]


class Upgraded(World):
    """A world whose software is replaced: rows are left at the schema of 0001, then the newest takes over."""

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self.url = database_url

    def upgrade(self, *left: str) -> None:
        self.engine.dispose()
        migrate.downgrade(self.url, "0001")
        self.written_by_old_workers(*left)
        migrate.upgrade(self.url)

    def written_by_old_workers(self, *left: str) -> None:
        with self.engine.begin() as connection:
            for statement in left:
                assert connection.execute(text(statement)).rowcount == 1, statement
        self.engine.dispose()


@pytest.fixture
def world(database_url: str) -> Iterator[Upgraded]:
    with Upgraded(database_url) as world:
        yield world


def overpaid(world: World, *, answer: str | None = None) -> Subscriber:
    """Collected twice; the refund is asked for, and its webhook is lost."""
    if answer is not None:
        world.break_calls(answer, endpoint=REFUND)
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    world.control("POST", f"/payments/{ana.attempt.payment_id}/capture", {"again": True})
    world.deliver_webhooks()
    world.tick()
    world.deliver_webhooks(lose=TOLD)
    world.advance(minutes=1)
    world.deliver_webhooks(lose=TOLD)
    assert [refund.status for refund in ana.refunds] == ["pending"]
    return ana


def test_a_refund_that_waited_for_a_webhook_is_looked_up(world: Upgraded) -> None:
    ana = overpaid(world)

    world.upgrade()
    world.live(hours=2)

    assert [refund.status for refund in ana.refunds] == ["succeeded"]
    assert (world.calls(REFUND), world.collected()) == (1, [50_000])


def test_one_that_an_old_worker_leaves_after_the_upgrade_is_found_by_the_doctor(world: Upgraded) -> None:
    ana = overpaid(world)
    world.upgrade()
    world.written_by_old_workers("UPDATE refunds SET status = 'pending', next_try_at = NULL, sent_at = NULL")

    _repair(world, "refunds_are_followed")
    world.live(hours=2)

    assert [refund.status for refund in ana.refunds] == ["succeeded"]
    assert world.calls(REFUND) == 1


@pytest.mark.parametrize(("answer", "end"), [(None, "succeeded"), ("TIMEOUT_BEFORE", "held")])
def test_a_refund_whose_sender_died_is_never_asked_for_again(world: Upgraded, answer: str | None, end: str) -> None:
    """It was accepted, or it never arrived: the row is the same, and only Xendit's list knows."""
    ana = overpaid(world, answer=answer)
    world.upgrade("UPDATE refunds SET status = 'requested', next_try_at = NULL, xendit_refund_id = NULL")

    world.live(hours=1)
    assert [refund.status for refund in ana.refunds] == ["requested"], "nobody asks again by himself"
    _repair(world, "refunds_are_followed")
    world.live(days=6)

    assert [refund.status for refund in ana.refunds] == [end]
    assert world.calls(REFUND) == 1


def test_a_refund_whose_end_an_old_worker_wrote_is_done(world: Upgraded) -> None:
    """The old software knew no look-up of a refund under way, so it does not take the date away."""
    world.waive("payments_add_up")  # one statement of what the old worker writes is enough here
    ana = overpaid(world)
    world.upgrade()
    world.written_by_old_workers("UPDATE refunds SET status = 'succeeded'")
    assert ana.refunds[0].next_try_at is not None

    world.live(hours=2)

    (refund,) = ana.refunds
    assert refund.status == "succeeded"
    assert refund.next_try_at is None, "or it would be due for ever"


@pytest.mark.parametrize("before_the_call", [False, True])
def test_a_charge_whose_worker_died_ends_with_one_payment(world: Upgraded, before_the_call: bool) -> None:
    ana = world.subscribe_save()
    world.open_due()
    ana.charged_by_a_process_that_dies(before_the_call=before_the_call)
    assert ana.outcomes == ["submitted"]

    world.upgrade()
    world.leases_run_out()
    world.live(days=6)

    assert "submitted" not in ana.outcomes
    assert world.collected() == [50_000]
    assert (ana.invoice.status, world.calls(CHARGE)) == ("paid", 1)


def test_an_event_that_was_stored_and_not_applied_is_applied(world: Upgraded) -> None:
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_AFTER")
    world.run()
    for delivery in world.simulator.due_deliveries(world.now):
        world.simulator.delivery_result(delivery, 200)
        payload = mask_payload(simplejson.loads(delivery.body, use_decimal=True))
        assert isinstance(payload, dict)
        with world.parts.transaction() as session:
            apply.record_event(session, read_event(payload), payload, world.now)
    assert "received" in [event.state for event in world.events()]

    world.upgrade()
    world.live(minutes=5)

    assert ana.outcomes == ["succeeded"]
    assert {event.state for event in world.events()} == {"applied"}


def _repair(world: World, name: str) -> None:
    world.advance(minutes=15)
    world.leases_run_out()
    with world.parts.transaction() as session:  # the doctor gives whoever is under way some minutes of real time
        session.execute(text("UPDATE refunds SET lease_until = lease_until - interval '1 hour'"))
    assert name in {check["name"] for check in doctor.examine(world.parts)["checks"] if not check["ok"]}
    doctor.examine(world.parts, repair=True)
    assert name not in {check["name"] for check in doctor.examine(world.parts)["checks"] if not check["ok"]}
