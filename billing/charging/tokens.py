"""The token store: what Xendit says of a saved payment method, and what follows for whoever was waiting for one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from sqlalchemy import ColumnElement, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from billing.domain.declines import DECLINES
from billing.domain.gateway import PaymentGateway, TokenReport
from billing.domain.lifecycle import (
    BILLABLE,
    DEAD_TOKENS,
    AttemptStatus,
    HoldKind,
    InvoiceStatus,
    SubscriptionStatus,
    TokenStatus,
)
from billing.errors import Conflict, GatewayError, NotFound, RequestRejected
from billing.parts import Parts, tell
from billing.store import queries
from billing.store.models import (
    ChargeAttempt,
    Customer,
    Invoice,
    PaymentSession,
    PaymentToken,
    Subscription,
    new_id,
)
from billing.subscriptions.invoices import has_unfinished_attempt, schedule_attempt, withdraw
from billing.subscriptions.moves import lock_subscriptions_of

ASK_UNKNOWN_AGAIN = timedelta(days=1)
RIGHT_KEY = "check that BILLING_XENDIT_SECRET_KEY belongs to the same account and mode (test or live)"
ANOTHER_CUSTOMER = "ANOTHER_CUSTOMER"  # at Xendit it belongs to somebody else: charging it would take his money
OUR_GUESS = "DATA_NOT_FOUND"  # with FAILED: written by release 0.1 for a token that Xendit did not know

log = structlog.get_logger()


def apply_token(
    session: Session,
    customer: Customer,
    report: TokenReport,
    now: datetime,
    *,
    asked: bool = False,
    key: str | None = None,
) -> PaymentToken:
    """Store or update a token. An older report never undoes a newer one; a final status of Xendit's never comes back.

    When the token becomes ACTIVE, unpaid invoices of the customer that wait for a payment method are tried with it.
    `asked`: it is Xendit's answer to us, not an event. Only that can say that the key in use knows the token.
    `key`: the fingerprint of that key.
    """
    subscriptions = lock_subscriptions_of(session, customer.id)
    token = session.scalar(select(PaymentToken).where(PaymentToken.payment_token_id == report.payment_token_id))
    if token is None:
        token = _new_token(session, customer, report, now)
    waited = token.unknown_since is not None or any(each.hold_kind == HoldKind.TOKEN_UNKNOWN for each in subscriptions)
    if report.unknown:
        _note_unknown(token, now, key)
    elif waited and not asked and token.unknown_since is not None and report.status not in DEAD_TOKENS:
        token.next_check_at = now  # somebody's key knows it: is it ours?
        return token
    else:
        token.unknown_since = token.next_check_at = token.unknown_to_key = None
        foreign = asked and _is_somebody_elses(token, customer, report)
        _apply_known(session, customer.id, token, report, now, foreign=foreign)
    session.flush()
    if report.unknown:
        _hold_those_without_another(session, subscriptions, customer.id, now)
    elif waited:
        release_when_known(session, customer.id, now)
    return token


def _is_somebody_elses(token: PaymentToken, customer: Customer, report: TokenReport) -> bool:
    """An import has given it to a customer whom Xendit knows by another id than its owner. Told at its first answer:
    what a customer has saved since is his."""
    never_verified = token.status == TokenStatus.PENDING and token.gateway_updated_at is None
    known = None not in (report.customer_id, customer.xendit_customer_id)
    return never_verified and known and report.customer_id != customer.xendit_customer_id


def _apply_known(
    session: Session, customer_id: str, token: PaymentToken, report: TokenReport, now: datetime, *, foreign: bool
) -> None:
    if _is_stale(token, report):
        return
    guessed = _is_our_guess(token)
    became_active = token.status != TokenStatus.ACTIVE and report.status == TokenStatus.ACTIVE
    if guessed:
        token.failure_code = None
    _copy(token, report)
    if foreign:
        token.blocked_reason = ANOTHER_CUSTOMER
        log.error("token.another_customer", token=token.id, owner=report.customer_id)
    session.flush()
    if became_active and not foreign:
        if not guessed:
            token.blocked_reason = None  # the customer has entered the card again: it may be tried
        saved = exists().where(PaymentSession.payment_token_id == token.payment_token_id)
        if session.scalar(select(saved)):
            put_first_if_unpaid(session, token, now)
        _use_for_waiting_invoices(session, customer_id, token, now)


class HasStatus(Protocol):
    """A token, as the table has it or as an import has read it."""

    status: str
    failure_code: str | None


def has_ended(token: HasStatus | PaymentToken) -> bool:
    """Xendit has said that it will never be chargeable again."""
    return token.status in DEAD_TOKENS and not _is_our_guess(token)


def _is_our_guess(token: HasStatus | PaymentToken) -> bool:
    return token.status == TokenStatus.FAILED and token.failure_code == OUR_GUESS


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
    if has_ended(token) and report.status not in DEAD_TOKENS:
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


def _waiting_for_method(session: Session, customer_id: str) -> list[Invoice]:
    waits_for_action = exists().where(
        ChargeAttempt.invoice_id == Invoice.id, ChargeAttempt.status == AttemptStatus.REQUIRES_ACTION
    )
    waiting = (
        select(Invoice)
        .join(Subscription, Invoice.subscription_id == Subscription.id)
        .where(
            Subscription.customer_id == customer_id,
            Subscription.status.in_(BILLABLE),
            Invoice.status == InvoiceStatus.OPEN,
            or_(Invoice.first_failed_at.is_not(None), waits_for_action),
            Invoice.hold_reason.is_(None),
        )
        .order_by(Subscription.id, Invoice.period_index)
        .execution_options(populate_existing=True)
    )
    return list(session.scalars(waiting))


def _use_for_waiting_invoices(session: Session, customer_id: str, token: PaymentToken, now: datetime) -> None:
    for invoice in _waiting_for_method(session, customer_id):
        _supersede_action(session, invoice, now)
        if invoice.status != InvoiceStatus.OPEN:
            continue
        replaced = take_planned(session, invoice, now)
        if not may_still_move_money(session, invoice):
            schedule_attempt(session, invoice, now, origin="new_token", payment_token_id=token.id, replaces_at=replaced)
            subscription_id = invoice.subscription_id
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
    withdraw(session, planned, now, "replaced by an attempt now")
    return planned.replaces_at or planned.scheduled_at


# ----------------------------------------------------------------------------- a token that Xendit does not know


NO_ID_OF_XENDITS = "API_VALIDATION_ERROR"  # a typing error in an import: Xendit has no such token either


def read_token(gateway: PaymentGateway, payment_token_id: str) -> TokenReport:
    """What Xendit says of a token; that it does not know it is one of the things it can say. Raises GatewayError."""
    try:
        return gateway.get_token(payment_token_id)
    except NotFound:
        return TokenReport(payment_token_id, TokenStatus.PENDING, unknown=True)
    except RequestRejected as error:
        if error.error_code != NO_ID_OF_XENDITS:
            raise
        return TokenReport(payment_token_id, TokenStatus.PENDING, unknown=True)


def _note_unknown(token: PaymentToken, now: datetime, key: str | None) -> None:
    """Not declared dead: the key in use may be another account's, or the other mode's. Nothing else is changed."""
    if has_ended(token):
        return
    if token.unknown_since is None:
        log.warning("token.unknown", token=token.id, check=RIGHT_KEY)
    token.unknown_since = token.unknown_since or now
    token.unknown_to_key = key
    token.next_check_at = now + ASK_UNKNOWN_AGAIN


def unknown_in_words(token: PaymentToken) -> str:
    return (
        f"Xendit does not know payment token {token.id} with the key in use: {RIGHT_KEY},"
        f" then `billing token refresh {token.id}`"
    )


def waits_for_token(customer_id: str) -> str:
    return f"token:{customer_id}"


def _alive(session: Session, customer_id: str) -> list[PaymentToken]:
    """Those that we may come to charge by ourselves."""
    query = select(PaymentToken).where(
        PaymentToken.customer_id == customer_id,
        PaymentToken.blocked_reason.is_(None),
        PaymentToken.replaced_at.is_(None),
        PaymentToken.status.not_in(DEAD_TOKENS),
    )
    return list(session.scalars(query.order_by(PaymentToken.rank)))


def _hold_those_without_another(
    session: Session, subscriptions: Sequence[Subscription], customer_id: str, now: datetime
) -> None:
    """Billing waits, unless there is another payment method that is, or may soon be, ACTIVE."""
    alive = _alive(session, customer_id)
    known = [token for token in alive if token.unknown_since is None and token.status != TokenStatus.REQUIRES_ACTION]
    if known or not any(token.unknown_since is not None for token in alive):
        return
    for subscription in subscriptions:
        if subscription.status in BILLABLE:
            hold_while_unknown(session, subscription, now)


def hold_while_unknown(session: Session, subscription: Subscription, now: datetime) -> str | None:
    """Nothing of it is opened or charged, and nobody is dunned, until Xendit knows its payment method (or another is
    saved). Returns why. The subscription is locked. A hold of another kind gives way: it comes again if it is needed.

    None when there is no such payment method any more: a card is blocked under all its tokens without that lock.
    """
    unknown = [token for token in _alive(session, subscription.customer_id) if token.unknown_since is not None]
    if not unknown:
        return None
    reason = unknown_in_words(unknown[0])
    if subscription.hold_reason is not None and subscription.hold_kind in (HoldKind.TOKEN_UNKNOWN, HoldKind.ERROR):
        return reason
    subscription.hold_kind, subscription.hold_reason = HoldKind.TOKEN_UNKNOWN, reason
    for token in unknown:
        asked_just_now = token.next_check_at is not None and token.next_check_at > now + ASK_UNKNOWN_AGAIN / 2
        token.next_check_at = token.next_check_at if asked_just_now else now
    tell(session, subscription.id, now, "subscription.held", reason=reason)
    log.error("subscription.held", subscription=subscription.id, error=reason)
    return reason


def release_when_known(session: Session, customer_id: str, now: datetime) -> None:
    """Ends the hold once Xendit has said of every token what it is, or another one is ACTIVE: attempts go on, and over
    what was missed the plan's catch-up policy decides. Nobody has approved anything by that."""
    alive = _alive(session, customer_id)
    active = [token for token in alive if token.unknown_since is None and token.status == TokenStatus.ACTIVE]
    if not active and any(token.unknown_since is not None for token in alive):
        return
    for subscription in lock_subscriptions_of(session, customer_id):
        if subscription.hold_kind == HoldKind.TOKEN_UNKNOWN:
            held_because = subscription.hold_reason
            tell(session, subscription.id, now, "subscription.released", held_because=held_because, by_itself=True)
            subscription.hold_kind = subscription.hold_reason = None
    session.flush()
    queries.unpark(session, waits_for_token(customer_id))


def refresh_token(parts: Parts, payment_token_id: str) -> PaymentToken:
    """Ask Xendit about one token and store what it says. Raises NotFound (no such token here), GatewayError."""
    return keep_report(parts, read_token(parts.gateway, payment_token_id))


def keep_report(parts: Parts, report: TokenReport) -> PaymentToken:
    """What Xendit has just answered about a token of ours. Raises NotFound (no such token here)."""
    is_news = not report.unknown and parts.acquaintance.make()
    now = parts.clock.now()
    with parts.transaction() as session:
        if is_news:
            queries.forget_denied(session, parts.key_fingerprint)
        token = session.scalar(select(PaymentToken).where(PaymentToken.payment_token_id == report.payment_token_id))
        if token is None:
            raise NotFound(f"no token {report.payment_token_id}; see `billing token list --customer C`")
        customer = session.get_one(Customer, token.customer_id)
        return apply_token(session, customer, report, now, asked=True, key=parts.key_fingerprint)


def follow_token(parts: Parts, token_id: str) -> None:
    """A look at a token that Xendit did not know, or was not asked about yet, is due. When Xendit does not answer it is
    asked again soon."""
    with parts.reading() as session:
        token = session.get(PaymentToken, token_id)
    if token is None or token.next_check_at is None:
        return
    try:
        refresh_token(parts, token.payment_token_id)
    except GatewayError as error:
        log.warning("token.check_failed", token=token_id, error=str(error))


def verify_for_charge(parts: Parts, payment_token_id: str) -> PaymentToken | None:
    """Before the first charge of a token we were only told of. None: Xendit could not be asked, try later."""
    try:
        return refresh_token(parts, payment_token_id)
    except GatewayError:
        return None


# ----------------------------------------------------------------------------------- what a person may undo


def not_charged_because(token: PaymentToken) -> str | None:
    """What we, and not Xendit, keep a token from being charged for; None when it is nothing."""
    if token.blocked_reason is not None:
        return f"blocked after {token.blocked_reason}"
    if _is_our_guess(token):
        return "taken for dead, because Xendit did not know it once"
    if token.unknown_since is not None:
        return "Xendit does not know it with the key in use"
    if token.replaced_at is not None:
        return "declined, and replaced by the customer"
    return None


def unblock(session: Session, token: PaymentToken, now: datetime) -> list[str]:
    """Undoes by hand all that keeps us from charging it, and tries what waits for a payment method. Returns what was
    undone. Raises Conflict when there is nothing, or when it was Xendit that ended it."""
    subscriptions = lock_subscriptions_of(session, token.customer_id)
    session.refresh(token)
    owner = session.get_one(Customer, token.customer_id)
    if has_ended(token):
        raise Conflict(
            f"token {token.id} is {token.status} at Xendit, which is for good;"
            f" `billing session create {owner.reference}` makes a link for another payment method"
        )
    undone: list[str] = []
    while (why := not_charged_because(token)) is not None:
        undone.append(why)
        _undo_one(token)
    if not undone:
        raise Conflict(f"token {token.id} is {token.status} and not blocked: there is nothing to undo")
    session.flush()
    release_when_known(session, token.customer_id, now)
    for subscription in subscriptions:
        tell(session, subscription.id, now, "token.unblocked", token=token.id, undone=" and ".join(undone))
    for invoice in _waiting_for_method(session, token.customer_id):
        if not has_unfinished_attempt(session, invoice.id):
            schedule_attempt(session, invoice, now, origin="operator", payment_token_id=token.id)
    return undone


def _undo_one(token: PaymentToken) -> None:
    """In the order of `not_charged_because`."""
    if token.blocked_reason is not None:
        token.blocked_reason = None
    elif _is_our_guess(token):
        token.status, token.failure_code = TokenStatus.PENDING, None
    elif token.unknown_since is not None:
        token.unknown_since = token.next_check_at = token.unknown_to_key = None
    else:
        token.replaced_at = None


def check_may_start_with(token: PaymentToken, customer: Customer) -> None:
    """Of whom a subscription may be started without a page. Raises Conflict."""
    why = why_not_by_name(token, customer.id)
    if why is None and token.replaced_at is not None:
        why = f"token {token.id} was declined and then replaced by another payment method"
    if why is not None:
        raise Conflict(f"{why}; see `billing token list --customer {customer.reference}`")


def why_not_by_name(token: PaymentToken, customer_id: str) -> str | None:
    """Why even a person who names it may not charge it for this customer."""
    if token.customer_id != customer_id:
        return f"token {token.id} belongs to another customer"
    if token.status != TokenStatus.ACTIVE:
        return f"token {token.id} is {token.status}; only an ACTIVE token can be charged"
    if token.unknown_since is not None:
        return f"token {token.id} cannot be charged: {unknown_in_words(token)}"
    if token.blocked_reason is not None:
        return (
            f"token {token.id} must not be tried again: {token.blocked_reason};"
            f" `billing token unblock {token.id}` undoes that"
        )
    return None


def make_first(session: Session, token: PaymentToken, now: datetime) -> None:
    """The first to be charged from now on, for the customer and for each of his subscriptions."""
    if token.status != TokenStatus.ACTIVE:
        raise Conflict(f"token {token.id} is {token.status}; only an ACTIVE token can be preferred")
    if token.unknown_since is not None:
        raise Conflict(f"token {token.id} cannot be preferred: {unknown_in_words(token)}")
    _put_first(session, token, lock_subscriptions_of(session, token.customer_id))
    session.flush()
    release_when_known(session, token.customer_id, now)


def _put_first(session: Session, token: PaymentToken, subscriptions: Sequence[Subscription]) -> None:
    lowest = session.scalar(select(func.min(PaymentToken.rank)).where(PaymentToken.customer_id == token.customer_id))
    if lowest != token.rank:
        token.rank = (lowest or 0) - 1
    token.replaced_at = None
    for subscription in subscriptions:
        subscription.payment_token_id = token.id


# ------------------------------------------------------------------------------------- a method that is replaced


def saved_by_customer(session: Session, token: PaymentToken, now: datetime) -> None:
    """A session, or an event, has brought this ACTIVE token for the first time. One that he had replaced is his choice
    again."""
    if token.replaced_at is not None:
        token.replaced_at = None
        _use_for_waiting_invoices(session, token.customer_id, token, now)
    put_first_if_unpaid(session, token, now)


def put_first_if_unpaid(session: Session, token: PaymentToken, now: datetime) -> None:
    """What the customer saves while something of his is unpaid is charged first from then on. What was declined there
    has been replaced: nobody charges it again by itself, this month or later."""
    subscriptions = lock_subscriptions_of(session, token.customer_id)
    session.flush()
    unpaid = _unpaid_by(token)
    if session.scalar(select(Invoice.id).join(Subscription).where(unpaid).limit(1)) is None:
        return
    # One that has not begun waits for the token of its own session.
    begun = [each for each in subscriptions if each.status != SubscriptionStatus.INCOMPLETE]
    _put_first(session, token, begun)
    declined = (
        select(ChargeAttempt.payment_token_id)
        .join(Invoice, Invoice.id == ChargeAttempt.invoice_id)
        .join(Subscription, Subscription.id == Invoice.subscription_id)
        .where(unpaid, ChargeAttempt.status == AttemptStatus.FAILED, ChargeAttempt.decline_class.in_(DECLINES))
    )
    others = select(PaymentToken).where(
        PaymentToken.id.in_(declined),
        PaymentToken.id != token.id,
        PaymentToken.customer_id == token.customer_id,
        PaymentToken.replaced_at.is_(None),
    )
    for other in session.scalars(others.order_by(PaymentToken.id)).all():
        mark_replaced(session, other, token.id, [each.id for each in begun], now)


def mark_replaced(
    session: Session, declined: PaymentToken, by: str, subscription_ids: Sequence[str], now: datetime
) -> None:
    declined.replaced_at = now
    undo = f"billing token unblock {declined.id}"
    for subscription_id in subscription_ids:
        tell(session, subscription_id, now, "token.replaced", token=declined.id, by=by, undo=undo)


def _unpaid_by(token: PaymentToken) -> ColumnElement[bool]:
    """Invoices (with their subscription) that the owner of this token owes, or owed until it was charged for them: its
    session may be told of after its payment."""
    tried = aliased(ChargeAttempt)
    with_it = exists().where(
        tried.invoice_id == Invoice.id, tried.origin == "new_token", tried.payment_token_id == token.id
    )
    given_up = and_(Invoice.status == InvoiceStatus.UNCOLLECTIBLE, Subscription.status == SubscriptionStatus.PAST_DUE)
    return and_(
        Subscription.customer_id == token.customer_id,
        Subscription.status != SubscriptionStatus.CANCELED,
        or_(Invoice.status == InvoiceStatus.OPEN, given_up, with_it),
    )


def cancel_token(parts: Parts, token_id: str) -> PaymentToken:
    """Cancel it at Xendit and store what Xendit says. Raises Conflict when it is dead already, GatewayError."""
    with parts.reading() as session:
        token = session.get_one(PaymentToken, token_id)
    if has_ended(token):
        raise Conflict(f"token {token.id} is {token.status} already; nothing to cancel")
    report = parts.gateway.cancel_token(token.payment_token_id)
    now = parts.clock.now()
    with parts.transaction() as session:
        customer = session.get_one(Customer, token.customer_id)
        return apply_token(session, customer, report, now, asked=True, key=parts.key_fingerprint)
