"""Money that a person gives back in Xendit's dashboard: recorded and shown, and nothing is charged again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import simplejson
from sqlalchemy import select

from billing.charging import look_up
from billing.checks import doctor
from billing.parts import Rules
from billing.reading import explain, lists, views
from billing.runs import tick
from billing.store.models import Capture, Refund
from tests.typing_in_a_world import typed
from tests.world import NO_PERIOD_TWICE, Subscriber, World


def she_has_paid(world: World) -> Subscriber:
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    assert world.collected() == [50_000]
    return ana


def refund_in_the_dashboard(world: World, payment: str | None = None, **members: Any) -> str:
    payment = payment or world.ledger()[0]["payment_id"]
    made = world.control("POST", f"/payments/{payment}/refund", members)
    world.advance(minutes=1)
    return str(made["id"])


def shown(world: World, ana: Subscriber) -> dict[str, Any]:
    """`billing invoice show`"""
    with world.parts.reading() as session:
        return views.show_invoice(session, ana.invoice)


def check(world: World, name: str) -> dict[str, Any]:
    return next(each for each in doctor.examine(world.parts)["checks"] if each["name"] == name)


def test_it_is_recorded_and_shown_by_invoice_explain_and_doctor(world: World) -> None:
    """Contract "Where people run it" 10. Wrong before: its event belonged to nothing."""
    ana = she_has_paid(world)

    refund_id = refund_in_the_dashboard(world, amount=20_000)
    world.deliver_webhooks(double=True)

    (refund,) = ana.refunds
    assert (refund.xendit_refund_id, refund.amount_minor, refund.status) == (refund_id, 20_000, "succeeded")
    assert refund.made_elsewhere
    invoice = shown(world, ana)
    assert (invoice["status"], invoice["amount_paid"], invoice["refunded"]) == ("paid", "30000", "20000")
    assert invoice["captures"][0]["refunds"][0]["made_elsewhere"] is True
    (listed,) = lists.list_invoices(world.parts).entries()
    assert listed["refunded"] == "20000"
    with world.parts.reading() as session:
        told = explain.explain(session, ana.subscription, world.now)["events"]
    assert any(f"IDR 20,000 were given back outside this software ({refund_id})" in event["what"] for event in told)
    found = check(world, "refunds_made_elsewhere")
    assert (found["ok"], found["count"]) == (True, 1)
    assert f"{ana.invoice.number} {refund_id}" in found["detail"]
    assert world.events("refund.succeeded")[0].subscription_id == ana.id


def test_whoever_looks_sees_it(world: World) -> None:
    """The words of the commands."""
    ana = she_has_paid(world)
    refund_id = refund_in_the_dashboard(world, amount=20_000)
    world.deliver_webhooks()

    with typed(world) as billing:
        said = billing("invoice", "show", ana.invoice.number).out
        assert f"refund succeeded, IDR 20,000, {refund_id}, made outside this software" in said
        assert refund_id in billing("explain", ana.subscription.reference).out
        checked = billing("doctor")
        assert (checked.status, refund_id in checked.out) == (0, True)
        compared = billing("reconcile", "--date", str(world.now.date()), "--json")
        assert compared.status == 0
        assert [row["kind"] for row in compared.document["differences"]] == ["refund_elsewhere"]


def test_it_starts_no_new_charge_and_the_next_period_is_charged_as_ever(world: World) -> None:
    ana = she_has_paid(world)
    refund_in_the_dashboard(world)
    world.live(days=35)

    assert [invoice.status for invoice in ana.invoices] == ["paid", "paid"]
    assert world.collected() == [50_000]
    assert ana.status == "active"
    assert ana.outcomes == ["succeeded", "succeeded"]


def test_several_of_one_payment_are_all_on_its_capture(world: World) -> None:
    ana = she_has_paid(world)
    for amount in (10_000, 15_000):
        refund_in_the_dashboard(world, amount=amount)
        world.deliver_webhooks()

    (capture,) = shown(world, ana)["captures"]
    assert [refund["amount"] for refund in capture["refunds"]] == ["10000", "15000"]
    assert shown(world, ana)["refunded"] == "25000"


def test_an_event_that_is_faster_than_the_payments_own_is_tried_again(world: World) -> None:
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_AFTER")
    world.run()
    refund_in_the_dashboard(world)
    world.deliver_webhooks(order="reversed")

    world.live(hours=2)

    assert ana.outcomes == ["succeeded"]
    assert [refund.made_elsewhere for refund in ana.refunds] == [True]


def test_one_that_fails_there_is_no_alarm_here(world: World) -> None:
    ana = she_has_paid(world)
    world.control("POST", "/refunds/config", {"failure_code": "INSUFFICIENT_BALANCE"})
    refund_in_the_dashboard(world)
    world.deliver_webhooks()

    assert [(refund.status, refund.made_elsewhere) for refund in ana.refunds] == [("failed", True)]
    assert check(world, "no_refund_is_stuck")["ok"]
    assert shown(world, ana)["amount_paid"] == "50000"


def test_ours_is_ours_though_its_answer_was_lost(world: World) -> None:
    """Told by its event under our reference before anybody heard Xendit's id."""
    world.break_calls("TIMEOUT_AFTER", endpoint="POST /refunds")

    ana = she_was_charged_twice(world)

    assert [(refund.status, refund.made_elsewhere) for refund in ana.refunds] == [("succeeded", False)]


def test_an_event_without_a_reference_is_of_the_one_we_have_asked_for(world: World) -> None:
    """Nobody has heard Xendit's id of it, and the event does not name ours: it is not given back twice in our books."""
    world.break_calls("TIMEOUT_AFTER", endpoint="POST /refunds")
    ana = she_was_charged_twice(world, lose={"refund.succeeded"})
    assert [(refund.status, refund.xendit_refund_id) for refund in ana.refunds] == [("pending", None)]

    world.advance(minutes=1)
    world.deliver_webhooks(lose={"refund.succeeded"})
    for made in world.simulator.world.refunds.values():
        made.document["reference_id"] = None
        world.receive(simplejson.dumps({"event": "refund.succeeded", "data": made.document}, use_decimal=True).encode())

    assert [(refund.status, refund.made_elsewhere) for refund in ana.refunds] == [("succeeded", False)]
    assert shown(world, ana)["amount_paid"] == "50000"


def test_what_waits_for_a_person_is_settled_by_what_he_does_in_the_dashboard(new_world: Any) -> None:
    world = new_world(rules=Rules(refund_overpayments=False))
    ana = she_was_charged_twice(world)
    assert not check(world, "no_refund_is_stuck")["ok"]
    with world.parts.reading() as session:
        twice = session.scalars(select(Capture.payment_id).where(Capture.overpayment)).one()

    refund_in_the_dashboard(world, twice)
    world.deliver_webhooks()

    assert [(refund.status, refund.made_elsewhere) for refund in ana.refunds] == [("succeeded", True)]
    assert check(world, "no_refund_is_stuck")["ok"]
    assert shown(world, ana)["amount_paid"] == "50000"


def second_payment(world: World) -> str:
    with world.parts.reading() as session:
        return str(session.scalars(select(Capture.payment_id).where(Capture.overpayment)).one())


def test_parts_that_a_person_gives_back_are_no_more_to_be_given_back(new_world: Any) -> None:
    """Wrong before: what was held stayed held over all of it, for ever, whatever had been given back."""
    world = new_world(rules=Rules(refund_overpayments=False))
    ana = she_was_charged_twice(world)

    refund_in_the_dashboard(world, second_payment(world), amount=20_000)
    world.deliver_webhooks(double=True)

    assert states(ana) == [("held", 30_000, False), ("succeeded", 20_000, True)]
    assert not check(world, "no_refund_is_stuck")["ok"], "the rest waits for a person"

    refund_in_the_dashboard(world, second_payment(world), amount=30_000)
    world.deliver_webhooks()

    assert states(ana) == [("succeeded", 20_000, True), ("succeeded", 30_000, True)]
    assert check(world, "no_refund_is_stuck")["ok"]
    assert shown(world, ana)["amount_paid"] == "50000"


def test_ours_asks_for_what_a_person_has_left(world: World) -> None:
    """Wrong before: for all of it, which Xendit refuses, and a person was sent to give back more than there was."""
    world.break_calls("HTTP:503:CHANNEL_UNAVAILABLE", endpoint="POST /refunds", count=1_000)
    ana = she_was_charged_twice(world)
    assert states(ana) == [("requested", 50_000, False)]

    refund_in_the_dashboard(world, second_payment(world), amount=20_000)
    world.deliver_webhooks()
    world.break_calls("HTTP:503:CHANNEL_UNAVAILABLE", endpoint="POST /refunds", count=0)
    world.live(days=1)

    assert states(ana) == [("succeeded", 20_000, True), ("succeeded", 30_000, False)]
    assert world.collected() == [50_000]
    assert shown(world, ana)["amount_paid"] == "50000"


def test_more_than_we_were_to_give_back_is_that_too(new_world: Any) -> None:
    """Of a capture of 60,000 for 50,000 we keep 10,000 for a person; he gives back all of it."""
    world = new_world(rules=Rules(refund_overpayments=False))
    ana = she_was_charged_twice(world)
    with world.parts.transaction() as session:
        session.scalars(select(Refund)).one().amount_minor = 10_000

    refund_in_the_dashboard(world, second_payment(world))
    world.deliver_webhooks()

    assert states(ana) == [("succeeded", 50_000, True)]
    assert check(world, "no_refund_is_stuck")["ok"]


def test_one_that_fails_there_takes_nothing_from_ours(new_world: Any) -> None:
    world = new_world(rules=Rules(refund_overpayments=False))
    ana = she_was_charged_twice(world)
    world.control("POST", "/refunds/config", {"failure_code": "INSUFFICIENT_BALANCE"})

    refund_in_the_dashboard(world, second_payment(world))
    world.deliver_webhooks()

    assert states(ana) == [("failed", 50_000, True), ("held", 50_000, False)]


def states(ana: Subscriber) -> list[tuple[str, int, bool]]:
    return sorted((refund.status, refund.amount_minor, refund.made_elsewhere) for refund in ana.refunds)


def test_a_days_comparison_tells_of_it_and_records_what_no_event_told(world: World) -> None:
    ana = she_has_paid(world)
    refund_id = refund_in_the_dashboard(world)
    world.deliver_webhooks(lose={"refund.succeeded"})

    for _ in range(2):
        (found,) = look_up.compare_day(world.parts, world.now.date())
        assert found.kind == "refund_elsewhere"
        assert refund_id in found.explanation
        assert ana.invoice.number in found.explanation

    assert [(refund.status, refund.made_elsewhere) for refund in ana.refunds] == [("succeeded", True)]


def test_one_that_cannot_be_read_is_told_of_all_the_same(world: World) -> None:
    ana = she_has_paid(world)
    refund_id = refund_in_the_dashboard(world)
    world.deliver_webhooks(lose={"refund.succeeded"})
    world.break_calls("HTTP:404:NOT_FOUND", endpoint="GET /refunds/{id}")

    (found,) = look_up.compare_day(world.parts, world.now.date())

    assert (found.kind, ana.refunds) == ("unknown_refund", [])
    assert f"refund {refund_id}: it cannot be read now, look in Xendit's dashboard" in found.explanation


def test_a_day_with_one_that_could_not_be_read_is_not_done(world: World) -> None:
    """Its event was lost and the comparison is the last of its day: what could not be read then is read another time,
    or nobody ever hears of it. Found by the simulation."""
    ana = she_has_paid(world)
    refund_in_the_dashboard(world)
    world.deliver_webhooks(lose={"refund.succeeded"})
    day = world.now.date()
    world.advance(days=3)
    world.break_calls("HTTP:503:CHANNEL_UNAVAILABLE", endpoint="GET /refunds/{id}")
    (found,) = look_up.compare_day(world.parts, day)
    assert found.kind == "unknown_refund"

    tick.hand_out_days(world.parts, world.send)

    assert [(refund.status, refund.made_elsewhere) for refund in ana.refunds] == [("succeeded", True)]


@pytest.mark.parametrize("known", ["payment", "payment request"])
def test_it_is_found_by_either_id(world: World, known: str) -> None:
    ana = she_has_paid(world)
    if known == "payment request":
        with world.parts.transaction() as session:
            session.scalars(select(Capture)).one().payment_id = None
    refund_in_the_dashboard(world)
    world.deliver_webhooks(lose={"payment.capture"})

    assert len(ana.refunds) == 1


def test_of_a_payment_of_nobody_here_it_is_kept_and_given_up(world: World) -> None:
    she_has_paid(world)
    with world.parts.transaction() as session:
        capture = session.scalars(select(Capture)).one()
        capture.payment_id, capture.payment_request_id = "py-other", "pr-other"
    refund_in_the_dashboard(world)
    world.deliver_webhooks()

    assert world.events("refund.succeeded")[0].state == "unmatched"
    assert world.all(select(Refund)) == []
    world.waive(NO_PERIOD_TWICE)


def she_was_charged_twice(world: World, lose: Collection[str] = ()) -> Subscriber:
    """The first try turns into money after the second has paid."""
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")
    if not lose:
        world.live(days=4)
        return ana
    for _ in range(3):
        world.advance(days=1, minutes=1)
        world.run()
        world.deliver_webhooks(lose=lose)
    world.run()
    world.deliver_webhooks(lose=lose)
    return ana
