"""Old workers live through an upgrade: what they send still works, and the work they hold is not taken from them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from billing.store import migrate
from tests.cli.terminal import Terminal
from tests.upgrade.expanding import contracted
from tests.upgrade.statements import releases, statements

NOW = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)


def _needed() -> list[str]:
    """Releases that no migration has outlived."""
    scripts = ScriptDirectory(str(migrate.FOLDER)).walk_revisions()
    outlived = [contracted(Path(script.path).read_text(encoding="utf-8")) or "" for script in scripts]
    return [release for release in releases() if release > max(outlived)]


def _plain(url: str) -> psycopg.Connection:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


@pytest.fixture
def worker(empty_database_url: str) -> Iterator[psycopg.Connection]:
    """A connection of an old worker's."""
    with _plain(empty_database_url) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        yield connection


def test_the_first_release_is_written_down() -> None:
    assert releases()[0] == "0001"
    assert len(statements("0001")) > 150
    words = " ".join(statements("0001"))
    for table in ("charge_attempts", "webhook_events", "payment_sessions", "refunds", "invoices", "subscriptions"):
        assert f"UPDATE {table} SET" in words, table


@pytest.mark.parametrize("release", _needed())
def test_what_a_release_sends_is_understood_by_the_newest_schema(
    release: str, empty_database_url: str, worker: psycopg.Connection
) -> None:
    migrate.upgrade(empty_database_url)

    assert _refused(worker, statements(release), prefix="new") == []


@pytest.mark.parametrize("release", _needed())
def test_what_a_connection_has_prepared_outlives_the_upgrade(
    release: str, empty_database_url: str, worker: psycopg.Connection
) -> None:
    """A plan is made again after a change of the schema, and fails when the result's columns would be others."""
    migrate.upgrade(empty_database_url, release)
    assert _refused(worker, statements(release), prefix="old") == []

    migrate.upgrade(empty_database_url)

    assert _refused(worker, statements(release), prefix="old", prepared=True) == []


def test_a_column_that_is_gone_would_be_noticed(empty_database_url: str, worker: psycopg.Connection) -> None:
    migrate.upgrade(empty_database_url)
    worker.execute("ALTER TABLE refunds DROP COLUMN lease_until")

    refused = _refused(worker, statements("0001"), prefix="new")

    assert refused
    assert all("lease_until" in reason for reason in refused)


@pytest.mark.parametrize("release", _needed())
def test_old_inserts_leave_no_new_column_without_a_value(release: str, empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, release)
    before = _columns(empty_database_url)
    migrate.upgrade(empty_database_url)
    after = _columns(empty_database_url)

    assert {key: column for key, column in before.items() if after.get(key) != column} == {}, "they are as they were"
    tables = {table for table, _ in before}
    for (table, name), column in after.items():
        if table in tables and (table, name) not in before:
            assert column["nullable"] or column["default"] is not None, f"{table}.{name}"


def test_an_old_worker_in_the_middle_of_a_charge_is_not_disturbed(
    empty_database_url: str, worker: psycopg.Connection
) -> None:
    """It has begun, its call is under way, and no transaction is open meanwhile: it settles on the new schema."""
    migrate.upgrade(empty_database_url, "0001")
    _fill(worker)
    worker.execute("UPDATE charge_attempts SET status = 'submitted', submitted_at = now() WHERE id = 'att-1'")

    assert migrate.upgrade(empty_database_url) == migrate.newest()

    worker.execute("UPDATE charge_attempts SET status = 'succeeded', settled_at = now() WHERE status = 'submitted'")
    assert worker.execute("SELECT status FROM charge_attempts").fetchall() == [("succeeded",)]


def test_an_index_whose_making_was_interrupted_is_made_anew(
    empty_database_url: str, worker: psycopg.Connection
) -> None:
    """The upgrade gives up on an index that must wait too long; PostgreSQL leaves it half built, and never uses it."""
    migrate.upgrade(empty_database_url)
    migrate.downgrade(empty_database_url, "0003")
    worker.execute("CREATE INDEX ix_charge_attempts_lanes ON charge_attempts (lane)")
    worker.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_charge_attempts_lanes'::regclass")

    migrate.upgrade(empty_database_url)

    made = worker.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_charge_attempts_lanes'").fetchall()
    assert "(lane, scheduled_at)" in made[0][0]


def test_a_migration_that_must_wait_gives_up_and_is_run_again(
    empty_database_url: str, worker: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "200ms")
    billing = Terminal({"BILLING_DATABASE_URL": empty_database_url})
    migrate.upgrade(empty_database_url, "0001")
    before = _columns(empty_database_url)
    _fill(worker)

    with worker.transaction():
        worker.execute("UPDATE refunds SET lease_until = now() WHERE id = 'ref-1'")
        refusal = billing.refused("migrate")
        assert "other transactions hold" in refusal
        assert "run `billing migrate` again" in refusal
        assert migrate.current(empty_database_url) == "0001"
        assert _columns(empty_database_url) == before, "nothing is half done"

    assert worker.execute("SELECT lease_until IS NOT NULL FROM refunds").fetchall() == [(True,)], "it was not killed"
    assert billing.json("migrate") == {"revision": migrate.newest()}


def test_an_index_made_concurrently_does_not_wait_for_who_waits_for_it(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Several containers upgrade at once. A statement that waits holds a snapshot, which CONCURRENTLY waits for."""
    shutil.copytree(migrate.FOLDER, tmp_path / "migrations")
    (tmp_path / "migrations" / "versions" / "99990101_0000_an_index.py").write_text(
        "from alembic import op\n"
        f"revision, down_revision = 'later', {migrate.newest()!r}\n"
        "def upgrade():\n"
        "    with op.get_context().autocommit_block():\n"
        "        op.create_index('ix_later', 'refunds', ['error'], postgresql_concurrently=True)\n"
    )
    monkeypatch.setattr(migrate, "FOLDER", tmp_path / "migrations")

    with ThreadPoolExecutor(3) as threads:
        reached = list(threads.map(migrate.upgrade, [empty_database_url] * 3))

    assert reached == ["later"] * 3


def _refused(worker: psycopg.Connection, sent: Sequence[str], *, prefix: str, prepared: bool = False) -> list[str]:
    """Those that PostgreSQL does not parse or cannot plan, and why."""
    refused = []
    for number, statement in enumerate(sent):
        try:
            if not prepared:
                _send(worker, f"PREPARE {prefix}_{number} AS {statement}")
            count = worker.execute(
                "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = %s",
                (f"{prefix}_{number}",),
            ).fetchall()[0][0]
            values = f"({', '.join(['NULL'] * count)})" if count else ""
            _send(worker, f"EXPLAIN EXECUTE {prefix}_{number}{values}")
        except psycopg.Error as error:
            refused.append(f"{error}: {statement}")
    return refused


def _send(worker: psycopg.Connection, statement: str) -> None:
    worker.execute(statement)


def _columns(url: str) -> dict[tuple[str, str], dict[str, Any]]:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    inspector = sa.inspect(engine)
    return {
        (table, column["name"]): {
            "type": str(column["type"]),
            "nullable": column["nullable"],
            "default": column["default"],
        }
        for table in inspector.get_table_names()
        for column in inspector.get_columns(table)
    }


def _fill(worker: psycopg.Connection) -> None:
    """One attempt, and one refund."""
    for statement in (
        "INSERT INTO plans (id, code, name, amount_minor, currency, schedule, timezone, trial_days, catch_up, dunning,"
        " created_at) VALUES ('plan-1', 'gold', 'Gold', 5, 'IDR', 'every 1:month', 'UTC', 0, 'all', 'standard',"
        " %(now)s)",
        "INSERT INTO customers (id, reference, name, email, country, timezone, created_at)"
        " VALUES ('cus-1', 'ana', 'Ana', 'a@example.com', 'ID', 'UTC', %(now)s)",
        "INSERT INTO subscriptions (id, reference, customer_id, plan_id, status, amount_minor, currency, timezone,"
        " created_at) VALUES ('sub-1', 'sub-1', 'cus-1', 'plan-1', 'active', 5, 'IDR', 'UTC', %(now)s)",
        "INSERT INTO invoices (id, number, subscription_id, period_key, period_index, period_start, period_end,"
        " amount_minor, currency, status, opened_at) VALUES ('inv-1', 'inv-1', 'sub-1', 'key-1', 0, %(now)s,"
        " %(now)s::timestamptz + interval '1 month', 5, 'IDR', 'open', %(now)s)",
        "INSERT INTO charge_attempts (id, reference_id, invoice_id, subscription_id, number, origin, status,"
        " amount_minor, currency, scheduled_at, created_at) VALUES ('att-1', 'att-1', 'inv-1', 'sub-1', 1, 'schedule',"
        " 'scheduled', 5, 'IDR', %(now)s, %(now)s)",
        "INSERT INTO captures (id, payment_id, invoice_id, attempt_id, amount_minor, currency, overpayment,"
        " captured_at) VALUES ('cap-1', 'py-1', 'inv-1', 'att-1', 5, 'IDR', true, %(now)s)",
        "INSERT INTO refunds (id, reference_id, capture_id, amount_minor, currency, reason, status, created_at)"
        " VALUES ('ref-1', 'ref-1', 'cap-1', 5, 'IDR', 'DUPLICATE', 'requested', %(now)s)",
    ):
        worker.execute(statement, {"now": NOW})
