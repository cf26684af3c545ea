"""When the gateway changes its mind, or collects twice: recorded, shown, given back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from billing.domain.gateway import RefundReport
from billing.errors import OutcomeUnknown
from billing.parts import Rules
from tests.world import CHARGE, OTHER_VISA, VISA, Subscriber, World


def test_money_after_a_reported_failure_pays_the_invoice(world: World) -> None:
    """W4: `failed` may become `succeeded`; the planned retry is withdrawn."""
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:7200")
    world.run()
    world.deliver_webhooks()
    assert ana.outcomes == ["failed", "scheduled"]

    world.live(days=25)

    assert ana.outcomes == ["succeeded", "canceled"]
    assert (ana.status, ana.invoice.status) == ("active", "paid")
    assert world.collected() == [50_000]
    assert world.calls(CHARGE) == 1


def test_money_after_the_retry_was_paid_is_given_back(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")

    world.live(days=4)

    assert len(world.ledger()) == 2, "Xendit collected twice"
    assert world.collected() == [50_000], "and one went back"
    assert [(refund.reason, refund.status) for refund in ana.refunds] == [("DUPLICATE", "succeeded")]
    assert ana.invoice.amount_paid_minor == 50_000
    assert "invoice.overpaid" in ana.story


def test_money_after_dunning_gave_up(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(dunning="none"))
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:7200")
    world.run()
    assert ana.invoice.status == "uncollectible"

    world.live(hours=3)

    assert (ana.status, ana.invoice.status) == ("active", "paid")


def test_a_second_capture_of_one_payment_is_given_back(world: World) -> None:
    """The same payment, captured once more: another capture id under the same payment id."""
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks()
    world.control("POST", f"/payments/{ana.attempt.payment_id}/capture", {"again": True})
    world.live(hours=1)

    assert ana.invoice.amount_paid_minor == 50_000
    assert len(ana.refunds) == 1
    assert world.collected() == [50_000]


def test_a_merchant_may_hold_what_was_collected_twice(new_world: Callable[..., World]) -> None:
    world = new_world(rules=Rules(refund_overpayments=False))
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")

    world.live(days=4)

    assert [refund.status for refund in ana.refunds] == ["held"]
    assert world.collected() == [50_000, 50_000]
    assert ana.invoice.amount_paid_minor == 100_000, "shown, never hidden"


def test_a_refund_that_fails_is_shown(world: World) -> None:
    world.control("POST", "/refunds/config", {"failure_code": "INSUFFICIENT_BALANCE"})
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")

    world.live(days=4)

    assert [refund.status for refund in ana.refunds] == ["failed"]
    assert "refund.failed" in ana.story
    assert ana.invoice.amount_paid_minor == 100_000


def test_a_refund_that_xendit_does_not_know_the_payment_of_is_asked_for_again_and_then_held(world: World) -> None:
    """Our key may be another account's: that is put right within a week, or a person looks."""
    ana = collected_twice_and_refunds_answer_404(world)
    asked = ana.refunds[0].created_at
    while world.now < asked + timedelta(days=7):
        world.advance(hours=6, minutes=1)
        world.settle_down()
        assert [refund.status for refund in ana.refunds] == ["requested"]
    assert "BILLING_XENDIT_SECRET_KEY" in str(ana.refunds[0].error)
    assert 20 < world.calls("POST /refunds") < 35, "a few times a day"

    world.live(days=1)

    assert [refund.status for refund in ana.refunds] == ["held"]
    assert "refund it in the dashboard" in str(ana.refunds[0].error)
    calls = world.calls("POST /refunds")
    world.live(days=3)
    assert world.calls("POST /refunds") == calls


def test_with_the_right_key_the_refund_goes_out(world: World) -> None:
    ana = collected_twice_and_refunds_answer_404(world)
    world.break_calls("HTTP:404:DATA_NOT_FOUND", endpoint="POST /refunds", count=0)

    world.live(days=1)

    assert [refund.status for refund in ana.refunds] == ["succeeded"]
    assert world.collected() == [50_000]


def collected_twice_and_refunds_answer_404(world: World) -> Subscriber:
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")
    world.break_calls("HTTP:404:DATA_NOT_FOUND", endpoint="POST /refunds", count=1_000)
    world.live(days=3)
    assert [refund.status for refund in ana.refunds] == ["requested"]
    return ana


@pytest.mark.parametrize("fault", ["TIMEOUT_AFTER", "500_AFTER"])
def test_a_refund_whose_answer_is_lost_is_not_sent_again(world: World, fault: str) -> None:
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")
    world.break_calls(fault, endpoint="POST /refunds")

    world.live(days=6)

    assert world.calls("POST /refunds") == 1
    assert world.collected() == [50_000], "given back once"
    assert [refund.status for refund in ana.refunds] == ["succeeded"], "its webhook told the end"


def test_a_refund_of_which_nothing_was_heard_is_found_in_the_list(world: World) -> None:
    """Answer and webhook both lost: Xendit's list knows it by our reference."""
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")
    world.break_calls("TIMEOUT_AFTER", endpoint="POST /refunds")
    world.live(days=2, hours=1)
    world.deliver_webhooks(lose=["refund.succeeded"])
    world.advance(minutes=1)
    world.deliver_webhooks(lose=["refund.succeeded"])

    world.live(days=1)

    assert world.calls("POST /refunds") == 1
    assert [refund.status for refund in ana.refunds] == ["succeeded"]
    assert world.collected() == [50_000]


def test_a_refund_that_left_no_trace_is_never_asked_for_twice(world: World) -> None:
    """A second refund would be the merchant's money: a person looks, once the settlement window is over."""
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")
    world.break_calls("TIMEOUT_BEFORE", endpoint="POST /refunds")

    world.live(days=3)
    assert [refund.status for refund in ana.refunds] == ["pending"], "not before the window is over"
    world.live(days=2)

    assert world.calls("POST /refunds") == 1
    (refund,) = ana.refunds
    assert (refund.status, refund.next_try_at) == ("held", None)
    assert refund.error is not None
    assert "look in the dashboard" in refund.error


def test_a_refund_that_its_webhook_ended_stays_ended(world: World) -> None:
    """The webhook was faster than the answer, which then got lost."""
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")
    ask = world.gateway.refund

    def refund_and_lose_the_answer(**what: Any) -> RefundReport:
        ask(**what)
        world.advance(minutes=1)
        world.deliver_webhooks()
        assert [refund.status for refund in ana.refunds] == ["succeeded"]
        raise OutcomeUnknown("no answer within 5 s")

    world.gateway.refund = refund_and_lose_the_answer  # type: ignore[method-assign]
    world.live(days=5)

    assert [refund.status for refund in ana.refunds] == ["succeeded"]
    assert ana.invoice.amount_paid_minor == 50_000


def test_a_refund_that_never_left_is_sent_later(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")
    world.break_calls("429", endpoint="POST /refunds", count=2)

    world.live(days=4)

    assert world.collected() == [50_000]
    assert [refund.status for refund in ana.refunds] == ["succeeded"]


def test_a_charge_under_way_when_the_subscription_is_canceled_is_given_back(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("PENDING:SUCCEEDED")
    world.run()

    ana.cancel(at_once=True)
    assert ana.invoice.status == "open", "money may still come"
    world.live(hours=1)

    assert ana.status == "canceled"
    assert ana.invoice.status == "paid"
    assert world.collected() == [50_000], "it was due before the cancellation"


def test_a_charge_under_way_when_it_is_canceled_and_declined_ends_quietly(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("PENDING:INSUFFICIENT_BALANCE")
    world.run()

    ana.cancel(at_once=True)
    world.live(days=30)

    assert ana.outcomes == ["failed"]
    assert (ana.status, ana.invoice.status) == ("canceled", "void")
    assert world.calls(CHARGE) == 1


def test_money_for_a_voided_invoice_is_given_back(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:86400")
    world.run()
    world.deliver_webhooks()

    ana.cancel(at_once=True)
    assert ana.invoice.status == "void"
    world.live(days=3)

    assert world.collected() == []
    assert [refund.reason for refund in ana.refunds] == ["CANCELLATION"]
    assert ana.invoice.status == "void"


def test_saying_it_again_changes_nothing(world: World) -> None:
    """D4: answer, webhook and look-up end in the same place, any number of times."""
    ana = world.subscribe_save()
    world.run()
    world.deliver_webhooks(double=True)
    before = (ana.invoice.amount_paid_minor, ana.outcomes, ana.story)

    world.control("POST", "/webhooks/resend", {"since": "2026-01-01T00:00:00Z"})
    world.deliver_webhooks(double=True, order="reversed")

    assert (ana.invoice.amount_paid_minor, ana.outcomes, ana.story) == before
    assert all(event.deliveries > 1 for event in world.events("payment.capture"))


def test_the_webhook_may_be_faster_than_the_answer(world: World) -> None:
    """The call is accepted, its webhook applied, and only then does the answer arrive."""
    ana = world.subscribe_save()
    slow = world.gateway.charge

    def charge(request: object) -> object:
        report = slow(request)  # type: ignore[arg-type]
        world.deliver_webhooks()
        assert ana.outcomes == ["succeeded"]
        return report

    world.gateway.charge = charge  # type: ignore[assignment,method-assign]
    report = world.run()

    assert report["succeeded"] == 1
    assert ana.invoice.amount_paid_minor == 50_000
    assert ana.story.count("invoice.paid") == 1


def test_two_cards_two_answers_one_payment(world: World) -> None:
    """D3: the first attempt's end must be known before the second card is charged."""
    ana = world.subscribe_save(card=VISA)
    world.break_calls("TIMEOUT_AFTER")
    world.run()
    ana.adds_card(OTHER_VISA)

    world.live(days=3)

    assert world.calls(CHARGE) == 1
    assert world.collected() == [50_000]
