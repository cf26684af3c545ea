"""Somebody's admin scripts, which use every operation: checked by mypy --strict from outside, never run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import assert_type

from billing import (
    Billing,
    BillingError,
    Conflict,
    CopyOfDatabase,
    GatewayError,
    IllegalTransition,
    InvalidArgument,
    InvalidInput,
    InvalidMoney,
    InvalidSchedule,
    InvalidSetting,
    NotFound,
    NotSent,
    ServiceUnavailable,
)
from billing.api.opening import Entries
from billing.settings import Settings
from billing.shapes import (
    AbortedRun,
    Adopted,
    Approved,
    Charging,
    ChargingStanding,
    Customer,
    Diagnosis,
    DryRun,
    Event,
    Explanation,
    Imported,
    Invoice,
    InvoiceDetails,
    Migrated,
    Now,
    Plan,
    Reconciliation,
    Run,
    RunReport,
    RunSummary,
    Session,
    Subscribed,
    Subscription,
    Token,
)

REFUSALS: tuple[type[BillingError], ...] = (
    *(Conflict, CopyOfDatabase, GatewayError, IllegalTransition, InvalidArgument, InvalidInput, InvalidMoney),
    *(InvalidSchedule, InvalidSetting, NotFound, NotSent, ServiceUnavailable),
)


def opened(settings: Settings | None) -> None:
    with Billing.open() as billing:
        assert_type(billing, Billing)
        assert_type(billing.settings, Settings)
    Billing.open(settings, warn=print).close()


def catalog(billing: Billing) -> None:
    plan = billing.plans.create("gold", name="Gold", amount=Decimal("99.50"), currency="PHP", every="month")
    billing.plans.create("silver", name="Silver", amount="50000", currency="IDR", cron="0 9 1 * *", cycles=3)
    assert_type(plan, Plan)
    assert_type(plan.amount, Decimal)
    assert_type(plan.created_at, datetime)
    assert_type(billing.plans.list(), Entries[Plan])
    plans: Iterator[Plan] = billing.plans.list()
    assert_type(next(plans), Plan)
    assert_type(billing.plans.list().count(), int)
    assert_type(billing.plans.show("gold"), Plan)
    customer = billing.customers.create("ana", name="Ana", email="ana@example.com", country="ID")
    assert_type(customer, Customer)
    assert_type(customer.tokens, tuple[Token, ...])
    assert_type(billing.customers.update("ana", email="putri@example.com"), Customer)
    assert_type(billing.customers.list(limit=10, after="ana"), Entries[Customer])
    assert_type(billing.customers.show("ana"), Customer)


def subscribers(billing: Billing, at: datetime) -> None:
    begun = billing.subscribe("ana", "gold", via="save", start_at=at)
    assert_type(begun, Subscribed)
    assert_type(begun.session, Session | None)
    billing.subscribe("ana", "gold", token="pt-1", again=True, reference="ana-gold")
    for subscription in billing.subscriptions.list(status="past_due"):
        assert_type(subscription, Subscription)
        assert_type(subscription.next_billing_at, datetime | None)
    assert_type(billing.subscriptions.show("ana-gold"), Subscription)
    assert_type(billing.subscriptions.pause("ana-gold"), Subscription)
    assert_type(billing.subscriptions.resume("ana-gold"), Subscription)
    assert_type(billing.subscriptions.cancel("ana-gold", now=True), Subscription)
    assert_type(billing.subscriptions.uncancel("ana-gold"), Subscription)
    assert_type(billing.sessions.create("ana", mode="components", subscription="ana-gold", via="pay"), Session)
    assert_type(billing.sessions.list(customer="ana"), Entries[Session])
    assert_type(billing.sessions.show("ps-1"), Session)
    assert_type(billing.sessions.refresh("ps-1"), Session)
    assert_type(billing.sessions.cancel("ps-1"), Session)
    assert_type(billing.tokens.list("ana"), Entries[Token])
    assert_type(billing.tokens.refresh("pt-1"), Token)
    assert_type(billing.tokens.cancel("pt-1"), Token)
    assert_type(billing.tokens.unblock("pt-1"), Token)
    assert_type(billing.tokens.prefer("pt-1"), Token)
    assert_type(billing.explain("ana-gold"), Explanation)
    taken = billing.import_(Path("subscribers.jsonl"), dry_run=True)
    assert_type(taken, Imported)
    assert_type(taken.problem, str | None)
    billing.import_((line for line in ("{}",)), verify=False)


def money(billing: Billing, at: datetime, sure: bool) -> None:
    report = billing.run(wait=True, expect={"IDR": 50_000_000})
    assert_type(report, RunReport)
    assert_type(report.whole_run.collected["IDR"], Decimal)
    assert_type(billing.run(dry_run=True, at=at, expect="IDR 50000000"), DryRun)
    assert_type(billing.run(dry_run=sure), RunReport | DryRun)
    assert_type(billing.runs.list(), Entries[RunSummary])
    assert_type(billing.runs.show(follow=True, watch=lambda run: print(run.attempted)), Run)
    assert_type(billing.runs.pause("run-1"), Run)
    assert_type(billing.runs.resume("run-1"), Run)
    assert_type(billing.runs.abort("run-1"), AbortedRun)
    assert_type(billing.runs.approve("ana-gold", "run-1"), Approved)
    billing.runs.approve(ask=lambda waiting: sum(each.amount for each in waiting) < Decimal(50_000_000))
    assert_type(billing.invoices.list(subscription="ana-gold", status="open"), Entries[Invoice])
    assert_type(billing.invoices.show("ana-gold-1"), InvoiceDetails)
    assert_type(billing.invoices.pay("ana-gold-1", token="pt-1"), InvoiceDetails)


def operations(billing: Billing, at: datetime) -> None:
    assert_type(billing.doctor(repair=True), Diagnosis)
    assert_type(billing.reconcile(date=date(2026, 1, 31)), Reconciliation)
    assert_type(billing.replay("evt-1"), Event)
    assert_type(billing.events.list(state="parked"), Entries[Event])
    assert_type(billing.charging.show(), ChargingStanding)
    assert_type(billing.charging.stop(reason="bank holiday"), Charging)
    assert_type(billing.charging.resume(), Charging)
    assert_type(billing.migrate(), Migrated)
    assert_type(billing.adopt(), Adopted)
    assert_type(billing.clock.show(), Now)
    assert_type(billing.clock.set(at), Now)
    assert_type(billing.clock.advance(timedelta(days=31)).now, datetime)
