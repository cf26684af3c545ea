"""The token store: what Xendit says of a saved payment method, and what follows for whoever was waiting for one."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session

from billing.domain.gateway import TokenReport
from billing.domain.lifecycle import (
    BILLABLE,
    DEAD_TOKENS,
    AttemptStatus,
    InvoiceStatus,
    TokenStatus,
)
from billing.errors import Conflict, GatewayError, NotFound
from billing.services.invoices import schedule_attempt
from billing.services.parts import Parts, tell
from billing.services.subscriptions import lock_subscriptions_of
from billing.store.models import (
    ChargeAttempt,
    Customer,
    Invoice,
    PaymentToken,
    Subscription,
    new_id,
)

VERIFY_LATER = timedelta(minutes=1)


def apply_token(session: Session, customer: Customer, report: TokenReport, now: datetime) -> PaymentToken:
    """Store or update a token. An older report never undoes a newer one; a final status never comes back.

    When the token becomes ACTIVE, unpaid invoices of the customer that wait for a payment method are tried with it.
    """
    lock_subscriptions_of(session, customer.id)
    token = session.scalar(select(PaymentToken).where(PaymentToken.payment_token_id == report.payment_token_id))
    if token is None:
        token = _new_token(session, customer, report, now)
    elif _is_stale(token, report):
        return token
    became_active = token.status != TokenStatus.ACTIVE and report.status == TokenStatus.ACTIVE
    _copy(token, report)
    session.flush()
    if became_active:
        token.blocked_reason = None  # the customer has entered the card again: it may be tried
        _use_for_waiting_invoices(session, customer.id, token, now)
    return token


def _new_token(session: Session, customer: Customer, report: TokenReport, now: datetime) -> PaymentToken:
    last = session.scalar(select(func.max(PaymentToken.rank)).where(PaymentToken.customer_id == customer.id))
    token = PaymentToken(
        id=new_id("tok"),
        payment_token_id=report.payment_token_id,
        customer_id=customer.id,
        status=TokenStatus.PENDING,
        channel_code=report.channel_code or "UNKNOWN",
        rank=(last or 0) + 1,
        created_at=now,
    )
    session.add(token)
    return token


def _is_stale(token: PaymentToken, report: TokenReport) -> bool:
    if token.status in DEAD_TOKENS and report.status not in DEAD_TOKENS:
        return True
    known, told = token.gateway_updated_at, report.updated_at
    return known is not None and told is not None and told < known


def _copy(token: PaymentToken, report: TokenReport) -> None:
    """Members an event leaves out keep what we know: card details are only in the activation."""
    token.status = report.status
    token.channel_code = report.channel_code or token.channel_code
    token.card_last4 = report.card_last4 or token.card_last4
    token.card_expiry = report.card_expiry or token.card_expiry
    token.network = report.network or token.network
    token.card_type = report.card_type or token.card_type
    token.issuer = report.issuer or token.issuer
    token.fingerprint = report.fingerprint or token.fingerprint
    token.failure_code = report.failure_code or token.failure_code
    token.gateway_updated_at = report.updated_at or token.gateway_updated_at


def _use_for_waiting_invoices(session: Session, customer_id: str, token: PaymentToken, now: datetime) -> None:
    waits_for_action = exists().where(
        ChargeAttempt.invoice_id == Invoice.id, ChargeAttempt.status == AttemptStatus.REQUIRES_ACTION
    )
    waiting = (
        select(Subscription.id, Invoice.id)
        .join(Invoice, Invoice.subscription_id == Subscription.id)
        .where(
            Subscription.customer_id == customer_id,
            Subscription.status.in_(BILLABLE),
            Invoice.status == InvoiceStatus.OPEN,
            or_(Invoice.first_failed_at.is_not(None), waits_for_action),
            Invoice.hold_reason.is_(None),
        )
        .order_by(Subscription.id, Invoice.period_index)
    )
    for subscription_id, invoice_id in session.execute(waiting).all():
        invoice = session.get_one(Invoice, invoice_id, populate_existing=True)
        _supersede_action(session, invoice, now)
        if invoice.status != InvoiceStatus.OPEN:
            continue
        replaced = take_planned(session, invoice, now)
        if not may_still_move_money(session, invoice):
            schedule_attempt(session, invoice, now, origin="new_token", payment_token_id=token.id, replaces_at=replaced)
            tell(session, subscription_id, now, "customer.new_method", token=token.id, invoice=invoice.number)


def _supersede_action(session: Session, invoice: Invoice, now: datetime) -> None:
    """What waits for the customer's 3DS is canceled at Xendit first; the retry that follows takes the new token."""
    query = select(ChargeAttempt).where(
        ChargeAttempt.invoice_id == invoice.id, ChargeAttempt.status == AttemptStatus.REQUIRES_ACTION
    )
    for attempt in session.scalars(query):
        attempt.cancel_wanted = True
        attempt.next_check_at = now


def may_still_move_money(session: Session, invoice: Invoice) -> bool:
    """Whether an attempt is under way whose end is not known yet. One that is merely planned does not count."""
    under_way = select(ChargeAttempt.id).where(
        ChargeAttempt.invoice_id == invoice.id,
        ChargeAttempt.status.in_(
            {
                AttemptStatus.SUBMITTED,
                AttemptStatus.PENDING,
                AttemptStatus.REQUIRES_ACTION,
                AttemptStatus.IN_DOUBT,
            }
        ),
    )
    return session.scalar(under_way.limit(1)) is not None


def take_planned(session: Session, invoice: Invoice, now: datetime) -> datetime | None:
    """Withdraw the planned retry in favour of one now. Its time is kept: the ladder is not used up by hand (U1).
    Afterwards ask `may_still_move_money`: a worker may have begun it a moment ago."""
    planned = session.scalar(
        select(ChargeAttempt)
        .where(ChargeAttempt.invoice_id == invoice.id, ChargeAttempt.status == AttemptStatus.SCHEDULED)
        .with_for_update()
    )
    if planned is None:
        return None
    planned.status = AttemptStatus.CANCELED
    planned.settled_at = now
    planned.lease_until = None
    planned.error = "replaced by an attempt now"
    session.flush()
    return planned.replaces_at or planned.scheduled_at


def refresh_token(parts: Parts, payment_token_id: str) -> PaymentToken:
    """Ask Xendit about one token and store what it says. Raises NotFound, GatewayError.

    A token Xendit does not know is marked FAILED here: it can never be charged with this key.
    """
    try:
        report = parts.gateway.get_token(payment_token_id)
    except NotFound:
        report = TokenReport(payment_token_id, TokenStatus.FAILED, failure_code="DATA_NOT_FOUND")
    now = parts.clock.now()
    with parts.transaction() as session:
        token = session.scalar(select(PaymentToken).where(PaymentToken.payment_token_id == payment_token_id))
        if token is None:
            raise NotFound(f"no token {payment_token_id}; see `billing token list --customer C`")
        return apply_token(session, session.get_one(Customer, token.customer_id), report, now)


def verify_for_charge(parts: Parts, payment_token_id: str) -> bool:
    """Before the first charge of a token we were only told of. False: Xendit could not be asked, try later."""
    try:
        refresh_token(parts, payment_token_id)
    except GatewayError:
        return False
    return True


def make_first(session: Session, token: PaymentToken) -> None:
    """The first to be charged from now on, for the customer and for each of his subscriptions."""
    if token.status != TokenStatus.ACTIVE:
        raise Conflict(f"token {token.id} is {token.status}; only an ACTIVE token can be preferred")
    lowest = session.scalar(select(func.min(PaymentToken.rank)).where(PaymentToken.customer_id == token.customer_id))
    token.rank = (lowest or 0) - 1
    for subscription in lock_subscriptions_of(session, token.customer_id):
        subscription.payment_token_id = token.id
