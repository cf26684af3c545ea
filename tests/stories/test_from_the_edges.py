"""Where two edges meet: money on its way back and a correction, a hold and a retry, a pause and an end."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import simplejson
from sqlalchemy import select, text

from billing.domain.gateway import SessionType
from billing.domain.lifecycle import SessionStatus
from billing.errors import Conflict, InvalidInput
from billing.runs import control, run
from billing.store.models import PaymentSession
from billing.subscribing import session_results
from billing.subscriptions import moves as lives
from tests.world import NO_PERIOD_TWICE, Subscriber, World

DECLINED = "INSUFFICIENT_BALANCE"


def statuses(who: Subscriber) -> list[str]:
    return [invoice.status for invoice in who.invoices]


def late_capture(world: World, minor: int, currency: str = "IDR") -> bytes:
    """Xendit's event that the first try, which had failed, has turned into so much money."""
    world.waive(NO_PERIOD_TWICE)  # this event tells of money that the simulator does not have
    failure = next(event.payload for event in world.events("payment.failure"))
    failure["event"] = "payment.capture"
    failure["data"] |= {
        "status": "SUCCEEDED",
        "currency": currency,
        "captures": [{"capture_id": "cap-1", "capture_amount": minor, "capture_timestamp": "2026-02-01T02:00:00Z"}],
    }
    failure["data"].pop("failure_code", None)
    return simplejson.dumps(failure).encode()


# ------------------------------------------------------------------------------------------ one bad row


def test_charges_that_cannot_be_begun_hold_their_invoices_and_keep_nobody_from_being_charged(world: World) -> None:
    bad = [world.subscribe_save(f"bad{n}", plan=world.plan("bad"), start_at=world.now) for n in range(10)]
    good = [world.subscribe_save(f"good{n}", plan=world.plan("good"), start_at=world.now) for n in range(10)]
    world.open_due()
    with world.parts.transaction() as session:
        session.execute(text("UPDATE plans SET schedule = 'cron 0 9 31 * *' WHERE code = 'bad'"))
        session.execute(
            text("UPDATE charge_attempts SET scheduled_at = scheduled_at - interval '1 minute' WHERE id < :middle"),
            {"middle": good[0].attempt.id},
        )
    run.run_here(world.parts, world.send, None, lambda _totals: None)

    assert [who.invoice.status for who in good] == ["paid"] * 10
    assert {who.invoice.hold_kind for who in bad} == {"error"}


def test_one_whose_calendar_cannot_be_read_can_be_canceled(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    with world.parts.transaction() as session:
        session.execute(text("UPDATE subscriptions SET timezone = 'Nowhere/Atlantis'"))
    ana.cancel(at_once=True)

    assert ana.status == "canceled"


# ------------------------------------------------------------------------------- money on its way back


@pytest.mark.parametrize(("said", "kind"), [("PARTIAL:20000", "amount"), ("CURRENCY:PHP", "currency")])
def test_money_that_goes_back_pays_nothing(world: World, said: str, kind: str) -> None:
    """The first try is captured late while the retry counts as paid: it goes back. Then the retry's event says less."""
    ana = world.subscribe_save()
    ana.script(f"LATE_CAPTURE:{DECLINED}:172800", said)
    world.run()
    world.deliver_webhooks()
    world.advance(days=1, seconds=1)
    world.run()
    late = world.simulator.due_deliveries(world.now)
    for delivery in late:
        world.simulator.delivery_result(delivery, 200)
    world.advance(days=1)
    world.deliver_webhooks()
    world.run()
    for delivery in late:
        world.receive(delivery.body)
    world.live(days=2)

    assert (ana.invoice.status, ana.invoice.hold_kind) == ("open", kind)
    ana.pay_invoice()
    world.deliver_webhooks()
    assert ana.invoice.status == "paid"


# --------------------------------------------------------------------------------------------- holds


@pytest.mark.parametrize("second", ["PENDING:INSUFFICIENT_BALANCE", "TIMEOUT_BEFORE"])
def test_what_waits_for_a_person_is_not_charged_by_itself(world: World, second: str) -> None:
    ana = world.subscribe_save()
    ana.script(DECLINED, second, "SUCCEEDED")
    world.run()
    world.deliver_webhooks()
    world.advance(days=1, seconds=1)
    world.run()
    world.receive(late_capture(world, 20_000))
    world.live(days=10)

    assert (ana.invoice.status, ana.invoice.amount_paid_minor, ana.invoice.hold_kind) == ("open", 20_000, "amount")
    assert world.collected() == []


def test_a_declined_try_for_the_rest_leaves_it_to_the_person(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("PARTIAL:20000", DECLINED)
    world.run()
    world.deliver_webhooks()
    ana.pay_invoice()
    world.live(days=40)

    assert (ana.status, ana.invoices[0].status, ana.invoices[0].hold_kind) == ("active", "open", "amount")


def test_a_hold_that_is_no_question_of_catch_up_approves_nothing(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(catch_up="skip"))
    world.run()
    with world.parts.transaction() as session:
        session.execute(text("UPDATE subscriptions SET hold_reason = 'broken', hold_kind = 'error'"))
    world.advance(days=100)
    ana.resume()
    world.live(days=1)

    assert (statuses(ana), len(ana.skipped)) == (["paid"], 3)


def test_an_approval_is_of_what_was_due_when_it_was_given(world: World) -> None:
    ana = world.subscribe_save(plan=world.plan(catch_up="hold"))
    world.run()
    world.advance(days=70)
    world.run()
    control.approve(world.parts, control.waiting_for_approval(world.parts, [ana.subscription.reference]))
    world.advance(days=100)  # nobody runs it
    world.run()

    assert statuses(ana) == ["paid"] * 3
    assert ana.subscription.hold_kind == "catch_up"


# ---------------------------------------------------------------------------------------- pause and end


def test_what_was_due_before_a_pause_is_owed_after_it(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    world.advance(days=70)  # nobody runs it: two are due
    ana.pause()
    world.advance(days=1)
    ana.resume()
    world.live(days=1)

    assert (statuses(ana), ana.skipped) == (["paid"] * 3, [])


def test_a_pause_stops_ladder_and_grace(world: World) -> None:
    ana = world.subscribe_save()
    ana.script(DECLINED, DECLINED, "SUCCEEDED")
    world.run()
    for _ in range(2):
        ana.pause()
        world.advance(days=20)
        ana.resume()
        world.advance(hours=1)
    world.live(days=10)

    assert (ana.status, statuses(ana)[0]) == ("active", "paid")


@pytest.mark.parametrize("by", ["a person", "dunning"])
def test_a_paused_one_ends_when_it_was_to_end(world: World, by: str) -> None:
    ana = world.subscribe_save(plan=world.plan(every="every 1:week", dunning="pause"))
    ana.script("SUCCEEDED", *[DECLINED] * 20)
    world.run()
    ana.cancel()
    if by == "a person":
        ana.pause()
    world.live(days=60)

    assert (ana.status, ana.subscription.end_kind) == ("canceled", "period_end")


def test_an_end_that_two_processes_see_at_once_is_reached(world: World) -> None:
    """The event's transaction has read the clock a moment before the end, and waits for whoever marks the end."""
    ana = world.subscribe_save(plan=world.plan(every="every 1:week", cycles=1))
    ana.script("PENDING:SUCCEEDED")
    world.run()
    ends_at = ana.subscription.ends_at
    assert ends_at is not None
    world.clock.instant = ends_at - timedelta(milliseconds=50)
    due = list(world.simulator.due_deliveries(world.now))
    for delivery in due:
        world.simulator.delivery_result(delivery, 200)
    with world.parts.transaction() as session:
        locked = lives.lock_subscription(session, ana.id)
        event = threading.Thread(target=lambda: [world.receive(delivery.body) for delivery in due])
        event.start()
        event.join(timeout=0.5)  # it waits for the lock, with the clock it has read
        world.clock.instant = ends_at + timedelta(milliseconds=50)
        lives.end_if_over(session, locked, world.now)
    event.join()
    world.live(days=2)

    assert (ana.status, statuses(ana)) == ("canceled", ["paid"])


def test_a_first_try_that_gets_a_429_at_the_end_is_made_all_the_same(world: World) -> None:
    ana = world.subscribe_save()
    world.run()
    world.advance(days=40)
    ana.cancel()
    world.advance(days=40)
    world.break_calls("429")
    world.live(days=1)

    assert (ana.status, statuses(ana)) == ("canceled", ["paid", "paid"])


def test_a_zone_whose_rules_change_bills_nobody_beyond_the_end(world: World) -> None:
    ana = world.subscribe_save()
    world.live(days=1)
    ana.cancel()
    with world.parts.transaction() as session:
        session.execute(
            text(
                "UPDATE subscriptions SET ends_at = ends_at + interval '1 hour',"
                " next_billing_at = next_billing_at + interval '1 hour'"
            )
        )
    ana.pause()
    world.live(days=1)
    ana.resume()
    world.live(days=60)

    assert (ana.status, statuses(ana)) == ("canceled", ["paid"])


# --------------------------------------------------------------------------------------------- the page


def test_a_trial_is_not_paid_for_on_a_page(world: World) -> None:
    ana = world.subscribe(plan=world.plan(trial_days=30))
    world.live(days=2)

    with pytest.raises(InvalidInput, match="30 free days"):
        ana.new_session(via=SessionType.PAY)


def test_the_other_link_is_ended_when_one_has_paid(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    ana.completes_session()
    while world.simulator.due_deliveries(world.now):
        pass
    world.advance(days=2)
    with world.parts.transaction() as session:  # as if its time were over, and nobody had heard of the payment
        row = session.get_one(PaymentSession, ana.session_id)
        session_results.session_over(session, row, SessionStatus.EXPIRED, world.now)
    second = ana.new_session(via=SessionType.PAY)
    run.run_here(world.parts, world.send, None, lambda _totals: None)
    session_results.refresh_session(world.parts, ana.session_id)
    world.live(minutes=5)

    assert ana.status == "active"
    row = world.all(select(PaymentSession).where(PaymentSession.id == second.id))[0]
    assert row.status == "CANCELED"
    with pytest.raises(Conflict):
        ana.new_session(via=SessionType.PAY)


# ------------------------------------------------------------------------------------- found by using it


def test_money_of_a_currency_without_decimals_pays_no_invoice_with_them(world: World) -> None:
    plan = world.plan("php", amount="499.50", currency="PHP", timezone="Asia/Manila")
    ana = world.subscribe_save(plan=plan, country="PH")
    ana.script("CURRENCY:IDR")
    world.run()
    world.deliver_webhooks()

    assert (ana.invoice.status, ana.invoice.hold_kind) == ("open", "currency")


def test_what_an_outage_kept_from_its_first_try_is_tried_before_the_subscription_is_given_up(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("REQUIRES_ACTION", "SUCCEEDED", "SUCCEEDED", "SUCCEEDED")
    world.run()
    world.advance(days=95)
    world.run()
    world.advance(days=40)
    world.run()
    world.live(days=3)

    assert statuses(ana)[1:] == ["paid"] * 4


def test_a_token_that_is_no_id_of_xendits_holds_its_subscription(world: World) -> None:
    ana = world.subscribe_save()
    with world.parts.transaction() as session:
        session.execute(text("UPDATE payment_tokens SET status = 'PENDING', payment_token_id = 'pt-typo-1'"))
    world.live(days=1)

    assert ana.subscription.hold_kind == "token_unknown"
