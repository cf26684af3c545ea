"""subscriptions have an end, holds have a kind, captures know whether Xendit has named their amount"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INSTANT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.add_column("subscriptions", sa.Column("ends_at", INSTANT, nullable=True))
    op.add_column(
        "subscriptions", sa.Column("calendar_over", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("subscriptions", sa.Column("end_kind", sa.Text(), nullable=True))
    op.add_column("subscriptions", sa.Column("hold_kind", sa.Text(), nullable=True))
    op.add_column("invoices", sa.Column("hold_kind", sa.Text(), nullable=True))
    op.add_column("invoices", sa.Column("hold_run_id", sa.Text(), nullable=True))
    op.add_column("captures", sa.Column("amount_known", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    # Of the captures there are the amount is taken for known, but for those whose event may still come; old workers that
    # are alive book what they asked for.
    op.alter_column("captures", "amount_known", server_default="false")
    op.execute("UPDATE captures SET amount_known = false WHERE captured_at > now() - interval '4 days'")
    op.add_column("payment_tokens", sa.Column("unknown_since", INSTANT, nullable=True))
    op.add_column("payment_tokens", sa.Column("next_check_at", INSTANT, nullable=True))
    op.add_column("charging_stop", sa.Column("refused_key", sa.Text(), nullable=True))
    op.add_column("quota_budgets", sa.Column("learned_at", INSTANT, nullable=True))
    # What was in sentences until now.
    op.execute(
        "UPDATE subscriptions SET hold_kind = CASE WHEN hold_reason LIKE '%catch-up is hold%'"
        " OR hold_reason LIKE '%waits for a person%' THEN 'catch_up' ELSE 'error' END WHERE hold_reason IS NOT NULL"
    )
    op.execute(
        "UPDATE invoices SET hold_kind = 'run_aborted', hold_run_id = split_part(hold_reason, ' ', 3)"
        " WHERE hold_reason LIKE 'billing run % was aborted%'"
    )
    op.execute(
        "UPDATE subscriptions SET ends_at = next_billing_at"
        " WHERE cancel_at_period_end AND status IN ('trialing', 'active', 'past_due')"
    )
    op.execute(
        "UPDATE subscriptions SET ends_at = current_period_end FROM plans p"
        " WHERE p.id = subscriptions.plan_id AND subscriptions.billed_cycles >= p.cycles AND status <> 'canceled'"
    )


def downgrade() -> None:
    op.drop_column("quota_budgets", "learned_at")
    op.drop_column("charging_stop", "refused_key")
    op.drop_column("payment_tokens", "next_check_at")
    op.drop_column("payment_tokens", "unknown_since")
    op.drop_column("captures", "amount_known")
    op.drop_column("invoices", "hold_run_id")
    op.drop_column("invoices", "hold_kind")
    op.drop_column("subscriptions", "hold_kind")
    op.drop_column("subscriptions", "end_kind")
    op.drop_column("subscriptions", "calendar_over")
    op.drop_column("subscriptions", "ends_at")
