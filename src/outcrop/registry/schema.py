"""The tables. A change here comes with a migration beside it; a test holds the two together."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

import_jobs = sa.Table(
    "import_jobs",
    metadata,
    sa.Column("job_id", sa.String(12), primary_key=True),
    sa.Column("account", sa.String(12), nullable=False),
    sa.Column("job_name", sa.String(63), nullable=False),
    sa.Column("model_name", sa.String(63), nullable=False),
    sa.Column("model_id", sa.String(12), nullable=False),
    sa.Column("role_arn", sa.String(2048), nullable=False),
    sa.Column("s3_uri", sa.String(1024), nullable=False),
    sa.Column("client_token", sa.String(256)),
    sa.Column("request", sa.JSON, nullable=False),  # the whole call, for what has no column of its own
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("failure", sa.String(2048)),
    sa.Column("timings", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("modified_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.UniqueConstraint("account", "job_name", name="one_job_per_name"),
    sa.UniqueConstraint("account", "client_token", name="one_job_per_token"),
)

imported_models = sa.Table(
    "imported_models",
    metadata,
    sa.Column("model_id", sa.String(12), primary_key=True),
    sa.Column("account", sa.String(12), nullable=False),
    sa.Column("model_name", sa.String(63), nullable=False),
    sa.Column("job_id", sa.String(12), nullable=False),
    sa.Column("job_name", sa.String(63), nullable=False),
    sa.Column("s3_uri", sa.String(1024), nullable=False),
    sa.Column("architecture", sa.String(64), nullable=False),
    sa.Column("instruct_supported", sa.Boolean, nullable=False),
    sa.Column("model_units", sa.Integer, nullable=False),
    sa.Column("artifact", sa.String(512), nullable=False),  # path below the weight store
    sa.Column("facts", sa.JSON, nullable=False),  # context, sizes, eos ids, engine, proof timings
    sa.Column("created_at", sa.Float, nullable=False),
    sa.UniqueConstraint("account", "model_name", name="one_model_per_name"),
)
