"""runs can be watched and stopped, attempts have lanes, channels have breakers"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INSTANT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.add_column("charge_attempts", sa.Column("lane", sa.SmallInteger(), server_default=sa.text("1"), nullable=False))
    op.add_column("charge_attempts", sa.Column("parked_by", sa.Text(), nullable=True))
    op.add_column("billing_runs", sa.Column("kind", sa.Text(), server_default="asked", nullable=False))
    op.add_column("billing_runs", sa.Column("heartbeat_at", INSTANT, nullable=True))
    op.add_column("billing_runs", sa.Column("state", sa.Text(), server_default="running", nullable=False))
    op.add_column("billing_runs", sa.Column("reason", sa.Text(), nullable=True))
    op.add_column("billing_runs", sa.Column("guard", sa.Text(), nullable=True))
    op.add_column(
        "billing_runs", sa.Column("waived", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False)
    )
    op.add_column("billing_runs", sa.Column("plan", postgresql.JSONB(), nullable=True))
    op.create_table(
        "quota_budgets",
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("next_slot", INSTANT, nullable=False),
        sa.Column("paused_until", INSTANT, nullable=True),
        sa.Column("learned_limit", sa.Integer(), nullable=True),
        sa.Column("lanes", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("endpoint", name=op.f("pk_quota_budgets")),
    )
    op.create_table(
        "quota_slots",
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("tenth", sa.BigInteger(), nullable=False),
        sa.Column("sent", sa.Integer(), nullable=False),
        sa.Column("at_once", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "tenth", name=op.f("pk_quota_slots")),
    )
    op.create_table(
        "channel_breakers",
        sa.Column("channel_code", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("failed_at", INSTANT, nullable=False),
        sa.Column("opened_at", INSTANT, nullable=True),
        sa.Column("probe_at", INSTANT, nullable=True),
        sa.Column("probes", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("channel_code", name=op.f("pk_channel_breakers")),
    )
    # What is planned already keeps its place: retries behind renewals.
    op.execute("UPDATE charge_attempts SET lane = 2 WHERE status = 'scheduled' AND origin = 'dunning'")
    op.execute("UPDATE charge_attempts SET lane = 0 WHERE status = 'scheduled' AND origin IN ('operator', 'new_token')")


def downgrade() -> None:
    op.drop_table("channel_breakers")
    op.drop_table("quota_slots")
    op.drop_table("quota_budgets")
    for name in ("plan", "waived", "guard", "reason", "state", "heartbeat_at", "kind"):
        op.drop_column("billing_runs", name)
    op.drop_column("charge_attempts", "parked_by")
    op.drop_column("charge_attempts", "lane")
