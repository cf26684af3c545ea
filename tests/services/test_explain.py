"""What a person reads who asks why: the whole story in order, and the reason for the next date."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from billing.domain.gateway import SessionType
from billing.domain.lifecycle import AttemptStatus, SubscriptionStatus, TokenStatus
from billing.parts import Rules, tell
from billing.reading.explain import explain
from billing.reading.timeline import LINES
from billing.store.models import ChargingStop, PaymentToken, Subscription
from billing.subscriptions.moves import pause
from tests.factories import (
    NOW,
    make_attempt,
    make_customer,
    make_invoice,
    make_paid_invoice,
    make_payment_session,
    make_plan,
    make_subscription,
    make_token,
)
from tests.world import OTHER_VISA, Subscriber, World

# ------------------------------------------------------------------------------------------------- the story


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


def told(world: World, subscriber: Subscriber) -> dict[str, Any]:
    with world.parts.sessions() as session:
        row = session.get_one(Subscription, subscriber.id)
        return explain(session, row, world.now, rules=world.parts.rules)


def test_a_month_from_the_link_to_the_second_try_is_told_in_order(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE", "SUCCEEDED")
    world.live(days=2)

    story = told(world, ana)

    assert [event["kind"] for event in story["events"]] == [
        "subscription.created",
        "session.opened",
        "token.saved",
        "subscription.activated",
        "invoice.opened",
        "attempt.submitted",
        "attempt.failed",
        "subscription.past_due",
        "attempt.submitted",
        "invoice.paid",
        "subscription.recovered",
    ]
    moments = [event["at"] for event in story["events"]]
    assert moments == sorted(moments)
    assert story["subscription"]["status"] == "active"


def test_a_decline_is_explained_by_all_its_codes_with_what_followed(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE")
    world.run()
    world.deliver_webhooks()

    failed = next(event for event in told(world, ana)["events"] if event["kind"] == "attempt.failed")

    assert "insufficient funds; the same payment method is tried again in some days" in failed["what"]
    assert "retry at 2026-02-01 09:00+07:00" in failed["what"], "in the subscriber's own time"
    assert failed["detail"]["network_code"] == "51"


def test_doubt_shows_its_evidence_and_when_it_ends(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("TIMEOUT_ERROR")
    world.run()
    world.live(minutes=40)

    story = told(world, ana)

    doubt = next(event for event in story["events"] if event["kind"] == "attempt.in_doubt")
    assert doubt["detail"]["look_ups"] == 3
    assert doubt["detail"]["window_ends_at"] == "2026-02-01T04:00:00Z"
    assert "looked up 3 times" in doubt["what"]
    assert story["next"]["what"] == "look-up"
    assert story["next"]["at"] == doubt["detail"]["next_look_up_at"] == "2026-01-31T04:00:00Z"
    assert "nothing else is charged" in story["next"]["why"]
    assert "no trace by 2026-02-01 11:00+07:00" in story["next"]["why"]
    assert story["then"]["at"] == "2026-02-28T02:00:00Z"


def test_the_settlement_window_told_is_the_merchants_own(database_url: str) -> None:
    with World(database_url, rules=Rules(settlement_window=timedelta(hours=48), hold_in_doubt=True)) as world:
        ana = world.subscribe_save()
        ana.script("TIMEOUT_ERROR")
        world.run()

        why = told(world, ana)["next"]["why"]

    assert "no trace by 2026-02-02 09:00+07:00 means it never arrived, and a person decides" in why


def test_nothing_told_holds_a_full_token_or_a_card_number(world: World) -> None:
    ana = world.subscribe_save(card=OTHER_VISA)
    world.run()

    story = str(told(world, ana)["events"])

    assert OTHER_VISA not in story
    assert ana.tokens[0].payment_token_id not in story
    assert "CARDS ending in 1000" in story


def test_every_kind_of_fact_written_anywhere_has_its_line(pytestconfig: pytest.Config) -> None:
    """A new fact without a line is still told, but not in English."""
    import re

    written = set()
    for path in (pytestconfig.rootpath / "billing").rglob("*.py"):
        for call in re.findall(r"\btell\(\s*[^\"f]*?\"([a-z_]+\.[a-z_]+)\"", path.read_text(encoding="utf-8")):
            written.add(call)

    assert len(written) > 20, "the search itself has gone wrong"
    assert written <= set(LINES)


def test_a_fact_without_a_line_is_told_as_it_is(session: Session) -> None:
    subscription = make_subscription(session)
    tell(session, subscription.id, NOW, "subscription.moved", to="another plan")

    assert explain(session, subscription, NOW)["events"][-1]["what"] == "subscription.moved: to another plan"


def test_explaining_writes_nothing(session: Session) -> None:
    subscription = make_subscription(session)
    make_attempt(session, make_invoice(session, subscription), status=AttemptStatus.IN_DOUBT)
    session.commit()

    explain(session, subscription, NOW)

    assert not session.dirty
    assert not session.new


# ---------------------------------------------------------------------------------- why the next date is what it is


def upcoming(session: Session, subscription: Subscription, now: datetime = NOW) -> dict[str, Any]:
    session.flush()
    session.expire_all()
    result: dict[str, Any] = explain(session, subscription, now)["next"]
    return result


def test_the_next_period_comes_from_the_schedule_and_the_anchor(session: Session) -> None:
    subscription = make_subscription(session)
    make_paid_invoice(session, subscription)

    found = upcoming(session, subscription)

    assert (found["what"], found["at"]) == ("charge", "2026-02-28T02:00:00Z")
    assert "period 2 begins then: every month, wall clock of Asia/Jakarta" in found["why"]
    assert "counted from 2026-01-31 09:00 on day 31, or the last of a shorter month" in found["why"]
    assert "charged with CARDS ending in 1091" in found["why"]


def test_a_cron_plan_is_explained_by_its_expression(session: Session) -> None:
    plan = make_plan(session, schedule="cron 0 9 1 * *", cycles=3)
    subscription = make_subscription(session, plan=plan)

    found = upcoming(session, subscription)

    assert "period 1 of 3 begins then: cron 0 9 1 * *" in found["why"]


def test_what_is_due_says_who_will_open_it(session: Session) -> None:
    subscription = make_subscription(session, start_at=NOW - timedelta(hours=2))

    assert "`billing run` opens it" in upcoming(session, subscription)["why"]


def test_a_trial_ends_with_the_first_period(session: Session) -> None:
    plan = make_plan(session, trial_days=14)
    subscription = make_subscription(session, plan=plan, status=SubscriptionStatus.TRIALING)

    found = upcoming(session, subscription)

    assert found["at"] == "2026-02-14T02:00:00Z"
    assert "the 14 free days are over then" in found["why"]


def test_a_retry_names_its_rung_and_policy_and_the_period_after_it(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE")
    world.run()

    story = told(world, ana)

    assert (story["next"]["what"], story["next"]["at"]) == ("charge", "2026-02-01T02:00:00Z")
    assert "by the dunning policy standard, retry at" in story["next"]["why"]
    assert "step 1 of 5" in story["next"]["why"]
    assert (story["then"]["what"], story["then"]["at"]) == ("charge", "2026-02-28T02:00:00Z")


def test_a_period_that_begins_before_the_retry_comes_first(session: Session) -> None:
    subscription = make_subscription(session, plan=make_plan(session, schedule="every 1:day"))
    invoice = make_invoice(session, subscription)
    make_attempt(session, invoice, status=AttemptStatus.FAILED)
    make_attempt(session, invoice, scheduled_at=NOW + timedelta(days=3), origin="dunning")

    story = explain(session, subscription, NOW)

    assert story["next"]["at"] == "2026-02-01T02:00:00Z"
    assert story["then"]["at"] == "2026-02-03T02:00:00Z"


def test_a_network_cap_is_given_as_the_reason(session: Session) -> None:
    attempt = make_attempt(session, scheduled_at=NOW + timedelta(days=1))
    reason = "network limit of declines per card"
    tell(session, attempt.subscription_id, NOW, "attempt.postponed", attempt=attempt.id, reason=reason)

    found = upcoming(session, session.get_one(Subscription, attempt.subscription_id))

    assert found["at"] == "2026-02-01T02:00:00Z"
    assert "put off 2026-01-31 09:00+07:00: network limit of declines per card" in found["why"]


def test_a_call_that_never_left_is_given_as_the_reason(session: Session) -> None:
    attempt = make_attempt(session, error="connection refused")

    found = upcoming(session, session.get_one(Subscription, attempt.subscription_id))

    assert "last time nothing was sent: connection refused" in found["why"]


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ("schedule", "is charged when it begins"),
        ("operator", "an operator asked for it"),
        ("new_token", "the customer has a new payment method"),
        ("resume", "resumed with this invoice unpaid"),
        ("dunning", "a retry by the dunning policy standard"),
    ],
)
def test_each_origin_of_an_attempt_has_its_reason(session: Session, origin: str, reason: str) -> None:
    attempt = make_attempt(session, origin=origin)

    assert reason in upcoming(session, session.get_one(Subscription, attempt.subscription_id))["why"]


@pytest.mark.parametrize(
    ("status", "what", "reason"),
    [
        (AttemptStatus.SUBMITTED, "look-up", "without an answer it goes into doubt"),
        (AttemptStatus.PENDING, "look-up", "is pending at Xendit"),
        (AttemptStatus.REQUIRES_ACTION, "customer", "waits for the customer to confirm it at https://3ds.example"),
    ],
)
def test_money_under_way_comes_before_anything_else(
    session: Session, status: AttemptStatus, what: str, reason: str
) -> None:
    attempt = make_attempt(session, status=status, action_url="https://3ds.example")
    subscription = session.get_one(Subscription, attempt.subscription_id)
    subscription.status = SubscriptionStatus.CANCELED

    found = upcoming(session, subscription)

    assert found["what"] == what
    assert reason in found["why"]


def test_incomplete_waits_for_its_session_and_says_until_when(session: Session) -> None:
    subscription = make_subscription(session, status=SubscriptionStatus.INCOMPLETE)
    row = make_payment_session(session, subscription)

    found = upcoming(session, subscription)

    assert (found["what"], found["at"]) == ("customer", "2026-02-01T01:00:00Z")
    assert row.id in found["why"]
    assert str(row.payment_link_url) in found["why"]


def test_incomplete_without_an_open_session_says_how_to_start_again(session: Session) -> None:
    subscription = make_subscription(
        session, status=SubscriptionStatus.INCOMPLETE, customer=make_customer(session, reference="ana")
    )
    make_payment_session(session, subscription, status="EXPIRED")

    assert "`billing session create ana` starts again" in upcoming(session, subscription)["why"]


def test_a_payment_page_that_is_open_is_told_as_such_and_not_as_a_look_up(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)

    assert told(world, ana)["next"]["what"] == "customer"


def test_paused_says_why_and_how_to_go_on(session: Session) -> None:
    subscription = make_subscription(session, reference="ana-gold")
    pause(session, subscription, NOW, reason="on holiday")

    found = upcoming(session, subscription)

    assert (found["what"], found["at"]) == ("person", None)
    assert "(on holiday); `billing subscription resume ana-gold`" in found["why"]


def test_canceled_says_why_and_that_it_is_for_good(world: World) -> None:
    ana = world.subscribe_save()
    ana.cancel(at_once=True)

    found = told(world, ana)["next"]

    assert (found["what"], found["at"]) == ("nothing", None)
    assert "for good: by request" in found["why"]


def test_the_end_of_the_period_is_the_end(session: Session) -> None:
    subscription = make_subscription(session, cancel_at_period_end=True)

    assert upcoming(session, subscription)["what"] == "end"


def test_all_cycles_billed_is_the_end(session: Session) -> None:
    subscription = make_subscription(session, plan=make_plan(session, cycles=1))
    make_paid_invoice(session, subscription)

    found = upcoming(session, subscription)

    assert (found["what"], found["at"]) == ("end", "2026-02-28T02:00:00Z")


def test_on_hold_names_the_command_that_releases_it(session: Session) -> None:
    subscription = make_subscription(session, reference="ana-gold", hold_reason="13 periods are due")

    found = upcoming(session, subscription)

    assert found["what"] == "person"
    assert "13 periods are due; `billing subscription resume ana-gold`" in found["why"]


def test_an_invoice_on_hold_names_the_command_that_releases_it(session: Session) -> None:
    invoice = make_invoice(session, hold_reason="INVALID_MERCHANT_SETTINGS", number="ana-1")

    found = upcoming(session, session.get_one(Subscription, invoice.subscription_id))

    assert found["what"] == "person"
    assert "INVALID_MERCHANT_SETTINGS; `billing invoice pay ana-1`" in found["why"]


def test_a_dead_card_waits_for_the_customer_until_grace_ends(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("EXPIRED_CARD")
    world.run()
    world.deliver_webhooks()

    found = told(world, ana)["next"]

    assert (found["what"], found["at"]) == ("customer", "2026-02-21T02:00:00Z")
    assert "it becomes uncollectible and the subscription is canceled" in found["why"]
    assert "`billing session create ana`" in found["why"]


@pytest.mark.parametrize(
    "dies",
    [
        lambda token: setattr(token, "status", TokenStatus.EXPIRED),
        lambda token: setattr(token, "blocked_reason", "STOLEN_CARD"),
    ],
)
def test_without_a_usable_token_it_says_that_the_customer_will_be_asked(
    session: Session, dies: Callable[[PaymentToken], None]
) -> None:
    subscription = make_subscription(session)
    dies(session.get_one(PaymentToken, subscription.payment_token_id))

    assert "no payment method may be charged, so the customer will be asked" in upcoming(session, subscription)["why"]


def test_the_token_told_is_the_one_that_will_be_charged(session: Session) -> None:
    """The subscription's own is dead: the customer's next ACTIVE one; only without any, one that is to be verified."""
    customer = make_customer(session)
    own = make_token(session, customer, status=TokenStatus.CANCELED)
    make_token(session, customer, channel_code="DANA", card_last4=None, status=TokenStatus.PENDING)
    active = make_token(session, customer, card_last4="4242")
    subscription = make_subscription(session, customer=customer, token=own)

    assert "charged with CARDS ending in 4242" in upcoming(session, subscription)["why"]
    active.unknown_since = NOW
    assert "charged with DANA once Xendit confirms it" in upcoming(session, subscription)["why"]


def test_the_subscriptions_own_token_comes_before_the_customers_first(session: Session) -> None:
    customer = make_customer(session)
    make_token(session, customer, card_last4="4242")
    subscription = make_subscription(session, customer=customer, token=make_token(session, customer, card_last4="1111"))

    assert "charged with CARDS ending in 1111" in upcoming(session, subscription)["why"]


def test_a_stop_of_all_charging_is_said_with_every_charge(session: Session) -> None:
    subscription = make_subscription(session)
    session.add(ChargingStop(id=1, reason="401 INVALID_API_KEY", at=NOW))

    why = upcoming(session, subscription)["why"]

    assert "all charging is stopped since 2026-01-31 09:00+07:00: 401 INVALID_API_KEY" in why
    assert "`billing charging resume`" in why


def test_an_impossible_state_is_not_passed_over(session: Session) -> None:
    subscription = make_subscription(session, next_billing_at=None)

    assert "`billing doctor`" in upcoming(session, subscription)["why"]


def test_times_of_day_are_the_subscriptions_own(session: Session) -> None:
    """00:30 in Manila is the day before in UTC: the day people know is told."""
    plan = make_plan(session, timezone="Asia/Manila")
    start = datetime(2026, 1, 31, 16, 30, tzinfo=UTC)
    invoice = make_invoice(session, make_subscription(session, plan=plan, start_at=start))

    opened = next(
        event
        for event in explain(session, session.get_one(Subscription, invoice.subscription_id), NOW)["events"]
        if event["kind"] == "invoice.opened"
    )

    assert "2026-02-01 00:30+08:00 to 2026-03-01 00:30+08:00" in opened["what"]
    assert opened["at"] == "2026-01-31T16:30:00Z"


@pytest.mark.parametrize(("policy", "days"), [("strict", 4), ("pause", 15), ("standard", 15), ("none", 0)])
def test_the_end_of_a_ladder_promises_neither_another_try_nor_a_charge_after_the_end(
    world: World, policy: str, days: int
) -> None:
    ana = world.subscribe_save(plan=world.plan(dunning=policy))
    ana.script(*["INSUFFICIENT_BALANCE"] * 12)
    world.run()
    world.live(days=days)
    story = told(world, ana)
    failed = [event["what"] for event in story["events"] if event["kind"] == "attempt.failed"]
    assert "tried again" not in failed[-1]
    assert all("tried again in some days; retry at" in earlier for earlier in failed[:-1])
    assert story["then"] is None
