"""The inbox: stored once, applied once, replayable; one bad event never stands in the way of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
import simplejson
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from billing.checks import doctor
from billing.domain.gateway import ChargeReport, GatewayEvent
from billing.inbox import apply as webhooks
from billing.runs import tick
from billing.xendit.webhook import read_event
from tests.world import NO_PERIOD_TWICE, START, World


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


def capture_of(reference: str, *, payment: str = "py-1", amount: int = 50_000) -> dict[str, Any]:
    return {
        "event": "payment.capture",
        "data": {
            "payment_id": payment,
            "payment_request_id": "pr-1",
            "reference_id": reference,
            "status": "SUCCEEDED",
            "currency": "IDR",
            "request_amount": amount,
        },
    }


def receive(world: World, payload: Mapping[str, Any]) -> str | None:
    return world.receive(simplejson.dumps(payload).encode())


def test_a_delivery_is_stored_once_and_counted(world: World) -> None:
    stored = [receive(world, capture_of("unknown")) for _ in range(3)]
    assert [identity is None for identity in stored] == [False, True, True]
    assert [event.deliveries for event in world.events()] == [3]


def test_two_deliveries_at_the_same_moment_are_one_event(world: World) -> None:
    ana = world.subscribe_save()
    world.open_due()
    payload = capture_of(ana.attempt.reference_id)

    world.in_two_threads(lambda: receive(world, payload))

    assert len(world.events("payment.capture")) == 1
    assert ana.invoice.amount_paid_minor == 50_000


def test_applying_at_the_same_moment_applies_once(world: World) -> None:
    ana = world.subscribe_save()
    world.open_due()
    payload = capture_of(ana.attempt.reference_id)
    with world.parts.transaction() as session:
        stored = webhooks.record_event(session, read_event(payload), payload, world.now)
    assert stored is not None

    world.in_two_threads(lambda: webhooks.apply_stored_event(world.parts, stored, read_event))

    assert ana.story.count("invoice.paid") == 1


def test_a_stored_event_whose_process_died_is_taken_up(world: World) -> None:
    ana = world.subscribe_save()
    world.open_due()
    payload = capture_of(ana.attempt.reference_id)
    with world.parts.transaction() as session:
        webhooks.record_event(session, read_event(payload), payload, world.now)
    assert ana.invoice.status == "open"

    world.advance(seconds=21)
    tick.hand_out_checks(world.parts, world.send, tick.look(world.parts))

    assert ana.invoice.status == "paid"


def test_what_belongs_to_nobody_is_tried_for_two_days_then_kept(world: World) -> None:
    receive(world, capture_of("somebody-elses"))
    assert [event.state for event in world.events()] == ["unmatched"]

    world.live(days=3)

    (event,) = world.events()
    assert event.state == "ignored"
    assert event.payload["data"]["reference_id"] == "somebody-elses"
    assert event.tries > 5


@pytest.mark.parametrize(("status", "outcome"), [("SUCCEEDED", "succeeded"), ("FAILED", "failed")])
def test_the_end_of_an_attempt_we_took_for_not_sent_is_believed(world: World, status: str, outcome: str) -> None:
    """Set back to `scheduled` after a 429, and Xendit did it all the same."""
    ana = world.subscribe_save()
    world.break_calls("429")
    world.run()
    assert ana.outcomes == ["scheduled"]
    payload = capture_of(ana.attempt.reference_id)
    payload["data"]["status"] = status

    receive(world, payload | {"event": "payment.capture" if outcome == "succeeded" else "payment.failure"})

    assert ana.outcomes[0] == outcome


def test_a_parked_event_is_seen_survives_a_restart_and_is_applied_after_the_fix(
    world: World, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana, ben = world.subscribe_save("ana"), world.subscribe_save("ben")
    world.open_due()
    poisoned = capture_of(ana.attempt.reference_id)
    apply = webhooks._apply_payment

    def broken(session: Session, report: ChargeReport, *rest: Any) -> tuple[bool, str | None]:
        if report.payment_id == "py-1":
            raise TypeError("a bug of ours")
        return apply(session, report, *rest)

    with monkeypatch.context() as bug:
        bug.setattr(webhooks, "_apply_payment", broken)
        receive(world, poisoned)
        bens = capture_of(ben.attempt.reference_id, payment="py-2")
        bens["data"]["payment_request_id"] = "pr-2"
        receive(world, bens)
        (event,) = [row for row in world.events("payment.capture") if row.state == "parked"]
        assert event.error == "TypeError: a bug of ours"
        assert (ana.invoice.status, ben.invoice.status) == ("open", "paid")
        receive(world, poisoned)  # Xendit sends it again: counted, and no second try of what is broken
        assert (world.fresh(event).deliveries, world.fresh(event).tries) == (2, 1)

    told = {check["name"]: check for check in doctor.examine(world.parts)["checks"]}["no_event_is_parked"]
    assert (told["ok"], told["count"]) == (False, 1)
    assert event.id in told["detail"]

    with World(database_url) as restarted:  # another process, on the same database
        tick.tick(restarted.parts, restarted.send)
        assert restarted.fresh(event).state == "parked"
        for _ in range(2):  # `billing replay`
            webhooks.apply_stored_event(restarted.parts, event.id, read_event, again=True)

    assert (world.fresh(event).state, world.fresh(event).error) == ("applied", None)
    assert ana.invoice.amount_paid_minor == 50_000
    assert ana.story.count("invoice.paid") == 1


def test_a_payment_we_have_recorded_is_not_booked_again_under_another_reference(world: World) -> None:
    """An event that contradicts what we know: the payment's own id says which payment it is."""
    ana = world.subscribe_save("ana")
    world.run()
    world.deliver_webhooks()
    ben = world.subscribe_save("ben")
    world.open_due()

    receive(world, capture_of(ben.attempt.reference_id, payment=ana.attempt.payment_id or ""))
    receive(
        world, capture_of(ben.attempt.reference_id, payment=ana.attempt.payment_id or "") | {"event": "payment.expiry"}
    )

    assert {event.state for event in world.events()} <= {"applied", "ignored"}
    assert [who.invoice.amount_paid_minor for who in (ana, ben)] == [50_000, 0]
    assert ben.outcomes == ["scheduled"]
    assert not ana.refunds


def test_our_own_bug_parks_one_event_and_blocks_no_other(world: World) -> None:
    ana = world.subscribe_save()
    world.open_due()
    first = receive_without_applying(world, capture_of(ana.attempt.reference_id))

    def broken(_payload: Mapping[str, Any]) -> GatewayEvent:
        raise KeyError("a bug of ours")

    webhooks.apply_stored_event(world.parts, first, broken)
    (event,) = world.events("payment.capture")
    assert (event.state, event.tries, event.next_try_at) == ("parked", 1, None)
    assert "KeyError" in (event.error or "")
    assert receive(world, capture_of("another", payment="py-2")) is not None

    webhooks.apply_stored_event(world.parts, first, read_event, again=True)

    assert world.fresh(event).state == "applied"
    assert ana.invoice.status == "paid"


def test_a_lost_connection_parks_nothing(world: World) -> None:
    world.waive(NO_PERIOD_TWICE)  # the event tells of a payment that Xendit does not have
    ana = world.subscribe_save()
    world.open_due()
    first = receive_without_applying(world, capture_of(ana.attempt.reference_id))

    def cut(_payload: Mapping[str, Any]) -> GatewayEvent:
        raise OperationalError("SELECT", {}, Exception("the connection was lost"))

    webhooks.apply_stored_event(world.parts, first, cut)
    assert world.events("payment.capture")[0].state == "received"
    world.advance(minutes=1)
    world.tick()

    assert ana.invoice.status == "paid"


def test_a_replay_applies_once_more_and_changes_nothing_twice(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    before = (ana.invoice.amount_paid_minor, ana.story, ana.outcomes)

    for event in world.events():
        webhooks.apply_stored_event(world.parts, event.id, read_event, again=True)

    assert (ana.invoice.amount_paid_minor, ana.story, ana.outcomes) == before


def test_an_older_token_event_never_undoes_a_newer_one(world: World) -> None:
    """W3: no order; `updated` tells which is newer."""
    ana = world.subscribe_save()
    token = ana.tokens[0]

    def told(status: str, updated: str) -> None:
        receive(
            world,
            {
                "event": f"payment_token.{'activation' if status == 'ACTIVE' else 'expiry'}",
                "data": {"payment_token_id": token.payment_token_id, "status": status, "updated": updated},
            },
        )

    told("EXPIRED", "2026-06-01T00:00:00Z")
    told("ACTIVE", "2026-05-01T00:00:00Z")

    assert ana.tokens[0].status == "EXPIRED"


def test_events_of_a_payment_of_somebody_elses_touch_nothing(world: World) -> None:
    ana = world.subscribe_save()
    world.open_due()
    receive(world, capture_of("att-somebody-elses"))
    receive(world, capture_of(ana.attempt.reference_id.upper()))
    assert ana.outcomes == ["scheduled"]


def test_a_capture_in_another_currency_is_not_counted_as_the_same(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    payload = capture_of(ana.attempt.reference_id, payment=ana.attempt.payment_id or "", amount=1_000_000)
    payload["data"]["currency"] = "VND"
    payload["data"]["captures"] = [{"capture_id": "cptr-1", "capture_amount": 1_000_000}]

    receive(world, payload)

    assert ana.invoice.amount_paid_minor == 50_000


def test_events_are_dated_by_the_clock_of_billing(world: World) -> None:
    receive(world, capture_of("x"))
    (event,) = world.events()
    assert event.received_at == START
    assert event.next_try_at is not None
    assert event.next_try_at > START
    assert event.next_try_at - START <= timedelta(minutes=1)


def test_the_payload_is_kept_as_received(world: World) -> None:
    payload = capture_of("x") | {"unknown": {"nested": [1, "two", None]}}
    receive(world, payload)
    assert world.events()[0].payload == payload


def receive_without_applying(world: World, payload: Mapping[str, Any]) -> str:
    with world.parts.transaction() as session:
        stored = webhooks.record_event(session, read_event(payload), payload, world.now)
    assert stored is not None
    return stored
