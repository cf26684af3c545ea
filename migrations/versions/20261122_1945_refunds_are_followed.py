"""refunds are followed to their end"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("refunds", sa.Column("sent_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    # Those that wait for a webhook alone are looked up as well from now on.
    op.execute("UPDATE refunds SET next_try_at = created_at WHERE status = 'pending' AND next_try_at IS NULL")


def downgrade() -> None:
    op.execute("UPDATE refunds SET next_try_at = NULL WHERE status = 'pending'")
    op.drop_column("refunds", "sent_at")
