"""Existing subscribers with existing tokens: JSON lines in, active subscriptions out. Called by `billing import`.

Each row is one transaction, all or nothing. A row that is there already is left alone, so a file may be imported
again after a fault, and nothing that has been billed since moves back. A dry run does the same and rolls back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from billing.domain import channels
from billing.domain.catch_up import CatchUp, decide
from billing.domain.gateway import TokenReport
from billing.domain.lifecycle import SubscriptionStatus, TokenStatus
from billing.domain.money import Money
from billing.domain.schedule import (
    Anchor,
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
from billing.errors import (
    BillingError,
    Conflict,
    GatewayError,
    InvalidInput,
    NotFound,
    RequestRejected,
)
from billing.services.catalog import create_customer
from billing.services.import_lines import FileSoFar, Row, parse_row
from billing.services.parts import Parts, tell
from billing.services.subscriptions import Calendar, plan_next
from billing.services.tokens import RIGHT_KEY, apply_token, has_ended
from billing.store.models import Customer, PaymentToken, Plan, Subscription, new_id

TRIES = 2  # of a row that lost a race against another import
MOST_COUNTED = 1_000  # periods that have passed
FAR = timedelta(days=5 * 365)  # ahead; beyond it a year is more likely mistyped than meant
LOOKS_LIKE_A_CARD = re.compile(r"[0-9](?:[ -]?[0-9]){12,18}")


def import_rows(
    parts: Parts,
    lines: Iterable[str],
    *,
    dry_run: bool,
    verify_with_gateway: bool,
    progress: Callable[[int], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Returns {"created", "unchanged", "refused": [{"line", "reason"}]}. `progress` is told the lines done so far,
    `warn` of rows that were taken and are strange.

    With `verify_with_gateway` Xendit is asked about each new token: an unknown or dead one refuses its row. What
    cannot be asked about now is stored as PENDING, and the charge path asks before the first charge. Raises
    RequestRejected when Xendit refuses the key itself: no further row could be verified.
    """
    created = unchanged = 0
    refused: list[dict[str, Any]] = []
    file = FileSoFar()
    for number, line in enumerate(lines, start=1):
        text = (line.removeprefix("\ufeff") if number == 1 else line).strip()
        try:
            if text and _import_line(parts, text, number, file, warn, dry_run=dry_run, verify=verify_with_gateway):
                created += 1
            elif text:
                unchanged += 1
        except RequestRejected:
            raise
        except BillingError as error:
            refused.append({"line": number, "reason": LOOKS_LIKE_A_CARD.sub("[digits hidden]", str(error))})
        progress(number)
    return {"created": created, "unchanged": unchanged, "refused": refused}


def _import_line(
    parts: Parts,
    text: str,
    number: int,
    file: FileSoFar,
    warn: Callable[[str], None],
    *,
    dry_run: bool,
    verify: bool,
) -> bool:
    """True when it makes a subscription, False when that is there already. Raises BillingError."""
    row = parse_row(text)
    created = not file.holds(row) and _import_row(parts, row, dry_run=dry_run, verify=verify)
    file.remember(row, number)
    if created and row.next_billing_at - parts.clock.now() > FAR:
        warn(f"line {number}: nothing is charged before {row.next_billing_at.date()}; is that year meant?")
    return created


@dataclass(frozen=True, slots=True)
class _Checked:
    """What a row refers to, as the database has it now. The customer and the token may be new."""

    plan: Plan
    calendar: Calendar
    period: Period
    customer: Customer | None
    token: PaymentToken | None


def _import_row(parts: Parts, row: Row, *, dry_run: bool, verify: bool) -> bool:
    """True when the subscription is new, False when it is there as the row says. Raises BillingError."""
    for _ in range(TRIES):
        with parts.sessions() as session:
            checked = _check(session, row, parts.clock.now())
        if checked is None:
            return False
        token = checked.token
        known_active = token is not None and token.status == TokenStatus.ACTIVE and token.unknown_since is None
        report = _ask_xendit(parts, row) if verify and not known_active else None
        try:
            with parts.sessions() as session:
                _write(session, row, checked, report, parts.clock.now())
                if not dry_run:
                    session.commit()
        except (IntegrityError, Conflict):
            continue  # another import, or a webhook, wrote one of these a moment ago: look again
        return True
    raise Conflict("another process writes the same customer, token or subscription; import the file again")


def _check(session: Session, row: Row, now: datetime) -> _Checked | None:
    plan = session.scalar(select(Plan).where(Plan.code == row.plan))
    if plan is None:
        raise NotFound(f"no plan {row.plan[:60]!r}; create it with `billing plan create` first, or correct the row")
    customer = _same_customer(session, row)
    token = _same_token(session, row, customer)
    subscription = session.scalar(select(Subscription).where(Subscription.reference == row.subscription_reference))
    if subscription is not None:
        _refuse_differences(row, subscription, plan, customer, token)
        return None
    if token is not None and (has_ended(token) or token.blocked_reason is not None):
        state = token.blocked_reason or token.status
        raise InvalidInput(f"payment_token_id: this token is {state} and cannot be charged; ask for a new one")
    _check_channel(row, plan)
    calendar, period = _first_period(row, plan)
    if not row.catch_up:
        _refuse_a_long_past(plan, calendar, period, now)
    return _Checked(plan, calendar, period, customer, token)


def _same_customer(session: Session, row: Row) -> Customer | None:
    """The customer of this reference. Raises InvalidInput when it is somebody else."""
    if row.xendit_customer_id is not None:
        owner = session.scalar(select(Customer).where(Customer.xendit_customer_id == row.xendit_customer_id))
        if owner is not None and owner.reference != row.customer_reference:
            raise InvalidInput(f"xendit_customer_id belongs to customer {owner.reference} already")
    customer = session.scalar(select(Customer).where(Customer.reference == row.customer_reference))
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


def _same_token(session: Session, row: Row, customer: Customer | None) -> PaymentToken | None:
    token = session.scalar(select(PaymentToken).where(PaymentToken.payment_token_id == row.payment_token_id))
    if token is not None and (customer is None or token.customer_id != customer.id):
        owner = session.get_one(Customer, token.customer_id)
        raise InvalidInput(f"payment_token_id belongs to customer {owner.reference} already")
    return token


def _refuse_differences(
    row: Row, subscription: Subscription, plan: Plan, customer: Customer | None, token: PaymentToken | None
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


def _check_channel(row: Row, plan: Plan) -> None:
    channels.check_country(row.country)
    possible = channels.CURRENCIES_OF_COUNTRY[row.country]
    if plan.currency not in possible:
        raise InvalidInput(
            f"plan {plan.code} costs {plan.currency}, which cannot be charged in {row.country};"
            f" that country takes {' or '.join(possible)}"
        )
    offered = channels.off_session_channels(row.country, plan.currency)
    known = any(code == row.channel_code for _, code in channels.CHANNELS)
    if row.channel_code not in offered and (known or not re.fullmatch(r"[A-Z0-9_]{2,60}", row.channel_code)):
        raise InvalidInput(
            f"channel_code {row.channel_code[:40]!r} cannot be charged in {row.country} without the customer;"
            f" those that can: {', '.join(offered)}"
        )
    channels.check_amount(row.country, row.channel_code, Money(plan.amount_minor, plan.currency))


def _first_period(row: Row, plan: Plan) -> tuple[Calendar, Period]:
    """The calendar that makes `next_billing_at` its first period and returns to the anchor day afterwards."""
    zone_name = row.timezone or plan.timezone
    zone = parse_zone(zone_name)
    local = to_local(row.next_billing_at, zone)
    schedule = schedule_from_text(plan.schedule)
    _check_anchor_day(row, schedule, local, zone_name)
    calendar = Calendar(schedule, Anchor(local, row.anchor_day or local.day, zone))
    period = calendar.first()
    if period.start == row.next_billing_at:
        return calendar, period
    nearest = period.start.astimezone(zone).isoformat()
    if isinstance(schedule, Cron):
        raise InvalidInput(
            f"next_billing_at is not a tick of plan {plan.code} ({describe(schedule)}, {zone_name});"
            f" the next one is {nearest}"
        )
    raise InvalidInput(f"next_billing_at lies in an hour that comes twice in {zone_name}; write {nearest}")


def _refuse_a_long_past(plan: Plan, calendar: Calendar, period: Period, now: datetime) -> None:
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


def _check_anchor_day(row: Row, schedule: Every | Cron, local: datetime, zone_name: str) -> None:
    if row.anchor_day is None or row.anchor_day == local.day:
        return
    if isinstance(schedule, Cron) or schedule.unit not in (Unit.MONTH, Unit.YEAR):
        raise InvalidInput(f"anchor_day: {describe(schedule)} has no day of the month; leave it out")
    month_ends = (local + timedelta(days=1)).day == 1  # only there a later anchor day is cut short
    if row.anchor_day < local.day or not month_ends:
        raise InvalidInput(
            f"anchor_day {row.anchor_day} does not fit next_billing_at, which is day {local.day} in {zone_name}"
        )


def _ask_xendit(parts: Parts, row: Row) -> TokenReport | None:
    """What Xendit says of the token; None when it cannot be asked now. Raises InvalidInput for a token not to use."""
    try:
        report = parts.gateway.get_token(row.payment_token_id)
    except NotFound:
        raise InvalidInput(
            f"payment_token_id: Xendit does not know this token with the key in use; {RIGHT_KEY}, or correct the row"
        ) from None
    except RequestRejected as error:
        if error.stops_account:
            raise
        return None
    except GatewayError:
        return None
    if report.status != TokenStatus.ACTIVE:
        raise InvalidInput(f"payment_token_id: Xendit says the token is {report.status}; only ACTIVE can be charged")
    if None not in (report.customer_id, row.xendit_customer_id) and report.customer_id != row.xendit_customer_id:
        raise InvalidInput("payment_token_id: at Xendit it belongs to another customer than xendit_customer_id")
    return report


def _write(session: Session, row: Row, checked: _Checked, report: TokenReport | None, now: datetime) -> None:
    customer = _customer(session, row, checked, now)
    token = _token(session, row, customer, now, known=checked.token, report=report)
    anchor = checked.calendar.anchor
    subscription = Subscription(
        id=new_id("sub"),
        reference=row.subscription_reference,
        customer_id=customer.id,
        plan_id=checked.plan.id,
        status=SubscriptionStatus.ACTIVE,
        amount_minor=checked.plan.amount_minor,
        currency=checked.plan.currency,
        timezone=anchor.zone.key,
        payment_token_id=token.id,
        start_at=checked.period.start,
        anchor_local=anchor.local,
        anchor_day=anchor.day,
        billed_cycles=0,
        cancel_at_period_end=False,
        open_failures=0,
        created_at=now,
    )
    plan_next(subscription, checked.period)
    running = _running_period(checked.calendar, now)
    if running is not None:
        subscription.current_period_start, subscription.current_period_end = running.start, running.end
    session.add(subscription)
    session.flush()
    tell(
        session,
        subscription.id,
        now,
        "subscription.imported",
        plan=checked.plan.code,
        next_billing_at=checked.period.start.isoformat(),
        token=token.id,
        token_status=token.status,
    )


def _running_period(calendar: Calendar, now: datetime) -> Period | None:
    """The period they paid for elsewhere: who asks until when it runs must not be told "none". Cron has no back."""
    if isinstance(calendar.schedule, Cron):
        return None
    before = calendar.at(-1, calendar.anchor.local)
    return before if before.start <= now else None


def _customer(session: Session, row: Row, checked: _Checked, now: datetime) -> Customer:
    if checked.customer is not None:
        customer = session.get_one(Customer, checked.customer.id)
        customer.xendit_customer_id = customer.xendit_customer_id or row.xendit_customer_id
        return customer
    return create_customer(
        session,
        reference=row.customer_reference,
        name=row.name,
        email=row.email,
        country=row.country,
        mobile=None,
        timezone=row.timezone,
        xendit_customer_id=row.xendit_customer_id,
        now=now,
    )


def _token(
    session: Session,
    row: Row,
    customer: Customer,
    now: datetime,
    *,
    known: PaymentToken | None,
    report: TokenReport | None,
) -> PaymentToken:
    """As Xendit says; when it was not asked, a known token stays as it is and a new one is PENDING."""
    if known is not None and report is None:
        return known
    told = report or TokenReport(row.payment_token_id, TokenStatus.PENDING)
    return apply_token(
        session,
        customer,
        replace(told, channel_code=told.channel_code or row.channel_code),
        now,
        asked=report is not None,
    )
