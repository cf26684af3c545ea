"""What becomes of a payment session: completed, expired, canceled; told by an event, or asked for by GET.

Called by webhooks, the command line, the return page and the scheduler's look-ups. Opening one: payment_sessions.py.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.charging.look_up import find_charge
from billing.charging.settle import settle_attempt
from billing.charging.tokens import apply_token, read_token, saved_by_customer
from billing.domain.gateway import ChargeReport, SessionReport, SessionType, TokenReport
from billing.domain.lifecycle import (
    DEAD_TOKENS,
    AttemptStatus,
    SessionStatus,
    SubscriptionStatus,
    TokenStatus,
)
from billing.errors import Conflict, GatewayError, NotFound
from billing.parts import Parts, Rules, tell
from billing.store.models import (
    ChargeAttempt,
    Customer,
    Invoice,
    PaymentSession,
    PaymentToken,
    Plan,
    Subscription,
)
from billing.subscriptions.invoices import close_if_ended, move_attempt
from billing.subscriptions.moves import activate, lock_subscription, lock_subscriptions_of

CHECK_AFTER_COMPLETION = timedelta(minutes=1)
ASK_FORGOTTEN_AGAIN = timedelta(days=1)
FORGOTTEN_FOR_GOOD = timedelta(days=7)  # after a session's end
TOKEN_FOR_GOOD = timedelta(days=30)  # after a session's beginning


def refresh_session(parts: Parts, session_id: str) -> PaymentSession:
    """Read the session, the token it saved and the payment it collected from Xendit and apply what they say, as their
    webhooks would."""
    with parts.reading() as session:
        row = session.get_one(PaymentSession, session_id)
    if row.xendit_session_id is None:
        raise Conflict(f"session {session_id} was never opened at Xendit; start again with `billing session create`")
    report = parts.gateway.get_session(row.xendit_session_id)
    token: TokenReport | None = None
    if report.payment_token_id is not None:
        token = read_token(parts.gateway, report.payment_token_id)
    payment = _payment_of(parts, row, report)
    now = parts.clock.now()
    with parts.transaction() as session:
        row = session.get_one(PaymentSession, session_id)
        if token is not None:
            customer = session.get_one(Customer, row.customer_id)
            apply_token(session, customer, token, now, asked=True, key=parts.key_fingerprint)
        apply_session(session, row, report, now)
        if payment is not None:
            _settle_payment(session, row, payment, now, parts.rules)
        if row.status != SessionStatus.ACTIVE:
            row.next_check_at = _next_token_check(row, token, now)
        elif not _is_to_be_ended(session, row):
            row.next_check_at = next_session_check(row, now)
    return row


def _payment_of(parts: Parts, row: PaymentSession, report: SessionReport) -> ChargeReport | None:
    """What the session has collected, when it names a payment. None when that cannot be read now: its look-up is
    planned, as for every session that has ended."""
    if row.type != SessionType.PAY or report.status != SessionStatus.COMPLETED:
        return None
    try:
        if report.payment_request_id is not None:
            return find_charge(parts, report.payment_request_id)
        if report.payment_id is not None:
            return parts.gateway.get_payment(report.payment_id)
    except (NotFound, GatewayError):
        return None
    return None


def _settle_payment(session: Session, row: PaymentSession, payment: ChargeReport, now: datetime, rules: Rules) -> None:
    attempt = session.scalar(select(ChargeAttempt.id).where(ChargeAttempt.reference_id == row.reference_id))
    if attempt is not None:
        settle_attempt(session, attempt, payment, now, rules, source="lookup")


def _next_token_check(row: PaymentSession, token: TokenReport | None, now: datetime) -> datetime | None:
    """It has ended with a token that Xendit does not call ACTIVE yet, or does not know: its event may be lost too."""
    if token is None or token.status in (TokenStatus.ACTIVE, *DEAD_TOKENS) or now > row.created_at + TOKEN_FOR_GOOD:
        return None
    return now + min(max((now - row.created_at) / 2, CHECK_AFTER_COMPLETION), ASK_FORGOTTEN_AGAIN)


def _is_to_be_ended(session: Session, row: PaymentSession) -> bool:
    """Its subscription has been canceled meanwhile: the look that was planned for that stays planned."""
    subscription = session.get(Subscription, row.subscription_id) if row.subscription_id else None
    return _has_no_use(row, subscription)


def _has_no_use(row: PaymentSession, subscription: Subscription | None) -> bool:
    """Nothing may be paid through its link any more: the subscription has ended, or its first period is paid."""
    if subscription is None:
        return False
    begun = row.type == SessionType.PAY and subscription.status != SubscriptionStatus.INCOMPLETE
    return begun or subscription.status == SubscriptionStatus.CANCELED


def follow_session(parts: Parts, session_id: str) -> None:
    """A look at a session is due: ask Xendit about it. One whose subscription has been canceled is ended there, and so
    is one that never got a link, because whoever opened it died before Xendit's answer."""
    with parts.reading() as session:
        row = session.get_one(PaymentSession, session_id)
        subscription = session.get(Subscription, row.subscription_id) if row.subscription_id else None
    if row.status == SessionStatus.ACTIVE and (_has_no_use(row, subscription) or row.xendit_session_id is None):
        cancel_session(parts, session_id)
        return
    try:
        refresh_session(parts, session_id)
    except NotFound:
        if parts.clock.now() < row.expires_at:
            raise
        with parts.transaction() as session:
            # Xendit has forgotten it, and its time is over: nobody can use its link any more.
            gone = SessionReport(row.id, row.reference_id, row.type, SessionStatus.EXPIRED)
            row = session.get_one(PaymentSession, session_id)
            now = parts.clock.now()
            apply_session(session, row, gone, now)
            # Or the key is another account's, and the customer has completed it: asked for some days more.
            again = now < row.expires_at + FORGOTTEN_FOR_GOOD
            row.next_check_at = now + ASK_FORGOTTEN_AGAIN if again else None


def cancel_session(parts: Parts, session_id: str) -> PaymentSession:
    """Ends a session at Xendit; nobody can pay through its link any more. Xendit sends no event for it."""
    with parts.reading() as session:
        row = session.get_one(PaymentSession, session_id)
    if row.status != SessionStatus.ACTIVE:
        raise Conflict(f"session {session_id} is {row.status}; only an ACTIVE session can be canceled")
    if row.xendit_session_id is not None:
        report = parts.gateway.cancel_session(row.xendit_session_id)
    else:
        report = SessionReport(session_id, row.reference_id, row.type, SessionStatus.CANCELED)
    with parts.transaction() as session:
        row = session.get_one(PaymentSession, session_id)
        apply_session(session, row, report, parts.clock.now())
    return row


def next_session_check(row: PaymentSession, now: datetime) -> datetime:
    """The webhooks normally tell. Should they be lost, the session is asked about after 10 minutes, an hour, and when
    it must have ended."""
    steps = (row.created_at + timedelta(hours=1), row.expires_at + timedelta(minutes=2))
    return next((step for step in steps if step > now), now + timedelta(hours=1))


# ---------------------------------------------------------------------------------- what Xendit tells of it


def apply_session(session: Session, row: PaymentSession, report: SessionReport, now: datetime) -> None:
    """`payment_session.completed` is the authoritative link between session, token, payment and customer."""
    # Locks first, in the one order all take them; then the row as it is now.
    lock_subscriptions_of(session, row.customer_id)
    session.refresh(row)
    if report.session_id != row.id:  # which is what stands in for a session that was never opened
        row.xendit_session_id = row.xendit_session_id or report.session_id
    saves_another = report.payment_token_id not in (None, row.payment_token_id)
    row.payment_token_id = report.payment_token_id or row.payment_token_id
    row.payment_request_id = report.payment_request_id or row.payment_request_id
    row.payment_id = report.payment_id or row.payment_id
    if report.status == SessionStatus.COMPLETED:
        _session_completed(session, row, now, saves_another=saves_another)
    elif report.status in (SessionStatus.EXPIRED, SessionStatus.CANCELED) and row.status == SessionStatus.ACTIVE:
        session_over(session, row, SessionStatus(report.status), now)


def _session_completed(session: Session, row: PaymentSession, now: datetime, *, saves_another: bool) -> None:
    first_time = row.status != SessionStatus.COMPLETED
    row.status = SessionStatus.COMPLETED
    if first_time:
        row.next_check_at = None
    subscription = lock_subscription(session, row.subscription_id) if row.subscription_id else None
    if row.payment_token_id is not None:
        token = _token_of_session(session, row, now)
        link_token(session, row, token, now, is_news=saves_another)
    elif first_time and subscription is not None:
        # PAY with optional or disabled saving: paid, but nothing to renew with.
        tell(session, subscription.id, now, "customer.asked", reason="no payment method was saved", session=row.id)
    if row.type == SessionType.PAY and row.payment_request_id is not None:
        _look_up_payment_soon(session, row, now)


def _token_of_session(session: Session, row: PaymentSession, now: datetime) -> PaymentToken:
    """The token the session names. When its own event is late it is stored as PENDING: charged only once a GET or
    the event has said ACTIVE."""
    query = select(PaymentToken).where(PaymentToken.payment_token_id == row.payment_token_id)
    token = session.scalar(query)
    if token is None and row.payment_token_id is not None:
        customer = session.get_one(Customer, row.customer_id)
        pending = TokenReport(row.payment_token_id, TokenStatus.PENDING)
        token = apply_token(session, customer, pending, now)
        row.next_check_at = now + CHECK_AFTER_COMPLETION
    assert token is not None  # noqa: S101 - payment_token_id is set: callers ask only then
    return token


def link_token(
    session: Session, row: PaymentSession, token: PaymentToken, now: datetime, *, is_news: bool = False
) -> None:
    """The token of a session belongs to the session's subscription; with a SAVE session it starts the subscription.
    `is_news`: until now the session was not known to have saved it."""
    is_news = is_news or row.payment_token_id != token.payment_token_id
    row.payment_token_id = token.payment_token_id
    if token.status != TokenStatus.ACTIVE:
        return
    if is_news:
        saved_by_customer(session, token, now)
    if row.subscription_id is None:
        return
    subscription = lock_subscription(session, row.subscription_id)
    waits = subscription.status == SubscriptionStatus.INCOMPLETE and row.type == SessionType.SAVE
    if subscription.status == SubscriptionStatus.CANCELED or (subscription.payment_token_id == token.id and not waits):
        return
    subscription.payment_token_id = token.id
    tell(session, subscription.id, now, "token.saved", token=token.id, channel=token.channel_code)
    if row.type == SessionType.SAVE:
        activate(session, subscription, session.get_one(Plan, subscription.plan_id), now)


def _look_up_payment_soon(session: Session, row: PaymentSession, now: datetime) -> None:
    """The capture has its own event; should that be late, the attempt is looked up by the id the session names."""
    attempt = session.scalar(select(ChargeAttempt).where(ChargeAttempt.reference_id == row.reference_id))
    if attempt is not None and attempt.status in (AttemptStatus.PENDING, AttemptStatus.CANCELED):
        attempt.payment_request_id = attempt.payment_request_id or row.payment_request_id
        attempt.payment_id = attempt.payment_id or row.payment_id
        # Told once more, the look that is planned stays planned.
        attempt.next_check_at = min(attempt.next_check_at or now + CHECK_AFTER_COMPLETION, now + CHECK_AFTER_COMPLETION)


def session_over(session: Session, row: PaymentSession, status: SessionStatus, now: datetime) -> None:
    """Expired or canceled: the subscription stays `incomplete`; `billing session create` starts again."""
    if row.subscription_id is None:
        row.status, row.next_check_at = status, None
        return
    subscription = lock_subscription(session, row.subscription_id)
    row.status, row.next_check_at = status, None
    attempt = session.scalar(select(ChargeAttempt).where(ChargeAttempt.reference_id == row.reference_id))
    if attempt is not None and attempt.status == AttemptStatus.PENDING:
        move_attempt(attempt, AttemptStatus.CANCELED, now)
        attempt.error = f"the payment session is {status}"
        session.flush()
        close_if_ended(session, subscription, [session.get_one(Invoice, attempt.invoice_id)], now)
    tell(session, subscription.id, now, f"session.{status.lower()}", session=row.id)


def cancel_open_sessions(parts: Parts, subscription_id: str) -> None:
    """A canceled subscription's links must not take money any more. What cannot be canceled now expires by itself,
    and money that still comes is given back."""
    with parts.reading() as session:
        query = select(PaymentSession.id).where(
            PaymentSession.subscription_id == subscription_id, PaymentSession.status == SessionStatus.ACTIVE
        )
        open_ids = list(session.scalars(query))
    for session_id in open_ids:
        try:
            cancel_session(parts, session_id)
        except (GatewayError, NotFound, Conflict):
            continue
