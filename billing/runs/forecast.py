"""What a run would charge: counted before it begins, and listed line by line by `billing run --dry-run`. Read only.

Both ask the same code which periods are due and what the plan's catch-up policy makes of them
(subscriptions/open_periods.py).
Where one period is due, no policy has a say, and PostgreSQL counts; the rest is read a page at a time and looked at
between the pages, with no transaction open, so that a hundred thousand due subscriptions cost neither memory nor a
connection. A row that cannot be read so counts as skipped: opening holds it, and nobody else waits for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, case, cast, func, or_, select, true, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.orm import Session, aliased
from sqlalchemy.types import Text

from billing.domain.catch_up import CatchUp, Decision
from billing.domain.lifecycle import BILLABLE, AttemptStatus, HoldKind, InvoiceStatus, TokenStatus
from billing.domain.money import Money, format_money
from billing.domain.schedule import Every, Period, Unit, schedule_from_text
from billing.errors import InvalidSchedule
from billing.parts import Parts, Rules
from billing.reading.views import Json, instant
from billing.store import queries, run_queries
from billing.store.clock import uptime
from billing.store.models import ChargeAttempt, Customer, Invoice, PaymentToken, Plan, Subscription
from billing.subscriptions import open_periods
from billing.subscriptions.moves import calendar_of

MOST_LINES = 10_000  # listed; the totals cover all
ROWS_AT_ONCE = 500
ENOUGH = open_periods.CATCH_UP_LIMIT + 1  # due periods of one subscription: what is billed of more is the same
EXPECTED_WITHIN = 0.5  # `--expect`, unless BILLING_RUN_FORECAST_SHARE says otherwise
SHORTEST = {Unit.DAY: 1, Unit.WEEK: 7, Unit.MONTH: 28, Unit.YEAR: 365}  # days
CLOCK_CHANGE = timedelta(hours=3)  # a day may be shorter than 24 hours
SPENDING_CAP, SUBSCRIBER_CAP, DECLINES, FORECAST = "spending_cap", "subscriber_daily_cap", "decline_jump", "forecast"
NO_TOKEN = "no payment token that may be charged: the customer would be asked"  # noqa: S105 - a sentence


@dataclass(slots=True)
class Counted:
    """What is due at one instant."""

    charges: Counter[tuple[str | None, str]] = field(default_factory=Counter)  # (channel, currency)
    minor: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    opened: int = 0  # of the charges: invoices to be opened; the others are planned attempts
    missed: int = 0  # of the opened: periods that should have been billed before the one that runs
    opening: Counter[str] = field(default_factory=Counter)  # their money, by currency
    skipped: int = 0  # subscriptions not billed, in whole or in part
    held: int = 0  # of the skipped: wait for a person
    complete: bool = True  # False: time was up before all were counted

    @property
    def count(self) -> int:
        return sum(self.charges.values())

    def totals(self) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for (_, currency), minor in self.minor.items():
            sums[currency] += minor
        return dict(sorted(sums.items()))

    def add(self, channel: str | None, currency: str, count: int, minor: int) -> None:
        self.charges[channel, currency] += count
        self.minor[channel, currency] += minor


def count_due(
    parts: Parts,
    now: datetime,
    *,
    without_run: str | None = None,
    until: float = math.inf,
    between: Callable[[], object] = lambda: None,
) -> Counted:
    """Everything a run as of `now` would charge; without the planned attempts of the run `without_run`.

    `until` (uptime): what is counted by then is what there is. `between` is called after every page.
    """
    counted = Counted()
    with parts.reading() as session:
        calendars = _calendars(session, now)
        _count_single_periods(session, now, calendars, counted)
        _count_planned(session, now, without_run, counted)
        counted.held = session.scalar(select(func.count()).select_from(_held(now).subquery())) or 0
    counted.skipped += counted.held
    for page in _pages(parts, _due_otherwise(now), calendars):
        for subscription, plan, channel, *_ in page:
            _count_one(subscription, plan, channel, now, counted)
        between()
        if uptime() > until:
            counted.complete = False
            break
    return counted


def plan_view(counted: Counted, expected_seconds: int | None, facts: int) -> Json:
    """As a run keeps it (billing_runs.plan) and as scripts read it."""
    return {
        "charges": counted.count,
        "opened": counted.opened,
        "missed": counted.missed,
        "totals": in_major_units(counted.totals()),
        "by_channel": [
            {
                "channel_code": channel,
                "currency": currency,
                "charges": count,
                "amount": str(Money(counted.minor[channel, currency], currency)),
            }
            for (channel, currency), count in sorted(
                counted.charges.items(), key=lambda entry: (-entry[1], str(entry[0][0]), entry[0][1])
            )
        ],
        "skipped": counted.skipped,
        "held": counted.held,
        "expected_seconds": expected_seconds,
        "complete": counted.complete,
        "opening": in_major_units(dict(sorted(counted.opening.items()))),
        "facts": facts,
    }


def plan_of_run(
    parts: Parts,
    now: datetime,
    *,
    without_run: str | None = None,
    until: float = math.inf,
    between: Callable[[], object] = lambda: None,
) -> Json:
    """`facts` in it is the last line of all stories then: what a person does later is in none of its sums."""
    with parts.reading() as session:
        facts = run_queries.last_fact(session)
    counted = count_due(parts, now, without_run=without_run, until=until, between=between)
    with parts.reading() as session:
        limit = quota_limit(session, parts.rules)
    return plan_view(counted, expected_seconds(counted.count, limit), facts)


def merged(plan: Mapping[str, Any] | None, more: Json) -> Json:
    """A run that is taken up again also charges what has become due meanwhile."""
    if plan is None:
        return more
    rows: dict[tuple[str | None, str], Json] = {}
    for row in (*plan.get("by_channel", ()), *more["by_channel"]):
        key = (row["channel_code"], row["currency"])
        known = rows.setdefault(key, row | {"charges": 0, "amount": "0"})
        amount = Money.parse(known["amount"], key[1]) + Money.parse(row["amount"], key[1])
        rows[key] = known | {"charges": known["charges"] + row["charges"], "amount": str(amount)}
    return (
        dict(plan)
        | more
        | {"by_channel": list(rows.values()), "complete": plan.get("complete", True) and more["complete"]}
        | {name: _added(plan.get(name, {}), more[name]) for name in ("totals", "opening") if name in plan}
        | {name: plan.get(name, 0) + more[name] for name in ("charges", "opened", "missed")}
    )


def _added(totals: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    return in_major_units(dict(Counter(in_minor_units(totals)) + Counter(in_minor_units(more))))


def in_major_units(sums: Mapping[str, int]) -> dict[str, str]:
    return {currency: str(Money(minor, currency)) for currency, minor in sums.items()}


def in_minor_units(totals: Mapping[str, str]) -> dict[str, int]:
    return {currency: Money.parse(amount, currency).amount_minor for currency, amount in totals.items()}


# ----------------------------------------------------------------------------------------------- the quota


def quota_limit(session: Session, rules: Rules) -> float | None:
    """Charges a minute: as set, or as the gateway's own headers say when that is less; None = no limit."""
    learned = run_queries.learned_limit(session)
    if rules.requests_per_minute is None:
        return None
    return min(rules.requests_per_minute, float(learned)) if learned else rules.requests_per_minute


def expected_seconds(charges: int, limit: float | None) -> int | None:
    return None if limit is None else math.ceil(charges * 60 / limit)


# ------------------------------------------------------------------------------------------------ counting


_OWN = aliased(PaymentToken)


def _next_best(column: Any) -> Any:
    other = aliased(PaymentToken)
    return (
        select(getattr(other, column.key))
        .where(
            other.customer_id == Subscription.customer_id,
            queries.may_be_charged(other),
        )
        .order_by(other.status != TokenStatus.ACTIVE, other.rank)
        .limit(1)
        .correlate(Subscription)
        .scalar_subquery()
    )


def _of_token(column: Any) -> Any:
    """Of the token that would be charged: the subscription's own, else the customer's first. The look for another is
    made only where it is needed."""
    return case((_OWN.id.is_not(None), getattr(_OWN, column.key)), else_=_next_best(column))


_CHANNEL = _of_token(PaymentToken.channel_code)
_TOKEN = _of_token(PaymentToken.payment_token_id)
_LAST4 = _of_token(PaymentToken.card_last4)
_JOIN_OWN = and_(_OWN.id == Subscription.payment_token_id, queries.may_be_charged(_OWN))


def _due(now: datetime) -> ColumnElement[bool]:
    return and_(
        Subscription.next_billing_at <= now, Subscription.status.in_(BILLABLE), Subscription.hold_reason.is_(None)
    )


_CALENDARS = (
    func.unnest(
        cast(bindparam("plan_ids"), ARRAY(Text)), cast(bindparam("single_after"), ARRAY(TIMESTAMP(timezone=True)))
    )
    .table_valued("plan_id", "single_after", name="calendars")
    .render_derived()
)
# Its start is so late that no second one can be due. NULL, thus never, for cron: its periods may be of any length.
_SINGLE = and_(
    Subscription.next_billing_at > _CALENDARS.c.single_after,
    ~Subscription.cancel_at_period_end,
    or_(Plan.cycles.is_(None), Subscription.billed_cycles < Plan.cycles),
)


def _calendars(session: Session, now: datetime) -> dict[str, Any]:
    plans = session.execute(select(Plan.id, Plan.schedule)).all()
    single_after: list[datetime | None] = []
    for _, written in plans:
        try:
            schedule = schedule_from_text(written)
        except InvalidSchedule:  # its subscriptions are looked at one by one, and each says so
            single_after.append(None)
            continue
        shortest = timedelta(days=SHORTEST[schedule.unit] * schedule.count) if isinstance(schedule, Every) else None
        single_after.append(None if shortest is None else now - shortest + CLOCK_CHANGE)
    return {"plan_ids": [row[0] for row in plans], "single_after": single_after}


def _joined(query: Select[Any]) -> Select[Any]:
    return (
        query.join(Plan, Plan.id == Subscription.plan_id)
        .join(_CALENDARS, _CALENDARS.c.plan_id == Plan.id)
        .outerjoin(_OWN, _JOIN_OWN)
    )


def _count_single_periods(session: Session, now: datetime, calendars: Json, counted: Counted) -> None:
    rows = _joined(
        select(_CHANNEL.label("channel"), Subscription.currency, Subscription.amount_minor).where(_due(now), _SINGLE)
    ).subquery()
    grouped = select(rows.c.channel, rows.c.currency, func.count(), func.sum(rows.c.amount_minor)).group_by(
        rows.c.channel, rows.c.currency
    )
    for channel, currency, count, minor in session.execute(grouped, calendars):
        counted.add(channel, currency, count, int(minor))
        counted.opened += count
        counted.opening[currency] += int(minor)


def _due_otherwise(now: datetime) -> Select[Any]:
    """(subscription, plan, channel, token) of those with several periods, an end or a cron line."""
    return _joined(select(Subscription, Plan, _CHANNEL, _TOKEN)).where(_due(now), func.coalesce(~_SINGLE, true()))


def _pages(parts: Parts, query: Select[Any], calendars: Json) -> Iterator[Sequence[Any]]:
    """Its rows, some hundreds at a time, the longest due first. Each page is a short read of its own: no transaction
    is open while a page is looked at. A row that moves on meanwhile is not seen twice, unless it stays due."""
    place = tuple_(Subscription.next_billing_at, Subscription.id)
    ordered = query.order_by(Subscription.next_billing_at, Subscription.id).limit(ROWS_AT_ONCE)
    page = ordered
    while True:
        with parts.reading() as session:
            rows = session.execute(page, calendars).all()
        yield rows
        if len(rows) < ROWS_AT_ONCE:
            return
        last = rows[-1][0]
        page = ordered.where(place > tuple_(last.next_billing_at, last.id))


def _count_one(subscription: Subscription, plan: Plan, channel: str | None, now: datetime, counted: Counted) -> None:
    try:
        due = _due_periods(subscription, plan, now, ENOUGH)
        decision = open_periods.decide(subscription, plan, due) if due else Decision()
    except Exception:  # noqa: BLE001 - whatever is wrong with it: opening holds it with the reason
        counted.skipped += 1
        return
    if decision.bill:
        count = len(decision.bill)
        counted.add(channel, subscription.currency, count, count * subscription.amount_minor)
        counted.opened += count
        counted.opening[subscription.currency] += count * subscription.amount_minor
        counted.missed += sum(_is_missed(period, due) for period in decision.bill)
    if decision.skip or decision.hold or not due:
        counted.skipped += 1
        counted.held += bool(decision.hold)


def _due_periods(
    subscription: Subscription, plan: Plan, now: datetime, limit: int = open_periods.DUE_LIMIT
) -> list[Period]:
    """None for one that ends instead of being billed."""
    if open_periods.ends_before_next(subscription):
        return []
    return open_periods.due_periods(subscription, calendar_of(subscription, plan.schedule), now, limit)


def _is_missed(period: Period, due: list[Period]) -> bool:
    """As in domain/catch_up.py: a later one has started as well."""
    return period is not due[-1]


def _planned(now: datetime, without_run: str | None) -> ColumnElement[bool]:
    """Attempts that are planned already and due by `now`; not those that wait for something beside their time."""
    planned = and_(
        ChargeAttempt.status == AttemptStatus.SCHEDULED,
        ChargeAttempt.parked_by.is_(None),
        ChargeAttempt.scheduled_at <= now,
        Invoice.status == InvoiceStatus.OPEN,
        Subscription.status.in_(BILLABLE),
    )
    return planned if without_run is None else and_(planned, ChargeAttempt.run_id.is_distinct_from(without_run))


def _count_planned(session: Session, now: datetime, without_run: str | None, counted: Counted) -> None:
    rows = (
        select(_CHANNEL.label("channel"), ChargeAttempt.currency, ChargeAttempt.amount_minor)
        .join(Invoice, Invoice.id == ChargeAttempt.invoice_id)
        .join(Subscription, Subscription.id == ChargeAttempt.subscription_id)
        .outerjoin(_OWN, _JOIN_OWN)
        .where(_planned(now, without_run))
        .subquery()
    )
    grouped = select(rows.c.channel, rows.c.currency, func.count(), func.sum(rows.c.amount_minor))
    for channel, currency, count, minor in session.execute(grouped.group_by(rows.c.channel, rows.c.currency)):
        counted.add(channel, currency, count, int(minor))


def _held(now: datetime) -> Select[str, str, str | None, str | None]:
    return select(Subscription.id, Subscription.reference, Subscription.hold_reason, Subscription.hold_kind).where(
        Subscription.next_billing_at <= now,
        Subscription.status.in_(BILLABLE),
        Subscription.hold_reason.is_not(None),
    )


def held_lines(session: Session, now: datetime) -> list[dict[str, str]]:
    """Who is not billed because a person has to say so, for the report of a run."""
    return [
        {
            "subscription_id": identity,
            "reason": f"on hold: {reason}; {waits_for_approval(reference)}"
            if kind == HoldKind.CATCH_UP
            else f"on hold: {reason}",
        }
        for identity, reference, reason, kind in session.execute(_held(now).limit(MOST_LINES))
    ]


def waits_for_approval(name: str) -> str:
    return f"waits for `billing run approve {name}`"


# ------------------------------------------------------------------------------------------------- dry run


def dry_run(
    parts: Parts, at: datetime | None, limit: int = MOST_LINES, *, expect: Mapping[str, int] | None = None
) -> Json:
    """Who would be charged, how much, with which token, who is skipped and why, and how long it would take. Lists at
    most `limit` charges; the totals cover all. Writes nothing, asks nobody."""
    now = at or parts.clock.now()
    listing = _Listing(now, limit)
    plan = plan_of_run(parts, now)
    with parts.reading() as session:
        listing.skipped.extend(held_lines(session, now))
    _list_openings(parts, listing)
    with parts.reading() as session:
        _list_planned(session, listing)
        _list_parked(session, listing)
    return {
        "run_id": None,
        "at": instant(now),
        "opened": plan["opened"],
        "attempted": plan["charges"],
        "succeeded": 0,
        "failed": 0,
        "in_doubt": 0,
        "pending": 0,
        "skipped": listing.skipped,
        "planned": listing.planned,
        "not_listed": max(0, plan["charges"] - len(listing.planned)),
        "missed": plan["missed"],
        "totals": plan["totals"],
        "by_channel": plan["by_channel"],
        "expected_seconds": plan["expected_seconds"],
        "guards": would_stop(plan, parts.rules, expect) + _subscribers_over_cap(listing.planned, parts.rules),
        "dry_run": True,
    }


def would_stop(plan: Json, rules: Rules, expect: Mapping[str, int] | None = None) -> list[Json]:
    """The guards that can be judged by a plan alone."""
    totals = in_minor_units(plan["totals"])
    found = [
        {
            "guard": SPENDING_CAP,
            "reason": f"{format_money(Money(minor, currency))} are planned and the cap of a run is"
            f" {format_money(Money(rules.run_spending_cap[currency], currency))}: it stops there",
        }
        for currency, minor in totals.items()
        if minor > rules.run_spending_cap.get(currency, minor)
    ]
    surprise = None if expect is None else leaves_expectation(totals, expect, rules)
    return found if surprise is None else [*found, {"guard": FORECAST, "reason": surprise}]


def leaves_expectation(totals: Mapping[str, int], expect: Mapping[str, int], rules: Rules) -> str | None:
    """Whether a plan leaves what somebody expects by more than the share, upward or downward. Who names an amount
    wants it compared: without a share that is set, within half of it."""
    share = rules.run_forecast_share or EXPECTED_WITHIN
    for currency in sorted({*totals, *expect}):
        planned, expected = totals.get(currency, 0), expect.get(currency, 0)
        if abs(planned - expected) * 100 > expected * round(share * 100):
            return (
                f"{format_money(Money(planned, currency))} are planned and {format_money(Money(expected, currency))}"
                f" were expected: that is more than {share:.0%} apart"
            )
    return None


def _subscribers_over_cap(planned: list[Json], rules: Rules) -> list[Json]:
    """Among the charges that are listed."""
    sums: Counter[tuple[str, str]] = Counter()
    for line in planned:
        sums[line["customer"], line["currency"]] += Money.parse(line["amount"], line["currency"]).amount_minor
    cap = rules.subscriber_daily_cap
    return [
        {
            "guard": SUBSCRIBER_CAP,
            "reason": f"{format_money(Money(minor, currency))} are planned for customer {customer} and the cap is"
            f" {format_money(Money(cap[currency], currency))} a day: the rest is held",
        }
        for (customer, currency), minor in sums.items()
        if minor > cap.get(currency, minor)
    ]


@dataclass(slots=True)
class _Listing:
    now: datetime
    limit: int
    planned: list[Json] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    @property
    def room(self) -> int:
        return max(0, self.limit - len(self.planned))

    def skip(self, subscription: Subscription, reason: str) -> None:
        if len(self.skipped) < self.limit:
            self.skipped.append({"subscription_id": subscription.id, "reason": reason})


def _list_openings(parts: Parts, listing: _Listing) -> None:
    query = (
        select(Subscription, Plan, Customer.reference, _CHANNEL, _TOKEN, _LAST4)
        .join(Plan, Plan.id == Subscription.plan_id)
        .join(Customer, Customer.id == Subscription.customer_id)
        .outerjoin(_OWN, _JOIN_OWN)
        .where(_due(listing.now))
    )
    left = listing.limit
    for page in _pages(parts, query, {}):
        for row in page[:left]:
            try:
                _list_one(listing, *row)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it: opening holds it with the reason
                listing.skip(row[0], f"cannot be billed: {open_periods.in_one_line(error)}")
        left -= len(page)
        if left <= 0:
            return


def _list_one(listing: _Listing, subscription: Subscription, plan: Plan, customer: str, *method: str | None) -> None:
    enough = ENOUGH if plan.catch_up == CatchUp.ALL else open_periods.DUE_LIMIT
    due = _due_periods(subscription, plan, listing.now, enough)
    if not due:
        ends = "the period it was canceled for is over"
        listing.skip(subscription, ends if subscription.cancel_at_period_end else "all cycles billed")
        return
    decision = open_periods.decide(subscription, plan, due)
    amount = Money(subscription.amount_minor, subscription.currency)
    for period in decision.bill[: listing.room]:
        line = _line(subscription.id, customer, amount, period.start, *method)
        listing.planned.append(line | _catch_up(plan, missed=_is_missed(period, due)))
    if decision.skip:
        listing.skip(subscription, f"{len(decision.skip)} missed period(s); catch-up policy {plan.catch_up}")
    if decision.hold:
        listing.skip(subscription, f"{decision.hold}; {waits_for_approval(subscription.reference)}")


def _catch_up(plan: Plan, *, missed: bool) -> Json:
    return {"missed": missed, "catch_up": plan.catch_up} if missed else {"missed": False}


def _list_planned(session: Session, listing: _Listing) -> None:
    query = (
        select(ChargeAttempt, Customer.reference, Invoice.period_start, _CHANNEL, _TOKEN, _LAST4)
        .join(Invoice, Invoice.id == ChargeAttempt.invoice_id)
        .join(Subscription, Subscription.id == ChargeAttempt.subscription_id)
        .join(Customer, Customer.id == Subscription.customer_id)
        .outerjoin(_OWN, _JOIN_OWN)
        .where(_planned(listing.now, None))
        .order_by(ChargeAttempt.scheduled_at, ChargeAttempt.id)
        .limit(listing.room)
        .execution_options(yield_per=ROWS_AT_ONCE)
    )
    for attempt, customer, start, *method in session.execute(query):
        amount = Money(attempt.amount_minor, attempt.currency)
        line = _line(attempt.subscription_id, customer, amount, start, *method)
        listing.planned.append(line | {"missed": False, "attempt": attempt.number})


def _list_parked(session: Session, listing: _Listing) -> None:
    query = (
        select(ChargeAttempt.subscription_id, ChargeAttempt.error, ChargeAttempt.parked_by)
        .where(
            ChargeAttempt.parked_by.is_not(None),
            ChargeAttempt.status == AttemptStatus.SCHEDULED,
            ChargeAttempt.scheduled_at <= listing.now,
        )
        .limit(max(0, listing.limit - len(listing.skipped)))
    )
    for subscription_id, error, parked_by in session.execute(query):
        listing.skipped.append({"subscription_id": subscription_id, "reason": error or f"waits for {parked_by}"})


def _line(
    subscription_id: str,
    customer: str,
    amount: Money,
    period_start: datetime,
    channel: str | None,
    token: str | None,
    card_last4: str | None,
) -> Json:
    return {
        "subscription_id": subscription_id,
        "customer": customer,
        "amount": str(amount),
        "currency": amount.currency,
        "period_start": instant(period_start),
        "payment_token_id": token,
        "channel_code": channel,
        "card_last4": card_last4,
        "note": None if token else NO_TOKEN,
    }
