"""What serving remembers: measured starts, aliases, scaling per model."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "cold_starts",
        sa.Column("start_id", sa.Integer, primary_key=True),
        sa.Column("model_id", sa.String(12), nullable=False, index=True),
        sa.Column("tier", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "model_aliases",
        sa.Column("account", sa.String(12), primary_key=True),
        sa.Column("alias", sa.String(63), primary_key=True),
        sa.Column("model_id", sa.String(12), nullable=False),
        sa.Column("modified_at", sa.Float, nullable=False),
    )
    op.create_table(
        "model_scaling",
        sa.Column("model_id", sa.String(12), primary_key=True),
        sa.Column("scaling", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("model_scaling")
    op.drop_table("model_aliases")
    op.drop_table("cold_starts")
