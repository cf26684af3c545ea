"""Whose is it? Finding what a token or payment event of Xendit belongs to (its order: docs/xendit.md)."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.domain.gateway import ChargeReport, TokenReport
from billing.domain.lifecycle import SessionStatus
from billing.store.models import Customer, PaymentSession


def match_session(session: Session, report: TokenReport | ChargeReport) -> PaymentSession | None:
    """Which session a token or payment event was born from. Session-born events carry no session id and a suffix on
    our reference. In order: an id we know, the exact reference, the reference without its last `_...`, the customer
    with exactly one open session."""
    known = []
    if report.payment_token_id is not None:
        known.append(PaymentSession.payment_token_id == report.payment_token_id)
    if isinstance(report, ChargeReport) and report.payment_request_id is not None:
        known.append(PaymentSession.payment_request_id == report.payment_request_id)
    for condition in known:
        row = session.scalar(select(PaymentSession).where(condition).limit(1))
        if row is not None:
            return row
    for reference in references_of(report.reference_id):
        row = session.scalar(select(PaymentSession).where(PaymentSession.reference_id == reference))
        if row is not None:
            return row
    return _only_open_session(session, report.customer_id) if isinstance(report, TokenReport) else None


def references_of(reference_id: str | None) -> list[str]:
    """The reference as printed, and without the suffix Xendit puts on session-born ones."""
    if not reference_id:
        return []
    return [reference_id, reference_id.rpartition("_")[0]] if "_" in reference_id else [reference_id]


def _only_open_session(session: Session, xendit_customer_id: str | None) -> PaymentSession | None:
    if xendit_customer_id is None:
        return None
    query = (
        select(PaymentSession)
        .join(Customer, Customer.id == PaymentSession.customer_id)
        .where(Customer.xendit_customer_id == xendit_customer_id, PaymentSession.status == SessionStatus.ACTIVE)
        .limit(2)
    )
    rows = session.scalars(query).all()
    return rows[0] if len(rows) == 1 else None


def customer_by_xendit_id(session: Session, xendit_customer_id: str | None) -> Customer | None:
    if xendit_customer_id is None:
        return None
    return session.scalar(select(Customer).where(Customer.xendit_customer_id == xendit_customer_id))
