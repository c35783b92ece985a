"""Tags, resource policies and invocation logging."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "resource_tags",
        sa.Column("account", sa.String(12), primary_key=True),
        sa.Column("resource", sa.String(64), primary_key=True),
        sa.Column("tag_key", sa.String(128), primary_key=True),
        sa.Column("tag_value", sa.String(256), nullable=False),
    )
    op.create_table(
        "resource_policies",
        sa.Column("account", sa.String(12), primary_key=True),
        sa.Column("resource", sa.String(64), primary_key=True),
        sa.Column("policy", sa.Text, nullable=False),
    )
    op.create_table(
        "invocation_logging",
        sa.Column("account", sa.String(12), primary_key=True),
        sa.Column("config", sa.JSON, nullable=False),
    )
