"""A proxy, a firewall or a captive page answers for Xendit: nobody knows whether the request got there."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from billing.store.models import ChargingStop
from tests.world import CHARGE, Subscriber, World

REFUND = "POST /refunds"
AFTER = ["PROXY_403_AFTER", "EMPTY_401_AFTER", "PROXY_429_AFTER", "EMPTY_302_AFTER", "PROXY_200_AFTER"]
BEFORE = ["PROXY_403_BEFORE", "EMPTY_404_BEFORE", "PROXY_407_BEFORE"]
UNKNOWN_CODE = "HTTP:403:A_CODE_OF_NOBODY"


def stops(world: World) -> list[str]:
    return [stop.reason for stop in world.all(select(ChargingStop))]


@pytest.mark.parametrize("fault", [*AFTER, *BEFORE, UNKNOWN_CODE])
def test_the_charge_is_in_doubt_and_charging_goes_on(world: World, fault: str) -> None:
    """Contract "At the edges" 3: never refused, never a reason to stop all charging."""
    subscribers = [world.subscribe_save(f"customer{number}") for number in range(4)]
    world.break_calls(fault)

    report = world.run()

    assert stops(world) == []
    assert (report["in_doubt"], report["succeeded"], report["failed"]) == (1, 3, 0)
    assert {subscriber.status for subscriber in subscribers} == {"active"}, "no customer is bothered"
    assert world.calls(CHARGE) == 4


@pytest.mark.parametrize(("fault", "channel"), [(AFTER[0], "OVO"), *((fault, None) for fault in AFTER)])
def test_done_although_a_proxy_said_no_is_found_and_collected_once(
    world: World, fault: str, channel: str | None
) -> None:
    """A wallet would be charged again under the same reference."""
    ana = world.subscribe_save(channel=channel)
    ana.script(f"NO_WEBHOOK:{fault}")
    world.run()
    assert ana.outcomes == ["in_doubt"]

    world.live(days=3)

    assert ana.outcomes == ["succeeded"]
    assert ana.invoice.status == "paid"
    assert world.collected() == [50_000]
    assert world.calls(CHARGE) == 1


def test_a_proxy_that_answers_the_look_ups_proves_nothing(world: World) -> None:
    """The page it shows for a list is not an empty list."""
    ana = world.subscribe_save()
    ana.script("NO_WEBHOOK:PROXY_403_AFTER")
    world.run()
    world.break_calls("PROXY_404_BEFORE", endpoint="GET /transactions", count=1_000)

    world.live(hours=40)
    assert ana.outcomes == ["in_doubt"]
    world.break_calls("PROXY_404_BEFORE", endpoint="GET /transactions", count=0)
    world.live(hours=2)

    assert ana.outcomes == ["succeeded"]
    assert world.calls(CHARGE) == 1


def test_xendits_own_401_still_stops_all_charging(world: World) -> None:
    subscribers = [world.subscribe_save(f"customer{number}") for number in range(3)]
    world.break_calls("HTTP:401:INVALID_API_KEY")

    world.live(days=1)

    assert len(stops(world)) == 1
    assert world.calls(CHARGE) == 1
    assert {subscriber.attempt.status for subscriber in subscribers} == {"scheduled"}


def test_many_in_a_row_are_told_once_with_what_to_check(world: World) -> None:
    for number in range(12):
        world.subscribe_save(f"customer{number}", channel="OVO" if number % 2 else None)
    world.break_calls("PROXY_403_BEFORE", count=8)

    with capture_logs() as lines:
        world.run()

    told = [line for line in lines if line["event"] == "charges.answered_by_a_stranger"]
    assert len(told) == 1
    assert "BILLING_XENDIT_BASE_URL" in told[0]["check"]
    assert stops(world) == []


# Refunds


@pytest.mark.parametrize("fault", AFTER)
def test_a_refund_that_was_done_is_found_and_never_left_to_a_person(world: World, fault: str) -> None:
    """Held as "refund it in the dashboard" a person would give the money back twice."""
    ana = collected_twice(world)
    world.break_calls(fault, endpoint=REFUND)
    world.run()
    assert [refund.status for refund in ana.refunds] == ["pending"]

    world.live(days=3)

    assert [refund.status for refund in ana.refunds] == ["succeeded"]
    assert world.calls(REFUND) == 1
    assert sum(world.collected()) == 50_000


@pytest.mark.parametrize("fault", [BEFORE[0], UNKNOWN_CODE])
def test_a_refund_that_never_got_there_is_held_with_the_right_advice(world: World, fault: str) -> None:
    ana = collected_twice(world)
    world.break_calls(fault, endpoint=REFUND)
    world.run()
    assert [refund.status for refund in ana.refunds] == ["pending"]

    world.live(days=3)

    (refund,) = ana.refunds
    assert refund.status == "held"
    assert refund.error is not None
    assert "look in the dashboard whether" in refund.error
    assert world.calls(REFUND) == 1


def collected_twice(world: World) -> Subscriber:
    """Her one payment is captured a second time, and we know it: it goes back with the next run."""
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    world.control("POST", f"/payments/{ana.attempt.payment_id}/capture", {"again": True})
    world.deliver_webhooks()
    assert [refund.status for refund in ana.refunds] == ["requested"]
    return ana
