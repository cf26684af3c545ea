"""What a person wants to know when the months are over: where the money is, what was recovered, and the proof.

The proof does not trust our own bookkeeping: payments are taken from the simulator's ledger and the periods that had
to be billed are counted anew from the calendar.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from statistics import mean
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from billing.checks import doctor
from billing.domain.declines import classify
from billing.domain.gateway import SessionType
from billing.domain.lifecycle import AttemptStatus, InvoiceStatus, SessionStatus, SubscriptionStatus
from billing.domain.money import Money
from billing.reading import explain
from billing.sandbox.demo.cast import HOME
from billing.sandbox.demo.stage import Stage
from billing.store.models import (
    BillingRun,
    Capture,
    ChargeAttempt,
    Customer,
    Fact,
    Invoice,
    PaymentSession,
    Plan,
    SkippedPeriod,
    Subscription,
    WebhookEvent,
)
from billing.subscriptions.moves import calendar_of

Json = Mapping[str, Any]
LOST = frozenset({InvoiceStatus.UNCOLLECTIBLE, InvoiceStatus.VOID})


# ------------------------------------------------------------------------------------------------ one invoice


@dataclass(frozen=True, slots=True)
class Bill:
    """An invoice with what became of it."""

    invoice: Invoice
    subscription: Subscription
    who: str
    attempts: Sequence[ChargeAttempt]

    @property
    def money(self) -> Money:
        return Money(self.invoice.amount_minor, self.invoice.currency)

    @property
    def month(self) -> str:
        return self.invoice.opened_at.astimezone(HOME).strftime("%Y-%m")

    @property
    def had_trouble(self) -> bool:
        return self.invoice.first_failed_at is not None

    @property
    def outcome(self) -> str:
        """first_try, recovered, lost or owed."""
        if self.invoice.status == InvoiceStatus.PAID:
            return "recovered" if self.had_trouble else "first_try"
        return "lost" if self.invoice.status in LOST else "owed"

    @property
    def trouble(self) -> str:
        """The first failure, in words."""
        failed = next((row for row in self.attempts if row.status == AttemptStatus.FAILED), None)
        if failed is None:
            return "no usable payment method (it had expired)"
        verdict = classify(failure_code=failed.failure_code)
        return verdict.note or verdict.code

    @property
    def days_to_recover(self) -> float:
        assert self.invoice.closed_at is not None  # noqa: S101 - asked of paid invoices only
        assert self.invoice.first_failed_at is not None  # noqa: S101 - that had a failure
        return (self.invoice.closed_at - self.invoice.first_failed_at) / timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Invoices that began with the same trouble, and how they ended."""

    trouble: str
    recovered: int
    owed: int
    lost: int
    days: float | None  # on average, of the recovered ones


@dataclass(frozen=True, slots=True)
class Debt:
    who: str
    money: Money
    since: datetime
    why: str


@dataclass(frozen=True, slots=True)
class Proof:
    theirs: Mapping[str, Money]
    ours: Mapping[str, Money]
    payments: int
    differences: int  # payments that only one side has, or with another amount
    charged_twice: int
    periods: int
    periods_missed: int
    checks: int
    failed_checks: Sequence[str]

    @property
    def ledger_agrees(self) -> bool:
        return self.differences == 0 and self.theirs == self.ours

    @property
    def holds(self) -> bool:
        return self.ledger_agrees and not (self.charged_twice or self.periods_missed or self.failed_checks)


@dataclass(slots=True)
class Figures:
    """Everything the report shows and the JSON summary holds."""

    proof: Proof
    bills: list[Bill]
    recoveries: list[Recovery]
    debts: list[Debt]
    counts: Mapping[str, int]
    webhooks: Mapping[str, int]
    statuses: Mapping[str, int]
    story: Story | None
    by_month: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)  # currency, month, outcome: minor

    def __post_init__(self) -> None:
        for bill in self.bills:
            months = self.by_month.setdefault(bill.money.currency, {})
            amounts = months.setdefault(bill.month, dict.fromkeys(("first_try", "recovered", "lost", "owed"), 0))
            amounts[bill.outcome] += bill.money.amount_minor

    def total(self, *outcomes: str) -> dict[str, Money]:
        return _sums(bill.money for bill in self.bills if bill.outcome in outcomes)


@dataclass(frozen=True, slots=True)
class Story:
    who: str
    reference: str
    plan: str
    currency: str
    events: Sequence[Json]
    next: Json


def gather(stage: Stage) -> Figures:
    """Reads both ledgers and examines the database; the clock stands at the end."""
    payments = stage.simulator.get("/_simulator/ledger")["payments"]
    with stage.parts.reading() as session:
        bills = _bills(session)
        now = stage.parts.clock.now()
        return Figures(
            proof=_prove(stage, session, payments, now),
            bills=bills,
            recoveries=_recoveries(bills),
            debts=_debts(session, bills, now),
            counts=_counts(session, bills),
            webhooks=_webhooks(stage, session),
            statuses=_statuses(session),
            story=_story(session, bills, now),
        )


def summary(figures: Figures) -> dict[str, Any]:
    """The members of the JSON document that come from the books."""
    proof = figures.proof
    return {
        "invoices": len(figures.bills),
        "paid": sum(bill.invoice.status == InvoiceStatus.PAID for bill in figures.bills),
        "collected": {currency: str(money) for currency, money in sorted(proof.ours.items())},
        **figures.counts,
        "owed": {currency: str(money) for currency, money in sorted(figures.total("owed").items())},
        "subscriptions": dict(figures.statuses),
        "webhooks": dict(figures.webhooks),
        "payments": proof.payments,
        "periods": proof.periods,
        "charged_twice": proof.charged_twice,
        "periods_missed": proof.periods_missed,
        "ledger_agrees": proof.ledger_agrees,
        "doctor_ok": not proof.failed_checks,
        "doctor_checks": proof.checks,
        "doctor_failed": list(proof.failed_checks),
    }


# ----------------------------------------------------------------------------------------------- our own books


def _bills(session: Session) -> list[Bill]:
    attempts: dict[str, list[ChargeAttempt]] = defaultdict(list)
    for attempt in session.scalars(select(ChargeAttempt).order_by(ChargeAttempt.number)):
        attempts[attempt.invoice_id].append(attempt)
    query = (
        select(Invoice, Subscription, Customer.name)
        .join(Subscription, Subscription.id == Invoice.subscription_id)
        .join(Customer, Customer.id == Subscription.customer_id)
        .where(Invoice.status != InvoiceStatus.DRAFT)
        .order_by(Invoice.opened_at, Invoice.id)
    )
    return [Bill(row[0], row[1], row[2], attempts[row[0].id]) for row in session.execute(query)]


def _recoveries(bills: Iterable[Bill]) -> list[Recovery]:
    by_trouble: dict[str, list[Bill]] = defaultdict(list)
    for bill in bills:
        if bill.had_trouble:
            by_trouble[bill.trouble].append(bill)
    found = []
    for trouble, troubled in by_trouble.items():
        ends = Counter(bill.outcome for bill in troubled)
        days = [bill.days_to_recover for bill in troubled if bill.outcome == "recovered"]
        found.append(Recovery(trouble, ends["recovered"], ends["owed"], ends["lost"], mean(days) if days else None))
    return sorted(found, key=lambda row: -(row.recovered + row.owed + row.lost))


def _debts(session: Session, bills: Iterable[Bill], now: datetime) -> list[Debt]:
    found = []
    for bill in bills:
        if bill.outcome == "owed":
            upcoming = explain.explain(session, bill.subscription, now)["next"]
            found.append(Debt(bill.who, bill.money, bill.invoice.opened_at, _in_short(bill, upcoming)))
    return found


def _in_short(bill: Bill, upcoming: Json) -> str:
    planned = next((row for row in bill.attempts if row.status == AttemptStatus.SCHEDULED), None)
    if planned is not None:
        return f"{bill.trouble}; tried again {_day(planned.scheduled_at)}"
    if bill.invoice.grace_ends_at is not None:
        return f"{bill.trouble}; the customer has until {_day(bill.invoice.grace_ends_at)}"
    return str(upcoming["why"])


def _day(at: datetime) -> str:
    return at.astimezone(HOME).strftime("%-d %b %Y")


def _counts(session: Session, bills: Sequence[Bill]) -> dict[str, int]:
    def number(*conditions: Any) -> int:
        return session.scalar(select(func.count()).where(*conditions)) or 0

    ended = ChargeAttempt.status.in_({AttemptStatus.SUCCEEDED, AttemptStatus.FAILED})
    paid_through = PaymentSession.status == SessionStatus.COMPLETED, PaymentSession.subscription_id.is_not(None)
    doubted = select(Fact.detail["attempt"].astext).where(Fact.kind == "attempt.in_doubt")
    return {
        "retried": sum(bill.had_trouble for bill in bills),
        "recovered": sum(bill.outcome == "recovered" for bill in bills),
        "uncollectible": sum(bill.invoice.status == InvoiceStatus.UNCOLLECTIBLE for bill in bills),
        "canceled": number(Subscription.status == SubscriptionStatus.CANCELED),
        "attempts": number(ChargeAttempt.submitted_at.is_not(None), ChargeAttempt.origin != "session"),
        "renewals": sum(
            attempt.submitted_at is not None and attempt.origin != "session"
            for bill in bills
            if bill.invoice.period_index > 0
            for attempt in bill.attempts
        ),
        "declined": number(Fact.kind == "attempt.failed"),
        "in_doubt": number(Fact.kind == "attempt.in_doubt"),
        "in_doubt_resolved": number(ChargeAttempt.id.in_(doubted), ended),
        "billing_runs": number(BillingRun.id.is_not(None)),
        "save_sessions": number(*paid_through, PaymentSession.type == SessionType.SAVE),
        "pay_sessions": number(*paid_through, PaymentSession.type == SessionType.PAY),
        "failed_tries": number(Fact.kind == "session.try_failed"),
        "expired_sessions": number(Fact.kind == "session.expired"),
    }


def _webhooks(stage: Stage, session: Session) -> dict[str, int]:
    """Sent and lost by the simulator's count; doubled and applied by ours."""
    sent = Counter[str]()
    for row in stage.simulator.get("/_simulator/webhooks?summary")["counts"]:
        sent[row["status"]] += row["count"]
    stored, deliveries = session.execute(select(func.count(), func.sum(WebhookEvent.deliveries))).one()
    return {
        "events": sum(sent.values()),
        "lost": sent["LOST"],
        "stored": stored,
        "doubled": int(deliveries or 0) - stored,
    }


def _statuses(session: Session) -> dict[str, int]:
    query = select(Subscription.status, func.count()).group_by(Subscription.status)
    return {row[0]: row[1] for row in session.execute(query)}


# --------------------------------------------------------------------------------------------------- the proof


def _prove(stage: Stage, session: Session, payments: Sequence[Json], now: datetime) -> Proof:
    captured = [payment for payment in payments if Decimal(payment["captured"]) > 0]
    ours = list(session.execute(select(Capture.payment_request_id, Capture.amount_minor, Capture.currency)))
    theirs = {(row["payment_request_id"], Money.parse(row["captured"], row["currency"])) for row in captured}
    known = {(row[0], Money(row[1], row[2])) for row in ours}
    periods, missed = _periods(session, now)
    verdict = doctor.examine(stage.parts)
    return Proof(
        theirs=_sums(money for _, money in theirs),
        ours=_sums(Money(row[1], row[2]) for row in ours),
        payments=len(captured),
        differences=max(len(theirs ^ known), abs(len(ours) - len(captured))),
        charged_twice=_charged_twice(session, captured),
        periods=periods,
        periods_missed=missed,
        checks=len(verdict["checks"]),
        failed_checks=[check["name"] for check in verdict["checks"] if not check["ok"]],
    )


def _charged_twice(session: Session, captured: Iterable[Json]) -> int:
    """By the simulator's ledger: periods of a subscription that more than one capture was made for."""
    query = select(ChargeAttempt.reference_id, ChargeAttempt.invoice_id)
    invoice_of = {row[0]: row[1] for row in session.execute(query)}
    captures = Counter[str]()
    for payment in captured:
        # Payments of a session carry our reference with a suffix.
        reference = payment["reference_id"].rpartition("_")[0] or payment["reference_id"]
        captures[invoice_of.get(reference, reference)] += payment["captures"]
    return sum(count > 1 for count in captures.values())


def _periods(session: Session, now: datetime) -> tuple[int, int]:
    """(periods that had to be billed or skipped, those that were not), by the calendar of each subscription."""
    on_record: dict[str, set[str]] = defaultdict(set)
    for table in (Invoice, SkippedPeriod):
        for row in session.execute(select(table.subscription_id, table.period_key)):
            on_record[row[0]].add(row[1])
    query = select(Subscription, Plan.schedule).join(Plan, Plan.id == Subscription.plan_id)
    due, missed = 0, 0
    for subscription, schedule in session.execute(query.where(Subscription.anchor_local.is_not(None))):
        calendar = calendar_of(subscription, schedule)
        period, end = calendar.first(), _runs_until(subscription, now)
        while period.start < end:
            due += 1
            missed += period.key not in on_record[subscription.id]
            period = calendar.after(period)
    return due, missed


def _runs_until(subscription: Subscription, now: datetime) -> datetime:
    """Nothing is due after a pause or an end; who left at the end of a period owes nothing for the next."""
    if subscription.status == SubscriptionStatus.CANCELED and subscription.cancel_at_period_end:
        return subscription.current_period_end or subscription.canceled_at or now
    return subscription.canceled_at or subscription.paused_at or now


def _sums(amounts: Iterable[Money]) -> dict[str, Money]:
    totals: dict[str, Money] = {}
    for money in amounts:
        totals[money.currency] = totals.get(money.currency, Money.zero(money.currency)) + money
    return totals


# --------------------------------------------------------------------------------------------------- one story


def _story(session: Session, bills: Sequence[Bill], now: datetime) -> Story | None:
    """Of the subscriber with the most to tell: who was declined several times and paid in the end."""
    candidates = [bill for bill in bills if bill.outcome == "recovered" and bill.subscription.status == "active"]
    if not candidates:
        return None
    bill = max(candidates, key=_interest)
    told = explain.explain(session, bill.subscription, now)
    plan = session.get_one(Plan, bill.subscription.plan_id)
    return Story(bill.who, bill.subscription.reference, plan.name, plan.currency, told["events"], told["next"])


def _interest(bill: Bill) -> tuple[int, int, str]:
    """A new card after some declines tells more than declines alone; six declines are too many to read."""
    failures = sum(attempt.status == AttemptStatus.FAILED for attempt in bill.attempts)
    new_card = any(attempt.origin == "new_token" for attempt in bill.attempts)
    return (2 * new_card + (2 <= failures <= 3), failures, bill.subscription.reference)  # noqa: PLR2004
