"""which payment methods Xendit denied to a key before it had known any with it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "denied_tokens",
        sa.Column("key_fingerprint", sa.Text(), nullable=False),
        sa.Column("payment_token_ids", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("key_fingerprint", name="pk_denied_tokens"),
    )


def downgrade() -> None:
    op.drop_table("denied_tokens")
