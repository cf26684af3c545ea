"""How the system is brought to each commit, and how it must all end, kill or no kill.

A scenario arranges a world, lets one process work in it (which is the one that dies), and says what people do
afterwards. `kills` are the commits of that work at which the process is killed, before and after; `point@2` means its
second hit. `ends` is Xendit's own ledger next to our tables (ServedWorld.what_came_of_it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial

from sqlalchemy import select, update

from billing.charging import look_up
from billing.checks import doctor, reconcile
from billing.domain.gateway import SessionMode, SessionType
from billing.domain.lifecycle import EventState, SessionStatus, TokenStatus
from billing.errors import GatewayError
from billing.inbox import apply
from billing.parts import Parts
from billing.runs import run
from billing.store import queries
from billing.store.models import (
    ChargeAttempt,
    Customer,
    Invoice,
    PaymentSession,
    PaymentToken,
    Plan,
    Subscription,
    WebhookEvent,
)
from billing.subscribing import payment_sessions, session_results
from billing.xendit.webhook import read_event
from tests.kills.process import Process
from tests.kills.served import ServedWorld
from tests.world import OTHER_VISA, VISA

PAID = ("ana is active", "period 1 is paid: collected 1x, kept 50000")


@dataclass(frozen=True, slots=True)
class Otherwise:
    """A kill after which something else is right, and why. `person`: checks of the doctor that wait for somebody."""

    why: str
    ends: Sequence[str]
    person: frozenset[str] = frozenset()


def nothing(_world: ServedWorld) -> None:
    """Nobody needs to do anything."""


@dataclass(frozen=True, slots=True)
class Scenario:
    arrange: Callable[[ServedWorld], object]
    work: Callable[[Process], object]
    kills: Sequence[str]
    ends: Sequence[str] = PAID
    afterwards: Callable[[ServedWorld], object] = nothing  # an hour later
    person: frozenset[str] = frozenset()  # checks of the doctor that wait for somebody in any case
    days: float = 5  # that the world lives on
    otherwise: Mapping[str, Otherwise] = field(default_factory=dict)  # "send._begin_group#1-after"
    nobody_listens: bool = False
    quota_used_up: bool = False


# ----------------------------------------------------------------------------------------------------- arrange


def ana_is_due(world: ServedWorld, *, outcomes: Sequence[str] = (), fault: str | None = None) -> None:
    """She has saved a card and her first period is due. Her charges come to the outcomes; a fault is of the call."""
    ana = world.subscribe_save()
    ana.script(*outcomes)
    if fault is not None:
        world.break_calls(fault)


def ana_was_charged(world: ServedWorld, *, outcomes: Sequence[str], **later: float) -> None:
    """The charge is made, then time passes."""
    ana_is_due(world, outcomes=outcomes)
    world.tick()
    world.advance(**later)


def ana_is_in_doubt(world: ServedWorld, *, fault: str | None = None, planned: bool = True) -> None:
    """The answer to the charge was lost. `planned=False`: so was the time of its look-up, as in a restored copy."""
    ana_was_charged(world, outcomes=["NO_WEBHOOK:TIMEOUT_AFTER"], minutes=2)
    if fault is not None:
        world.break_calls(fault, endpoint="GET /transactions")
    if not planned:
        with world.parts.transaction() as session:
            session.execute(update(ChargeAttempt).values(next_check_at=None))


def adds_another_card(world: ServedWorld) -> None:
    """Her first card is dead; Xendit's events of the second are under way."""
    ana = world.subscribe_save(card=VISA)
    ana.script("STOLEN_CARD")
    world.tick()
    world.deliver_webhooks()
    session = payment_sessions.open_session(world.parts, ana.customer, mode=SessionMode.PAYMENT_LINK)
    ana.completes_session(session, card=OTHER_VISA)


def her_token_was_imported(world: ServedWorld, *, fault: str | None = None) -> None:
    """As an import without --verify leaves it: nobody has asked Xendit about it yet."""
    ana_is_due(world)
    if fault is not None:
        world.break_calls(fault, endpoint="GET /v3/payment_tokens/{id}")
    with world.parts.transaction() as session:
        session.execute(update(PaymentToken).values(status=TokenStatus.PENDING))


def she_was_imported(world: ServedWorld) -> None:
    """Her first period is due the day after tomorrow, and Xendit was not asked about her token yet."""
    world.subscribe_save(start_at=world.now + timedelta(days=2))
    with world.parts.transaction() as session:
        session.execute(update(PaymentToken).values(status=TokenStatus.PENDING, next_check_at=world.now))


def sent_by_a_process_that_is_gone(world: ServedWorld) -> None:
    ana_is_due(world)
    world.open_due()
    world.subscriber().charged_by_a_process_that_dies()
    world.leases_run_out()


def collected_twice(world: ServedWorld, *, fault: str | None = None) -> None:
    """A retry was paid, and now the charge that was declined two days ago is captured after all."""
    ana_is_due(world, outcomes=["LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED"])
    world.live(days=1, hours=23)
    if fault is not None:
        world.break_calls(fault, endpoint="POST /refunds")
    world.advance(hours=2)


def refund_nobody_told_of(world: ServedWorld, *, fault: str | None = None) -> None:
    """Xendit has given it back; the answer was lost, and so was the webhook."""
    collected_twice(world, fault="TIMEOUT_AFTER")
    world.deliver_webhooks()
    world.tick()
    world.advance(minutes=1)
    world.deliver_webhooks(lose=["refund.succeeded"])
    world.advance(minutes=30)
    if fault is not None:
        world.break_calls(fault, endpoint="GET /transactions")


def declined_and_her_grace_is_over(world: ServedWorld) -> None:
    ana_was_charged(world, outcomes=["STOLEN_CARD"])
    world.deliver_webhooks()
    world.clock.instant = world.subscriber().invoice.grace_ends_at or world.now


def ana_has_paid_her_last_period(world: ServedWorld) -> None:
    ana = world.subscribe_save(plan=world.plan(cycles=1))
    world.run()
    world.deliver_webhooks()
    world.clock.instant = ana.subscription.ends_at or world.now


def three_months_without_a_scheduler(world: ServedWorld) -> None:
    ana_is_due(world)
    world.advance(days=75)


def declined_today(world: ServedWorld) -> None:
    ana_was_charged(world, outcomes=["INSUFFICIENT_BALANCE", "SUCCEEDED"])
    world.deliver_webhooks()


def ana_completes(world: ServedWorld, *, via: SessionType, lost: bool = False, later: float = 0) -> None:
    """Xendit's events are under way, or lost."""
    world.subscribe(via=via).completes_session()
    if lost:
        world.deliver_webhooks(lose=["payment_token.activation", "payment_session.completed", "payment.capture"])
    world.advance(minutes=later)


def ana_is_known(world: ServedWorld, *, fault: str | None = None) -> None:
    """A customer and a plan; no subscription yet."""
    world.customer()
    world.plan()
    if fault is not None:
        world.break_calls(fault, endpoint="POST /sessions")


def ana_has_a_link(world: ServedWorld) -> None:
    world.subscribe(via=SessionType.PAY)


def her_link_has_expired(world: ServedWorld, *, fault: str | None = None) -> None:
    world.subscribe(via=SessionType.PAY)
    world.live(hours=24)
    if fault is not None:
        world.break_calls(fault, endpoint="POST /sessions")


def her_link_expires(world: ServedWorld) -> None:
    world.subscribe(via=SessionType.PAY)
    world.live(hours=22)
    world.advance(hours=1, minutes=3)


# -------------------------------------------------------------------------------------------------------- work


def scheduler(process: Process) -> None:
    """`python -m workers.scheduler`, one turn of its loop, with workers that are quick."""
    from workers.scheduler import run_due_jobs

    run_due_jobs(process.parts, process.send, {})
    process.tick()


def billing_run(process: Process) -> None:
    run.run_here(process.parts, process.send, None, lambda _totals: None)


def web(process: Process) -> None:
    process.receive_webhooks()


def web_and_scheduler(process: Process) -> None:
    process.receive_webhooks()
    process.tick()


def web_with_a_bug(process: Process) -> None:
    """Whatever it applies, it fails."""

    def fail(*_: object) -> tuple[bool, str | None]:
        raise RuntimeError("a bug of ours")

    apply._apply = fail  # type: ignore[assignment] # in this process only
    process.receive_webhooks()


def return_page(process: Process) -> None:
    process.ask_web("GET", f"/return/{_only_session(process.parts).id}")


def tick(process: Process) -> None:
    process.tick()


def look_up_now(process: Process) -> None:
    """`billing reconcile`, of what nobody would have looked up."""
    reconcile.resolve_open(process.parts, lambda _done, _all: None)


def compare_the_day(process: Process) -> None:
    look_up.compare_day(process.parts, date(2026, 1, 31))


def subscribe(process: Process, *, via: SessionType) -> None:
    with process.parts.sessions() as session:
        customer, plan = session.scalars(select(Customer)).one(), session.scalars(select(Plan)).one()
    with suppress(GatewayError):  # told to whoever asked
        payment_sessions.subscribe(
            process.parts,
            customer,
            plan,
            via=via,
            mode=SessionMode.PAYMENT_LINK,
            start_at=None,
            reference=None,
        )


def open_session(process: Process) -> None:
    with process.parts.sessions() as session:
        customer, subscription = session.scalars(select(Customer)).one(), session.scalars(select(Subscription)).one()
    with suppress(GatewayError):
        payment_sessions.open_session(
            process.parts,
            customer,
            mode=SessionMode.PAYMENT_LINK,
            subscription=subscription,
            via=SessionType.PAY,
        )


def cancel_session(process: Process) -> None:
    process.command("session", "cancel", _only_session(process.parts).id)


def pause(process: Process) -> None:
    process.command("subscription", "pause", _only_subscription(process.parts))


def cancel(process: Process) -> None:
    process.command("subscription", "cancel", "--now", _only_subscription(process.parts))


def pay_invoice(process: Process) -> None:
    with process.parts.sessions() as session:
        number = session.scalars(select(Invoice.number)).one()
    process.command("invoice", "pay", number)


def cancel_token(process: Process) -> None:
    with process.parts.sessions() as session:
        token = session.scalars(select(PaymentToken.id)).one()
    process.command("token", "cancel", token)


def _only_session(parts: Parts) -> PaymentSession:
    with parts.sessions() as session:
        return session.scalars(select(PaymentSession)).one()


def _only_subscription(parts: Parts) -> str:
    with parts.sessions() as session:
        return session.scalars(select(Subscription.reference)).one()


# -------------------------------------------------------------------------------------------------- afterwards


def she_adds_a_card(world: ServedWorld) -> None:
    world.subscriber().adds_card()


def held_invoices_are_paid(world: ServedWorld) -> None:
    """The reason has been put right; `billing invoice pay`."""
    if world.subscriber().invoice.hold_reason:
        world.subscriber().pay_invoice()


def charging_is_resumed(world: ServedWorld) -> None:
    """The key has been put right; `billing charging resume`."""
    with world.parts.transaction() as session:
        queries.lift_charging_stop(session)


def doctor_repairs(world: ServedWorld) -> None:
    """`billing doctor --repair`."""
    doctor.examine(world.parts, repair=True)


def parked_events_are_replayed(world: ServedWorld) -> None:
    """The bug is mended; `billing replay --parked`."""
    for event in world.all(select(WebhookEvent).where(WebhookEvent.state == EventState.PARKED)):
        apply.apply_stored_event(world.parts, event.id, read_event, again=True)


def ana_gets_a_link(world: ServedWorld, *, via: SessionType = SessionType.PAY) -> None:
    """Who has seen no link asks for one again: `billing doctor --repair` ends what never got one."""
    if not world.all(select(Subscription)):
        world.subscribe(via=via)
    doctor_repairs(world)
    ana = world.subscriber()
    ana.completes_session(ana.session if ana.session.status == SessionStatus.ACTIVE else ana.new_session(via))
    world.deliver_webhooks()


def she_tries_to_pay_and_cancel_is_repeated(world: ServedWorld) -> None:
    """She uses the link she still has, unless it is canceled at Xendit."""
    cancel_is_repeated(world)
    ana = world.subscriber()
    if world.simulator.world.sessions[ana.session.xendit_session_id or ""].document["status"] == "ACTIVE":
        ana.completes_session()


def pause_is_repeated(world: ServedWorld) -> None:
    if world.subscriber().status != "paused":
        world.subscriber().pause()


def cancel_is_repeated(world: ServedWorld) -> None:
    if world.subscriber().status != "canceled":
        world.subscriber().cancel(at_once=True)
        session_results.cancel_open_sessions(world.parts, world.subscriber().id)


# --------------------------------------------------------------------------------------------------- scenarios

GIVEN_BACK = ("ana is active", "period 1 is paid: collected 2x, kept 50000", "refund is succeeded")
REFUND_IS_HELD = Otherwise(
    "about to be sent, and no trace of it at Xendit: a refund is never sent twice, so a person decides",
    ends=("ana is active", "period 1 is paid: collected 2x, kept 100000", "refund is held"),
    person=frozenset({"no_refund_is_stuck"}),
)
SUBSCRIBING = (
    "payment_sessions.ensure_xendit_customer#1",
    "payment_sessions.subscribe#1",
    "payment_sessions._store_opened#1",
)
PAID = ("send._begin_group#1", "settle.settle_together#1")
NOTED = ("send._begin_group#1", "settle.settle_alone#1", "send._note_channel#2")
VERIFIED = (
    "send._begin_group#1",
    "begin.refuse#1",
    "tokens.keep_report#1",
    "send._begin_group#1@2",
    "settle.settle_together#1",
)
SETTLED = ("send._begin_group#1", "settle.settle_alone#1")
INBOX = tuple(
    f"{point}{hit}" for point in ("receive.Inbox._store#1", "apply.apply_stored_event#1") for hit in ("", "@2", "@3")
)

SCENARIOS: Mapping[str, Scenario] = {
    # The charge path: one month
    "first_month": Scenario(
        ana_is_due,
        scheduler,
        (
            "workers.scheduler.run_due_jobs#1",
            "tick.tick#1",
            "limits.plan_daily_run#1",
            "tick._open_batch#1",
            "tick.hand_out_charges#1",
            "quota.SharedQuota._reserve#1",
            *PAID,
            "workers.scheduler.run_due_jobs#1@2",
            "run.forget_old_ticks#1",
        ),
    ),
    "billing_run": Scenario(ana_is_due, billing_run, ("run._start#2", "run._open#1", *PAID, "run._finish#1")),
    "months_behind": Scenario(
        three_months_without_a_scheduler,
        tick,
        (
            "tick._open_batch#1",
            "tick.hand_out_charges#1@2",
            "send._begin_group#1@2",
            "settle.settle_together#1",
            "settle.settle_together#1@2",
        ),
        ends=("ana is active", *(f"period {n} is paid: collected 1x, kept 50000" for n in (1, 2, 3))),
        days=10,
    ),
    # What Xendit may answer
    "declined": Scenario(partial(ana_is_due, outcomes=["INSUFFICIENT_BALANCE", "SUCCEEDED"]), tick, SETTLED, days=10),
    "channel_unavailable": Scenario(partial(ana_is_due, fault="HTTP:503:CHANNEL_UNAVAILABLE"), tick, NOTED),
    "pending": Scenario(partial(ana_is_due, outcomes=["PENDING:SUCCEEDED"]), tick, SETTLED),
    "needs_the_customer": Scenario(
        partial(ana_is_due, outcomes=["REQUIRES_ACTION"]), tick, SETTLED, afterwards=she_adds_a_card
    ),
    "too_many_requests": Scenario(
        partial(ana_is_due, fault="429"),
        tick,
        ("send._begin_group#1", "quota.SharedQuota.pause#1", "send._set_back#1"),
    ),
    "connection_refused": Scenario(ana_is_due, tick, ("send._begin_group#1", "send._set_back#1"), nobody_listens=True),
    "budget_used_up": Scenario(ana_is_due, tick, ("send._hand_back#1",), quota_used_up=True),
    "answer_lost": Scenario(
        partial(ana_is_due, fault="TIMEOUT_AFTER"),
        tick,
        ("send._begin_group#1", "send._settle_one#1"),
    ),
    "answer_and_webhook_lost": Scenario(
        partial(ana_is_due, outcomes=["NO_WEBHOOK:TIMEOUT_AFTER"]),
        tick,
        ("send._begin_group#1", "send._settle_one#1"),
    ),
    "request_lost": Scenario(partial(ana_is_due, fault="TIMEOUT_BEFORE"), tick, ("send._settle_one#1",)),
    "our_request_is_wrong": Scenario(
        partial(ana_is_due, fault="HTTP:400:API_VALIDATION_ERROR"),
        tick,
        ("send._settle_one#2",),
        afterwards=held_invoices_are_paid,
    ),
    "our_account_is_refused": Scenario(
        partial(ana_is_due, fault="HTTP:401:INVALID_API_KEY"),
        tick,
        ("send._settle_one#2",),
        afterwards=charging_is_resumed,
    ),
    "our_key_may_be_anothers": Scenario(
        partial(ana_is_due, fault="HTTP:400:INVALID_TOKEN"),
        tick,
        ("send._begin_group#1", "send._set_aside#1"),
    ),
    # Looking up
    "pending_is_looked_up": Scenario(
        partial(ana_was_charged, outcomes=["NO_WEBHOOK:PENDING:SUCCEEDED"], minutes=6),
        tick,
        ("tick.hand_out_checks#1", "look_up.check_attempt#2"),
    ),
    "doubt_finds_the_money": Scenario(
        partial(ana_was_charged, outcomes=["NO_WEBHOOK:TIMEOUT_AFTER"], minutes=2),
        tick,
        ("look_up.check_attempt#2",),
    ),
    "doubt_finds_a_decline": Scenario(
        partial(ana_was_charged, outcomes=["NO_WEBHOOK:TIMEOUT_AFTER:INSUFFICIENT_BALANCE", "SUCCEEDED"], minutes=2),
        tick,
        ("look_up.check_attempt#2",),
        days=10,
    ),
    "doubt_finds_nothing_yet": Scenario(
        partial(ana_was_charged, outcomes=["TIMEOUT_BEFORE"], minutes=2), tick, ("look_up.check_attempt#2",)
    ),
    "presumed_lost": Scenario(
        partial(ana_was_charged, outcomes=["TIMEOUT_BEFORE"], hours=27),
        tick,
        ("look_up.check_attempt#2", "tick.hand_out_charges#1", *PAID),
    ),
    "its_sender_is_gone": Scenario(
        sent_by_a_process_that_is_gone,
        tick,
        ("look_up.doubt_expired_submissions#1",),
    ),
    "xendit_cannot_be_asked": Scenario(
        partial(ana_is_in_doubt, fault="500_BEFORE"), tick, ("look_up.check_attempt#1",)
    ),
    "reconcile": Scenario(
        partial(ana_is_in_doubt, planned=False),
        look_up_now,
        ("reconcile._plan_now#1", "look_up.check_attempt#2"),
        afterwards=doctor_repairs,
    ),
    "reconcile_a_day": Scenario(
        partial(ana_was_charged, outcomes=["NO_WEBHOOK:TIMEOUT_AFTER"]),
        compare_the_day,
        ("look_up._settle_from_list#1",),
    ),
    "a_day_is_done": Scenario(
        partial(ana_was_charged, outcomes=[], hours=24 * 4),
        compare_the_day,
        ("look_up.differences_of_day#1",),
    ),
    # Tokens
    "token_is_verified": Scenario(
        her_token_was_imported,
        tick,
        (
            "send._begin_group#1",
            "begin.refuse#1",
            "tokens.keep_report#1",
            "send._begin_group#1@2",
            "settle.settle_together#1",
        ),
    ),
    "token_is_verified_ahead": Scenario(she_was_imported, tick, ("tick.hand_out_unverified#1", "tokens.keep_report#1")),
    "token_cannot_be_verified": Scenario(
        partial(her_token_was_imported, fault="500_BEFORE"), tick, ("send._postpone#1",)
    ),
    "another_card": Scenario(adds_another_card, web_and_scheduler, (*INBOX[:2], *INBOX[3:5], *PAID)),
    "token_canceled": Scenario(
        ana_is_due,
        cancel_token,
        ("tokens.cancel_token#1",),
        ends=("ana is past_due", "period 1 is open: collected 0x, kept 0"),
        days=1,
    ),
    # Money that comes twice
    "collected_twice": Scenario(
        collected_twice,
        web_and_scheduler,
        (
            "receive.Inbox._store#1",
            "apply.apply_stored_event#1",
            "tick.hand_out_checks#1",
            "refunds._send#1",
            "refunds._send#3",
        ),
        ends=GIVEN_BACK,
        otherwise={"refunds._send#1-after": REFUND_IS_HELD},
    ),
    "refund_not_accepted": Scenario(
        partial(collected_twice, fault="429"),
        web_and_scheduler,
        ("refunds._send#2",),
        ends=GIVEN_BACK,
        otherwise={"refunds._send#2-before": REFUND_IS_HELD},
    ),
    "refund_answer_lost": Scenario(
        partial(collected_twice, fault="TIMEOUT_AFTER"),
        web_and_scheduler,
        ("refunds._send#2",),
        ends=GIVEN_BACK,
    ),
    "refund_refused": Scenario(
        partial(collected_twice, fault="HTTP:403:REFUND_NOT_SUPPORTED"),
        web_and_scheduler,
        ("refunds._send#2",),
        ends=REFUND_IS_HELD.ends,
        person=REFUND_IS_HELD.person,
    ),
    "refund_is_looked_up": Scenario(
        refund_nobody_told_of, tick, ("tick.hand_out_checks#1", "refunds._look_up#2"), ends=GIVEN_BACK
    ),
    "refund_cannot_be_looked_up": Scenario(
        partial(refund_nobody_told_of, fault="500_BEFORE"), tick, ("refunds._look_up#1",), ends=GIVEN_BACK
    ),
    "grace_is_over": Scenario(
        declined_and_her_grace_is_over,
        tick,
        ("endings.close_overdue_invoices#1",),
        ends=("ana is canceled", "period 1 is uncollectible: collected 0x, kept 0"),
    ),
    "last_period_is_over": Scenario(
        ana_has_paid_her_last_period,
        tick,
        ("endings.end_subscriptions#1",),
        ends=("ana is canceled", "period 1 is paid: collected 1x, kept 50000"),
    ),
    # Onboarding
    "pays_on_the_page": Scenario(partial(ana_completes, via=SessionType.PAY), web, INBOX),
    "saves_on_the_page": Scenario(
        partial(ana_completes, via=SessionType.SAVE), web_and_scheduler, (*INBOX[:2], *INBOX[3:5], *PAID)
    ),
    "return_page": Scenario(
        partial(ana_completes, via=SessionType.PAY, lost=True),
        return_page,
        ("session_results.refresh_session#1",),
    ),
    "session_is_looked_up": Scenario(
        partial(ana_completes, via=SessionType.SAVE, lost=True, later=11),
        tick,
        ("tick.hand_out_checks#1", "session_results.refresh_session#1"),
    ),
    "subscribe_pay": Scenario(
        ana_is_known, partial(subscribe, via=SessionType.PAY), SUBSCRIBING, afterwards=ana_gets_a_link
    ),
    "subscribe_save": Scenario(
        ana_is_known,
        partial(subscribe, via=SessionType.SAVE),
        SUBSCRIBING,
        afterwards=partial(ana_gets_a_link, via=SessionType.SAVE),
    ),
    "subscribe_refused": Scenario(
        partial(ana_is_known, fault="HTTP:400:API_VALIDATION_ERROR"),
        partial(subscribe, via=SessionType.PAY),
        ("payment_sessions._take_back#1",),
        afterwards=ana_gets_a_link,
    ),
    "another_link": Scenario(
        her_link_has_expired,
        open_session,
        (
            "payment_sessions.open_session#1",
            "payment_sessions.open_session#2",
            "payment_sessions._store_opened#1",
        ),
        afterwards=ana_gets_a_link,
    ),
    "another_link_refused": Scenario(
        partial(her_link_has_expired, fault="HTTP:400:API_VALIDATION_ERROR"),
        open_session,
        ("payment_sessions.open_session#3",),
        afterwards=ana_gets_a_link,
    ),
    "link_expires": Scenario(
        her_link_expires,
        web,
        ("receive.Inbox._store#1", "apply.apply_stored_event#1"),
        afterwards=ana_gets_a_link,
    ),
    "link_is_canceled": Scenario(
        ana_has_a_link, cancel_session, ("session_results.cancel_session#1",), afterwards=ana_gets_a_link
    ),
    # Our own bug
    "parked": Scenario(
        partial(ana_completes, via=SessionType.PAY),
        web_with_a_bug,
        ("apply._park#1", "apply._park#1@2", "apply._park#1@3"),
        afterwards=parked_events_are_replayed,
    ),
    # Operators
    "paused": Scenario(
        declined_today,
        pause,
        ("api.subscriptions.Subscriptions._move#1",),
        ends=("ana is paused", "period 1 is open: collected 0x, kept 0"),
        afterwards=pause_is_repeated,
    ),
    "canceled": Scenario(
        declined_today,
        cancel,
        ("api.subscriptions.Subscriptions._move#1",),
        ends=("ana is canceled", "period 1 is void: collected 0x, kept 0"),
        afterwards=cancel_is_repeated,
    ),
    "canceled_with_an_open_link": Scenario(
        ana_has_a_link,
        cancel,
        ("api.subscriptions.Subscriptions._move#1", "session_results.cancel_session#1"),
        ends=("ana is canceled", "period 1 is void: collected 0x, kept 0"),
        afterwards=she_tries_to_pay_and_cancel_is_repeated,
    ),
    "paid_by_hand": Scenario(declined_today, pay_invoice, ("pay_by_hand.pay_invoice#1", *PAID)),
}
