"""Run by `make check`: the migrations make exactly the tables of the models, and take them away again."""

from __future__ import annotations

import sys

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, pool

from billing.sandbox.embedded import postgres
from billing.store.migrate import downgrade, upgrade
from billing.store.models import Base


def main() -> int:
    with postgres() as server:
        upgrade(server.url)
        engine = create_engine(server.url, poolclass=pool.NullPool)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            differences = compare_metadata(context, Base.metadata)
        downgrade(server.url, "base")
        left = set(inspect(engine).get_table_names()) - {"alembic_version"}
    for difference in differences:
        print("the models say otherwise:", difference)
    for table in sorted(left):
        print("left behind by the downgrade:", table)
    return 1 if differences or left else 0


if __name__ == "__main__":
    sys.exit(main())
