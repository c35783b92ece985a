"""Alembic migrations, applied at every start."""
