"""`billing invoice pay`: an extra attempt now, by an operator. It does not use up the retry ladder."""

from __future__ import annotations

from sqlalchemy import update

from billing.charging.tokens import may_still_move_money, take_planned, why_not_by_name
from billing.domain.lifecycle import BILLABLE, AttemptStatus, HoldKind, InvoiceStatus
from billing.errors import Conflict, IllegalTransition
from billing.parts import Parts, tell
from billing.store import queries, run_queries, which_database
from billing.store.clock import real_now
from billing.store.models import ChargeAttempt, Invoice, PaymentToken
from billing.subscriptions.invoices import move_invoice, release_invoice, schedule_attempt
from billing.subscriptions.moves import lock_subscription


def pay_invoice(parts: Parts, invoice_id: str, token_id: str | None) -> str:
    """Plan an attempt for now and return its id, leased to the caller who will send or do it.

    A planned retry gives way and is planned again should this one fail. Raises Conflict while another attempt could
    still move money, IllegalTransition when the invoice or its subscription takes no charge.
    """
    now = parts.clock.now()
    with parts.transaction() as session:
        which_database.refuse_a_copy(session)
        invoice = session.get_one(Invoice, invoice_id)
        subscription = lock_subscription(session, invoice.subscription_id)
        session.refresh(invoice)
        stop = run_queries.charging_stop_reason(session)
        if stop is not None:
            raise Conflict(f"charging is stopped: {stop}; put it right, then `billing charging resume`")
        if subscription.status not in BILLABLE:
            raise IllegalTransition(
                f"cannot charge invoice {invoice.number}: the subscription is {subscription.status}"
            )
        if invoice.status == InvoiceStatus.UNCOLLECTIBLE:
            move_invoice(invoice, InvoiceStatus.OPEN, now)
        if invoice.status != InvoiceStatus.OPEN:
            raise IllegalTransition(f"cannot charge invoice {invoice.number}: it is {invoice.status}")
        if token_id is None and subscription.hold_kind == HoldKind.TOKEN_UNKNOWN:
            raise Conflict(f"cannot charge invoice {invoice.number}: {subscription.hold_reason}")
        replaced = take_planned(session, invoice, now)
        if may_still_move_money(session, invoice):
            raise Conflict(
                f"invoice {invoice.number} has an attempt whose end is not known yet;"
                f" see `billing invoice show {invoice.number}`, or `billing reconcile` to look it up now"
            )
        if token_id is not None:
            why = why_not_by_name(session.get_one(PaymentToken, token_id), subscription.customer_id)
            if why is not None:
                raise Conflict(why)
        release_invoice(invoice)
        attempt = schedule_attempt(
            session, invoice, now, origin="operator", payment_token_id=token_id, replaces_at=replaced
        )
        tell(session, subscription.id, now, "invoice.pay_asked", invoice=invoice.number, attempt=attempt.id)
        session.execute(
            update(ChargeAttempt)
            .where(ChargeAttempt.id == attempt.id, ChargeAttempt.status == AttemptStatus.SCHEDULED)
            .values(lease_until=real_now() + queries.CLAIM_LEASE)
        )
        return attempt.id
