"""The schema: it goes up and down, is what the models say, and its hot questions cost what is due, not what exists."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from billing.charging import begin
from billing.domain.gateway import Lane
from billing.store import migrate, queries
from billing.store.engine import make_engine
from billing.store.models import Base

NOW = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
MANY = 20_000


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url, pool_size=2)
    yield engine
    engine.dispose()


def test_up_down_and_up_again(empty_database_url: str) -> None:
    assert migrate.current(empty_database_url) is None

    assert migrate.upgrade(empty_database_url) == migrate.newest()
    assert migrate.downgrade(empty_database_url, "base") == ""
    engine = make_engine(empty_database_url, pool_size=2)
    assert set(sa.inspect(engine).get_table_names()) <= {"alembic_version"}
    engine.dispose()
    assert migrate.upgrade(empty_database_url) == migrate.newest()


def test_a_second_upgrade_does_nothing(database_url: str) -> None:
    assert migrate.upgrade(database_url) == migrate.newest()


def test_two_upgrades_at_once_do_it_once(empty_database_url: str) -> None:
    """Several containers start together and each runs `billing migrate`."""
    errors: list[Exception] = []

    def upgrade() -> None:
        try:
            migrate.upgrade(empty_database_url)
        except sa.exc.SQLAlchemyError as error:
            errors.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert migrate.current(empty_database_url) == migrate.newest()


def test_the_migrations_make_what_the_models_say(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_checks_of_the_models_are_in_the_database(engine: Engine) -> None:
    """Autogenerate does not compare CHECK constraints and the conditions of partial indexes."""
    inspector = sa.inspect(engine)
    for table in Base.metadata.sorted_tables:
        wanted = {str(c.name) for c in table.constraints if isinstance(c, sa.CheckConstraint)}
        assert wanted == {str(check["name"]) for check in inspector.get_check_constraints(table.name)}, table.name
        partial = {str(i.name) for i in table.indexes if i.dialect_options["postgresql"]["where"] is not None}
        found = {
            str(index["name"])
            for index in inspector.get_indexes(table.name)
            if index.get("dialect_options", {}).get("postgresql_where")
        }
        assert partial == found, table.name


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE invoices SET period_key = 'same'", "uq_invoices_subscription_period"),
        ("UPDATE charge_attempts SET status = 'pending'", "uq_charge_attempts_unfinished"),
        ("UPDATE charge_attempts SET reference_id = 'same'", "reference_id"),
        ("UPDATE captures SET overpayment = false", "uq_captures_paying_attempt"),
        ("UPDATE charge_attempts SET status = 'nonsense'", "status_known"),
        ("UPDATE charge_attempts SET status = 'failed', submitted_at = NULL", "submitted_is_dated"),
        ("UPDATE invoices SET amount_minor = 0", "amount_positive"),
    ],
)
def test_what_must_never_be_is_refused_by_the_database(engine: Engine, statement: str, constraint: str) -> None:
    """The constraint is the guard; code above it only makes the conflict rare and polite."""
    with engine.begin() as connection:
        _fill(connection, subscriptions=1, invoices=2, attempts=2)
        connection.execute(
            text(
                "INSERT INTO captures (id, payment_id, invoice_id, attempt_id, amount_minor, currency, overpayment,"
                " captured_at) SELECT 'cap-' || n, 'py-' || n, 'inv-1', 'att-1', 5, 'IDR', n > 1, :now"
                " FROM generate_series(1, 2) n"
            ),
            {"now": NOW},
        )
        connection.execute(text("UPDATE charge_attempts SET invoice_id = 'inv-1', number = right(id, 1)::int"))
    with pytest.raises(sa.exc.IntegrityError, match=constraint), engine.begin() as connection:
        connection.execute(text(statement))


@pytest.fixture(scope="module")
def hot() -> dict[str, tuple[str, Callable[[Session], object]]]:
    """What is asked every few seconds, and of which table."""
    return {
        "due subscriptions": ("subscriptions", lambda s: queries.claim_due_subscriptions(s, NOW, 500)),
        "due last": ("subscriptions", lambda s: queries.claim_due_subscriptions(s, NOW, 500, newest_first=True)),
        "what is due": ("charge_attempts", lambda s: queries.what_is_due(s, NOW, NOW)),
        "due attempts": ("charge_attempts", lambda s: queries.claim_due_attempts(s, NOW, NOW, 500, lane=Lane.RENEWAL)),
        "due attempts of a run": (
            "charge_attempts",
            lambda s: queries.claim_due_attempts(s, NOW, NOW, 500, lane=Lane.RETRY, run_id="run-1"),
        ),
        "attempts in flight": ("charge_attempts", lambda s: queries.count_in_flight(s, NOW)),
        "dead calls": ("charge_attempts", lambda s: queries.expired_submissions(s, NOW, 500)),
        "due look-ups": ("charge_attempts", lambda s: queries.claim_due_checks(s, NOW, NOW, 500)),
        "due events": ("webhook_events", lambda s: queries.claim_due_events(s, NOW, NOW, 500)),
        "due sessions": ("payment_sessions", lambda s: queries.claim_due_session_checks(s, NOW, NOW, 500)),
        "grace over": ("invoices", lambda s: queries.overdue_invoices(s, NOW, "", 500)),
        "ended": ("subscriptions", lambda s: queries.subscriptions_over(s, NOW, "", 500)),
        "one attempt": ("charge_attempts", lambda s: begin.to_begin(s, ["att-77"], NOW)),
        "its captures": ("charge_attempts", lambda s: queries.attempt_with_invoice(s, "att-77")),
    }


def test_with_nothing_due_no_table_is_read_through(
    engine: Engine, hot: dict[str, tuple[str, Callable[[Session], object]]]
) -> None:
    with engine.begin() as connection:
        _fill(connection, subscriptions=MANY, invoices=MANY, attempts=MANY)
        connection.execute(
            text(
                "INSERT INTO webhook_events (id, dedupe_key, event, payload, state, received_at)"
                " SELECT 'evt-' || n, 'key-' || n, 'payment.capture', '{}', 'applied', :now"
                " FROM generate_series(1, :many) n"
            ),
            {"now": NOW, "many": MANY},
        )
        connection.execute(
            text(
                "INSERT INTO payment_sessions (id, reference_id, customer_id, type, mode, status, amount_minor,"
                " currency, expires_at, created_at)"
                " SELECT 'ses-' || n, 'ses-' || n, 'cus-1', 'SAVE', 'PAYMENT_LINK', 'COMPLETED', 0, 'IDR', :now, :now"
                " FROM generate_series(1, :many) n"
            ),
            {"now": NOW, "many": MANY},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))

    for name, (table, ask) in hot.items():
        read_through = [line for plan in _plans(engine, ask) for line in plan if f"Seq Scan on {table}" in line]
        assert not read_through, f"{name}: {read_through}"


def _plans(engine: Engine, ask: Callable[[Session], object]) -> list[list[str]]:
    """How PostgreSQL would do each statement of `ask`."""
    asked: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, _context: object, _many: bool) -> None:
        asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        with Session(engine) as session:
            ask(session)
            session.rollback()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert asked
    with engine.connect() as connection:
        return [
            [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)]
            for statement, parameters in asked
        ]


def _fill(connection: sa.Connection, *, subscriptions: int, invoices: int, attempts: int) -> None:
    """Settled history, written by the database itself. Nothing of it is due."""
    values = {"now": NOW, "later": datetime(2026, 3, 1, tzinfo=UTC)}
    for statement, count in (
        (
            "INSERT INTO plans (id, code, name, amount_minor, currency, schedule, timezone, trial_days, catch_up,"
            " dunning, created_at) SELECT 'plan-1', 'gold', 'Gold', 5, 'IDR', 'every 1:month', 'UTC', 0, 'all',"
            " 'standard', :now FROM generate_series(1, :count)",
            1,
        ),
        (
            "INSERT INTO customers (id, reference, name, email, country, timezone, created_at)"
            " SELECT 'cus-' || n, 'ana-' || n, 'Ana', 'a@example.com', 'ID', 'UTC', :now"
            " FROM generate_series(1, :count) n",
            subscriptions,
        ),
        (
            "INSERT INTO payment_tokens (id, payment_token_id, customer_id, status, channel_code, rank, fingerprint,"
            " created_at) SELECT 'tok-' || n, 'pt-' || n, 'cus-' || n, 'ACTIVE', 'CARDS', 1, 'card-' || n, :now"
            " FROM generate_series(1, :count) n",
            subscriptions,
        ),
        (
            "INSERT INTO subscriptions (id, reference, customer_id, plan_id, status, amount_minor, currency, timezone,"
            " next_billing_at, created_at) SELECT 'sub-' || n, 'sub-' || n, 'cus-' || n, 'plan-1', 'active', 5, 'IDR',"
            " 'UTC', :later, :now FROM generate_series(1, :count) n",
            subscriptions,
        ),
        (
            "INSERT INTO invoices (id, number, subscription_id, period_key, period_index, period_start, period_end,"
            " amount_minor, amount_paid_minor, currency, status, opened_at) SELECT 'inv-' || n, 'inv-' || n,"
            " 'sub-' || (1 + n % :subscriptions), 'key-' || n, n, :now, :later, 5, 5, 'IDR', 'paid', :now"
            " FROM generate_series(1, :count) n",
            invoices,
        ),
        (
            "INSERT INTO charge_attempts (id, reference_id, invoice_id, subscription_id, number, origin, status,"
            " amount_minor, currency, scheduled_at, submitted_at, settled_at, payment_token_id, fingerprint,"
            " created_at) SELECT 'att-' || n, 'att-' || n, 'inv-' || n, 'sub-' || (1 + n % :subscriptions), 1,"
            " 'schedule', CASE WHEN n % 5 = 0 THEN 'failed' ELSE 'succeeded' END, 5, 'IDR', :now, :now, :now,"
            " 'tok-' || (1 + n % :subscriptions), 'card-' || (1 + n % :subscriptions), :now"
            " FROM generate_series(1, :count) n",
            attempts,
        ),
    ):
        connection.execute(text(statement), values | {"count": count, "subscriptions": subscriptions})
