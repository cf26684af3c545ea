"""Creating and upgrading the schema. Safe to run from several places at once: an advisory lock lets one do it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from billing.errors import Conflict, ServiceUnavailable
from billing.store import which_database
from billing.store.clock import real_now
from billing.store.engine import make_engine_for_migrations
from billing.store.trouble import first_line, sqlstate

FOLDER = Path(__file__).resolve().parents[2] / "migrations"

# A migration that waits for a lock makes everybody wait behind it: rather fail fast and be run again.
LOCK_TIMEOUT = "5s"
LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED, DUPLICATE_TABLE = "55P03", "40P01", "42P07"
ASK_AGAIN_SECONDS = 0.2


def upgrade(url: str, revision: str = "head") -> str:
    """Bring the database to `revision`, and note which one it is if nobody has. Returns the revision it is at. Raises
    SQLAlchemy's errors, and ServiceUnavailable when work under way holds what a migration has to lock."""
    _run(url, command.upgrade, revision)
    return current(url) or ""


def downgrade(url: str, revision: str) -> str:
    _run(url, command.downgrade, revision)
    return current(url) or ""


def current(url: str) -> str | None:
    """The revision a database is at; None when it was never migrated."""
    with make_engine(url).connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def make_engine(url: str) -> Engine:
    return make_engine_for_migrations(url, lock_timeout=LOCK_TIMEOUT)


def newest() -> str:
    """The revision this software needs."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def _run(url: str, action: object, revision: str) -> None:
    engine = make_engine(url)
    config = _config()
    with _our_turn(engine), engine.connect() as connection, _lock_errors_in_one_line():
        config.attributes["connection"] = connection
        assert callable(action)  # noqa: S101 - alembic's commands
        _drop_half_built_indexes(connection)
        action(config, revision)
        connection.commit()
        _note_which_database(connection)


def _note_which_database(connection: Connection) -> None:
    if connection.scalar(text("SELECT to_regclass('database_identity') IS NOT NULL")):
        with Session(connection) as session:
            which_database.note_if_new(session, real_now())
        connection.commit()


@contextmanager
def _our_turn(engine: Engine) -> Iterator[None]:
    """One at a time. The lock is held by a transaction of its own that does nothing else: a pooler leaves it its
    connection for as long as it is open, and between two transactions would not.

    Asked again and again rather than waited for: a statement that waits holds a snapshot, and CREATE INDEX
    CONCURRENTLY of whoever has the lock would wait for that one to end, in a circle. Between statements none is held.
    """
    with engine.connect() as holder:
        while not holder.scalar(text("SELECT pg_try_advisory_xact_lock(hashtext('billing.migrate'))")):
            holder.rollback()
            time.sleep(ASK_AGAIN_SECONDS)
        holder.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield
        holder.rollback()


def _drop_half_built_indexes(connection: Connection) -> None:
    """CREATE INDEX CONCURRENTLY that was interrupted leaves one that is written to and never read: made anew."""
    found = connection.scalars(
        text(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_index i"
            " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE NOT i.indisvalid AND n.nspname = current_schema() AND starts_with(c.relname, 'ix_')"
        )
    ).all()
    connection.commit()
    for name in found:
        connection.execute(text(f"DROP INDEX {name}"))
        connection.commit()


@contextmanager
def _lock_errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        state = sqlstate(error.orig)
        if state == DUPLICATE_TABLE:
            raise Conflict(
                f"something else keeps its tables here ({first_line(error)}), and nothing was changed;"
                " name a database in BILLING_DATABASE_URL that is for this software alone"
            ) from None
        if state not in (LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED):
            raise
        raise ServiceUnavailable(
            f"a migration waited {LOCK_TIMEOUT} for a table that other transactions hold, and was taken back;"
            " run `billing migrate` again (pg_stat_activity shows which transactions are long)"
        ) from None
