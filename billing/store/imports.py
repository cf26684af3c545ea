"""What an import reads and writes, for many rows at once. Callers own the transaction.

Sets in, sets out: one statement for each table, whatever the number of rows. A set goes as one text of JSON: arrays
would cost this process a look at every value, which is most of what a row costs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from operator import attrgetter

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from billing.store.models import PaymentToken, Plan
from billing.store.queries import may_be_charged

# ------------------------------------------------------------------------------------------------ what is there


@dataclass(slots=True)
class ACustomer:
    id: str
    reference: str
    name: str
    email: str
    country: str
    xendit_customer_id: str | None


@dataclass(slots=True)
class AToken:
    id: str
    payment_token_id: str
    customer_id: str
    owner: str  # the customer's reference
    status: str
    failure_code: str | None
    blocked_reason: str | None
    unknown_since: datetime | None


@dataclass(slots=True)
class ASubscription:
    reference: str
    customer_id: str
    plan_id: str
    status: str
    timezone: str
    anchor_day: int | None


@dataclass(slots=True)
class Known:
    """What the database has of all that some rows name; and of rows planned since, what they will make."""

    plans: dict[str, Plan] = field(default_factory=dict)  # by code
    customers: dict[str, ACustomer] = field(default_factory=dict)  # by reference
    owners: dict[str, str] = field(default_factory=dict)  # of a customer's id at Xendit: the reference
    tokens: dict[str, AToken] = field(default_factory=dict)  # by Xendit's id
    subscriptions: dict[str, ASubscription] = field(default_factory=dict)  # by reference
    chargeable: set[str] = field(default_factory=set)  # customers with a bad token here who have another


# Each set of keys as an array, so that the index answers.
_CUSTOMERS = text("""
    SELECT id, reference, name, email, country, xendit_customer_id FROM customers
    WHERE reference = ANY(ARRAY(SELECT jsonb_array_elements_text(CAST(:customers AS jsonb))))
        OR xendit_customer_id = ANY(ARRAY(SELECT jsonb_array_elements_text(CAST(:xendit_ids AS jsonb))))
""")
_TOKENS = text("""
    SELECT t.id, t.payment_token_id, t.customer_id, c.reference, t.status, t.failure_code, t.blocked_reason,
        t.unknown_since
    FROM payment_tokens t JOIN customers c ON c.id = t.customer_id
    WHERE t.payment_token_id = ANY(ARRAY(SELECT jsonb_array_elements_text(CAST(:tokens AS jsonb))))
""")
_SUBSCRIPTIONS = text("""
    SELECT reference, customer_id, plan_id, status, timezone, anchor_day FROM subscriptions
    WHERE reference = ANY(ARRAY(SELECT jsonb_array_elements_text(CAST(:subscriptions AS jsonb))))
""")


def read(
    session: Session,
    *,
    plans: Iterable[str],
    customers: Iterable[str],
    xendit_ids: Iterable[str],
    tokens: Iterable[str],
    subscriptions: Iterable[str],
) -> Known:
    known = Known()
    for plan in session.scalars(select(Plan).where(Plan.code.in_(list(plans)))):
        known.plans[plan.code] = plan
    for row in session.execute(_CUSTOMERS, {"customers": _json(customers), "xendit_ids": _json(xendit_ids)}):
        known.customers[row[1]] = ACustomer(*row)
        if row[5] is not None:
            known.owners[row[5]] = row[1]
    for row in session.execute(_TOKENS, {"tokens": _json(tokens)}):
        known.tokens[row[1]] = AToken(*row)
    for row in session.execute(_SUBSCRIPTIONS, {"subscriptions": _json(subscriptions)}):
        known.subscriptions[row[0]] = ASubscription(*row)
    return known


def customers_with_a_method(session: Session, customer_ids: Collection[str]) -> set[str]:
    """Those of them who have a payment method that is, or may soon be, ACTIVE."""
    if not customer_ids:
        return set()
    query = select(PaymentToken.customer_id).where(
        PaymentToken.customer_id.in_(list(customer_ids)), may_be_charged(PaymentToken)
    )
    return set(session.scalars(query.distinct()))


# ---------------------------------------------------------------------------------------------- what is written


@dataclass(frozen=True, slots=True)
class NewCustomer:
    id: str
    reference: str
    name: str
    email: str
    country: str
    timezone: str
    xendit_customer_id: str | None


@dataclass(frozen=True, slots=True)
class NewToken:
    id: str
    payment_token_id: str
    customer_id: str
    channel_code: str
    next_check_at: datetime
    place: int  # among the customer's new ones, from 1


@dataclass(frozen=True, slots=True)
class NewSubscription:
    id: str
    reference: str
    customer_id: str
    plan_id: str
    amount_minor: int
    currency: str
    timezone: str
    payment_token_id: str
    start_at: datetime
    anchor_local: datetime
    anchor_day: int
    next_index: int
    next_local: datetime
    current_period_start: datetime | None
    current_period_end: datetime | None
    # For its story.
    plan: str
    next_billing_text: str
    token_status: str


@dataclass(slots=True)
class Planned:
    customers: list[NewCustomer] = field(default_factory=list)
    tokens: list[NewToken] = field(default_factory=list)
    subscriptions: list[NewSubscription] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)  # of the last new token of each customer
    xendit_ids: dict[str, str] = field(default_factory=dict)  # of customers who had none: ours -> Xendit's


_INSERT_CUSTOMERS = text("""
    INSERT INTO customers (id, reference, name, email, country, timezone, xendit_customer_id, created_at)
    SELECT x.*, :now FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x (
        id text, reference text, name text, email text, country text, timezone text, xendit_customer_id text)
""")
_NAME_AT_XENDIT = text("""
    UPDATE customers c SET xendit_customer_id = x.value
    FROM jsonb_each_text(CAST(:ids AS jsonb)) AS x WHERE c.id = x.key AND c.xendit_customer_id IS NULL
""")
# Behind those that the customer has, in the order of the file.
_INSERT_TOKENS = text("""
    INSERT INTO payment_tokens (id, payment_token_id, customer_id, status, channel_code, next_check_at, rank,
        created_at)
    SELECT x.id, x.payment_token_id, x.customer_id, 'PENDING', x.channel_code, x.next_check_at,
        coalesce((SELECT max(t.rank) FROM payment_tokens t WHERE t.customer_id = x.customer_id), 0) + x.place, :now
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x (
        id text, payment_token_id text, customer_id text, channel_code text, next_check_at timestamptz, place int)
""")
_INSERT_SUBSCRIPTIONS = text("""
    INSERT INTO subscriptions (id, reference, customer_id, plan_id, status, amount_minor, currency, timezone,
        payment_token_id, start_at, anchor_local, anchor_day, next_index, next_local, next_billing_at, billed_cycles,
        current_period_start, current_period_end, cancel_at_period_end, open_failures, created_at)
    SELECT id, reference, customer_id, plan_id, 'active', amount_minor, currency, timezone, payment_token_id, start_at,
        anchor_local, anchor_day, next_index, next_local, start_at, 0, current_period_start, current_period_end, false,
        0, :now
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x (id text, reference text, customer_id text, plan_id text,
        amount_minor bigint, currency text, timezone text, payment_token_id text, start_at timestamptz,
        anchor_local timestamp, anchor_day smallint, next_index int, next_local timestamp,
        current_period_start timestamptz, current_period_end timestamptz)
""")
_TELL = text("""
    INSERT INTO facts (subscription_id, at, kind, detail)
    SELECT id, :now, 'subscription.imported', jsonb_build_object('plan', plan, 'next_billing_at', next_billing_text,
        'token', payment_token_id, 'token_status', token_status)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x (
        id text, plan text, next_billing_text text, payment_token_id text, token_status text)
""")


def write(session: Session, planned: Planned, now: datetime) -> None:
    """Raises IntegrityError when somebody else has made one of these since they were looked for."""
    if planned.customers:
        session.execute(_INSERT_CUSTOMERS, {"rows": _rows(planned.customers), "now": now})
    if planned.xendit_ids:
        session.execute(_NAME_AT_XENDIT, {"ids": json.dumps(planned.xendit_ids)})
    if planned.tokens:
        session.execute(_INSERT_TOKENS, {"rows": _rows(planned.tokens), "now": now})
    if planned.subscriptions:
        rows = _rows(planned.subscriptions)
        session.execute(_INSERT_SUBSCRIPTIONS, {"rows": rows, "now": now})
        session.execute(_TELL, {"rows": rows, "now": now})


def _rows(rows: Sequence[NewCustomer | NewToken | NewSubscription]) -> str:
    names = [column.name for column in fields(rows[0])]
    values = attrgetter(*names)
    return json.dumps([dict(zip(names, values(row), strict=True)) for row in rows], default=datetime.isoformat)


def _json(keys: Iterable[str]) -> str:
    return json.dumps(list(keys))
