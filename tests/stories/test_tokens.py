"""Which of a customer's payment methods is charged, and what becomes of one that Xendit calls PENDING, or denies."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from billing.charging import begin, tokens
from billing.checks import doctor
from billing.domain.lifecycle import HoldKind
from billing.errors import Conflict
from billing.inbox import apply
from billing.runs import limits
from billing.store.models import PaymentToken
from billing.subscriptions.moves import lock_subscription
from billing.xendit.webhook import read_event
from tests.world import CHARGE, OTHER_VISA, START, VISA, Subscriber, World

GET_TOKEN = "GET /v3/payment_tokens/{id}"


def is_at_xendit(world: World, token: PaymentToken, status: str) -> None:
    world.simulator.world.tokens[token.payment_token_id].document["status"] = status


def has_been_told_of(world: World, token: PaymentToken, status: str = "PENDING", **values: object) -> None:
    """As after an import that could not ask, or an activation that is late."""
    with world.parts.transaction() as session:
        session.execute(update(PaymentToken).where(PaymentToken.id == token.id).values(status=status, **values))


def her_token_is_unverified(world: World, reference: str = "ana") -> Subscriber:
    ana = world.subscribe_save(reference)
    has_been_told_of(world, ana.tokens[0])
    return ana


def refresh(world: World, token: PaymentToken) -> PaymentToken:
    return tokens.refresh_token(world.parts, token.payment_token_id)


def open_checks(world: World) -> set[str]:
    return {check["name"] for check in doctor.examine(world.parts)["checks"] if not check["ok"]}


# An ACTIVE one first


def test_an_active_token_is_charged_before_one_that_is_not_verified(world: World) -> None:
    """Contract "At the edges" 6: today the PENDING one in front costs a month without a charge."""
    ana = world.subscribe_save(card=VISA)
    ana.adds_card(OTHER_VISA)
    first, second = ana.tokens
    has_been_told_of(world, first)
    is_at_xendit(world, first, "PENDING")

    world.run()

    assert ana.outcomes == ["succeeded"]
    assert ana.attempt.payment_token_id == second.id
    assert world.calls(GET_TOKEN) == 0


def test_without_an_active_token_every_other_is_asked_about_in_turn(world: World) -> None:
    ana = world.subscribe_save(card=VISA)
    ana.adds_card(OTHER_VISA)
    first, second = ana.tokens
    for token in (first, second):
        has_been_told_of(world, token)
    is_at_xendit(world, first, "PENDING")

    world.run()

    assert ana.outcomes == ["succeeded"]
    assert ana.attempt.payment_token_id == second.id


def test_a_token_that_stays_pending_is_asked_about_ever_more_rarely_and_then_the_customer(world: World) -> None:
    ana = her_token_is_unverified(world)
    is_at_xendit(world, ana.tokens[0], "PENDING")

    world.live(hours=3)
    assert world.calls(GET_TOKEN) == 4, "hourly at first"
    world.live(days=6, hours=20)
    assert (ana.outcomes, ana.status) == (["scheduled"], "active")
    world.live(days=2)

    assert (ana.outcomes, ana.status) == (["canceled"], "past_due")
    assert "customer.asked" in ana.story
    assert ana.invoice.grace_ends_at is not None
    assert ana.invoice.grace_ends_at > START + timedelta(days=20), "the whole grace is before the customer"
    assert world.calls(GET_TOKEN) <= 20
    assert world.calls(CHARGE) == 0


def test_a_token_that_becomes_active_in_the_meantime_is_charged(world: World) -> None:
    ana = her_token_is_unverified(world)
    is_at_xendit(world, ana.tokens[0], "PENDING")
    world.live(days=2)

    is_at_xendit(world, ana.tokens[0], "ACTIVE")
    world.live(days=1)

    assert ana.outcomes == ["succeeded"]


def test_what_was_imported_long_ago_is_waited_for_from_when_it_is_needed(world: World) -> None:
    ana = world.subscribe_save(start_at=START + timedelta(days=10))
    has_been_told_of(world, ana.tokens[0])
    is_at_xendit(world, ana.tokens[0], "PENDING")

    world.live(days=12)

    assert ana.outcomes == ["scheduled"]
    assert "customer.asked" not in ana.story


# One that Xendit does not know


def test_one_run_with_another_accounts_key_and_then_the_right_one(world: World) -> None:
    """Nothing is FAILED, nobody is dunned, and everything goes on by itself."""
    subscribers = [her_token_is_unverified(world, f"customer{number}") for number in range(4)]

    with world.another_accounts_key():
        world.run()
        world.live(hours=6)

    assert {token.status for ana in subscribers for token in ana.tokens} == {"PENDING"}
    for ana in subscribers:
        assert (ana.status, ana.outcomes) == ("active", ["scheduled"])
        assert ana.subscription.hold_kind == HoldKind.TOKEN_UNKNOWN
        assert "BILLING_XENDIT_SECRET_KEY" in (ana.subscription.hold_reason or "")
        assert f"`billing token refresh {ana.tokens[0].id}`" in (ana.subscription.hold_reason or "")
        assert ana.attempt.parked_by == f"token:{ana.customer.id}"
        assert ana.invoice.first_failed_at is None
    assert "no_subscription_is_held" in open_checks(world)
    assert world.calls(GET_TOKEN) == 4, "asked once each"
    assert world.calls(CHARGE) == 0

    world.live(days=2)

    assert world.collected() == [50_000] * 4
    assert {ana.outcomes[0] for ana in subscribers} == {"succeeded"}
    assert {ana.subscription.hold_reason for ana in subscribers} == {None}
    assert {token.status for ana in subscribers for token in ana.tokens} == {"ACTIVE"}
    assert "subscription.released" in subscribers[0].story


def test_xendit_is_asked_daily_and_nothing_runs_out_meanwhile(world: World) -> None:
    ana = her_token_is_unverified(world)
    with world.another_accounts_key():
        world.live(days=33)
        assert 30 <= world.calls(GET_TOKEN) <= 36
        assert (ana.status, ana.outcomes) == ("active", ["scheduled"])
        assert len(ana.invoices) == 1, "the next period is not opened while it is held"
        assert ana.invoice.status == "open"

    world.live(days=1, hours=1)

    assert [invoice.status for invoice in ana.invoices] == ["paid", "paid"], "catch-up is `all`: both are billed"
    assert ana.subscription.catch_up_until is None, "nobody has approved anything"


def test_the_catch_up_policy_decides_over_what_was_missed(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(catch_up="hold"))
    world.run()
    world.deliver_webhooks()
    with world.another_accounts_key():
        refresh(world, ana.tokens[0])
        assert ana.subscription.hold_kind == HoldKind.TOKEN_UNKNOWN
        world.advance(days=65)
        world.tick()
        assert len(ana.invoices) == 1

    refresh(world, ana.tokens[0])
    world.tick()

    assert "catch-up is hold" in (ana.subscription.hold_reason or "")
    assert world.collected() == [50_000]


def test_a_refresh_ends_the_hold_at_once(world: World) -> None:
    ana = her_token_is_unverified(world)
    with world.another_accounts_key():
        world.run()
        assert refresh(world, ana.tokens[0]).unknown_since is not None

    token = refresh(world, ana.tokens[0])
    assert (token.status, token.unknown_since, token.next_check_at) == ("ACTIVE", None, None)
    assert world.run()["succeeded"] == 1


def test_another_card_ends_the_hold_too(world: World) -> None:
    ana = her_token_is_unverified(world)
    hidden = world.simulator.world.tokens.pop(ana.tokens[0].payment_token_id)
    world.run()
    assert ana.subscription.hold_kind == HoldKind.TOKEN_UNKNOWN

    ana.adds_card(OTHER_VISA)
    world.tick()

    assert ana.subscription.hold_kind is None
    assert ana.outcomes == ["succeeded"]
    assert ana.attempt.payment_token_id == ana.tokens[1].id
    world.simulator.world.tokens[ana.tokens[0].payment_token_id] = hidden


def test_with_another_active_card_nothing_is_held(world: World) -> None:
    ana = world.subscribe_save(card=VISA)
    ana.adds_card(OTHER_VISA)
    first, second = ana.tokens
    world.simulator.world.tokens.pop(first.payment_token_id)

    assert refresh(world, first).unknown_since is not None
    world.run()

    assert ana.subscription.hold_reason is None
    assert ana.attempt.payment_token_id == second.id


@pytest.mark.parametrize("status", ["EXPIRED", "CANCELED", "FAILED"])
def test_known_and_dead_ends_the_hold_and_the_customer_is_asked(world: World, status: str) -> None:
    ana = her_token_is_unverified(world)
    with world.another_accounts_key():
        world.run()
    is_at_xendit(world, ana.tokens[0], status)

    world.live(days=2)

    assert ana.subscription.hold_kind is None
    assert ana.tokens[0].status == status
    assert (ana.status, ana.outcomes) == ("past_due", ["canceled"])
    assert "customer.asked" in ana.story
    assert world.calls(CHARGE) == 0


def test_an_event_of_that_account_does_not_say_that_our_key_is_its_key(world: World) -> None:
    """The callback token may be the right account's while the key is another's."""
    ana = world.subscribe_save()
    activation = next(event for event in world.events() if event.event == "payment_token.activation")
    has_been_told_of(world, ana.tokens[0], gateway_updated_at=None)
    with world.another_accounts_key():
        world.run()
        before = world.calls(GET_TOKEN)
        replay(world, activation.id)
        world.tick()
        assert ana.subscription.hold_kind == HoldKind.TOKEN_UNKNOWN
        assert world.calls(GET_TOKEN) == before + 1, "but Xendit is asked at once"
    assert world.calls(CHARGE) == 0


def test_a_hold_that_a_person_lifts_too_early_comes_back(world: World) -> None:
    ana = her_token_is_unverified(world)
    with world.another_accounts_key():
        world.run()
        with world.parts.transaction() as session:
            row = lock_subscription(session, ana.id)
            row.hold_reason = row.hold_kind = None
        limits.watch(world.parts)
        assert ana.attempt.parked_by is None
        world.tick()

        assert ana.subscription.hold_kind == HoldKind.TOKEN_UNKNOWN
        assert ana.attempt.parked_by == f"token:{ana.customer.id}"
        limits.watch(world.parts)
        assert ana.attempt.parked_by is not None


def test_grace_does_not_run_out_while_it_is_held(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("EXPIRED_CARD")
    world.run()
    world.deliver_webhooks()
    assert ana.invoice.grace_ends_at is not None
    ana.adds_card(OTHER_VISA)
    world.script(ana.tokens[1].payment_token_id, ["AUTHENTICATION_FAILED"])
    world.live(days=1, hours=1)
    assert (ana.outcomes, ana.status) == (["failed", "failed"], "past_due")
    ends = ana.invoice.grace_ends_at
    with world.another_accounts_key():
        refresh(world, ana.tokens[1])
        world.live(days=40)
        assert ana.subscription.hold_kind == HoldKind.TOKEN_UNKNOWN
        assert ana.invoice.grace_ends_at > ends
        assert ana.invoice.status == "open"
        assert ana.status == "past_due"


def test_invoice_pay_says_what_to_check(world: World) -> None:
    ana = her_token_is_unverified(world)
    with world.another_accounts_key():
        world.run()
        with pytest.raises(Conflict, match="BILLING_XENDIT_SECRET_KEY"):
            ana.pay_invoice()
        with pytest.raises(Conflict, match="only an ACTIVE token"):
            ana.pay_invoice(token=ana.tokens[0])
    assert ana.outcomes == ["scheduled"], "its planned attempt stays"


def test_what_the_release_before_called_failed_comes_back(world: World) -> None:
    """Its FAILED was our guess, no final status of Xendit's."""
    ana = world.subscribe_save()
    has_been_told_of(world, ana.tokens[0], "FAILED", failure_code="DATA_NOT_FOUND")

    token = refresh(world, ana.tokens[0])

    assert (token.status, token.failure_code) == ("ACTIVE", None)
    assert world.run()["succeeded"] == 1


def test_what_xendit_called_failed_never_comes_back(world: World) -> None:
    ana = world.subscribe_save()
    has_been_told_of(world, ana.tokens[0], "FAILED", failure_code="CARD_DECLINED")

    assert refresh(world, ana.tokens[0]).status == "FAILED"


def test_a_proxys_missing_page_is_not_taken_for_a_missing_token(world: World) -> None:
    ana = her_token_is_unverified(world)
    world.break_calls("PROXY_404_BEFORE", endpoint=GET_TOKEN)

    world.run()

    assert ana.tokens[0].unknown_since is None
    assert ana.subscription.hold_reason is None
    world.live(minutes=5)
    assert ana.outcomes == ["succeeded"]


def test_a_session_whose_token_is_denied_starts_when_it_is_known(world: World) -> None:
    ana = world.subscribe()
    ana.completes_session()
    while world.simulator.due_deliveries(world.now):
        pass
    token_id, token = next(iter(world.simulator.world.tokens.items()))
    del world.simulator.world.tokens[token_id]
    world.advance(minutes=11)
    world.tick()
    assert (ana.session.status, ana.status) == ("COMPLETED", "incomplete")
    world.simulator.world.tokens[token_id] = token

    world.live(days=1)

    assert ana.status == "active"
    assert world.collected() == [50_000]


def replay(world: World, event_id: str) -> None:
    """`billing replay`"""
    apply.apply_stored_event(world.parts, event_id, read_event, again=True)


def its_card_was_replaced_and_xendit_has_lost_the_new_one(world: World) -> Subscriber:
    ana = world.subscribe_save(card=VISA)
    ana.script("INSUFFICIENT_BALANCE")
    world.run()
    world.deliver_webhooks()
    new = ana.adds_card(OTHER_VISA)
    assert ana.tokens[0].replaced_at is not None
    del world.simulator.world.tokens[new.payment_token_id]
    has_been_told_of(world, new)
    world.settle_down()
    assert ana.subscription.hold_kind == HoldKind.TOKEN_UNKNOWN
    return ana


def test_a_replaced_method_ends_no_hold_that_the_unknown_one_makes(world: World) -> None:
    """Wrong before: released whenever Xendit told of the old one, and held again by the next charge."""
    ana = its_card_was_replaced_and_xendit_has_lost_the_new_one(world)

    for _ in range(3):
        tokens.refresh_token(world.parts, ana.tokens[0].payment_token_id)
        world.live(days=2)

    assert (ana.story.count("subscription.held"), ana.story.count("subscription.released")) == (1, 0)


def test_a_replaced_method_that_a_person_prefers_ends_the_hold(world: World) -> None:
    ana = its_card_was_replaced_and_xendit_has_lost_the_new_one(world)

    with world.parts.transaction() as session:
        tokens.make_first(session, session.get_one(PaymentToken, ana.tokens[0].id), world.now)
    assert ana.subscription.hold_kind is None
    world.live(days=2)

    assert world.collected() == [50_000]


def test_a_block_between_two_looks_at_the_tokens_is_no_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another customer's charge blocks the card under every token it has, without this customer's lock."""
    ana = world.subscribe_save()
    del world.simulator.world.tokens[ana.tokens[0].payment_token_id]
    has_been_told_of(world, ana.tokens[0])
    chosen, unknown = begin.choose_token, []

    def block_then(*looked: Any, **how: Any) -> begin.Choice:
        choice = chosen(*looked, **how)
        if choice.unknown:
            unknown.append(1)
        if len(unknown) == 2:  # the first look chose nothing; this is the one under the lock
            with world.parts.transaction() as session:
                session.execute(update(PaymentToken).values(blocked_reason="STOLEN_CARD"))
        return choice

    monkeypatch.setattr(begin, "choose_token", block_then)
    monkeypatch.setattr(tokens, "_hold_those_without_another", lambda *_: None)
    world.open_due()
    world.settle_down()

    assert len(unknown) == 2
    assert ana.outcomes == ["canceled"]
    assert "customer.asked" in ana.story
