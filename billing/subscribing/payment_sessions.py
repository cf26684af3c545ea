"""How subscribers come in: customers at Xendit, payment sessions, and matching what comes back to them.

A session's row and its fresh `reference_id` are committed before Xendit is asked. A session moves no money by itself:
when the call fails, what was written is taken back and the person may simply try again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from billing.charging.tokens import check_may_start_with
from billing.domain.channels import check_amount, off_session_channels
from billing.domain.gateway import (
    NewCustomer,
    SessionMode,
    SessionReport,
    SessionRequest,
    SessionType,
)
from billing.domain.lifecycle import (
    UNFINISHED,
    AttemptStatus,
    InvoiceStatus,
    SessionStatus,
    SubscriptionStatus,
)
from billing.domain.money import Money
from billing.domain.schedule import frequency_days, schedule_from_text
from billing.errors import Conflict, GatewayError, InvalidInput
from billing.parts import Parts, tell
from billing.store import which_database
from billing.store.models import (
    ChargeAttempt,
    Customer,
    Fact,
    Invoice,
    InvoiceLine,
    PaymentSession,
    PaymentToken,
    Plan,
    Subscription,
    new_id,
)
from billing.subscribing.session_results import session_over
from billing.subscriptions.moves import activate, lock_subscription, recurring_terms

SESSION_LIFETIME = timedelta(hours=23)  # Xendit accepts up to 24 h
FIRST_CHECK = timedelta(minutes=10)
JUST_NOW = timedelta(minutes=1)  # who names this very minute means now


# -------------------------------------------------------------------------------------- customer at Xendit


def ensure_xendit_customer(parts: Parts, customer: Customer) -> str:
    """Created there once and reused by id. A lost answer is harmless: the reference finds it again."""
    if customer.xendit_customer_id is not None:
        return customer.xendit_customer_id
    # Letters and digits only, as the documents ask; the same on every try, so a repeat finds the first one.
    reference = customer.id.replace("-", "")
    new = NewCustomer(reference, customer.name, customer.email, customer.country, customer.mobile)
    xendit_id = parts.gateway.create_customer(new)
    with parts.transaction() as session:
        session.get_one(Customer, customer.id).xendit_customer_id = xendit_id
    customer.xendit_customer_id = xendit_id
    return xendit_id


# ----------------------------------------------------------------------------------------- opening sessions


def subscribe(
    parts: Parts,
    customer: Customer,
    plan: Plan,
    *,
    via: SessionType,
    mode: SessionMode,
    start_at: datetime | None,
    reference: str | None,
    again: bool = False,
) -> tuple[Subscription, PaymentSession]:
    """A subscription that is `incomplete` until its session brings a token (SAVE), or token and money (PAY).

    Raises Conflict for a reference in use, or a plan that the customer has already (unless `again`), GatewayError when
    Xendit cannot be asked; then nothing is left behind.
    """
    parts.refuse_a_copy()
    if via == SessionType.PAY:
        _refuse_paying_for_a_trial(plan)
    now = parts.clock.now()
    _refuse_a_start_that_has_passed(start_at, now)
    channels = _channels(customer, plan)
    xendit_customer = ensure_xendit_customer(parts, customer)
    subscription = _new_subscription(customer, plan, start_at, reference, now)
    with parts.transaction() as session:
        _add_subscription(session, subscription, customer, plan, again=again)
        row = _new_session(customer, plan, subscription, via, mode, now)
        session.add(row)
        session.flush()
        if via == SessionType.PAY:
            _draft_first_invoice(session, subscription, plan, row, now)
        tell(session, subscription.id, now, "subscription.created", plan=plan.code, via=via, session=row.id)
    try:
        report = _ask_for_session(parts, row, customer, plan, xendit_customer, channels)
    except GatewayError:
        _take_back(parts, subscription.id)
        raise
    return subscription, _store_opened(parts, row.id, report)


def subscribe_with_token(
    parts: Parts,
    customer: Customer,
    plan: Plan,
    token: PaymentToken,
    *,
    start_at: datetime | None,
    reference: str | None,
    again: bool = False,
) -> Subscription:
    """Starts at once on a payment method the customer has saved before: no page, and nothing is asked of Xendit. The
    next run, or tick, charges the first period. Raises Conflict as `subscribe`, and for a token that may not be
    charged; InvalidInput."""
    now = parts.clock.now()
    _refuse_a_start_that_has_passed(start_at, now)
    _channels(customer, plan)
    subscription = _new_subscription(customer, plan, start_at, reference, now)
    with parts.transaction() as session:
        which_database.refuse_a_copy(session)
        _add_subscription(session, subscription, customer, plan, again=again)
        token = session.get_one(PaymentToken, token.id, populate_existing=True)
        check_may_start_with(token, customer)
        check_amount(customer.country, token.channel_code, Money(plan.amount_minor, plan.currency))
        subscription.payment_token_id = token.id
        session.flush()
        tell(session, subscription.id, now, "subscription.begun", plan=plan.code, token=token.id)
        activate(session, subscription, plan, now)
    return subscription


def _refuse_a_start_that_has_passed(start_at: datetime | None, now: datetime) -> None:
    if start_at is not None and start_at < now - JUST_NOW:
        raise InvalidInput(
            f"--start-at {start_at.isoformat()} has passed; name a later time, or leave it out to begin with the"
            " payment method"
        )


def _add_subscription(
    session: Session, subscription: Subscription, customer: Customer, plan: Plan, *, again: bool
) -> None:
    taken = session.scalar(select(Subscription.id).where(Subscription.reference == subscription.reference))
    if taken is not None:
        raise Conflict(f"subscription reference {subscription.reference} is in use; choose another --reference")
    # Of two at the same moment (a double click) the second waits here, and then finds the first.
    session.execute(select(Customer.id).where(Customer.id == customer.id).with_for_update(key_share=True))
    if not again:
        _refuse_a_second(session, customer, plan)
    session.add(subscription)
    session.flush()


def _refuse_a_second(session: Session, customer: Customer, plan: Plan) -> None:
    """The customer has the plan, or is about to: then somebody clicked twice."""
    query = select(Subscription).where(
        Subscription.customer_id == customer.id,
        Subscription.plan_id == plan.id,
        Subscription.status != SubscriptionStatus.CANCELED,
    )
    unfinished = Subscription.status == SubscriptionStatus.INCOMPLETE
    found = session.scalar(query.order_by(unfinished, Subscription.created_at).limit(1))
    if found is None:
        return
    raise Conflict(f"{_why_not_a_second(session, found, customer, plan)}; --again makes another one all the same")


def _why_not_a_second(session: Session, found: Subscription, customer: Customer, plan: Plan) -> str:
    if found.status != SubscriptionStatus.INCOMPLETE:
        return f"{customer.reference} has plan {plan.code} already: subscription {found.reference} is {found.status}"
    begun = f"{customer.reference} is about to have plan {plan.code}: subscription {found.reference}"
    waiting = _open_session_of(session, found.id)
    if waiting is not None:
        return f"{begun} waits for payment session {waiting.id} (`billing session show {waiting.id}` has the link)"
    start = f"billing session create {customer.reference} --subscription {found.reference}"
    return f"{begun} has no payment method yet, and `{start}` makes a new link for it"


def open_session(
    parts: Parts,
    customer: Customer,
    *,
    mode: SessionMode,
    subscription: Subscription | None = None,
    via: SessionType = SessionType.SAVE,
) -> PaymentSession:
    """A fresh session: one more payment method for a customer, or another start for an `incomplete` subscription."""
    parts.refuse_a_copy()
    now = parts.clock.now()
    with parts.transaction() as session:
        subscription = subscription or _only_incomplete(session, customer)
        plan = _plan_for_session(session, customer, subscription)
        if via == SessionType.PAY and subscription is None:
            raise InvalidInput("--via pay collects a first period: name the incomplete subscription it is for")
        if via == SessionType.PAY:
            _refuse_paying_for_a_trial(plan)
        if subscription is not None:
            _check_can_start_again(session, subscription)
    channels = _channels(customer, plan)
    xendit_customer = ensure_xendit_customer(parts, customer)
    row = _new_session(customer, plan, subscription, via, mode, now)
    with parts.transaction() as session:
        if subscription is not None:  # again, because somebody else may have done the same meanwhile
            _check_can_start_again(session, lock_subscription(session, subscription.id))
        session.add(row)
        session.flush()
        if via == SessionType.PAY and subscription is not None:
            _draft_first_invoice(session, subscription, plan, row, now)
    try:
        report = _ask_for_session(parts, row, customer, plan, xendit_customer, channels)
    except GatewayError:
        with parts.transaction() as session:
            session_over(session, session.get_one(PaymentSession, row.id), SessionStatus.CANCELED, now)
        raise
    return _store_opened(parts, row.id, report)


def _refuse_paying_for_a_trial(plan: Plan) -> None:
    if plan.trial_days:
        raise InvalidInput(
            f"plan {plan.code} begins with {plan.trial_days} free days, so there is nothing to pay yet: use --via save"
        )


def _new_subscription(
    customer: Customer, plan: Plan, start_at: datetime | None, reference: str | None, now: datetime
) -> Subscription:
    identity = new_id("sub")
    return Subscription(
        id=identity,
        reference=reference or identity,
        customer_id=customer.id,
        plan_id=plan.id,
        status=SubscriptionStatus.INCOMPLETE,
        amount_minor=plan.amount_minor,
        currency=plan.currency,
        timezone=plan.timezone,
        start_at=start_at,
        next_index=0,
        billed_cycles=0,
        cancel_at_period_end=False,
        open_failures=0,
        created_at=now,
    )


def _new_session(
    customer: Customer,
    plan: Plan,
    subscription: Subscription | None,
    via: SessionType,
    mode: SessionMode,
    now: datetime,
) -> PaymentSession:
    identity = new_id("ses")
    amount = subscription.amount_minor if subscription and via == SessionType.PAY else 0
    return PaymentSession(
        id=identity,
        reference_id=identity,
        customer_id=customer.id,
        subscription_id=subscription.id if subscription else None,
        type=via,
        mode=mode,
        status=SessionStatus.ACTIVE,
        amount_minor=amount,
        currency=plan.currency,
        expires_at=now + SESSION_LIFETIME,
        next_check_at=now + FIRST_CHECK,  # should we die before Xendit's answer, somebody ends it
        created_at=now,
    )


def _draft_first_invoice(
    session: Session, subscription: Subscription, plan: Plan, row: PaymentSession, now: datetime
) -> None:
    """The first period's invoice and the attempt that the customer makes on the session's page: once it is captured
    no run can charge that period again. The period itself is fixed at that moment."""
    invoice = session.scalar(
        select(Invoice).where(Invoice.subscription_id == subscription.id, Invoice.status == InvoiceStatus.DRAFT)
    )
    if invoice is None:
        invoice = Invoice(
            id=new_id("inv"),
            number=f"{subscription.reference}-draft",  # its number comes with its period
            subscription_id=subscription.id,
            period_key="first",
            period_index=0,
            period_start=now,
            period_end=now + timedelta(days=frequency_days(schedule_from_text(plan.schedule))),
            amount_minor=subscription.amount_minor,
            amount_paid_minor=0,
            currency=subscription.currency,
            status=InvoiceStatus.DRAFT,
            dunning_step=0,
            technical_step=0,
            opened_at=now,
        )
        session.add(invoice)
        session.flush()
        session.add(InvoiceLine(invoice_id=invoice.id, description=plan.name, amount_minor=invoice.amount_minor))
    earlier = session.scalars(select(ChargeAttempt.number).where(ChargeAttempt.invoice_id == invoice.id)).all()
    session.add(
        ChargeAttempt(
            id=new_id("att"),
            reference_id=row.reference_id,
            invoice_id=invoice.id,
            subscription_id=subscription.id,
            number=max(earlier, default=0) + 1,
            origin="session",
            status=AttemptStatus.PENDING,
            amount_minor=invoice.amount_minor,
            currency=invoice.currency,
            scheduled_at=now,
            checks=0,
            cancel_wanted=False,
            created_at=now,
        )
    )


def _ask_for_session(
    parts: Parts, row: PaymentSession, customer: Customer, plan: Plan, xendit_customer: str, channels: list[str]
) -> SessionReport:
    base = parts.rules.return_base
    pay = row.type == SessionType.PAY
    metadata = {"session_id": row.id}
    if row.subscription_id:
        metadata["subscription_id"] = row.subscription_id
    request = SessionRequest(
        reference_id=row.reference_id,
        type=SessionType(row.type),
        mode=SessionMode(row.mode),
        customer_id=xendit_customer,
        amount=Money(row.amount_minor, row.currency),
        country=customer.country,
        expires_at=row.expires_at,
        description=plan.name,
        allowed_channels=channels,
        metadata=metadata,
        allow_save="FORCED" if pay else None,
        recurring=recurring_terms(plan.schedule, row.created_at.date()),
        success_return_url=f"{base}/return/{row.id}" if base else None,
        cancel_return_url=f"{base}/return/{row.id}" if base else None,
        origins=parts.rules.components_origins or ((base,) if base else ()),
    )
    return parts.gateway.create_session(request)


def _store_opened(parts: Parts, session_id: str, report: SessionReport) -> PaymentSession:
    now = parts.clock.now()
    with parts.transaction() as session:
        row = session.get_one(PaymentSession, session_id)
        row.xendit_session_id = report.session_id
        row.payment_link_url = report.payment_link_url
        row.components_sdk_key = report.components_sdk_key
        row.expires_at = report.expires_at or row.expires_at
        row.next_check_at = now + FIRST_CHECK
    return row


def _take_back(parts: Parts, subscription_id: str) -> None:
    """The session could not be opened: nobody has a link, so no money can come. Leave nothing half done."""
    with parts.transaction() as session:
        invoices = select(Invoice.id).where(Invoice.subscription_id == subscription_id)
        session.execute(delete(ChargeAttempt).where(ChargeAttempt.subscription_id == subscription_id))
        session.execute(delete(InvoiceLine).where(InvoiceLine.invoice_id.in_(invoices)))
        session.execute(delete(Invoice).where(Invoice.subscription_id == subscription_id))
        session.execute(delete(PaymentSession).where(PaymentSession.subscription_id == subscription_id))
        session.execute(delete(Fact).where(Fact.subscription_id == subscription_id))
        session.execute(delete(Subscription).where(Subscription.id == subscription_id))


def _channels(customer: Customer, plan: Plan) -> list[str]:
    """Only what can be charged later without the customer is offered."""
    offered = off_session_channels(customer.country, plan.currency)
    if not offered:
        raise InvalidInput(
            f"no payment channel in {customer.country} can be charged again in {plan.currency};"
            " the plan's currency must be one of the customer's country"
        )
    return offered


def _only_incomplete(session: Session, customer: Customer) -> Subscription | None:
    query = select(Subscription).where(
        Subscription.customer_id == customer.id, Subscription.status == SubscriptionStatus.INCOMPLETE
    )
    found = session.scalars(query).all()
    return found[0] if len(found) == 1 and _open_session_of(session, found[0].id) is None else None


def _plan_for_session(session: Session, customer: Customer, subscription: Subscription | None) -> Plan:
    query = select(Plan).join(Subscription, Subscription.plan_id == Plan.id)
    query = (
        query.where(Subscription.id == subscription.id)
        if subscription
        else query.where(Subscription.customer_id == customer.id).order_by(Subscription.created_at.desc())
    )
    plan = session.scalar(query.limit(1))
    if plan is None:
        raise Conflict(f"customer {customer.reference} has no subscription yet; use `billing subscribe`")
    return plan


def _check_can_start_again(session: Session, subscription: Subscription) -> None:
    if subscription.status != SubscriptionStatus.INCOMPLETE:
        raise Conflict(f"subscription {subscription.reference} is {subscription.status}, so it needs no new start")
    running = _open_session_of(session, subscription.id)
    if running is not None:
        raise Conflict(
            f"session {running.id} of this subscription is still open;"
            f" hand out its link or `billing session cancel {running.id}` first"
        )
    unknown = _session_that_may_have_paid(session, subscription.id)
    if unknown is not None:
        raise Conflict(
            f"whether subscription {subscription.reference} was paid by session {unknown} is not known yet;"
            f" `billing session refresh {unknown}` asks Xendit, and a new link can be made when it was not"
        )


def _session_that_may_have_paid(session: Session, subscription_id: str) -> str | None:
    """One that is over, and whose payment Xendit has not told us of yet."""
    query = (
        select(PaymentSession.id)
        .join(ChargeAttempt, ChargeAttempt.reference_id == PaymentSession.reference_id)
        .where(ChargeAttempt.subscription_id == subscription_id, ChargeAttempt.status.in_(UNFINISHED))
    )
    return session.scalar(query.limit(1))


def _open_session_of(session: Session, subscription_id: str) -> PaymentSession | None:
    query = select(PaymentSession).where(
        PaymentSession.subscription_id == subscription_id, PaymentSession.status == SessionStatus.ACTIVE
    )
    return session.scalar(query.limit(1))
