"""How Alembic reaches the database: through the connection that billing/store/migrate.py hands it."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

from billing.store.models import Base

# A migration that waits for a lock makes everybody wait behind it: rather fail fast and be run again.
LOCK_TIMEOUT = "5s"


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        context.run_migrations()


connection = context.config.attributes.get("connection")
if connection is not None:
    _migrate(connection)
else:
    engine = create_engine(context.config.get_main_option("sqlalchemy.url") or "", poolclass=pool.NullPool)
    with engine.connect() as opened:
        _migrate(opened)
