"""How Alembic reaches the database: through the connection that billing/store/migrate.py hands it."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from billing.store.migrate import make_engine
from billing.store.models import Base


def _migrate(connection: Connection) -> None:
    # Each on its own: one that fails leaves those before it done and written down, and nothing of itself.
    context.configure(
        connection=connection, target_metadata=Base.metadata, compare_type=True, transaction_per_migration=True
    )
    with context.begin_transaction():
        context.run_migrations()


connection = context.config.attributes.get("connection")
if connection is not None:
    _migrate(connection)
else:
    with make_engine(context.config.get_main_option("sqlalchemy.url") or "").connect() as opened:
        _migrate(opened)
