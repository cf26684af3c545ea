"""Migrations only add while old workers are alive, or say which release they outlive."""

from __future__ import annotations

import pytest
from alembic.script import ScriptDirectory

from billing.store import migrate
from tests.upgrade.expanding import complaints

MIGRATIONS = list(reversed(list(ScriptDirectory(str(migrate.FOLDER)).walk_revisions())))
NUMBERS = [script.revision for script in MIGRATIONS]


@pytest.mark.parametrize("place", range(1, len(NUMBERS)), ids=NUMBERS[1:])
def test_what_came_after_the_first_release_only_expands(place: int) -> None:
    with open(MIGRATIONS[place].path, encoding="utf-8") as file:  # noqa: PTH123 - alembic's path is a str
        assert complaints(file.read(), NUMBERS[:place]) == []


@pytest.mark.parametrize(
    "step",
    [
        'op.drop_column("refunds", "error")',
        'op.drop_table("refunds")',
        'op.rename_table("refunds", "returns")',
        'op.alter_column("refunds", "error", new_column_name="reason_given")',
        'op.alter_column("refunds", "error", nullable=False)',
        'op.alter_column("refunds", "error", type_=sa.Integer())',
        'op.alter_column("invoices", "dunning_step", server_default=None)',
        'op.add_column("refunds", sa.Column("note", sa.Text(), nullable=False))',
        'op.add_column("refunds", sa.Column("note", sa.Text(), nullable=False, server_default=None))',
        'op.add_column("refunds", sa.Column("note", sa.Text(), unique=True))',
        'op.add_column("refunds", sa.Column("at", sa.Text(), server_default=sa.text("clock_timestamp()")))',
        'op.add_column("refunds", COLUMN)',
        'op.create_index("ix_note", "refunds", ["error"])',
        'op.create_index("ix_note", "refunds", ["error"], postgresql_concurrently=True)',
        'with op.get_context().autocommit_block():\n        op.create_index("ix_note", "refunds", ["error"])',
        "with op.get_context().autocommit_block():\n"
        '        op.create_index("ix_n", "refunds", ["error"], unique=True, postgresql_concurrently=True)',
        'op.drop_index("ix_note", "refunds")',
        'op.create_check_constraint("ck_note", "refunds", "amount_minor < 5")',
        'op.create_unique_constraint("uq_note", "refunds", ["error"])',
        'op.create_foreign_key("fk_note", "refunds", "captures", ["error"], ["id"])',
        'op.execute("ALTER TABLE refunds DROP COLUMN error")',
        'op.execute("UPDATE refunds SET error = NULL; DROP TABLE ticks")',
        'op.execute("DELETE FROM refunds")',
        "op.execute(STATEMENT)",
        'op.get_bind().execute("anything")',
        'with op.batch_alter_table("refunds") as table:\n        table.drop_column("error")',
        'getattr(op, "drop_table")("refunds")',
        "with op.get_context().autocommit_block():\n"
        '        op.create_index("ix_n", "refunds", ["error"], postgresql_concurrently=True)\n'
        '    op.add_column("refunds", sa.Column("note", sa.Text()))',
    ],
)
def test_what_old_workers_would_stumble_over_is_refused(step: str) -> None:
    assert complaints(_migration(step), ["0001", "0002"])


@pytest.mark.parametrize(
    "step",
    [
        'op.add_column("refunds", sa.Column("note", sa.Text(), nullable=True))',
        'op.add_column("refunds", sa.Column("tries", sa.Integer(), server_default="0", nullable=False))',
        'op.add_column("refunds", sa.Column("ours", sa.Boolean(), server_default=sa.text("false"), nullable=False))',
        'op.alter_column("refunds", "reason", nullable=True, existing_type=sa.Text())',
        'op.create_table("notes", sa.Column("id", sa.Text()))\n    op.create_index("ix_note", "notes", ["id"])',
        "with op.get_context().autocommit_block():\n"
        '        op.create_index("ix_n", "refunds", ["error"], postgresql_concurrently=True)',
        'op.execute("UPDATE refunds SET error = NULL")',
    ],
)
def test_what_old_workers_do_not_notice_is_allowed(step: str) -> None:
    assert complaints(_migration(step), ["0001", "0002"]) == []


def test_a_migration_that_contracts_says_which_release_it_outlives() -> None:
    step = 'op.drop_column("refunds", "error")'

    assert complaints(_migration(step, 'CONTRACTS = "0001"'), ["0001", "0002"]) == []
    assert complaints(_migration(step, 'CONTRACTS = "0007"'), ["0001", "0002"])
    assert complaints(_migration(step, "CONTRACTS = True"), ["0001", "0002"])
    locking = _migration('op.create_index("ix_note", "refunds", ["error"])', 'CONTRACTS = "0001"')
    assert complaints(locking, ["0001", "0002"]), "whatever it outlives, nobody waits for it"


def test_a_weaker_unique_index_may_take_the_place_of_a_stricter_one() -> None:
    step = (
        "with op.get_context().autocommit_block():\n"
        '        op.create_index("uq_b", "refunds", ["error"], unique=True, postgresql_concurrently=True)\n'
        '        op.drop_index("uq_a", "refunds", postgresql_concurrently=True)'
    )

    assert complaints(_migration(step, 'IMPLIED = "uq_b by uq_a"'), ["0001"]) == []
    assert complaints(_migration(step, 'IMPLIED = "uq_c by uq_a"'), ["0001"]), "another index"
    assert complaints(_migration(step, 'IMPLIED = "uq_b by uq_c"'), ["0001"]), "the stricter one stays"


def _migration(step: str, constant: str = "") -> str:
    way_down = 'def downgrade() -> None:\n    op.drop_table("notes")\n'
    return (
        f"import sqlalchemy as sa\nfrom alembic import op\n{constant}\ndef upgrade() -> None:\n    {step}\n{way_down}"
    )
