"""indexes for lanes, parked attempts and unfinished runs, built beside the work under way"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.create_index(
            "ix_charge_attempts_lanes",
            "charge_attempts",
            ["lane", "scheduled_at"],
            unique=False,
            postgresql_where=sa.text("status = 'scheduled' AND parked_by IS NULL"),
            postgresql_concurrently=True,
            if_not_exists=True,
        )
        op.create_index(
            "ix_charge_attempts_parked",
            "charge_attempts",
            ["parked_by"],
            unique=False,
            postgresql_where=sa.text("parked_by IS NOT NULL"),
            postgresql_concurrently=True,
            if_not_exists=True,
        )
        op.create_index(
            "ix_billing_runs_unfinished",
            "billing_runs",
            ["started_at"],
            unique=False,
            postgresql_where=sa.text("finished_at IS NULL"),
            postgresql_concurrently=True,
            if_not_exists=True,
        )


def downgrade() -> None:
    op.drop_index("ix_billing_runs_unfinished", "billing_runs")
    op.drop_index("ix_charge_attempts_parked", "charge_attempts")
    op.drop_index("ix_charge_attempts_lanes", "charge_attempts")
