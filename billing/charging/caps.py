"""Limits that are asked when a charge begins: its run's spending cap, and what one customer may be charged in a day."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from billing.domain.lifecycle import AttemptStatus
from billing.domain.money import Money, format_money
from billing.parts import Rules
from billing.store.models import ChargeAttempt, Customer, Subscription

A_DAY = timedelta(days=1)


def may_begin(run_id: str | None, lease_until: datetime | None, rules: Rules) -> bool:
    """A capped run counts what it has handed out by its lease: nothing of it begins that has been given back."""
    return run_id is None or not rules.run_spending_cap or lease_until is not None


def over_daily_cap(
    session: Session, customer_id: str, currency: str, amount_minor: int, now: datetime, rules: Rules
) -> str | None:
    """Why a customer is not charged this amount today, or None. Charges of one customer follow each other by the lock
    of its row; called before an automatic attempt begins."""
    cap = rules.subscriber_daily_cap.get(currency)
    if cap is None:
        return None
    session.execute(select(Customer.id).where(Customer.id == customer_id).with_for_update(key_share=True)).all()
    spent = session.scalar(
        select(func.coalesce(func.sum(ChargeAttempt.amount_minor), 0))
        .join(Subscription, Subscription.id == ChargeAttempt.subscription_id)
        .where(
            Subscription.customer_id == customer_id,
            ChargeAttempt.currency == currency,
            ChargeAttempt.submitted_at > now - A_DAY,
            ChargeAttempt.status.not_in({AttemptStatus.FAILED, AttemptStatus.CANCELED, AttemptStatus.SCHEDULED}),
        )
    )
    if int(spent or 0) + amount_minor <= cap:
        return None
    charged = format_money(Money(int(spent or 0), currency))
    return (
        f"{format_money(Money(amount_minor, currency))} after {charged} in 24 hours would exceed the daily cap of"
        f" {format_money(Money(cap, currency))} for one subscriber"
    )
