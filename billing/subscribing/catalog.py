"""Plans, customers, and finding things by id or by reference: both are accepted wherever a thing is named."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

from sqlalchemy import or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from billing.domain.catch_up import CatchUp
from billing.domain.channels import check_country, off_session_channels
from billing.domain.dunning import policy
from billing.domain.lifecycle import SubscriptionStatus
from billing.domain.money import Money
from billing.domain.names import (
    LONGEST_NAME,
    LONGEST_PLAN_NAME,
    check_email,
    check_mobile,
    check_reference,
    check_text,
    check_xendit_id,
)
from billing.domain.schedule import Schedule, parse_zone, schedule_to_text
from billing.errors import Conflict, InvalidInput, InvalidMoney, NotFound
from billing.store.models import (
    BillingRun,
    ChargeAttempt,
    Customer,
    Invoice,
    PaymentSession,
    PaymentToken,
    Plan,
    Subscription,
    WebhookEvent,
    new_id,
)

Row = TypeVar(
    "Row", Plan, Customer, Subscription, Invoice, ChargeAttempt, PaymentSession, PaymentToken, WebhookEvent, BillingRun
)

ZONES = {
    "ID": "Asia/Jakarta",
    "PH": "Asia/Manila",
    "VN": "Asia/Ho_Chi_Minh",
    "TH": "Asia/Bangkok",
    "SG": "Asia/Singapore",
    "MY": "Asia/Kuala_Lumpur",
}
MAX_TRIAL_DAYS = 3_650
MAX_CYCLES = 32_000


def create_plan(
    session: Session,
    *,
    code: str,
    name: str,
    amount: str,
    currency: str,
    schedule: Schedule,
    timezone: str,
    trial_days: int,
    cycles: int | None,
    catch_up: str,
    dunning: str,
    now: datetime,
) -> Plan:
    """Raises InvalidInput (bad value) or Conflict (code in use); writes nothing then."""
    check_reference("plan code", code)
    name = check_text("name", name, longest=LONGEST_PLAN_NAME)
    money = Money.parse(amount, currency)
    if money.amount_minor == 0:
        raise InvalidMoney("--amount 0: a plan must cost something; for a free time use --trial-days")
    parse_zone(timezone)
    if not 0 <= trial_days <= MAX_TRIAL_DAYS:
        raise InvalidInput(f"--trial-days {trial_days}: must be between 0 and {MAX_TRIAL_DAYS}")
    if cycles is not None and not 1 <= cycles <= MAX_CYCLES:
        raise InvalidInput(f"--cycles {cycles}: must be between 1 and {MAX_CYCLES}; leave it out for no end")
    if catch_up not in set(CatchUp):
        raise InvalidInput(f"--catch-up {catch_up}: must be one of {', '.join(CatchUp)}")
    policy(dunning)
    if session.scalar(select(Plan.id).where(Plan.code == code)) is not None:
        raise Conflict(f"plan {code} exists already; choose another code (a plan's price never changes)")
    plan = Plan(
        id=new_id("plan"),
        code=code,
        name=name,
        amount_minor=money.amount_minor,
        currency=money.currency,
        schedule=schedule_to_text(schedule),
        timezone=timezone,
        trial_days=trial_days,
        cycles=cycles,
        catch_up=catch_up,
        dunning=dunning,
        created_at=now,
    )
    session.add(plan)
    session.flush()
    return plan


def create_customer(
    session: Session,
    *,
    reference: str,
    name: str,
    email: str,
    country: str,
    mobile: str | None,
    timezone: str | None,
    now: datetime,
    xendit_customer_id: str | None = None,
) -> Customer:
    """Raises InvalidInput or Conflict; writes nothing then. The zone defaults to that of the country's capital."""
    name, zone = check_new_customer(
        reference=reference,
        name=name,
        email=email,
        country=country,
        mobile=mobile,
        timezone=timezone,
        xendit_customer_id=xendit_customer_id,
    )
    if session.scalar(select(Customer.id).where(Customer.reference == reference)) is not None:
        raise Conflict(f"customer {reference} exists already; see `billing customer show {reference}`")
    customer = Customer(
        id=new_id("cus"),
        reference=reference,
        name=name,
        email=email,
        country=country,
        mobile=mobile,
        timezone=zone,
        xendit_customer_id=xendit_customer_id,
        created_at=now,
    )
    session.add(customer)
    session.flush()
    return customer


def check_new_customer(
    *,
    reference: str,
    name: str,
    email: str,
    country: str,
    mobile: str | None,
    timezone: str | None,
    xendit_customer_id: str | None,
) -> tuple[str, str]:
    """The name and the zone to keep. Raises InvalidInput."""
    check_reference("customer reference", reference)
    _check_person(email=email, country=country, mobile=mobile)
    name = check_text("name", name, longest=LONGEST_NAME)
    zone = timezone or ZONES.get(country, "UTC")
    parse_zone(zone)
    if xendit_customer_id is not None:
        check_xendit_id(xendit_customer_id, "cust-", "xendit_customer_id")
    return name, zone


def _check_person(
    *,
    email: str | None = None,
    country: str | None = None,
    mobile: str | None = None,
    timezone: str | None = None,
) -> None:
    """What is given. Raises InvalidInput."""
    if email is not None:
        check_email(email)
    if country is not None:
        check_country(country)
    if mobile:
        check_mobile(mobile)
    if timezone is not None:
        parse_zone(timezone)


def update_customer(
    session: Session,
    customer: Customer,
    *,
    name: str | None = None,
    email: str | None = None,
    country: str | None = None,
    mobile: str | None = None,
    timezone: str | None = None,
) -> Customer:
    """What is given, and nothing else: not the zones of subscriptions, and not the customer at Xendit, who cannot be
    changed there. Raises InvalidInput, or Conflict for a country in which a subscription could not be charged."""
    customer = session.get_one(Customer, customer.id, with_for_update={"key_share": True}, populate_existing=True)
    name = customer.name if name is None else check_text("name", name, longest=LONGEST_NAME)
    _check_person(email=email, country=country, mobile=mobile, timezone=timezone)
    if country is not None and country != customer.country:
        _check_can_be_charged_in(session, customer, country)
    customer.name = name
    customer.email = customer.email if email is None else email
    customer.country = customer.country if country is None else country
    customer.mobile = customer.mobile if mobile is None else mobile or None  # an empty one takes it away
    customer.timezone = customer.timezone if timezone is None else timezone
    session.flush()
    return customer


def _check_can_be_charged_in(session: Session, customer: Customer, country: str) -> None:
    query = select(Subscription).where(
        Subscription.customer_id == customer.id, Subscription.status != SubscriptionStatus.CANCELED
    )
    for subscription in session.scalars(query.order_by(Subscription.id)):
        if not off_session_channels(country, subscription.currency):
            raise Conflict(
                f"country {country}: subscription {subscription.reference} is charged in {subscription.currency}, which"
                f" no payment channel there takes; cancel it first, or create another customer for {country}"
            )


# ------------------------------------------------------------------------------------------------- finding


def find_plan(session: Session, name: str) -> Plan:
    return _find(session, Plan, name, "plan", "billing plan list", Plan.id, Plan.code)


def find_customer(session: Session, name: str) -> Customer:
    columns = (Customer.id, Customer.reference, Customer.xendit_customer_id)
    return _find(session, Customer, name, "customer", "billing customer list", *columns)


def find_subscription(session: Session, name: str) -> Subscription:
    columns = (Subscription.id, Subscription.reference)
    return _find(session, Subscription, name, "subscription", "billing subscription list", *columns)


def find_invoice(session: Session, name: str) -> Invoice:
    return _find(session, Invoice, name, "invoice", "billing invoice list", Invoice.id, Invoice.number)


def find_token(session: Session, name: str) -> PaymentToken:
    columns = (PaymentToken.id, PaymentToken.payment_token_id)
    return _find(session, PaymentToken, name, "token", "billing token list --customer C", *columns)


def find_session(session: Session, name: str) -> PaymentSession:
    columns = (PaymentSession.id, PaymentSession.reference_id, PaymentSession.xendit_session_id)
    return _find(session, PaymentSession, name, "payment session", "billing subscription show ID", *columns)


def find_event(session: Session, name: str) -> WebhookEvent:
    columns = (WebhookEvent.id, WebhookEvent.dedupe_key)
    return _find(session, WebhookEvent, name, "webhook event", "billing events list", *columns)


def _find(
    session: Session,
    table: type[Row],
    name: str,
    what: str,
    hint: str,
    *columns: InstrumentedAttribute[str] | InstrumentedAttribute[str | None],
) -> Row:
    """The id goes first: what a release before has stored as somebody's reference may be another one's id."""
    named = or_(*(column == name for column in columns))
    row = session.scalar(select(table).where(named).order_by(columns[0] != name, columns[1] != name).limit(1))
    if row is None:
        raise NotFound(f"no {what} {name[:60]!r}; see `{hint}`")
    return row
