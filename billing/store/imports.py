"""What an import reads and writes, for many rows at once. Callers own the transaction.

Sets in, sets out: one statement for each table, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

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


_CUSTOMERS = text("""
    SELECT id, reference, name, email, country, xendit_customer_id FROM customers
    WHERE reference = ANY(CAST(:customers AS text[])) OR xendit_customer_id = ANY(CAST(:xendit_ids AS text[]))
""")
_TOKENS = text("""
    SELECT t.id, t.payment_token_id, t.customer_id, c.reference, t.status, t.failure_code, t.blocked_reason,
        t.unknown_since
    FROM payment_tokens t JOIN customers c ON c.id = t.customer_id
    WHERE t.payment_token_id = ANY(CAST(:tokens AS text[]))
""")
_SUBSCRIPTIONS = text("""
    SELECT reference, customer_id, plan_id, status, timezone, anchor_day FROM subscriptions
    WHERE reference = ANY(CAST(:subscriptions AS text[]))
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
    for row in session.execute(_CUSTOMERS, {"customers": list(customers), "xendit_ids": list(xendit_ids)}):
        known.customers[row[1]] = ACustomer(*row)
        if row[5] is not None:
            known.owners[row[5]] = row[1]
    for row in session.execute(_TOKENS, {"tokens": list(tokens)}):
        known.tokens[row[1]] = AToken(*row)
    for row in session.execute(_SUBSCRIPTIONS, {"subscriptions": list(subscriptions)}):
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
    xendit_ids: dict[str, str] = field(default_factory=dict)  # of customers who had none: ours -> Xendit's


_INSERT_CUSTOMERS = text("""
    INSERT INTO customers (id, reference, name, email, country, timezone, xendit_customer_id, created_at)
    SELECT x.*, :now FROM unnest(CAST(:id AS text[]), CAST(:reference AS text[]), CAST(:name AS text[]),
        CAST(:email AS text[]), CAST(:country AS text[]), CAST(:timezone AS text[]),
        CAST(:xendit_customer_id AS text[])) AS x
""")
_NAME_AT_XENDIT = text("""
    UPDATE customers c SET xendit_customer_id = x.theirs
    FROM unnest(CAST(:ours AS text[]), CAST(:theirs AS text[])) AS x (ours, theirs)
    WHERE c.id = x.ours AND c.xendit_customer_id IS NULL
""")
# Behind those that the customer has, in the order of the file.
_INSERT_TOKENS = text("""
    INSERT INTO payment_tokens (id, payment_token_id, customer_id, status, channel_code, next_check_at, rank,
        created_at)
    SELECT x.id, x.payment_token_id, x.customer_id, 'PENDING', x.channel_code, x.next_check_at,
        coalesce((SELECT max(t.rank) FROM payment_tokens t WHERE t.customer_id = x.customer_id), 0)
            + row_number() OVER (PARTITION BY x.customer_id ORDER BY x.place),
        :now
    FROM unnest(CAST(:id AS text[]), CAST(:payment_token_id AS text[]), CAST(:customer_id AS text[]),
        CAST(:channel_code AS text[]), CAST(:next_check_at AS timestamptz[]))
        WITH ORDINALITY AS x (id, payment_token_id, customer_id, channel_code, next_check_at, place)
""")
_INSERT_SUBSCRIPTIONS = text("""
    WITH x AS (
        SELECT * FROM unnest(CAST(:id AS text[]), CAST(:reference AS text[]), CAST(:customer_id AS text[]),
            CAST(:plan_id AS text[]), CAST(:amount_minor AS bigint[]), CAST(:currency AS text[]),
            CAST(:timezone AS text[]), CAST(:payment_token_id AS text[]), CAST(:start_at AS timestamptz[]),
            CAST(:anchor_local AS timestamp[]), CAST(:anchor_day AS smallint[]), CAST(:next_index AS int[]),
            CAST(:next_local AS timestamp[]), CAST(:current_period_start AS timestamptz[]),
            CAST(:current_period_end AS timestamptz[]))
            AS x (id, reference, customer_id, plan_id, amount_minor, currency, timezone, payment_token_id, start_at,
                anchor_local, anchor_day, next_index, next_local, current_period_start, current_period_end)
    )
    INSERT INTO subscriptions (id, reference, customer_id, plan_id, status, amount_minor, currency, timezone,
        payment_token_id, start_at, anchor_local, anchor_day, next_index, next_local, next_billing_at, billed_cycles,
        current_period_start, current_period_end, cancel_at_period_end, open_failures, created_at)
    SELECT id, reference, customer_id, plan_id, 'active', amount_minor, currency, timezone, payment_token_id, start_at,
        anchor_local, anchor_day, next_index, next_local, start_at, 0, current_period_start, current_period_end, false,
        0, :now
    FROM x
""")
_TELL = text("""
    INSERT INTO facts (subscription_id, at, kind, detail)
    SELECT x.id, :now, 'subscription.imported', jsonb_build_object(
        'plan', x.plan, 'next_billing_at', x.next_billing_text, 'token', x.token, 'token_status', x.token_status)
    FROM unnest(CAST(:id AS text[]), CAST(:plan AS text[]), CAST(:next_billing_text AS text[]),
        CAST(:payment_token_id AS text[]), CAST(:token_status AS text[]))
        AS x (id, plan, next_billing_text, token, token_status)
""")
_STORY = ("id", "plan", "next_billing_text", "payment_token_id", "token_status")
_ROW_ONLY = ("plan", "next_billing_text", "token_status")


def write(session: Session, planned: Planned, now: datetime) -> None:
    """Raises IntegrityError when somebody else has made one of these since they were looked for."""
    if planned.customers:
        session.execute(_INSERT_CUSTOMERS, _columns(planned.customers) | {"now": now})
    if planned.xendit_ids:
        session.execute(_NAME_AT_XENDIT, {"ours": [*planned.xendit_ids], "theirs": [*planned.xendit_ids.values()]})
    if planned.tokens:
        session.execute(_INSERT_TOKENS, _columns(planned.tokens) | {"now": now})
    if planned.subscriptions:
        columns = _columns(planned.subscriptions)
        row = {name: values for name, values in columns.items() if name not in _ROW_ONLY}
        session.execute(_INSERT_SUBSCRIPTIONS, row | {"now": now})
        session.execute(_TELL, {name: columns[name] for name in _STORY} | {"now": now})


def _columns(rows: Sequence[NewCustomer | NewToken | NewSubscription]) -> dict[str, Any]:
    return {column.name: [getattr(row, column.name) for row in rows] for column in fields(rows[0])}
