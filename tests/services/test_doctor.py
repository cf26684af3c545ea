"""Each check is shown one broken database and finds it, and nothing else; then what --repair makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from billing.checks.doctor import REPAIRS, examine
from billing.checks.invariants import CHECKS
from billing.domain.lifecycle import AttemptStatus, EventState, InvoiceStatus, RefundState
from billing.parts import Parts
from billing.runs import tick
from billing.store.clock import real_now
from billing.store.models import (
    BillingRun,
    Capture,
    ChargeAttempt,
    ChargingStop,
    Invoice,
    InvoiceLine,
    PaymentSession,
    PaymentToken,
    Plan,
    Refund,
    Subscription,
    WebhookEvent,
    new_id,
)
from billing.subscriptions.moves import cancel, pause, record_skipped
from tests.factories import (
    NOW,
    make_attempt,
    make_capture,
    make_customer,
    make_event,
    make_invoice,
    make_paid_invoice,
    make_payment_session,
    make_plan,
    make_refund,
    make_subscription,
    make_token,
)

LONG_AGO = NOW - timedelta(days=2)


def failing(parts: Parts, *, repair: bool = False) -> dict[str, dict[str, Any]]:
    report = examine(parts, repair=repair)
    assert report["ok"] == all(check["ok"] for check in report["checks"])
    return {check["name"]: check for check in report["checks"] if not check["ok"]}


def drop(session: Session, table: str, name: str) -> None:
    """As after a restore that lost it."""
    kind = session.scalar(text("SELECT count(*) FROM pg_constraint WHERE conname = :name"), {"name": name})
    session.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT {name}" if kind else f"DROP INDEX {name}"))


# ------------------------------------------------------------------------------------------ a sound database


def test_an_empty_database_is_sound(parts: Parts) -> None:
    assert failing(parts) == {}


def test_a_database_in_the_middle_of_everything_is_sound(parts: Parts, session: Session) -> None:
    a_lively_database(session)
    session.commit()

    assert failing(parts) == {}


def a_lively_database(session: Session) -> None:
    """Every legal state that comes near one a check looks for."""
    paying = make_subscription(session, start_at=NOW - timedelta(days=62))
    make_paid_invoice(session, paying)
    make_paid_invoice(session, paying)
    failed = make_attempt(session, make_invoice(session, paying), status=AttemptStatus.FAILED)
    make_attempt(session, session.get_one(Invoice, failed.invoice_id), scheduled_at=NOW + timedelta(days=1))

    overpaid = make_paid_invoice(session)
    second = make_attempt(session, overpaid, status=AttemptStatus.SUCCEEDED)
    make_refund(session, make_capture(session, second, overpayment=True))

    twice = make_paid_invoice(session)
    again = make_capture(session, make_attempt(session, twice, status=AttemptStatus.SUCCEEDED), overpayment=True)
    # Captured once more after the first refund.
    make_refund(session, again, status=RefundState.SUCCEEDED, amount_minor=25_000, next_try_at=None)
    make_refund(session, again, status=RefundState.PENDING, amount_minor=25_000, next_try_at=NOW + timedelta(hours=1))
    twice.amount_paid_minor -= 25_000

    doubtful = make_attempt(session, status=AttemptStatus.IN_DOUBT)
    assert doubtful.next_check_at is not None
    make_attempt(session, status=AttemptStatus.SUBMITTED, lease_until=real_now() + timedelta(seconds=60))
    make_attempt(session, status=AttemptStatus.SCHEDULED, lease_until=real_now() + timedelta(seconds=60))

    onboarding = make_subscription(session, status="incomplete")
    make_payment_session(session, onboarding)
    make_event(session, state=EventState.UNMATCHED)

    resumed = make_subscription(session, start_at=NOW - timedelta(days=31))
    skip_a_period(session, resumed)
    paused = make_subscription(session)
    make_attempt(session, make_invoice(session, paused))
    pause(session, paused, NOW)
    canceled = make_subscription(session)
    make_attempt(session, make_invoice(session, canceled))
    cancel(session, canceled, NOW, at_once=True, reason="by request")


def skip_a_period(session: Session, subscription: Subscription) -> None:
    from billing.subscriptions.moves import calendar_of, plan_next

    plan = session.get_one(Plan, subscription.plan_id)
    calendar = calendar_of(subscription, plan.schedule)
    assert subscription.next_local is not None
    period = calendar.at(subscription.next_index, subscription.next_local)
    record_skipped(session, subscription.id, [period], "paused", NOW)
    plan_next(subscription, calendar.after(period))
    session.flush()


# ----------------------------------------------------------------------------------- one fault, one finding


@dataclass(frozen=True)
class Fault:
    check: str
    cause: Callable[[Session], object]
    also: frozenset[str] = frozenset()  # what it sensibly sets off as well
    left: frozenset[str] | None = None  # what is still to be done after --repair; None: all of it


def fault(check: str, *also: str, left: set[str] | None = None) -> Callable[[Callable[[Session], object]], None]:
    def register(cause: Callable[[Session], object]) -> None:
        FAULTS.append(Fault(check, cause, frozenset(also), None if left is None else frozenset(left)))

    return register


FAULTS: list[Fault] = []
UNCONSTRAINED = "constraints_in_place"


@fault("one_invoice_per_period", "periods_tile", UNCONSTRAINED)
def _(session: Session) -> None:
    drop(session, "invoices", "uq_invoices_subscription_period")
    first = make_paid_invoice(session)
    twin = make_paid_invoice(session, session.get_one(Subscription, first.subscription_id))
    twin.period_key = first.period_key
    twin.period_index, twin.period_start, twin.period_end = first.period_index, first.period_start, first.period_end


@fault("one_unfinished_attempt", UNCONSTRAINED)
def _(session: Session) -> None:
    drop(session, "charge_attempts", "uq_charge_attempts_unfinished")
    invoice = make_invoice(session)
    make_attempt(session, invoice)
    make_attempt(session, invoice)


@fault("references_used_once", UNCONSTRAINED)
def _(session: Session) -> None:
    drop(session, "charge_attempts", "uq_charge_attempts_reference_id")
    attempt = make_attempt(session)
    make_attempt(session, reference_id=attempt.reference_id)


@fault("payment_requests_used_once")
def _(session: Session) -> None:
    for _ in range(2):
        make_attempt(session, status=AttemptStatus.PENDING, payment_request_id="pr-1")


@fault("sent_attempts_are_dated", UNCONSTRAINED)
def _(session: Session) -> None:
    drop(session, "charge_attempts", "ck_charge_attempts_submitted_is_dated")
    make_attempt(session, status=AttemptStatus.PENDING, submitted_at=None)


@fault("captures_have_their_attempt", "paid_stays_paid", "payments_add_up")
def _(session: Session) -> None:
    """A capture that was lost: the attempt says succeeded, no money is on record."""
    invoice = make_paid_invoice(session)
    session.execute(delete(Capture).where(Capture.invoice_id == invoice.id))


@fault("captures_have_their_attempt")
def _(session: Session) -> None:
    """`succeeded` has moved."""
    invoice = make_paid_invoice(session)
    session.execute(update(ChargeAttempt).where(ChargeAttempt.invoice_id == invoice.id).values(status="failed"))


@fault("attempts_pay_once", UNCONSTRAINED)
def _(session: Session) -> None:
    """One try has collected twice, each time a part, and both count."""
    drop(session, "captures", "uq_captures_paying_attempt")
    invoice = make_paid_invoice(session)
    session.execute(update(Capture).where(Capture.invoice_id == invoice.id).values(amount_minor=30_000))
    attempt = session.scalars(select(ChargeAttempt).where(ChargeAttempt.invoice_id == invoice.id)).one()
    make_capture(session, attempt, amount_minor=20_000)
    invoice.amount_paid_minor = 50_000


@fault("overpayments_are_answered", left={"no_refund_is_stuck"})
def _(session: Session) -> None:
    invoice = make_paid_invoice(session)
    make_capture(session, make_attempt(session, invoice, status=AttemptStatus.SUCCEEDED), overpayment=True)


@fault("overpayments_are_answered", left={"no_refund_is_stuck"})
def _(session: Session) -> None:
    """Given back in part."""
    make_refund(session, overpayment(session), amount_minor=49_999)


@fault("overpayments_are_answered", left={"no_refund_is_stuck"})
def _(session: Session) -> None:
    """One capture of more than was owed."""
    invoice = make_paid_invoice(session)
    session.execute(update(Capture).where(Capture.invoice_id == invoice.id).values(amount_minor=60_000))
    invoice.amount_paid_minor = 60_000


@fault("paid_stays_paid")
def _(session: Session) -> None:
    """`paid` has moved."""
    make_paid_invoice(session).status = InvoiceStatus.UNCOLLECTIBLE


@fault("nothing_sent_after_the_end")
def _(session: Session) -> None:
    attempt = make_attempt(session, status=AttemptStatus.PENDING)
    subscription = session.get_one(Subscription, attempt.subscription_id)
    cancel(session, subscription, NOW - timedelta(hours=1), at_once=True, reason="by request")


@fault("nothing_sent_after_the_end")
def _(session: Session) -> None:
    attempt = make_attempt(session, status=AttemptStatus.PENDING)
    pause(session, session.get_one(Subscription, attempt.subscription_id), NOW - timedelta(hours=1))


@fault("periods_tile")
def _(session: Session) -> None:
    """A period in the middle is neither billed nor recorded as skipped."""
    subscription = make_subscription(session, start_at=NOW - timedelta(days=62))
    make_paid_invoice(session, subscription)
    skip_a_period(session, subscription)
    make_paid_invoice(session, subscription)
    session.execute(text("DELETE FROM skipped_periods"))


@fault("periods_tile")
def _(session: Session) -> None:
    """The last one is missing, though the calendar has moved on."""
    skip_a_period(session, make_subscription(session))
    session.execute(text("DELETE FROM skipped_periods"))


@fault("periods_tile")
def _(session: Session) -> None:
    """The next date is not where the last period ends."""
    make_paid_invoice(session)
    session.execute(text("UPDATE subscriptions SET next_billing_at = next_billing_at + interval '1 day'"))


@fault("periods_tile")
def _(session: Session) -> None:
    """Two periods overlap."""
    subscription = make_subscription(session, start_at=NOW - timedelta(days=31))
    make_paid_invoice(session, subscription)
    make_paid_invoice(session, subscription)
    session.execute(text("UPDATE invoices SET period_end = period_end + interval '2 days' WHERE period_index = 0"))


@fault("chargeable_is_planned", left=set())
def _(session: Session) -> None:
    make_subscription(session, next_billing_at=None)


@fault("ended_subscriptions_are_canceled", left=set())
def _(session: Session) -> None:
    """Its last period is over and everything is paid; nobody has looked."""
    subscription = make_subscription(session, start_at=NOW - timedelta(days=40), plan=make_plan(session, cycles=1))
    make_paid_invoice(session, subscription)
    subscription.next_billing_at, subscription.ends_at = None, subscription.current_period_end


@fault("leases_in_bounds", left=set())
def _(session: Session) -> None:
    for_ever = real_now() + timedelta(days=365)
    make_attempt(session, status=AttemptStatus.SUBMITTED, lease_until=for_ever)
    make_attempt(session, lease_until=for_ever)
    make_event(session, lease_until=for_ever)
    make_refund(session, overpayment(session), lease_until=for_ever)


@fault("submitted_is_followed", left=set())
def _(session: Session) -> None:
    make_attempt(session, status=AttemptStatus.SUBMITTED, lease_until=real_now() - timedelta(hours=1))
    make_attempt(session, status=AttemptStatus.SUBMITTED, lease_until=None)


@fault("open_results_are_followed", left=set())
def _(session: Session) -> None:
    for status in (AttemptStatus.PENDING, AttemptStatus.IN_DOUBT, AttemptStatus.REQUIRES_ACTION):
        make_attempt(session, status=status, next_check_at=None)


@fault("open_results_are_followed", left=set())
def _(session: Session) -> None:
    """The payment session is over, the payment made on its page was never heard of."""
    subscription = make_subscription(session, status="incomplete")
    row = make_payment_session(session, subscription, type="PAY", status="COMPLETED", next_check_at=None)
    draft = make_draft(session, subscription)
    make_attempt(
        session,
        draft,
        status=AttemptStatus.PENDING,
        origin="session",
        reference_id=row.reference_id,
        next_check_at=None,
    )


@fault("sessions_are_followed", left=set())
def _(session: Session) -> None:
    subscription = make_subscription(session, status="incomplete")
    make_payment_session(session, subscription, next_check_at=None, created_at=LONG_AGO)
    make_payment_session(session, subscription, next_check_at=None, created_at=LONG_AGO, xendit_session_id=None)


@fault("events_are_followed", left=set())
def _(session: Session) -> None:
    make_event(session, next_try_at=None)
    make_event(session, state=EventState.UNMATCHED, next_try_at=None)


@fault("refunds_are_followed", left=set())
def _(session: Session) -> None:
    make_refund(session, overpayment(session), next_try_at=None, lease_until=real_now() - timedelta(hours=1))


@fault("due_attempts_on_time")
def _(session: Session) -> None:
    make_attempt(session, scheduled_at=NOW - timedelta(minutes=11))


@fault("due_periods_on_time")
def _(session: Session) -> None:
    make_subscription(session, start_at=NOW - timedelta(minutes=11))


@fault("due_follow_ups_on_time")
def _(session: Session) -> None:
    late = NOW - timedelta(minutes=11)
    make_attempt(session, status=AttemptStatus.IN_DOUBT, next_check_at=late)
    make_event(session, next_try_at=late)
    make_refund(session, overpayment(session), next_try_at=late)
    make_payment_session(session, make_subscription(session, status="incomplete"), next_check_at=late)
    make_invoice(session, grace_ends_at=late)


@fault("lines_add_up")
def _(session: Session) -> None:
    make_paid_invoice(session)
    session.execute(text("UPDATE invoice_lines SET amount_minor = amount_minor - 1"))


@fault("payments_add_up")
def _(session: Session) -> None:
    make_paid_invoice(session).amount_paid_minor += 1


@fault("payments_add_up")
def _(session: Session) -> None:
    """A refund that succeeded, and the invoice still counts the money."""
    make_refund(session, overpayment(session), status=RefundState.SUCCEEDED, next_try_at=None)


@fault("currencies_agree", "paid_stays_paid", "payments_add_up")
def _(session: Session) -> None:
    make_paid_invoice(session)
    session.execute(text("UPDATE captures SET currency = 'PHP'"))


@fault("card_networks_caps")
def _(session: Session) -> None:
    """Eleven declines of one card in a day, over several customers."""
    for minute in range(11):
        at = NOW - timedelta(minutes=minute)
        make_attempt(session, status=AttemptStatus.FAILED, fingerprint="f" * 24, scheduled_at=at)
    session.execute(text("UPDATE invoices SET grace_ends_at = :later"), {"later": NOW + timedelta(days=20)})


@fault("card_networks_caps")
def _(session: Session) -> None:
    """Sixteen in thirty days, never ten in one."""
    for day in range(16):
        at = NOW - timedelta(days=day)
        make_attempt(session, status=AttemptStatus.FAILED, fingerprint="f" * 24, scheduled_at=at)
    session.execute(text("UPDATE invoices SET grace_ends_at = :later"), {"later": NOW + timedelta(days=20)})


@fault("one_automatic_try_a_day")
def _(session: Session) -> None:
    invoice = make_invoice(session)
    make_attempt(session, invoice, status=AttemptStatus.FAILED, scheduled_at=NOW - timedelta(hours=5))
    make_attempt(session, invoice, status=AttemptStatus.PENDING, scheduled_at=NOW)


@fault("planned_attempts_may_be_charged", left=set())
def _(session: Session) -> None:
    attempt = make_attempt(session)
    session.get_one(Invoice, attempt.invoice_id).status = InvoiceStatus.VOID


@fault("planned_attempts_may_be_charged", left=set())
def _(session: Session) -> None:
    attempt = make_attempt(session)
    subscription = session.get_one(Subscription, attempt.subscription_id)
    subscription.status, subscription.paused_at, subscription.next_billing_at = "paused", NOW, None


@fault("planned_tokens_may_be_charged", left=set())
def _(session: Session) -> None:
    for state in ({"status": "EXPIRED"}, {"blocked_reason": "STOLEN_CARD"}):
        invoice = make_invoice(session)
        customer = make_customer(session)
        session.get_one(Subscription, invoice.subscription_id).customer_id = customer.id
        token = make_token(session, customer, **state)
        session.get_one(Subscription, invoice.subscription_id).payment_token_id = token.id
        make_attempt(session, invoice, payment_token_id=token.id)


@fault("tokens_belong_to_the_payer")
def _(session: Session) -> None:
    make_subscription(session, token=make_token(session, make_customer(session)))


@fault("tokens_belong_to_the_payer")
def _(session: Session) -> None:
    somebody_elses = make_token(session, make_customer(session))
    make_attempt(session, payment_token_id=somebody_elses.id)


@fault("parked_attempts_wait_for_something", left=set())
def _(session: Session) -> None:
    """Of a run that goes on, of a run that is gone, of a channel that is back, of a customer who is not held."""
    session.add(BillingRun(id="run-1", at=NOW, started_at=real_now(), heartbeat_at=real_now()))
    for waits_for in ("run:run-1", "run:gone", "channel:ID_OVO"):
        make_attempt(session, parked_by=waits_for)
    subscription = make_subscription(session)
    make_attempt(session, make_invoice(session, subscription), parked_by=f"token:{subscription.customer_id}")


@fault("unknown_tokens_are_followed", "no_subscription_is_held", left={"no_subscription_is_held"})
def _(session: Session) -> None:
    """Xendit did not know its token, and the date to ask again is lost; its attempt waits as it should."""
    subscription = make_subscription(session, hold_kind="token_unknown", hold_reason="Xendit does not know it")
    make_attempt(session, make_invoice(session, subscription), parked_by=f"token:{subscription.customer_id}")
    tokens = session.scalars(select(PaymentToken).where(PaymentToken.customer_id == subscription.customer_id)).all()
    for token in tokens:
        token.unknown_since = NOW - timedelta(days=2)


@fault("unknown_tokens_are_followed", "no_subscription_is_held", left=set())
def _(session: Session) -> None:
    """It is known by now, and the hold was forgotten."""
    make_subscription(session, hold_kind="token_unknown", hold_reason="Xendit does not know it")


@fault("runs_have_an_end", left=set())
def _(session: Session) -> None:
    """Its process died when all was done."""
    session.add(BillingRun(id="run-2", at=NOW, started_at=LONG_AGO, heartbeat_at=LONG_AGO))
    make_attempt(session, make_paid_invoice(session), status=AttemptStatus.FAILED, run_id="run-2")


@fault("drafts_are_awaited", left=set())
def _(session: Session) -> None:
    """Left over from a PAY session that expired, before a SAVE session started the subscription."""
    subscription = make_subscription(session)
    draft = make_draft(session, subscription)
    make_attempt(session, draft, status=AttemptStatus.CANCELED, origin="session")


def make_draft(session: Session, subscription: Subscription) -> Invoice:
    draft = Invoice(
        id=new_id("inv"),
        number=f"{subscription.reference}-draft",
        subscription_id=subscription.id,
        period_key="first",
        period_index=0,
        period_start=NOW,
        period_end=NOW + timedelta(days=30),
        amount_minor=subscription.amount_minor,
        currency=subscription.currency,
        status=InvoiceStatus.DRAFT,
        opened_at=NOW,
    )
    session.add(draft)
    session.flush()
    session.add(InvoiceLine(invoice_id=draft.id, description="Gold", amount_minor=draft.amount_minor))
    return draft


@fault("open_invoices_have_an_end", left=set())
def _(session: Session) -> None:
    """One never tried, one whose retry was forgotten, one of a subscription that is over."""
    make_invoice(session)
    make_attempt(session, status=AttemptStatus.FAILED)
    subscription = make_subscription(session)
    cancel(session, subscription, NOW, at_once=True, reason="by request")
    make_invoice(session, subscription, closed_at=None)
    subscription.next_billing_at = None


@fault(UNCONSTRAINED)
def _(session: Session) -> None:
    drop(session, "captures", "uq_captures_payment_id")
    drop(session, "captures", "uq_captures_paying_attempt")
    drop(session, "plans", "ck_plans_amount_positive")
    drop(session, "captures", "fk_captures_attempt_id")


@fault("charging_is_allowed")
def _(session: Session) -> None:
    session.add(ChargingStop(id=1, reason="Xendit refuses the key", at=NOW))
    make_attempt(session, scheduled_at=LONG_AGO)  # late for that reason: not reported twice


@fault("no_run_is_stopped")
def _(session: Session) -> None:
    values = {"at": NOW, "started_at": real_now(), "kind": "asked"}
    session.add(BillingRun(id="run-paused", state="paused", reason="paused by a person", **values))


@fault("no_run_is_stopped")
def _(session: Session) -> None:
    values = {"at": NOW, "started_at": real_now(), "kind": "daily", "guard": "spending_cap"}
    session.add(BillingRun(id="run-2026-01-30", state="stopped", reason="the cap", **values))


@fault("no_invoice_is_held")
def _(session: Session) -> None:
    make_invoice(session, hold_reason="captured less than the amount due")


@fault("no_subscription_is_held")
def _(session: Session) -> None:
    make_subscription(session, hold_reason="13 periods are due", start_at=LONG_AGO)


@fault("no_refund_is_stuck")
def _(session: Session) -> None:
    make_refund(session, overpayment(session), status=RefundState.HELD, next_try_at=None)
    make_refund(session, overpayment(session), status=RefundState.FAILED, next_try_at=None)


@fault("no_event_is_parked")
def _(session: Session) -> None:
    make_event(session, state=EventState.PARKED, next_try_at=None)


def overpayment(session: Session) -> Any:
    invoice = make_paid_invoice(session)
    second = make_attempt(session, invoice, status=AttemptStatus.SUCCEEDED)
    return make_capture(session, second, overpayment=True)


def _names(one: Fault) -> str:
    return f"{one.check}-{FAULTS.index(one)}"


@pytest.mark.parametrize("one", FAULTS, ids=_names)
def test_a_fault_is_found_and_nothing_else(one: Fault, parts: Parts, session: Session) -> None:
    a_lively_database(session)
    one.cause(session)
    session.commit()

    found = failing(parts)

    assert set(found) == {one.check, *one.also}
    assert found[one.check]["count"] >= 1
    assert CHECKS[one.check].wrong in found[one.check]["detail"]
    assert found[one.check]["repair"]
    if one.left is None:
        before = contents(session)
        examine(parts, repair=True)
        assert contents(session) == before, "what has no safe repair is left alone"


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {one.check for one in FAULTS} == {name for name, check in CHECKS.items() if not check.is_news}


@pytest.mark.parametrize("one", [one for one in FAULTS if one.left is not None], ids=_names)
def test_a_repair_mends_it_once(one: Fault, parts: Parts, session: Session) -> None:
    one.cause(session)
    session.commit()

    examine(parts, repair=True)

    assert set(failing(parts)) == one.left
    before = contents(session)
    examine(parts, repair=True)
    assert contents(session) == before


def test_every_repair_is_tried() -> None:
    assert {one.check for one in FAULTS if one.left is not None} == set(REPAIRS)


def contents(session: Session) -> dict[str, list[str]]:
    """Every row there is; leases aside, which live in real time."""
    session.rollback()
    tables = session.scalars(
        text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1")
    ).all()
    return {
        table: sorted(session.scalars(text(f"SELECT (to_jsonb(t) - 'lease_until')::text FROM {table} t")))
        for table in tables
    }


# ------------------------------------------------------------------------------------- what a repair does


def test_a_lost_submission_goes_into_doubt_and_is_looked_up(parts: Parts, session: Session) -> None:
    lost = make_attempt(session, status=AttemptStatus.SUBMITTED, lease_until=None)
    session.commit()

    repaired = next(
        check for check in examine(parts, repair=True)["checks"] if check["name"] == "submitted_is_followed"
    )

    session.refresh(lost)
    assert lost.status == AttemptStatus.IN_DOUBT
    assert lost.next_check_at == NOW + timedelta(minutes=1)
    assert repaired["ok"]
    assert repaired["repair"].startswith("1 repaired")


def test_a_forgotten_invoice_is_charged_by_the_next_tick(parts: Parts, session: Session) -> None:
    invoice = make_invoice(session)
    session.commit()
    handed_out: list[str] = []

    examine(parts, repair=True)
    tick.hand_out_charges(parts, lambda _, ids: handed_out.extend(ids))

    planned = session.scalars(select(ChargeAttempt).where(ChargeAttempt.invoice_id == invoice.id)).one()
    assert handed_out == [planned.id]
    assert (planned.status, planned.origin, planned.number) == (AttemptStatus.SCHEDULED, "schedule", 1)


def test_a_missing_date_is_computed_from_the_anchor(parts: Parts, session: Session) -> None:
    """31 January has been billed: the next is the last of February, though the date itself is gone."""
    invoice = make_paid_invoice(session)
    subscription = session.get_one(Subscription, invoice.subscription_id)
    subscription.next_billing_at = None
    session.commit()

    examine(parts, repair=True)

    session.refresh(subscription)
    assert subscription.next_billing_at == invoice.period_end


def test_a_session_without_a_link_ends_and_another_is_looked_up(parts: Parts, session: Session) -> None:
    subscription = make_subscription(session, status="incomplete")
    stranded = make_payment_session(session, subscription, next_check_at=None, created_at=LONG_AGO)
    linkless = make_payment_session(
        session, subscription, next_check_at=None, created_at=LONG_AGO, xendit_session_id=None
    )
    session.commit()

    examine(parts, repair=True)

    session.expire_all()
    assert session.get_one(PaymentSession, stranded.id).next_check_at == NOW
    assert session.get_one(PaymentSession, linkless.id).status == "CANCELED"


def test_an_unanswered_overpayment_becomes_a_held_refund_and_no_money_moves(parts: Parts, session: Session) -> None:
    capture = overpayment(session)
    session.commit()

    examine(parts, repair=True)

    refund = session.scalars(select(Refund)).one()
    assert (refund.capture_id, refund.status, refund.next_try_at) == (capture.id, RefundState.HELD, None)
    assert refund.amount_minor == capture.amount_minor


def test_a_stored_event_is_handed_out_again(parts: Parts, session: Session) -> None:
    event = make_event(session, next_try_at=None)
    session.commit()

    examine(parts, repair=True)

    session.expire_all()
    assert session.get_one(WebhookEvent, event.id).next_try_at == NOW


def test_examples_are_few_and_the_count_is_true(parts: Parts, session: Session) -> None:
    for _ in range(7):
        make_event(session, state=EventState.PARKED, next_try_at=None)
    session.commit()

    parked = failing(parts)["no_event_is_parked"]

    assert parked["count"] == 7
    assert parked["detail"].count("evt-") == 5
    assert parked["detail"].endswith(", ...")


# ------------------------------------------------------------------------------------------------ the schema


def test_another_version_of_the_schema_is_all_that_is_looked_at(parts: Parts, session: Session) -> None:
    session.execute(text("UPDATE alembic_version SET version_num = 'older'"))
    session.execute(text("ALTER TABLE webhook_events DROP COLUMN next_try_at"))
    session.commit()

    report = examine(parts)

    assert not report["ok"]
    assert [check["name"] for check in report["checks"]] == ["schema_is_current"]
    assert "billing migrate" in report["checks"][0]["repair"]


def test_a_database_that_was_never_migrated_is_said_to_be(parts: Parts, session: Session) -> None:
    session.execute(text("DROP TABLE alembic_version"))
    session.commit()

    assert "none" in examine(parts)["checks"][0]["detail"]


def test_looking_writes_nothing(parts: Parts, session: Session) -> None:
    for one in FAULTS:
        if not one.also and one.check != UNCONSTRAINED:
            one.cause(session)
    make_plan(session)
    session.commit()
    before = contents(session)

    examine(parts)

    assert contents(session) == before
