"""Nobody is billed for the time before he could be: a start is never earlier than what begins it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select

from billing.domain.gateway import SessionType
from billing.errors import InvalidInput
from billing.store.models import Capture
from billing.subscribing import session_results
from tests.world import Subscriber, World


def lose_everything(world: World) -> None:
    while world.simulator.due_deliveries(world.now):
        pass


def comes_back(world: World, who: Subscriber, via: SessionType) -> None:
    who.completes_session(who.new_session(via=via))
    world.deliver_webhooks()
    world.live(hours=2)


def test_a_start_in_the_past_is_refused(world: World) -> None:
    with pytest.raises(InvalidInput, match="has passed"):
        world.subscribe(start_at=world.now - timedelta(days=1))


@pytest.mark.parametrize("via", [SessionType.SAVE, SessionType.PAY])
def test_who_comes_after_the_start_begins_when_he_comes(world: World, via: SessionType) -> None:
    ana = world.subscribe(via=via, start_at=world.now + timedelta(days=1))
    world.live(days=100)  # the link lapses
    assert ana.status == "incomplete"
    comes_back(world, ana, via)

    assert world.collected() == [50_000]
    (invoice,) = ana.invoices
    assert invoice.period_start >= world.now - timedelta(hours=3)

    world.live(days=31)

    assert world.collected() == [50_000, 50_000]


def test_a_start_that_is_still_to_come_is_waited_for(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY, start_at=world.now + timedelta(days=10))
    ana.completes_session()
    world.deliver_webhooks()

    assert ana.invoice.period_start == ana.subscription.start_at


def test_a_first_period_paid_on_the_page_begins_at_the_capture_however_late_we_hear(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    world.advance(hours=1)
    ana.completes_session()
    paid_at = world.now
    lose_everything(world)
    world.advance(days=5)  # nobody was up
    world.live(hours=3)

    assert ana.status == "active"
    assert ana.invoice.period_start == paid_at
    assert world.all(select(Capture))[0].captured_at == paid_at


def test_a_customer_heard_of_after_a_month_is_billed_for_the_second(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    ana.completes_session()
    lose_everything(world)
    world.advance(days=40)
    world.live(hours=3)

    assert [invoice.status for invoice in ana.invoices] == ["paid", "paid"]
    assert ana.invoices[0].period_end == ana.invoices[1].period_start


def test_session_refresh_settles_the_payment_in_the_same_go(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    ana.completes_session()
    lose_everything(world)
    session_results.refresh_session(world.parts, ana.session_id)

    assert (ana.status, ana.invoice.status, ana.attempt.status) == ("active", "paid", "succeeded")
    assert ana.subscription.payment_token_id is not None


def test_refreshing_again_does_not_put_off_a_look_that_is_planned(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    ana.completes_session()
    lose_everything(world)
    world.break_calls("HTTP:500:SERVER_ERROR", endpoint="GET /v3/payment_requests/{id}", count=3)
    session_results.refresh_session(world.parts, ana.session_id)
    planned = ana.attempt.next_check_at
    for _ in range(2):
        world.advance(seconds=30)
        session_results.refresh_session(world.parts, ana.session_id)

    assert ana.attempt.next_check_at == planned


def test_a_clock_of_xendits_that_is_far_off_moves_no_period_into_the_past(world: World) -> None:
    """Their time is taken between the opening of the session and now."""
    ana = world.subscribe(via=SessionType.PAY)
    opened = world.now
    ana.completes_session()
    for payment in world.simulator.world.payments.values():
        for capture in payment.document["captures"]:
            capture["capture_timestamp"] = "2020-01-01T00:00:00Z"
    lose_everything(world)
    session_results.refresh_session(world.parts, ana.session_id)
    world.live(hours=1)

    assert ana.invoice.period_start == opened
    assert len(ana.invoices) == 1
