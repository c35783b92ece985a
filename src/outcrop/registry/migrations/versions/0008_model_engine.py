"""The engine that an operator put a model on.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("imported_models", sa.Column("engine", sa.String(32)))


def downgrade() -> None:
    op.drop_column("imported_models", "engine")
