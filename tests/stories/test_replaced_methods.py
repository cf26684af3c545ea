"""A payment method that the customer has replaced stays replaced: not this month only, and not as a way out either."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from billing.charging import tokens
from billing.domain.gateway import SessionMode
from billing.errors import Conflict
from billing.inbox import apply
from billing.reading import explain, views
from billing.store.models import PaymentToken
from billing.subscribing import payment_sessions, session_results
from billing.xendit.webhook import read_event
from tests.world import OTHER_VISA, VISA, Subscriber, World


def her_card_was_declined(world: World, *outcomes: str) -> Subscriber:
    ana = world.subscribe_save(card=VISA)
    ana.script(*(outcomes or ("INSUFFICIENT_BALANCE",)))
    world.run()
    world.deliver_webhooks()
    assert ana.outcomes == ["failed", "scheduled"] or "customer.asked" in ana.story
    return ana


def charged_with(ana: Subscriber) -> list[str | None]:
    return [attempt.payment_token_id for attempt in ana.attempts if attempt.status in ("succeeded", "failed")]


def shown(world: World, ana: Subscriber) -> str | None:
    """`billing subscription show`: the payment method that would be charged."""
    with world.parts.reading() as session:
        token_id: str | None = views.show_subscription(session, ana.subscription)["payment_token_id"]
    return token_id


def next_charge(world: World, ana: Subscriber) -> str:
    with world.parts.reading() as session:
        return str(explain.explain(session, ana.subscription, world.now)["next"]["why"])


def unblock(world: World, token: PaymentToken) -> list[str]:
    with world.parts.transaction() as session:
        return tokens.unblock(session, session.get_one(PaymentToken, token.id), world.now)


def prefer(world: World, token: PaymentToken) -> None:
    with world.parts.transaction() as session:
        tokens.make_first(session, session.get_one(PaymentToken, token.id), world.now)


def test_what_the_customer_saves_while_something_is_unpaid_is_charged_first_from_then_on(world: World) -> None:
    """Contract "Where people run it" 9. Wrong before: the next month the declined card again."""
    ana = her_card_was_declined(world)

    new = ana.adds_card(OTHER_VISA)
    world.live(days=70)

    old = ana.tokens[0]
    assert charged_with(ana) == [old.id, new.id, new.id, new.id]
    assert old.replaced_at is not None
    assert shown(world, ana) == new.id
    assert "token.replaced" in ana.story


@pytest.mark.parametrize("order", ["token first", "session first", "lost", "two sessions open"])
def test_in_whatever_order_xendit_tells_of_it(world: World, order: str) -> None:
    ana = her_card_was_declined(world)
    if order == "two sessions open":
        payment_sessions.open_session(world.parts, ana.customer, mode=SessionMode.PAYMENT_LINK)
    saving = payment_sessions.open_session(world.parts, ana.customer, mode=SessionMode.PAYMENT_LINK)
    ana.completes_session(saving, card=OTHER_VISA)

    if order == "lost":
        world.deliver_webhooks(lose={"payment_token.activation", "payment_session.completed"})
        session_results.refresh_session(world.parts, saving.id)
    else:
        world.deliver_webhooks(order="reversed" if order == "session first" else "sent", double=True)
    world.live(days=35)

    old, new = ana.tokens
    assert charged_with(ana) == [old.id, new.id, new.id]
    assert (old.replaced_at is None, new.replaced_at) == (False, None)


def test_with_nothing_unpaid_another_method_stands_second(world: World) -> None:
    ana = world.subscribe_save(card=VISA)
    world.run()

    ana.adds_card(OTHER_VISA)
    world.live(days=35)

    old, _ = ana.tokens
    assert set(charged_with(ana)) == {old.id}
    assert old.replaced_at is None


def test_a_method_that_was_never_declined_is_second_and_steps_in(world: World) -> None:
    """The invoice is open, and nobody has declined anything: the first one is not replaced."""
    ana = world.subscribe_save(card=VISA)
    world.open_due()
    new = ana.adds_card(OTHER_VISA)
    world.script(new.payment_token_id, ["EXPIRED_CARD"])

    world.run()
    world.deliver_webhooks()
    world.run()

    old = ana.tokens[0]
    assert charged_with(ana) == [new.id, old.id]
    assert old.replaced_at is None


def test_when_the_new_method_dies_the_old_one_is_not_charged_and_the_customer_is_asked(world: World) -> None:
    ana = her_card_was_declined(world)
    new = ana.adds_card(OTHER_VISA)
    world.settle_down()
    world.control("POST", f"/tokens/{new.payment_token_id}/expire")
    world.live(days=35)

    assert charged_with(ana) == [ana.tokens[0].id, new.id]
    assert ana.status == "past_due"
    assert ana.story[-1] == "customer.asked"
    assert shown(world, ana) is None
    assert f"`billing token unblock {ana.tokens[0].id}` undoes that" in next_charge(world, ana)


@pytest.mark.parametrize("undo", [unblock, prefer])
def test_a_person_may_bring_it_back(world: World, undo: Callable[[World, PaymentToken], object]) -> None:
    ana = her_card_was_declined(world)
    new = ana.adds_card(OTHER_VISA)
    world.settle_down()
    world.control("POST", f"/tokens/{new.payment_token_id}/expire")
    world.deliver_webhooks()

    undo(world, ana.tokens[0])
    world.live(days=35)

    old = ana.tokens[0]
    assert charged_with(ana) == [old.id, new.id, old.id]
    assert shown(world, ana) == old.id


def test_it_pays_by_hand_when_it_is_named(world: World) -> None:
    ana = her_card_was_declined(world)
    new = ana.adds_card(OTHER_VISA)
    world.settle_down()
    world.control("POST", f"/tokens/{new.payment_token_id}/expire")
    world.live(days=35)

    ana.pay_invoice()
    assert ana.attempt.status == "canceled", "without a name nothing replaced is taken"
    ana.pay_invoice(token=ana.tokens[0])

    assert ana.attempt.status == "succeeded"
    assert ana.tokens[0].replaced_at is not None, "by hand is by hand: it stays replaced"


def test_what_she_saves_while_the_old_one_is_being_charged_replaces_it_when_it_is_declined(world: World) -> None:
    """The decline is told of after the session: nothing had been declined when she saved it."""
    ana = world.subscribe_save(card=VISA)
    ana.script("INSUFFICIENT_BALANCE")
    world.open_due()
    ana.charged_by_a_process_that_dies()
    saving = payment_sessions.open_session(world.parts, ana.customer, mode=SessionMode.PAYMENT_LINK)
    ana.completes_session(saving, card=OTHER_VISA)
    world.deliver_webhooks(lose={"payment.failure"})
    old, new = ana.tokens
    assert (ana.outcomes, old.replaced_at) == (["submitted"], None)

    world.leases_run_out()
    world.live(days=70)

    assert ana.tokens[0].replaced_at is not None
    assert charged_with(ana) == [old.id, new.id, new.id, new.id]
    assert "token.replaced" in ana.story


def test_a_method_from_before_that_charge_replaces_nothing_when_it_is_declined(world: World) -> None:
    ana = world.subscribe_save(card=VISA)
    ana.adds_card(OTHER_VISA)
    world.advance(minutes=1)
    ana.script("INSUFFICIENT_BALANCE")
    world.run()
    world.deliver_webhooks()

    assert ana.outcomes[0] == "failed"
    assert ana.tokens[0].replaced_at is None


def test_all_subscriptions_of_the_customer_follow(world: World) -> None:
    ana = her_card_was_declined(world)
    silver = world.subscribe_save(card=VISA, plan=world.plan("silver", amount="20000"))
    new = ana.adds_card(OTHER_VISA)
    world.live(days=35)

    assert silver.attempts[-1].payment_token_id == new.id
    assert shown(world, silver) == new.id


def test_a_replaced_method_that_is_saved_again_is_her_choice_again(world: World) -> None:
    ana = her_card_was_declined(world)
    ana.adds_card(OTHER_VISA)
    world.settle_down()
    old = ana.tokens[0]
    with world.parts.transaction() as session:
        tokens.saved_by_customer(session, session.get_one(PaymentToken, old.id), world.now)

    assert ana.tokens[0].replaced_at is None


def test_an_event_told_again_later_changes_nothing(world: World) -> None:
    ana = her_card_was_declined(world)
    new = ana.adds_card(OTHER_VISA)
    world.settle_down()
    prefer(world, ana.tokens[0])

    world.control("POST", "/webhooks/resend", {"payment_token_id": new.payment_token_id})
    world.deliver_webhooks()
    for row in world.events("payment_session.completed"):
        apply.apply_stored_event(world.parts, row.id, read_event, again=True)

    assert shown(world, ana) == ana.tokens[0].id


def test_nothing_to_undo_is_said(world: World) -> None:
    ana = world.subscribe_save()
    with pytest.raises(Conflict, match="there is nothing to undo"):
        unblock(world, ana.tokens[0])
    world.control("POST", f"/tokens/{ana.tokens[0].payment_token_id}/expire")
    world.deliver_webhooks()
    with pytest.raises(Conflict, match="EXPIRED at Xendit, which is for good; `billing session create ana`"):
        unblock(world, ana.tokens[0])
