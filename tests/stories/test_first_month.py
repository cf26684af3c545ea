"""How subscribers begin, and what a month looks like when nothing goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from billing.domain.gateway import SessionType
from billing.errors import Conflict, GatewayError, NotFound
from billing.subscribing import session_results
from tests.world import START, World


def test_who_saves_a_card_is_charged_when_the_first_period_is_due(world: World) -> None:
    ana = world.subscribe(via=SessionType.SAVE)
    assert ana.status == "incomplete"
    assert world.run()["opened"] == 0, "nothing is charged before there is a token"

    ana.completes_session()
    world.deliver_webhooks()

    assert ana.status == "active"
    assert ana.tokens[0].status == "ACTIVE"
    assert world.collected() == [], "saving a card costs nothing"

    report = world.run()

    assert (report["opened"], report["attempted"], report["succeeded"]) == (1, 1, 1)
    assert world.collected() == [50_000]
    assert ana.invoice.status == "paid"
    assert ana.subscription.next_billing_at == datetime(2026, 2, 28, 2, 0, tzinfo=UTC)
    assert world.run()["attempted"] == 0, "a second run finds nothing to do"


def test_who_pays_on_the_page_is_not_charged_again_for_that_period(world: World) -> None:
    ana = world.subscribe_pay()

    assert ana.status == "active"
    assert ana.invoice.status == "paid"
    assert ana.tokens[0].status == "ACTIVE"

    world.live(days=27)
    assert world.collected() == [50_000], "the first period is paid for"

    world.live(days=2)
    assert world.collected() == [50_000, 50_000]
    assert [invoice.status for invoice in ana.invoices] == ["paid", "paid"]


def test_a_trial_is_free_and_the_anchor_is_its_end(world: World) -> None:
    """C2: the first paid period begins where the trial ends and is a whole month."""
    ana = world.subscribe_save(plan=world.plan(trial_days=14))

    assert ana.status == "trialing"
    world.live(days=13)
    assert world.collected() == []

    world.live(days=2)

    assert world.collected() == [50_000]
    assert ana.status == "active"
    invoice = ana.invoice
    assert invoice.period_start == datetime(2026, 2, 14, 2, 0, tzinfo=UTC)
    assert invoice.period_end == datetime(2026, 3, 14, 2, 0, tzinfo=UTC)


def test_a_plan_that_begins_free_takes_no_payment_on_the_page(world: World) -> None:
    with pytest.raises(Exception, match="use --via save"):
        world.subscribe(via=SessionType.PAY, plan=world.plan(trial_days=14))


def test_the_31st_comes_back_after_every_short_month(world: World) -> None:
    """C1: each date is computed from the original anchor, not from the date before."""
    ana = world.subscribe_save()

    world.live(days=366)

    days = [invoice.period_start.astimezone(UTC).strftime("%m-%d") for invoice in ana.invoices]
    assert days == [
        "01-31", "02-28", "03-31", "04-30", "05-31", "06-30",
        "07-31", "08-31", "09-30", "10-31", "11-30", "12-31", "01-31",
    ]  # fmt: skip
    assert world.collected() == [50_000] * 13
    assert all(a.period_end == b.period_start for a, b in pairwise(ana.invoices))


def test_a_later_start_waits(world: World) -> None:
    ana = world.subscribe_save(start_at=datetime(2026, 3, 10, 2, 0, tzinfo=UTC))

    world.live(days=30)
    assert world.collected() == []

    world.live(days=10)
    assert world.collected() == [50_000]
    assert ana.invoice.period_start == datetime(2026, 3, 10, 2, 0, tzinfo=UTC)


def test_the_plans_cycles_end_it(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(cycles=3))

    world.live(days=200)

    assert world.collected() == [50_000] * 3
    assert ana.status == "canceled"


def test_every_currency_is_charged_in_its_own_decimals(world: World) -> None:
    plan = world.plan("philippine", amount="1499.50", currency="PHP", timezone="Asia/Manila")
    ana = world.subscribe_save(plan=plan, country="PH")

    world.run()

    assert [payment["captured"] for payment in world.ledger()] == ["1499.50"]
    assert ana.invoice.amount_paid_minor == 149_950


# How the pieces of an onboarding arrive


@pytest.mark.parametrize("order", ["sent", "reversed"])
@pytest.mark.parametrize("via", [SessionType.SAVE, SessionType.PAY])
def test_token_capture_and_session_events_come_in_any_order(world: World, order: str, via: SessionType) -> None:
    """W1, W5: session-born events carry no session id and a suffix on our reference."""
    ana = world.subscribe(via=via)
    ana.completes_session()
    world.deliver_webhooks(order="reversed" if order == "reversed" else "sent", double=True)

    world.live(minutes=5)

    assert ana.status == "active"
    assert ana.session.status == "COMPLETED"
    assert ana.invoice.status == "paid"
    assert world.collected() == [50_000]
    assert len(ana.tokens) == 1


@pytest.mark.parametrize(
    "lost",
    [
        ["payment_token.activation"],
        ["payment_session.completed"],
        ["payment.capture"],
        ["payment_token.activation", "payment_session.completed", "payment.capture"],
    ],
    ids="+".join,
)
@pytest.mark.parametrize("via", [SessionType.SAVE, SessionType.PAY])
def test_an_onboarding_whose_webhooks_are_lost_is_found_by_asking(
    world: World, lost: list[str], via: SessionType
) -> None:
    ana = world.subscribe(via=via)
    ana.completes_session()
    world.deliver_webhooks(lose=lost)

    world.live(hours=2)

    assert ana.status == "active"
    assert ana.invoice.status == "paid"
    assert world.collected() == [50_000]


def test_an_expired_session_leaves_a_way_to_start_again(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    world.live(hours=24)
    assert (ana.session.status, ana.status) == ("EXPIRED", "incomplete")

    again = ana.new_session(SessionType.PAY)
    ana.completes_session(again)
    world.deliver_webhooks()

    assert ana.status == "active"
    assert [invoice.status for invoice in ana.invoices] == ["paid"]
    assert world.collected() == [50_000]


def test_a_token_that_is_activated_twice_is_one_token(world: World) -> None:
    """Doubled, resent by hand weeks later, and read once more by the return page."""
    ana = world.subscribe(via=SessionType.SAVE)
    ana.completes_session()
    world.deliver_webhooks(double=True, order="reversed")
    session_results.refresh_session(world.parts, ana.session_id)
    world.run()
    world.live(days=20)
    world.control("POST", "/webhooks/resend", {"since": "2026-01-01T00:00:00Z"})
    world.deliver_webhooks(double=True)

    assert [token.status for token in ana.tokens] == ["ACTIVE"]
    assert ana.story.count("subscription.activated") == 1
    assert world.collected() == [50_000]


def test_the_return_page_may_be_faster_than_any_webhook(world: World) -> None:
    """She has paid and is back before Xendit has told us anything; then everything is told after all."""
    ana = world.subscribe(via=SessionType.PAY)
    ana.completes_session()
    session_results.refresh_session(world.parts, ana.session_id)
    world.run()
    world.deliver_webhooks(order="reversed", double=True)
    world.live(days=1)

    assert (ana.status, ana.invoice.status) == ("active", "paid")
    assert world.collected() == [50_000], "the run did not charge what the page had collected"


def test_a_session_that_xendit_has_forgotten_ends_when_its_time_is_over(world: World) -> None:
    """Its 404 is no end while the link may work; afterwards it is asked for some days, should our key be wrong."""
    ana = world.subscribe(via=SessionType.SAVE)
    world.simulator.world.sessions.clear()
    with pytest.raises(NotFound):
        session_results.follow_session(world.parts, ana.session_id)
    assert ana.session.status == "ACTIVE"

    world.advance(days=1)
    session_results.follow_session(world.parts, ana.session_id)

    assert ana.session.status == "EXPIRED"
    assert ana.session.next_check_at == world.now + timedelta(days=1), "our guess: asked again for a week"
    assert ana.status == "incomplete"


def test_two_open_links_for_one_subscription_are_refused(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    with pytest.raises(Conflict, match="still open"):
        ana.new_session(SessionType.PAY)


@pytest.mark.parametrize("via", [SessionType.PAY, SessionType.SAVE])
def test_of_two_links_made_at_the_same_moment_there_is_one(world: World, via: SessionType) -> None:
    ana = world.subscribe(via=via)
    world.advance(days=2)
    world.live(minutes=1)
    assert ana.session.status == "EXPIRED"

    def make() -> str:
        try:
            return ana.new_session(via).status
        except Conflict as error:
            there_is_one = "still open" in str(error) or "is not known yet" in str(error)
            return "there is one" if there_is_one else str(error)

    with ThreadPoolExecutor(4) as pool:
        ended = [made.result() for made in [pool.submit(make) for _ in range(4)]]

    assert sorted(ended) == ["ACTIVE", "there is one", "there is one", "there is one"]


def test_a_failed_try_on_the_page_keeps_the_session_open(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    ana.completes_session(outcome="INSUFFICIENT_BALANCE")
    world.deliver_webhooks()
    assert (ana.session.status, ana.status) == ("ACTIVE", "incomplete")

    ana.completes_session()
    world.deliver_webhooks()

    assert ana.status == "active"
    assert world.collected() == [50_000]


def test_money_that_comes_after_the_session_expired_is_not_lost(world: World) -> None:
    """The customer's payment was pending when the session ended."""
    ana = world.subscribe(via=SessionType.PAY)
    world.advance(hours=22, minutes=59, seconds=30)
    ana.completes_session(outcome="PENDING:SUCCEEDED")
    world.live(days=2)

    assert ana.session.status == "EXPIRED"
    assert world.collected() == [50_000]
    assert ana.invoice.status == "paid"
    assert ana.status == "active", "the paid period runs"


def test_a_new_link_is_refused_while_the_payment_by_the_last_one_is_not_known(world: World) -> None:
    """The session is completed, and the payment cannot be read yet. Found by the simulation."""
    ana = world.subscribe(via=SessionType.PAY)
    ana.completes_session()
    world.break_calls("TIMEOUT_AFTER", endpoint="GET /v3/payment_requests/{id}", count=3)
    with suppress(GatewayError):
        session_results.refresh_session(world.parts, ana.session.id)
    assert (ana.session.status, ana.status) == ("COMPLETED", "incomplete")

    for via in SessionType:
        with pytest.raises(Conflict, match=f"`billing session refresh {ana.session.id}` asks Xendit"):
            ana.new_session(via)


def test_who_pays_two_links_gets_the_second_payment_back(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    world.advance(hours=22, minutes=59, seconds=30)
    ana.completes_session(outcome="PENDING:SUCCEEDED")  # decided after the session is over
    world.advance(seconds=40)
    world.live(seconds=1)
    assert ana.session.status == "EXPIRED"
    again = ana.new_session(SessionType.PAY)
    ana.completes_session(again)
    world.live(hours=1)

    assert len(world.ledger()) == 2
    assert world.collected() == [50_000], "one of the two was given back"
    assert [refund.reason for refund in ana.refunds] == ["DUPLICATE"]
    assert ana.invoice.amount_paid_minor == 50_000


def test_a_session_that_could_not_be_opened_leaves_nothing_behind(world: World) -> None:
    world.break_calls("HTTP:500", endpoint="POST /sessions")
    with pytest.raises(Exception, match="payment session"):
        world.subscribe(via=SessionType.PAY)

    ana = world.subscribe_pay()
    assert len(ana.invoices) == 1
    assert ana.status == "active"


def test_paid_without_a_saved_method_asks_the_customer_when_the_next_period_is_due(world: World) -> None:
    """A channel that saved no token: the capture counts, renewal needs the customer."""
    ana = world.subscribe(via=SessionType.PAY)
    state = world.simulator.world.sessions[ana.session.xendit_session_id or ""]
    state.document["allow_save_payment_method"] = "DISABLED"
    ana.completes_session()
    world.deliver_webhooks()
    assert (ana.status, ana.tokens) == ("active", [])
    assert "customer.asked" in ana.story

    world.live(days=30)

    assert world.collected() == [50_000]
    assert ana.status == "past_due"
    ana.adds_card()
    world.live(days=1)
    assert world.collected() == [50_000, 50_000]
    assert ana.status == "active"


def test_refresh_does_what_the_webhooks_would_have_done(world: World) -> None:
    """W2: people ask for a way to resync."""
    ana = world.subscribe(via=SessionType.PAY)
    ana.completes_session()

    session_results.refresh_session(world.parts, ana.session_id)
    world.live(minutes=2)

    assert ana.status == "active"
    assert ana.invoice.status == "paid"


def test_a_world_starts_where_it_is_told(new_world: Callable[..., World]) -> None:
    assert new_world().now == START
