"""Alembic revisions. Run by `billing migrate` (billing/store/migrate.py)."""
