"""Onboarding and the life of a subscription, seen from close by: what is asked of Xendit, what is refused and why."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from billing.charging import tokens
from billing.domain.gateway import SessionMode, SessionType
from billing.errors import Conflict, GatewayError, IllegalTransition, InvalidInput
from billing.parts import Rules
from billing.store.models import ChargeAttempt, Invoice, PaymentToken, Subscription
from billing.subscribing import payment_sessions, session_results
from tests.world import OTHER_VISA, START, VISA, World


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    rules = Rules(return_base="https://billing.example.com", components_origins=("https://shop.example.com",))
    with World(database_url, rules=rules) as world:
        yield world


def at_xendit(world: World, session_id: str | None) -> dict[str, Any]:
    """The session as Xendit has it."""
    document: dict[str, Any] = world.simulator.world.sessions[session_id or ""].document
    return document


# What is asked of Xendit


def test_a_save_session_costs_nothing_and_says_it_is_for_renewals(world: World) -> None:
    asked = at_xendit(world, world.subscribe().session.xendit_session_id)

    assert (asked["session_type"], asked["mode"], asked["amount"]) == ("SAVE", "PAYMENT_LINK", 0)
    assert asked["channel_properties"]["cards"]["card_on_file_type"] == "RECURRING"
    assert asked["channel_properties"]["cards"]["recurring_configuration"]["recurring_frequency"] > 0
    assert asked["success_return_url"].startswith("https://billing.example.com/return/ses-")


def test_a_pay_session_collects_the_period_and_must_save(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    asked = at_xendit(world, ana.session.xendit_session_id)

    assert (asked["session_type"], asked["amount"], asked["currency"]) == ("PAY", 50_000, "IDR")
    assert asked["allow_save_payment_method"] == "FORCED"
    assert [(invoice.status, invoice.amount_minor) for invoice in ana.invoices] == [("draft", 50_000)]


def test_only_channels_that_can_be_charged_later_are_offered(world: World) -> None:
    offered = at_xendit(world, world.subscribe().session.xendit_session_id)["allowed_payment_channels"]

    assert "CARDS" in offered
    assert not {"QRIS", "BCA_VIRTUAL_ACCOUNT", "GOPAY", "NEXCASH"} & set(offered)


def test_a_session_lives_at_most_a_day(world: World) -> None:
    assert timedelta(hours=20) < world.subscribe().session.expires_at - START <= timedelta(hours=24)


def test_components_come_with_a_key_instead_of_a_link(world: World) -> None:
    _, session = payment_sessions.subscribe(
        world.parts, world.customer(), world.plan(), via=SessionType.SAVE, mode=SessionMode.COMPONENTS,
        start_at=None, reference=None,
    )  # fmt: skip
    assert session.components_sdk_key
    assert session.payment_link_url is None
    asked = at_xendit(world, session.xendit_session_id)
    assert asked["components_configuration"]["origins"] == ["https://shop.example.com"]


def test_a_customer_is_created_at_xendit_once(world: World) -> None:
    first = world.subscribe("ana")
    world.subscribe("ana", again=True)

    assert world.calls("POST /customers") == 1
    assert first.customer.xendit_customer_id


def test_a_lost_answer_about_a_customer_leaves_one_customer(world: World) -> None:
    world.break_calls("500_AFTER", endpoint="POST /customers")
    with pytest.raises(GatewayError):
        world.subscribe("ana")

    world.subscribe("ana")

    assert len(world.simulator.world.customers) == 1


@pytest.mark.parametrize("fault", ["HTTP:500", "TIMEOUT_BEFORE", "TIMEOUT_AFTER", "GARBAGE", "429", "HTTP:401"])
@pytest.mark.parametrize("via", [SessionType.SAVE, SessionType.PAY])
def test_when_no_session_can_be_opened_nothing_is_left(world: World, fault: str, via: SessionType) -> None:
    world.break_calls(fault, endpoint="POST /sessions")
    with pytest.raises(GatewayError):
        world.subscribe(via=via)
    for table in (Subscription, Invoice, ChargeAttempt):
        assert world.all(select(table)) == []


def test_references_of_sessions_are_always_fresh(world: World) -> None:
    ana = world.subscribe()
    session_results.cancel_session(world.parts, ana.session_id)
    again = ana.new_session()
    assert again.reference_id != ana.session.reference_id


# What is refused


def test_a_currency_no_channel_takes_is_refused(world: World) -> None:
    with pytest.raises(InvalidInput, match="currency"):
        world.subscribe("bea", country="PH", plan=world.plan("rupiah"))


def test_a_reference_in_use_is_refused(world: World) -> None:
    def subscribe() -> None:
        payment_sessions.subscribe(
            world.parts, world.customer(), world.plan(), via=SessionType.SAVE, mode=SessionMode.PAYMENT_LINK,
            start_at=None, reference="sub-ana",
        )  # fmt: skip

    subscribe()
    with pytest.raises(Conflict, match="sub-ana is in use"):
        subscribe()
    assert len(world.all(select(Subscription))) == 1


def test_a_session_that_is_over_cannot_be_canceled(world: World) -> None:
    ana = world.subscribe_save()
    with pytest.raises(Conflict, match="COMPLETED"):
        session_results.cancel_session(world.parts, ana.session_id)


def test_an_active_subscription_needs_no_new_start(world: World) -> None:
    with pytest.raises(Conflict, match="needs no new start"):
        world.subscribe_save().new_session()


def test_who_has_no_subscription_gets_no_session(world: World) -> None:
    with pytest.raises(Conflict, match="billing subscribe"):
        payment_sessions.open_session(world.parts, world.customer("bea"), mode=SessionMode.PAYMENT_LINK)


def test_pause_and_resume_follow_the_table_of_moves(world: World) -> None:
    ana = world.subscribe()
    with pytest.raises(IllegalTransition):
        ana.pause()
    ana.completes_session()
    world.deliver_webhooks()
    with pytest.raises(IllegalTransition, match="not on hold"):
        ana.resume()
    ana.pause()
    with pytest.raises(IllegalTransition):
        ana.pause()


def test_canceling_twice_is_refused_with_advice(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    ana.cancel()
    with pytest.raises(IllegalTransition, match="--now ends it at once"):
        ana.cancel()


def test_an_incomplete_subscription_ends_at_once(world: World) -> None:
    ana = world.subscribe()
    ana.cancel()
    assert ana.status == "canceled"


# Twice the same


def test_a_plan_the_customer_has_already_is_refused_unless_again(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    with pytest.raises(Conflict, match=f"ana has plan gold already: subscription {ana.id} is active; --again"):
        world.subscribe()
    ana.pause()
    with pytest.raises(Conflict, match="is paused"):
        world.subscribe()

    world.subscribe(plan=world.plan("silver"))
    world.subscribe("ben")
    world.subscribe(again=True)
    ana.cancel(at_once=True)
    assert len(world.all(select(Subscription))) == 4


def test_a_plan_the_customer_is_about_to_have_is_refused_with_the_way_on(world: World) -> None:
    ana = world.subscribe()
    with pytest.raises(Conflict, match=f"billing session show {ana.session_id}"):
        world.subscribe()
    session_results.cancel_session(world.parts, ana.session_id)
    with pytest.raises(Conflict, match=f"billing session create ana --subscription {ana.id}"):
        world.subscribe()

    ana.cancel(at_once=True)
    world.subscribe()


def test_of_two_at_the_same_moment_one_wins(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A double click: whoever has looked is held until the other has looked as well, or has to wait for him."""
    world.subscribe("ana", plan=world.plan("other"))  # the customer is known at Xendit
    refused: list[str] = []
    both_have_looked = threading.Barrier(2, timeout=0.5)
    look = payment_sessions._refuse_a_second

    def look_and_hold(*wanted: Any) -> None:
        look(*wanted)
        with suppress(threading.BrokenBarrierError):
            both_have_looked.wait()

    monkeypatch.setattr(payment_sessions, "_refuse_a_second", look_and_hold)

    def click() -> None:
        try:
            world.subscribe("ana", plan=world.plan("gold"))
        except Conflict as error:
            refused.append(str(error))

    world.in_two_threads(click)

    assert len(refused) == 1
    assert len(world.all(select(Subscription))) == 2


# On a saved payment method, without a page


def begin(world: World, token: PaymentToken, *, customer: str = "ana", plan: str = "silver", **wanted: Any) -> Any:
    return payment_sessions.subscribe_with_token(
        world.parts, world.customer(customer), world.plan(plan), token, reference=None,
        **({"start_at": None} | wanted),
    )  # fmt: skip


def test_a_saved_method_starts_a_subscription_at_once(world: World) -> None:
    ana = world.subscribe_save()
    second = ana.adds_card()
    asked = world.calls("POST /sessions")

    silver = begin(world, second)
    assert (silver.status, silver.next_billing_at, silver.payment_token_id) == ("active", world.now, second.id)
    world.run()

    assert world.collected() == [50_000, 50_000]
    assert {row.payment_token_id for row in world.all_attempts() if row.subscription_id == silver.id} == {second.id}
    assert world.calls("POST /sessions") == asked
    assert world.fresh(silver).next_billing_at == datetime(2026, 2, 28, 2, 0, tzinfo=UTC)


def test_a_start_later_and_a_trial_are_kept(world: World) -> None:
    ana = world.subscribe_save()
    later = world.now + timedelta(days=3)
    assert begin(world, ana.tokens[0], start_at=later).next_billing_at == later
    world.plan("trial", trial_days=14)
    trial = begin(world, ana.tokens[0], plan="trial")
    assert (trial.status, trial.next_billing_at) == ("trialing", world.now + timedelta(days=14))
    with pytest.raises(InvalidInput, match="has passed"):
        begin(world, ana.tokens[0], plan="bronze", start_at=world.now - timedelta(days=1))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": "EXPIRED"}, "is EXPIRED; only an ACTIVE token"),
        ({"status": "PENDING"}, "is PENDING; only an ACTIVE token"),
        ({"blocked_reason": "STOLEN_CARD"}, "must not be tried again: STOLEN_CARD"),
        ({"unknown_since": START}, "Xendit does not know"),
        ({"replaced_at": START}, "replaced by another payment method"),
    ],
)
def test_of_a_method_that_may_not_be_charged_nothing_begins(world: World, changes: dict[str, Any], why: str) -> None:
    world.waive("unknown_tokens_are_followed")  # made up
    ana = world.subscribe_save()
    with world.parts.transaction() as session:
        session.execute(update(PaymentToken).values(**changes))

    with pytest.raises(Conflict, match=why):
        begin(world, ana.tokens[0])
    assert len(world.all(select(Subscription))) == 1


def test_nor_of_somebody_elses_nor_twice(world: World) -> None:
    ana = world.subscribe_save()
    with pytest.raises(Conflict, match="belongs to another customer"):
        begin(world, ana.tokens[0], customer="ben")
    with pytest.raises(Conflict, match="has plan gold already"):
        begin(world, ana.tokens[0], plan="gold")
    assert len(world.all(select(Subscription))) == 1


# Calendars


def test_a_price_is_the_subscribers_own(world: World) -> None:
    """Copied from the plan at the start: it never changes under a running subscription."""
    plan = world.plan()
    ana = world.subscribe_save(plan=plan)
    with world.parts.transaction() as session:
        session.merge(plan).amount_minor = 99_000

    world.live(days=30)

    assert world.collected() == [50_000, 50_000]
    assert ana.invoice.amount_minor == 50_000


@pytest.mark.parametrize(
    ("every", "timezone", "starts"),
    [
        ("every 2:week", "Asia/Jakarta", ["2026-01-31", "2026-02-14", "2026-02-28"]),
        ("every 10:day", "Asia/Jakarta", ["2026-01-31", "2026-02-10", "2026-02-20"]),
        ("every 3:month", "Asia/Jakarta", ["2026-01-31", "2026-04-30", "2026-07-31"]),
        ("every 1:year", "Asia/Jakarta", ["2026-01-31", "2027-01-31", "2028-01-31"]),
        ("cron 0 9 1 * *", "Asia/Jakarta", ["2026-02-01", "2026-03-01", "2026-04-01"]),
        ("cron 0 9 L * *", "Asia/Jakarta", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        ("cron 30 8 * * 1", "Asia/Manila", ["2026-02-02", "2026-02-09", "2026-02-16"]),
    ],
)
def test_periods_start_when_the_plan_says(world: World, every: str, timezone: str, starts: list[str]) -> None:
    plan = world.plan("odd", every=every, timezone=timezone)
    ana = world.subscribe_save(plan=plan)

    while len(ana.invoices) < 3:
        following = ana.subscription.next_billing_at
        assert following is not None
        world.clock.instant = max(following, world.now)
        world.run()

    assert [invoice.period_key[:10] for invoice in ana.invoices] == starts
    assert world.collected() == [50_000] * 3


def test_summer_time_bills_each_local_day_once(world: World) -> None:
    """C3, C6: 02:30 does not exist on 29 March in Berlin, and comes twice on 25 October."""
    plan = world.plan("berlin", every="every 1:day", timezone="Europe/Berlin", catch_up="all")
    ana = world.subscribe_save(plan=plan, start_at=datetime(2026, 3, 27, 1, 30, tzinfo=UTC))
    world.clock.instant = datetime(2026, 3, 27, 1, 30, tzinfo=UTC)
    world.live(days=4, hours=20)

    days = [invoice.period_key[:10] for invoice in ana.invoices]
    assert days == [f"2026-03-{day}" for day in (27, 28, 29, 30, 31)]
    assert len(world.collected()) == 5


def test_the_customers_day_decides_not_utc(world: World) -> None:
    """D10, C4: at 03:00 in Manila it is still yesterday in UTC."""
    plan = world.plan("manila", timezone="Asia/Manila")
    ana = world.subscribe_save(plan=plan, start_at=datetime(2026, 2, 27, 19, 0, tzinfo=UTC))
    world.clock.instant = datetime(2026, 2, 27, 19, 0, tzinfo=UTC)
    world.live(days=32)

    assert [invoice.period_key[:10] for invoice in ana.invoices] == ["2026-02-28", "2026-03-28"]
    assert ana.subscription.anchor_day == 28


# Tokens


def test_the_preferred_card_is_charged_first(world: World) -> None:
    ana = world.subscribe_save(card=VISA)
    second = ana.adds_card(OTHER_VISA)
    with world.parts.transaction() as session:
        tokens.make_first(session, session.merge(second), world.now)

    world.run()

    assert ana.attempt.payment_token_id == second.id


def test_a_dead_token_cannot_be_preferred(world: World) -> None:
    ana = world.subscribe_save()
    world.control("POST", f"/tokens/{ana.tokens[0].payment_token_id}/expire")
    world.deliver_webhooks()
    with world.parts.transaction() as session, pytest.raises(Conflict, match="EXPIRED"):
        tokens.make_first(session, session.merge(ana.tokens[0]), world.now)


def test_no_card_number_is_kept(world: World) -> None:
    """Contract 5.4: the last four digits and a fingerprint are all we have."""
    token = world.subscribe_save(card=VISA).tokens[0]
    assert token.card_last4 == VISA[-4:]
    assert token.fingerprint
    assert not any(VISA in str(value) for value in vars(token).values())


def test_a_refresh_brings_what_no_webhook_told(world: World) -> None:
    ana = world.subscribe_save()
    token = ana.tokens[0]
    world.control("POST", f"/tokens/{token.payment_token_id}/cancel")

    tokens.refresh_token(world.parts, token.payment_token_id)

    assert ana.tokens[0].status == "CANCELED"
