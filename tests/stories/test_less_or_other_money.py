"""The answer says that it is paid, the event says how much: less, more, or other money, in whatever order they come
(docs/decisions/0023)."""

from __future__ import annotations

from typing import Any

import pytest
import simplejson
from sqlalchemy import select

from billing.charging import look_up
from billing.checks import doctor
from billing.parts import Rules
from billing.store.models import Capture
from tests.world import Subscriber, World

CAPTURE = "payment.capture"
LESS = "PARTIAL:20000"


def charged(world: World, outcome: str, order: str) -> Subscriber:
    """Ana's first charge comes to this; its event comes before the answer, after it, or never."""
    ana = world.subscribe_save()
    ana.script(outcome)
    if order == "event first":
        charge = world.gateway.charge

        def with_the_event_first(request: Any) -> Any:
            answer = charge(request)
            world.deliver_webhooks()
            return answer

        world.gateway.charge = with_the_event_first  # type: ignore[method-assign]
        world.run()
        world.gateway.charge = charge  # type: ignore[method-assign]
    else:
        world.run()
    world.deliver_webhooks(lose=[CAPTURE] if order == "event lost" else [])
    if order == "event lost":
        compare_the_day(world)
    return ana


def compare_the_day(world: World) -> None:
    look_up.compare_day(world.parts, world.now.date())


ORDERS = pytest.mark.parametrize("order", ["answer first", "event first", "event lost"])


@ORDERS
def test_less_than_asked_leaves_the_invoice_open_and_held(world: World, order: str) -> None:
    ana = charged(world, LESS, order)

    assert (ana.invoice.status, ana.invoice.amount_paid_minor) == ("open", 20_000)
    assert (ana.invoice.hold_kind, ana.invoice.hold_reason) == ("amount", "IDR 20,000 of IDR 50,000 were captured")
    assert ana.refunds == []
    world.live(days=3)
    assert world.collected() == [20_000], "nothing is charged without a person"


@ORDERS
def test_a_person_charges_the_rest_and_then_it_is_paid(world: World, order: str) -> None:
    ana = charged(world, LESS, order)
    ana.pay_invoice()
    world.deliver_webhooks()

    assert ana.attempt.amount_minor == 30_000
    assert (ana.invoice.status, ana.invoice.amount_paid_minor, ana.invoice.hold_reason) == ("paid", 50_000, None)
    assert (world.collected(), ana.refunds) == ([20_000, 30_000], [])


def test_the_rest_may_come_in_several_parts(world: World) -> None:
    ana = charged(world, LESS, "answer first")
    ana.script("PARTIAL:10000", "SUCCEEDED")
    for _ in range(2):
        ana.pay_invoice()
        world.deliver_webhooks()

    assert (ana.invoice.status, world.collected()) == ("paid", [20_000, 10_000, 20_000])


def test_an_older_event_that_says_less_is_no_news(world: World) -> None:
    """Everything was captured, and its event has said so; one that was written before it comes later."""
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    with world.parts.sessions.begin() as session:
        assert session.scalars(select(Capture)).one().amount_known
    bodies = [event.payload for event in world.events(CAPTURE)]
    late = bodies[0]
    late["data"]["captures"][0]["capture_amount"] = 20_000
    late["created"] = "2026-01-31T01:00:00Z"
    world.receive(simplejson.dumps(late).encode())

    assert (ana.invoice.status, ana.invoice.amount_paid_minor) == ("paid", 50_000)


@ORDERS
def test_another_currency_pays_nothing(world: World, order: str) -> None:
    ana = charged(world, "CURRENCY:PHP", order)

    assert (ana.invoice.status, ana.invoice.amount_paid_minor, ana.invoice.hold_kind) == ("open", 0, "currency")
    (refund,) = ana.refunds
    assert (refund.status, refund.currency, refund.amount_minor) == ("held", "PHP", 5_000_000)
    wrong = {check["name"] for check in doctor.examine(world.parts)["checks"] if not check["ok"]}
    assert {"no_invoice_is_held", "no_refund_is_stuck"} <= wrong

    world.live(days=3)
    assert world.calls("POST /refunds") == 0, "only a person gives it back"
    ana.pay_invoice()
    world.deliver_webhooks()
    assert (ana.invoice.status, ana.invoice.amount_paid_minor) == ("paid", 50_000)


@ORDERS
def test_more_than_asked_is_paid_and_the_surplus_goes_back(world: World, order: str) -> None:
    ana = charged(world, "PARTIAL:60000", order)
    world.live(hours=1)

    assert ana.invoice.status == "paid"
    assert [(refund.amount_minor, refund.status) for refund in ana.refunds] == [(10_000, "succeeded")]
    assert (ana.invoice.amount_paid_minor, world.collected()) == (50_000, [50_000])


def test_less_money_for_one_that_has_ended_meanwhile_stays_booked(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(every="every 1:week", cycles=1))
    ana.script(LESS)
    world.run()
    events = world.simulator.due_deliveries(world.now)
    world.live(days=8)
    assert ana.status == "canceled"
    for delivery in events:
        world.receive(delivery.body)

    assert (ana.status, ana.invoice.status, ana.invoice.amount_paid_minor) == ("canceled", "uncollectible", 20_000)


def test_a_look_up_says_what_was_captured(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("TIMEOUT_AFTER:PARTIAL:20000")
    world.run()
    world.deliver_webhooks(lose=[CAPTURE])
    world.advance(minutes=2)
    world.tick()

    assert (ana.attempt.status, ana.invoice.status, ana.invoice.amount_paid_minor) == ("succeeded", "open", 20_000)


def test_a_first_period_paid_in_part_on_the_page_is_held(world: World) -> None:
    from billing.domain.gateway import SessionType

    ana = world.subscribe(via=SessionType.PAY)
    ana.completes_session(outcome=LESS)
    world.deliver_webhooks()

    assert (ana.status, ana.invoice.status, ana.invoice.hold_kind) == ("active", "open", "amount")


def test_a_second_capture_is_given_back_however_the_first_was_told(new_world: Any) -> None:
    world: World = new_world(rules=Rules(refund_overpayments=False))
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    world.control("POST", f"/payments/{ana.attempt.payment_id}/capture", {"again": True})
    world.deliver_webhooks()

    assert [(refund.amount_minor, refund.status) for refund in ana.refunds] == [(50_000, "held")]
    assert ana.invoice.status == "paid"
