"""Creating and upgrading the schema. Safe to run from several places at once: an advisory lock lets one do it."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, pool, text

FOLDER = Path(__file__).resolve().parents[2] / "migrations"


def upgrade(url: str, revision: str = "head") -> str:
    """Bring the database to `revision`. Returns the revision it is at. Raises SQLAlchemy's errors."""
    _run(url, command.upgrade, revision)
    return current(url) or ""


def downgrade(url: str, revision: str) -> str:
    _run(url, command.downgrade, revision)
    return current(url) or ""


def current(url: str) -> str | None:
    """The revision a database is at; None when it was never migrated."""
    engine = create_engine(url, poolclass=pool.NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def newest() -> str:
    """The revision this software needs."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def _run(url: str, action: object, revision: str) -> None:
    engine = create_engine(url, poolclass=pool.NullPool, connect_args={"connect_timeout": 5})
    config = _config()
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(hashtext('billing.migrate'))"))
        connection.commit()
        config.attributes["connection"] = connection
        assert callable(action)  # noqa: S101 - alembic's commands
        action(config, revision)
        connection.commit()
