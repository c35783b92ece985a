"""The dialect that a model is set to answer in."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("imported_models", sa.Column("dialect", sa.String(16)))


def downgrade() -> None:
    op.drop_column("imported_models", "dialect")
