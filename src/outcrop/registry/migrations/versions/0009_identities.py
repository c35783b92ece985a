"""Accounts, users, roles, keys, policies; owners of buckets; quotas.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_TABLES = ("iam_accounts", "iam_identities", "iam_policies", "iam_access_keys", "iam_bearer_keys", "buckets", "quotas")


def upgrade() -> None:
    op.create_table(
        "iam_accounts",
        sa.Column("account", sa.String(12), primary_key=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "iam_identities",
        sa.Column("identity_id", sa.String(32), primary_key=True),
        sa.Column("account", sa.String(12), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("path", sa.String(512), nullable=False),
        sa.Column("description", sa.String(1000), nullable=False),
        sa.Column("trust", sa.Text),
        sa.Column("boundary", sa.Text),
        sa.Column("max_session_s", sa.Integer, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("account", "kind", "name", name="one_identity_per_name"),
    )
    op.create_table(
        "iam_policies",
        sa.Column("identity_id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "iam_access_keys",
        sa.Column("access_key_id", sa.String(32), primary_key=True),
        sa.Column("identity_id", sa.String(32), nullable=False, index=True),
        sa.Column("sealed_secret", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "iam_bearer_keys",
        sa.Column("key_hash", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False, unique=True),
        sa.Column("identity_id", sa.String(32), nullable=False, index=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
    )
    op.create_table(
        "buckets",
        sa.Column("bucket", sa.String(63), primary_key=True),
        sa.Column("account", sa.String(12), nullable=False),
        sa.Column("policy", sa.Text),
    )
    op.create_table(
        "quotas",
        sa.Column("account", sa.String(12), primary_key=True),
        sa.Column("principal", sa.String(512), primary_key=True),
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    for table in reversed(_TABLES):
        op.drop_table(table)
