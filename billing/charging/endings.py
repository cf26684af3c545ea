"""What ends because its time has come: invoices whose grace is over, subscriptions whose last period is over.

One row, one transaction, one lock: no order of locks to keep, and a row that cannot be ended holds itself, visibly, and
nobody else. Called by dispatch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import structlog

from billing.charging.after_failure import close_overdue_invoice
from billing.domain.lifecycle import HoldKind, SubscriptionStatus
from billing.parts import Parts
from billing.store import queries
from billing.store.clock import uptime
from billing.store.models import Invoice
from billing.store.trouble import raise_if_databases_trouble
from billing.subscriptions.invoices import hold_invoice
from billing.subscriptions.moves import ALL_BILLED, PERIOD_OVER, end_if_over, lock_subscription
from billing.subscriptions.open_periods import hold_subscription, in_one_line

AT_ONCE = 500

log = structlog.get_logger()


def close_overdue_invoices(parts: Parts, until: float = math.inf) -> None:
    """The customer has had the time the dunning policy gives: each is given up. Not beyond `until` (uptime)."""
    for invoice_id, subscription_id in _overdue(parts):
        if uptime() > until:
            return
        try:
            with parts.transaction() as session:
                close_overdue_invoice(session, invoice_id, subscription_id, parts.clock.now())
        except Exception as error:  # noqa: BLE001 - it holds this row, with its words
            raise_if_databases_trouble(error)
            reason = f"it cannot be given up: {in_one_line(error)}"
            with parts.transaction() as session:
                lock_subscription(session, subscription_id)
                hold_invoice(session, session.get_one(Invoice, invoice_id), parts.clock.now(), reason, HoldKind.ERROR)
            log.error("invoice.held", invoice=invoice_id, error=reason)


def _overdue(parts: Parts) -> Iterator[tuple[str, str]]:
    page: list[tuple[str, str]] = [("", "")]
    while page:
        with parts.reading() as session:
            page = queries.overdue_invoices(session, parts.clock.now(), page[-1][0], AT_ONCE)
        yield from page


def end_subscriptions(parts: Parts, until: float = math.inf) -> list[tuple[str, str]]:
    """Each is canceled, or marked as over while something is still owed (subscriptions/moves.py).

    Returns (subscription, reason) of those that are canceled."""
    ended: list[tuple[str, str]] = []
    for subscription_id in _over(parts):
        if uptime() > until:
            break
        try:
            with parts.transaction() as session:
                subscription = lock_subscription(session, subscription_id)
                end_if_over(session, subscription, parts.clock.now())
            if subscription.status == SubscriptionStatus.CANCELED:
                ended.append((subscription_id, PERIOD_OVER if subscription.cancel_at_period_end else ALL_BILLED))
        except Exception as error:  # noqa: BLE001 - it holds this row, with its words
            raise_if_databases_trouble(error)
            reason = f"it cannot be ended: {in_one_line(error)}"
            with parts.transaction() as session:
                subscription = lock_subscription(session, subscription_id)
                hold_subscription(session, subscription, parts.clock.now(), reason, HoldKind.ERROR)
                subscription.calendar_over = True  # not looked at again before a person has
            log.error("subscription.held", subscription=subscription_id, error=reason)
    return ended


def _over(parts: Parts) -> Iterator[str]:
    page = [""]
    while page:
        with parts.reading() as session:
            page = queries.subscriptions_over(session, parts.clock.now(), page[-1], AT_ONCE)
        yield from page
