"""which database this is, which days were compared with Xendit's list, methods replaced, refunds made elsewhere"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INSTANT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "database_identity",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("system_identifier", sa.Text(), nullable=False),
        sa.Column("database_oid", sa.BigInteger(), nullable=False),
        sa.Column("noted_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_database_identity"),
    )
    op.create_table(
        "compared_days",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("compared_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("day", name="pk_compared_days"),
    )
    op.add_column("payment_tokens", sa.Column("replaced_at", INSTANT, nullable=True))
    op.add_column("payment_tokens", sa.Column("unknown_to_key", sa.Text(), nullable=True))
    op.add_column("refunds", sa.Column("made_elsewhere", sa.Boolean(), server_default=sa.text("false"), nullable=False))


def downgrade() -> None:
    op.drop_column("refunds", "made_elsewhere")
    op.drop_column("payment_tokens", "unknown_to_key")
    op.drop_column("payment_tokens", "replaced_at")
    op.drop_table("compared_days")
    op.drop_table("database_identity")
