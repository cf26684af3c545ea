"""What an import reads and writes, for many rows at once. Callers own the transaction.

Sets in, sets out: one statement for each table, whatever the number of rows. What is written goes as one text a column,
a line a row: arrays and JSON would cost this process a look at every value, which is most of what a row costs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from billing.store.models import PaymentToken
from billing.store.queries import may_be_charged

# ------------------------------------------------------------------------------------------------ what is there


@dataclass(frozen=True, slots=True)
class APlan:
    id: str
    code: str
    amount_minor: int
    currency: str
    schedule: str
    timezone: str
    catch_up: str
    cycles: int | None


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

    plans: dict[str, APlan] = field(default_factory=dict)  # by code
    customers: dict[str, ACustomer] = field(default_factory=dict)  # by reference
    owners: dict[str, str] = field(default_factory=dict)  # of a customer's id at Xendit: the reference
    tokens: dict[str, AToken] = field(default_factory=dict)  # by Xendit's id
    subscriptions: dict[str, ASubscription] = field(default_factory=dict)  # by reference
    chargeable: set[str] = field(default_factory=set)  # customers with a bad token here who have another


# Each set of keys as an array, so that the index answers.
_PLANS = text("""
    SELECT id, code, amount_minor, currency, schedule, timezone, catch_up, cycles FROM plans
    WHERE code = ANY(ARRAY(SELECT jsonb_array_elements_text(CAST(:plans AS jsonb))))
""")
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
    for row in session.execute(_PLANS, {"plans": _json(plans)}):
        known.plans[row[1]] = APlan(*row)
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


class NewCustomer(NamedTuple):
    id: str
    reference: str
    name: str
    email: str
    country: str
    timezone: str
    xendit_customer_id: str | None


class NewToken(NamedTuple):
    id: str
    payment_token_id: str
    customer_id: str
    channel_code: str
    next_check_at: datetime
    place: int  # among the customer's new ones, from 1


class NewSubscription(NamedTuple):
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


# A column is cut at its line ends (chr(10)), of which no value has any: subscribing/import_lines.py refuses them. In a
# column that may be NULL, None is.
_INSERT_CUSTOMERS = text("""
    INSERT INTO customers (id, reference, name, email, country, timezone, xendit_customer_id, created_at)
    SELECT x.*, :now FROM unnest(string_to_array(:id, chr(10)), string_to_array(:reference, chr(10)),
        string_to_array(:name, chr(10)), string_to_array(:email, chr(10)), string_to_array(:country, chr(10)),
        string_to_array(:timezone, chr(10)), string_to_array(:xendit_customer_id, chr(10), 'None')) AS x
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
    FROM unnest(string_to_array(:id, chr(10)), string_to_array(:payment_token_id, chr(10)),
        string_to_array(:customer_id, chr(10)), string_to_array(:channel_code, chr(10)),
        CAST(string_to_array(:next_check_at, chr(10)) AS timestamptz[]),
        CAST(string_to_array(:place, chr(10)) AS int[]))
        AS x (id, payment_token_id, customer_id, channel_code, next_check_at, place)
""")
# With a line of the story of each.
_INSERT_SUBSCRIPTIONS = text("""
    WITH x AS MATERIALIZED (
        SELECT * FROM unnest(string_to_array(:id, chr(10)), string_to_array(:reference, chr(10)),
            string_to_array(:customer_id, chr(10)), string_to_array(:plan_id, chr(10)),
            CAST(string_to_array(:amount_minor, chr(10)) AS bigint[]), string_to_array(:currency, chr(10)),
            string_to_array(:timezone, chr(10)), string_to_array(:payment_token_id, chr(10)),
            CAST(string_to_array(:start_at, chr(10)) AS timestamptz[]),
            CAST(string_to_array(:anchor_local, chr(10)) AS timestamp[]),
            CAST(string_to_array(:anchor_day, chr(10)) AS smallint[]),
            CAST(string_to_array(:next_index, chr(10)) AS int[]),
            CAST(string_to_array(:next_local, chr(10)) AS timestamp[]),
            CAST(string_to_array(:current_period_start, chr(10), 'None') AS timestamptz[]),
            CAST(string_to_array(:current_period_end, chr(10), 'None') AS timestamptz[]),
            string_to_array(:plan, chr(10)), string_to_array(:next_billing_text, chr(10)),
            string_to_array(:token_status, chr(10)))
            AS x (id, reference, customer_id, plan_id, amount_minor, currency, timezone, payment_token_id, start_at,
                anchor_local, anchor_day, next_index, next_local, current_period_start, current_period_end, plan,
                next_billing_text, token_status)
    ), made AS (
        INSERT INTO subscriptions (id, reference, customer_id, plan_id, status, amount_minor, currency, timezone,
            payment_token_id, start_at, anchor_local, anchor_day, next_index, next_local, next_billing_at,
            billed_cycles, current_period_start, current_period_end, cancel_at_period_end, open_failures, created_at)
        SELECT id, reference, customer_id, plan_id, 'active', amount_minor, currency, timezone, payment_token_id,
            start_at, anchor_local, anchor_day, next_index, next_local, start_at, 0, current_period_start,
            current_period_end, false, 0, :now
        FROM x
    )
    INSERT INTO facts (subscription_id, at, kind, detail)
    SELECT id, :now, 'subscription.imported', jsonb_build_object('plan', plan, 'next_billing_at', next_billing_text,
        'token', payment_token_id, 'token_status', token_status)
    FROM x
""")


def write(session: Session, planned: Planned, now: datetime) -> None:
    """Raises IntegrityError when somebody else has made one of these since they were looked for."""
    if planned.customers:
        session.execute(_INSERT_CUSTOMERS, _columns(planned.customers) | {"now": now})
    if planned.xendit_ids:
        session.execute(_NAME_AT_XENDIT, {"ids": json.dumps(planned.xendit_ids)})
    if planned.tokens:
        session.execute(_INSERT_TOKENS, _columns(planned.tokens) | {"now": now})
    if planned.subscriptions:
        session.execute(_INSERT_SUBSCRIPTIONS, _columns(planned.subscriptions) | {"now": now})


def _columns(rows: Sequence[NewCustomer] | Sequence[NewToken] | Sequence[NewSubscription]) -> dict[str, object]:
    columns = zip(*rows, strict=True)
    return {name: "\n".join(map(str, column)) for name, column in zip(rows[0]._fields, columns, strict=True)}


def _json(keys: Iterable[str]) -> str:
    return json.dumps(list(keys))
