"""What an import job found out: report, transfer, files, scan."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("import_jobs", sa.Column("detail", sa.JSON, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("import_jobs", "detail")
