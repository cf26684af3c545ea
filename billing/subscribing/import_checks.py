"""What one row of an import is checked for: against what is here, the plan, the calendar, and what Xendit says.

Called by import_rows.py for each row of a batch, with all that the batch needs read before. Nothing here asks
the database or Xendit. Every refusal is one line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from billing.charging.tokens import RIGHT_KEY, has_ended
from billing.domain import channels
from billing.domain.catch_up import CatchUp, decide
from billing.domain.gateway import TokenReport
from billing.domain.lifecycle import SubscriptionStatus, TokenStatus
from billing.domain.money import Money
from billing.domain.schedule import (
    Anchor,
    Calendar,
    Cron,
    Every,
    Period,
    Unit,
    describe,
    due_periods,
    parse_zone,
    schedule_from_text,
    to_local,
)
from billing.errors import Conflict, InvalidInput, NotFound
from billing.store.imports import ACustomer, APlan, ASubscription, AToken, Known
from billing.subscribing.import_lines import Row

MOST_COUNTED = 1_000  # periods that have passed


@dataclass(frozen=True, slots=True)
class Terms:
    """The calendar that makes `next_billing_at` its first period and returns to the anchor day afterwards; and the
    period before that, which they paid for elsewhere: who asks until when it runs must not be told "none"."""

    calendar: Calendar
    first: Period
    before: Period | None  # cron has no back


@dataclass(frozen=True, slots=True)
class Checked:
    """What a row refers to, as the database has it now. The customer and the token may be new."""

    plan: APlan
    terms: Terms
    customer: ACustomer | None
    token: AToken | None


def check(known: Known, row: Row, now: datetime) -> Checked | None:
    """None when the subscription is there as the row says. Raises BillingError."""
    plan = known.plans.get(row.plan)
    if plan is None:
        raise NotFound(f"no plan {row.plan[:60]!r}; create it with `billing plan create` first, or correct the row")
    customer = _same_customer(known, row)
    token = _same_token(known, row, customer)
    subscription = known.subscriptions.get(row.subscription_reference)
    if subscription is not None:
        _refuse_differences(row, subscription, plan, customer, token)
        if token is not None and subscription.status != SubscriptionStatus.CANCELED:
            _refuse_without_a_method(known, row, token)
        return None
    if token is not None and (has_ended(token) or token.blocked_reason is not None):
        state = token.blocked_reason or token.status
        raise InvalidInput(f"payment_token_id: this token is {state} and cannot be charged; ask for a new one")
    _check_channel(row, plan)
    terms = _terms(row, plan)
    if not row.catch_up:
        _refuse_a_long_past(plan, terms.calendar, terms.first, now)
    return Checked(plan, terms, customer, token)


def cannot_be_charged(token: AToken) -> bool:
    return has_ended(token) or token.blocked_reason is not None or token.unknown_since is not None


def _same_customer(known: Known, row: Row) -> ACustomer | None:
    """The customer of this reference. Raises InvalidInput when it is somebody else."""
    if row.xendit_customer_id is not None:
        owner = known.owners.get(row.xendit_customer_id)
        if owner is not None and owner != row.customer_reference:
            raise InvalidInput(f"xendit_customer_id belongs to customer {owner} already")
    customer = known.customers.get(row.customer_reference)
    if customer is None:
        return None
    person = (customer.name, customer.email, customer.country)
    differing = [
        name
        for name, ours, theirs in zip(("name", "email", "country"), person, row.person, strict=True)
        if ours != theirs
    ]
    if row.xendit_customer_id is not None and customer.xendit_customer_id not in (None, row.xendit_customer_id):
        differing.append("xendit_customer_id")
    if differing:
        raise InvalidInput(
            f"customer {customer.reference} exists with another {' and '.join(differing)};"
            f" see `billing customer show {customer.reference}`"
        )
    return customer


def _same_token(known: Known, row: Row, customer: ACustomer | None) -> AToken | None:
    token = known.tokens.get(row.payment_token_id)
    if token is not None and (customer is None or token.customer_id != customer.id):
        raise InvalidInput(f"payment_token_id belongs to customer {token.owner} already")
    return token


def _refuse_differences(
    row: Row, subscription: ASubscription, plan: APlan, customer: ACustomer | None, token: AToken | None
) -> None:
    """What may have moved on since (the next date, the token that is charged first) is not compared."""
    differing = []
    if customer is None or subscription.customer_id != customer.id:
        differing.append("customer_reference")
    if subscription.plan_id != plan.id:
        differing.append("plan")
    if token is None:
        differing.append("payment_token_id")
    if row.timezone is not None and row.timezone != subscription.timezone:
        differing.append("timezone")
    if row.anchor_day is not None and row.anchor_day != subscription.anchor_day:
        differing.append("anchor_day")
    if differing:
        raise Conflict(
            f"subscription {subscription.reference} exists and differs in {', '.join(differing)};"
            f" see `billing subscription show {subscription.reference}`"
        )


def _refuse_without_a_method(known: Known, row: Row, token: AToken) -> None:
    """It is here, and what has been found out about its token since keeps it from being charged."""
    if not cannot_be_charged(token) or token.customer_id in known.chargeable:
        return
    link = f"`billing session create {row.customer_reference}` makes a link for another payment method"
    here = f"subscription {row.subscription_reference} is here and cannot be charged"
    if has_ended(token):
        raise InvalidInput(f"payment_token_id: Xendit says the token is {token.status}; {here}; {link}")
    if token.blocked_reason is not None:
        raise InvalidInput(f"payment_token_id: this token is {token.blocked_reason}; {here}; {link}")
    raise InvalidInput(
        f"payment_token_id: Xendit does not know this token with the key in use; {here}; {RIGHT_KEY},"
        f" then `billing token refresh {token.id}`; or {link}"
    )


def refuse_by_answer(row: Row, answer: TokenReport) -> None:
    """What Xendit says of the token of a row that asks to be verified. Raises InvalidInput for one not to use."""
    if answer.unknown:
        raise InvalidInput(
            f"payment_token_id: Xendit does not know this token with the key in use; {RIGHT_KEY}, or correct the row"
        )
    if answer.status != TokenStatus.ACTIVE:
        raise InvalidInput(f"payment_token_id: Xendit says the token is {answer.status}; only ACTIVE can be charged")
    if None not in (answer.customer_id, row.xendit_customer_id) and answer.customer_id != row.xendit_customer_id:
        raise InvalidInput("payment_token_id: at Xendit it belongs to another customer than xendit_customer_id")


def _check_channel(row: Row, plan: APlan) -> None:
    _check_price(row.country, row.channel_code, plan.code, plan.currency, plan.amount_minor)


@lru_cache(maxsize=1024)
def _check_price(country: str, channel_code: str, plan: str, currency: str, amount_minor: int) -> None:
    """Remembered: a file has the same few again and again."""
    channels.check_country(country)
    possible = channels.CURRENCIES_OF_COUNTRY[country]
    if currency not in possible:
        raise InvalidInput(
            f"plan {plan} costs {currency}, which cannot be charged in {country};"
            f" that country takes {' or '.join(possible)}"
        )
    offered = channels.off_session_channels(country, currency)
    known = any(code == channel_code for _, code in channels.CHANNELS)
    if channel_code not in offered and (known or not re.fullmatch(r"[A-Z0-9_]{2,60}", channel_code)):
        raise InvalidInput(
            f"channel_code {channel_code[:40]!r} cannot be charged in {country} without the customer;"
            f" those that can: {', '.join(offered)}"
        )
    channels.check_amount(country, channel_code, Money(amount_minor, currency))


def _terms(row: Row, plan: APlan) -> Terms:
    return _terms_of(plan.code, plan.schedule, row.timezone or plan.timezone, row.next_billing_at, row.anchor_day)


@lru_cache(maxsize=8192)
def _terms_of(plan: str, schedule_text: str, zone_name: str, at: datetime, anchor_day: int | None) -> Terms:
    """Remembered: many subscribers of a file are due at the same time."""
    zone = parse_zone(zone_name)
    local = to_local(at, zone)
    schedule = schedule_from_text(schedule_text)
    _check_anchor_day(anchor_day, schedule, local, zone_name)
    calendar = Calendar(schedule, Anchor(local, anchor_day or local.day, zone))
    period = calendar.first()
    if period.start == at:
        return Terms(calendar, period, None if isinstance(schedule, Cron) else calendar.at(-1, local))
    nearest = period.start.astimezone(zone).isoformat()
    if isinstance(schedule, Cron):
        raise InvalidInput(
            f"next_billing_at is not a tick of plan {plan} ({describe(schedule)}, {zone_name});"
            f" the next one is {nearest}"
        )
    raise InvalidInput(f"next_billing_at lies in an hour that comes twice in {zone_name}; write {nearest}")


def _refuse_a_long_past(plan: APlan, calendar: Calendar, period: Period, now: datetime) -> None:
    """A year mistyped would be many charges in the first minute."""
    if period.end >= now:
        return
    due = due_periods(calendar.schedule, calendar.anchor, period, now, MOST_COUNTED)
    begun = f"{len(due)} periods" if len(due) < MOST_COUNTED else f"{MOST_COUNTED} periods or more"
    billed = len(decide(CatchUp(plan.catch_up), due).bill[: plan.cycles])
    raise InvalidInput(
        f"next_billing_at: {begun} of plan {plan.code} ({describe(calendar.schedule)}) have begun by now, and"
        f" {billed} would be billed at once (catch-up {plan.catch_up}); correct the date, or add"
        ' "catch_up": true to the row if that is meant'
    )


def _check_anchor_day(anchor_day: int | None, schedule: Every | Cron, local: datetime, zone_name: str) -> None:
    if anchor_day is None or anchor_day == local.day:
        return
    if isinstance(schedule, Cron) or schedule.unit not in (Unit.MONTH, Unit.YEAR):
        raise InvalidInput(f"anchor_day: {describe(schedule)} has no day of the month; leave it out")
    month_ends = (local + timedelta(days=1)).day == 1  # only there a later anchor day is cut short
    if anchor_day < local.day or not month_ends:
        raise InvalidInput(
            f"anchor_day {anchor_day} does not fit next_billing_at, which is day {local.day} in {zone_name}"
        )
