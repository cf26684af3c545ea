"""indexes for ends and for tokens Xendit does not know; one paying capture an attempt, several an invoice"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# What the new unique index refuses, the one that goes has refused before: an attempt has one invoice.
IMPLIED = "uq_captures_paying_attempt by uq_captures_paying"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.create_index(
            "ix_subscriptions_ends",
            "subscriptions",
            ["ends_at"],
            unique=False,
            postgresql_where=sa.text(
                "ends_at IS NOT NULL AND NOT calendar_over AND status IN ('active', 'past_due', 'paused', 'trialing')"
            ),
            postgresql_concurrently=True,
            if_not_exists=True,
        )
        op.create_index(
            "ix_payment_tokens_check",
            "payment_tokens",
            ["next_check_at"],
            unique=False,
            postgresql_where=sa.text("next_check_at IS NOT NULL"),
            postgresql_concurrently=True,
            if_not_exists=True,
        )
        op.create_index(
            "uq_captures_paying_attempt",
            "captures",
            ["attempt_id"],
            unique=True,
            postgresql_where=sa.text("NOT overpayment"),
            postgresql_concurrently=True,
            if_not_exists=True,
        )
        op.drop_index("uq_captures_paying", "captures", postgresql_concurrently=True, if_exists=True)


def downgrade() -> None:
    """The older release knows one paying capture an invoice: what several have paid cannot go back."""
    op.create_index(
        "uq_captures_paying", "captures", ["invoice_id"], unique=True, postgresql_where=sa.text("NOT overpayment")
    )
    op.drop_index("uq_captures_paying_attempt", "captures")
    op.drop_index("ix_payment_tokens_check", "payment_tokens")
    op.drop_index("ix_subscriptions_ends", "subscriptions")
