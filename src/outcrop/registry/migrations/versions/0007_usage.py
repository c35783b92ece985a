"""What was used, by hour, model and principal."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

COUNTS = (
    "requests",
    "failed",
    "cancelled",
    "tokens_in",
    "tokens_out",
    "held_ms",
    "run_ms",
    "starting_ms",
    "idle_ms",
    "busy_ms",
    "evictable_ms",
    "draining_ms",
    "asleep_ms",
    "proving_ms",
    "cold_starts",
    "failed_starts",
    "start_queued_ms",
    "start_spawn_ms",
    "start_load_ms",
    "warm_hits",
    "windows",
    "window_units",
    "stored_byte_s",
    "stored_unit_s",
    "peak_copies",
)


def upgrade() -> None:
    op.create_table(
        "usage_hours",
        sa.Column("hour_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("account", sa.String(12), primary_key=True),
        sa.Column("model_id", sa.String(12), primary_key=True),
        sa.Column("principal", sa.String(2048), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in COUNTS),
    )
    op.create_table(
        "usage_writers",
        sa.Column("writer", sa.String(16), primary_key=True),
        sa.Column("last_batch", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("usage_writers")
    op.drop_table("usage_hours")
