"""When a charge is declined: what is tried again, when, with what, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from billing.errors import Conflict, IllegalTransition
from tests.world import CHARGE, OTHER_VISA, START, VISA, Subscriber, World


def test_a_soft_decline_is_tried_again_until_it_is_paid(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE", "INSUFFICIENT_BALANCE", "SUCCEEDED")

    world.run()
    assert (ana.status, ana.invoice.status) == ("past_due", "open")
    world.live(days=4)

    assert days_of(ana) == [0, 1, 3]
    assert ana.outcomes == ["failed", "failed", "succeeded"]
    assert (ana.status, ana.invoice.status) == ("active", "paid")
    assert world.collected() == [50_000]
    assert ana.story.count("invoice.paid") == 1, "U3: no failure is announced for a renewal that was paid"


@pytest.mark.parametrize(
    ("dunning", "days", "end"),
    [
        ("standard", [0, 1, 3, 5, 7, 14], "canceled"),
        ("strict", [0, 1, 3], "canceled"),
        ("pause", [0, 1, 3, 5, 7, 14], "paused"),
        ("gentle", [0, 2, 5, 9, 14, 21, 28], "past_due"),
        ("none", [0], "past_due"),
    ],
)
def test_the_ladder_ends_as_the_policy_says(world: World, dunning: str, days: list[int], end: str) -> None:
    """U4, U5: the first and the last step, and what becomes of the subscription."""
    ana = world.subscribe_save(plan=world.plan(every="every 1:year", dunning=dunning))
    ana.script(*["INSUFFICIENT_BALANCE"] * 10)

    world.live(days=60)

    assert days_of(ana) == days
    assert ana.invoice.status == "uncollectible"
    assert ana.status == end
    assert world.collected() == []


def test_grace_lasts_to_its_last_day(world: World) -> None:
    """U1: access is not taken early; with `standard` the end is day 21 after the first failure."""
    ana = world.subscribe_save()
    ana.script(*["INSUFFICIENT_BALANCE"] * 10)

    world.live(days=20, hours=23)
    assert (ana.status, ana.invoice.status) == ("past_due", "open")
    world.live(hours=2)

    assert (ana.status, ana.invoice.status) == ("canceled", "uncollectible")


def test_an_expired_card_is_replaced_and_the_invoice_recovers(world: World) -> None:
    ana = world.subscribe_save(card=VISA)
    ana.script("EXPIRED_CARD")
    world.run()
    world.deliver_webhooks()

    world.live(days=5)
    assert world.calls(CHARGE) == 1, "an expired card is not tried again"
    assert (ana.status, ana.invoice.status) == ("past_due", "open")
    assert "customer.asked" in ana.story

    new = ana.adds_card(OTHER_VISA)
    world.live(hours=1)

    assert (ana.status, ana.invoice.status) == ("active", "paid")
    assert ana.attempt.payment_token_id == new.id
    world.live(days=30)
    assert world.collected() == [50_000, 50_000], "the next renewal takes the new card"


def test_a_hard_decline_falls_back_to_the_next_card(world: World) -> None:
    """U7: a hard decline ends that token, not the search."""
    ana = world.subscribe_save(card=VISA)
    second = ana.adds_card(OTHER_VISA)
    ana.script("STOLEN_CARD")

    world.live(minutes=10)

    assert ana.outcomes == ["failed", "succeeded"]
    assert ana.attempt.payment_token_id == second.id
    assert world.collected() == [50_000]
    assert ana.tokens[0].blocked_reason
    world.live(days=30)
    assert world.collected() == [50_000, 50_000]
    assert ana.outcomes[-1] == "succeeded", "the stolen card is not tried next month either"
    assert len(ana.attempts) == 3


def test_a_stolen_card_is_out_under_every_token_it_has(world: World) -> None:
    ana = world.subscribe_save(card=VISA)
    ana.adds_card(VISA)
    ana.script("STOLEN_CARD")

    world.live(days=10)

    assert world.calls(CHARGE) == 1
    assert all(token.blocked_reason for token in ana.tokens)


def test_what_the_network_advises_later_moves_the_planned_retry(world: World) -> None:
    """The answer has only the failure code; the webhook brings "retry after 10 days" (advice 30)."""
    ana = world.subscribe_save()
    ana.script("DECLINED_BY_ISSUER/05/30", "SUCCEEDED")
    world.run()
    assert ana.attempt.scheduled_at == START + timedelta(days=1)

    world.deliver_webhooks()
    assert ana.attempt.scheduled_at == START + timedelta(days=10)
    world.live(days=11)

    assert ana.outcomes == ["failed", "succeeded"]
    assert days_of(ana) == [0, 10]


def test_do_not_try_again_from_the_network_withdraws_the_planned_retry(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("DECLINED_BY_ISSUER/05/03")
    world.run()
    assert ana.outcomes == ["failed", "scheduled"]

    world.deliver_webhooks()
    world.live(days=20)

    assert ana.outcomes == ["failed", "canceled"]
    assert world.calls(CHARGE) == 1


def test_trouble_at_the_channel_is_tried_again_within_hours(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("HTTP:503:CHANNEL_UNAVAILABLE", "ISSUER_UNAVAILABLE", "SUCCEEDED")

    world.live(days=1)

    assert ana.outcomes == ["failed", "failed", "succeeded"]
    assert [attempt.submitted_at - START for attempt in ana.attempts if attempt.submitted_at] == [
        timedelta(0), timedelta(hours=1), timedelta(hours=5),
    ]  # fmt: skip
    assert ana.invoice.dunning_step == 0, "no step of the ladder was used"


def test_our_own_fault_is_held_not_dunned(world: World) -> None:
    ana = world.subscribe_save()
    world.break_calls("HTTP:400:API_VALIDATION_ERROR")

    world.live(days=30)

    assert world.calls(CHARGE) == 1 + 1, "the broken one, and next month's"
    first = ana.invoices[0]
    assert first.status == "open"
    assert first.hold_reason
    assert "customer.asked" not in ana.story


def test_a_code_xendit_adds_later_is_tried_twice_at_most(world: World) -> None:
    ana = world.subscribe_save()
    ana.script(*["BRAND_NEW_CODE"] * 10)

    world.live(days=20)

    assert ana.outcomes == ["failed", "failed"]


# By hand


def test_what_an_operator_tries_does_not_use_up_the_ladder(world: World) -> None:
    """U1, and Dodo's rule: a manual retry neither uses up nor moves the schedule."""
    ana = world.subscribe_save()
    ana.script(*["INSUFFICIENT_BALANCE"] * 20)
    world.run()
    world.deliver_webhooks()

    world.advance(hours=5)
    ana.pay_invoice()
    world.live(days=20)

    counted = [attempt for attempt in ana.attempts if attempt.origin != "operator"]
    assert days_of(ana, counted) == [0, 1, 3, 5, 7, 14]


def test_an_operator_may_collect_at_once(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE", "SUCCEEDED")
    world.run()

    ana.pay_invoice()

    assert (ana.status, ana.invoice.status) == ("active", "paid")
    world.live(days=20)
    assert world.collected() == [50_000], "the planned retry is gone"


def test_an_operator_may_collect_what_was_given_up(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(every="every 1:year", dunning="gentle"))
    ana.script(*["INSUFFICIENT_BALANCE"] * 7)
    world.live(days=60)
    assert ana.invoice.status == "uncollectible"

    ana.pay_invoice()

    assert (ana.status, ana.invoice.status) == ("active", "paid")


def test_a_paid_invoice_is_not_charged_by_hand(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    with pytest.raises(IllegalTransition, match="it is paid"):
        ana.pay_invoice()
    assert world.collected() == [50_000]


def test_a_dead_token_is_not_charged_by_hand(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("STOLEN_CARD")
    world.run()
    with pytest.raises(Conflict, match="must not be tried again"):
        ana.pay_invoice(token=ana.tokens[0])
    assert world.calls(CHARGE) == 1


# Limits of the card networks


def test_a_card_is_tried_once_a_day_however_many_subscriptions_it_pays(world: World) -> None:
    """U7: ten declines of one card in a day, over all invoices; then it rests."""
    subscribers = [world.subscribe_save(f"customer{number}", card=VISA) for number in range(12)]
    for subscriber in subscribers:
        subscriber.script(*["INSUFFICIENT_BALANCE"] * 20)

    world.run()
    world.deliver_webhooks()

    assert world.calls(CHARGE) == 10
    assert sum(subscriber.story.count("attempt.postponed") for subscriber in subscribers) == 2


def test_a_card_is_declined_at_most_15_times_in_30_days(world: World) -> None:
    subscribers = [world.subscribe_save(f"customer{number}", card=VISA) for number in range(4)]
    for subscriber in subscribers:
        subscriber.script(*["INSUFFICIENT_BALANCE"] * 20)

    world.live(days=13)

    assert world.calls(CHARGE) == 15


def test_a_second_token_of_a_declined_card_waits_for_the_next_day(world: World) -> None:
    """The cap is per card, not per token."""
    ana = world.subscribe_save(card=VISA)
    ana.script("INSUFFICIENT_BALANCE")
    world.run()
    world.deliver_webhooks()

    ana.adds_card(VISA)
    world.settle_down()
    assert world.calls(CHARGE) == 1
    world.live(days=2)

    assert ana.invoice.status == "paid"


# What waits for the customer


def test_what_waits_for_the_customer_is_canceled_after_a_day(new_world: Callable[..., World]) -> None:
    world = new_world(action_seconds=10 * 86_400)  # Xendit itself would wait longer
    ana = world.subscribe_save()
    ana.script("REQUIRES_ACTION")
    world.run()
    assert ana.attempt.status == "requires_action"
    assert ana.attempt.action_url
    with pytest.raises(Conflict, match="not known yet"):
        ana.pay_invoice()

    world.live(hours=26)

    assert ana.outcomes == ["canceled"]
    assert world.calls("POST /v3/payment_requests/{id}/cancel") == 1
    assert "customer.asked" in ana.story
    assert ana.status == "past_due"


def test_a_customer_who_acts_in_time_has_paid(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("REQUIRES_ACTION")
    world.run()

    world.control("POST", f"/payment_requests/{ana.attempt.payment_request_id}/resolve", {"outcome": "SUCCEEDED"})
    world.deliver_webhooks()

    assert (ana.status, ana.invoice.status) == ("active", "paid")


def test_a_new_card_supersedes_what_waits_for_the_customer(world: World) -> None:
    """D3: the open request is canceled at Xendit before the new card is charged."""
    ana = world.subscribe_save(card=VISA)
    ana.script("REQUIRES_ACTION")
    world.run()

    ana.adds_card(OTHER_VISA)
    world.live(days=1)

    assert ana.outcomes[0] == "canceled"
    assert (ana.status, ana.invoice.status) == ("active", "paid")
    assert world.collected() == [50_000]


def days_of(subscriber: Subscriber, attempts: list | None = None) -> list[int]:  # type: ignore[type-arg]
    """On which days after the beginning the charges were sent."""
    rows = subscriber.attempts if attempts is None else attempts
    return [(attempt.submitted_at - START).days for attempt in rows if attempt.submitted_at]
