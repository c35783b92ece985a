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
    # Preflight report, transfer so far, files and the scan of their values.
    sa.Column("detail", sa.JSON, nullable=False, server_default="{}"),
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
    sa.Column("dialect", sa.String(16)),  # what bodies with "prompt" are answered in; null: what their keys select
    sa.Column("engine", sa.String(32)),  # the one that an operator put the model on; null: settings, or the import's
    sa.UniqueConstraint("account", "model_name", name="one_model_per_name"),
)

# What is attached to a resource, which is named by the end of its ARN: ``imported-model/abcdef123456``.

resource_tags = sa.Table(
    "resource_tags",
    metadata,
    sa.Column("account", sa.String(12), primary_key=True),
    sa.Column("resource", sa.String(64), primary_key=True),
    sa.Column("tag_key", sa.String(128), primary_key=True),
    sa.Column("tag_value", sa.String(256), nullable=False),
)

resource_policies = sa.Table(
    "resource_policies",
    metadata,
    sa.Column("account", sa.String(12), primary_key=True),
    sa.Column("resource", sa.String(64), primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),  # the document as it was put, byte by byte
)

invocation_logging = sa.Table(
    "invocation_logging",
    metadata,
    sa.Column("account", sa.String(12), primary_key=True),
    sa.Column("config", sa.JSON, nullable=False),  # LoggingConfig of bedrock/2023-04-20
)

# Who may ask: accounts, users and roles, what they prove themselves with, what they may do.

iam_accounts = sa.Table(
    "iam_accounts",
    metadata,
    sa.Column("account", sa.String(12), primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False),
)

iam_identities = sa.Table(
    "iam_identities",
    metadata,
    sa.Column("identity_id", sa.String(32), primary_key=True),  # AIDA... of a user, AROA... of a role
    sa.Column("account", sa.String(12), nullable=False),
    sa.Column("kind", sa.String(8), nullable=False),  # user, role
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("path", sa.String(512), nullable=False),
    sa.Column("description", sa.String(1000), nullable=False),
    sa.Column("trust", sa.Text),  # of a role: who may assume it
    sa.Column("boundary", sa.Text),  # a policy document that limits what its own policies grant
    sa.Column("max_session_s", sa.Integer, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.UniqueConstraint("account", "kind", "name", name="one_identity_per_name"),
)

iam_policies = sa.Table(
    "iam_policies",
    metadata,
    sa.Column("identity_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)

iam_access_keys = sa.Table(
    "iam_access_keys",
    metadata,
    sa.Column("access_key_id", sa.String(32), primary_key=True),
    sa.Column("identity_id", sa.String(32), nullable=False, index=True),
    sa.Column("sealed_secret", sa.Text, nullable=False),  # access.sealing; empty once deleted
    sa.Column("status", sa.String(16), nullable=False),  # Active, Inactive, Deleted
    sa.Column("created_at", sa.Float, nullable=False),
)

iam_bearer_keys = sa.Table(
    "iam_bearer_keys",
    metadata,
    sa.Column("key_hash", sa.String(64), primary_key=True),  # SHA-256 of the key, which is kept nowhere
    sa.Column("key_id", sa.String(32), nullable=False, unique=True),
    sa.Column("identity_id", sa.String(32), nullable=False, index=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
)

buckets = sa.Table(  # embedded ones that are not the installation's own account's, or have a policy
    "buckets",
    metadata,
    sa.Column("bucket", sa.String(63), primary_key=True),
    sa.Column("account", sa.String(12), nullable=False),
    sa.Column("policy", sa.Text),
)

quotas = sa.Table(  # an empty principal or model: each of them
    "quotas",
    metadata,
    sa.Column("account", sa.String(12), primary_key=True),
    sa.Column("principal", sa.String(512), primary_key=True),
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(32), primary_key=True),  # access.quotas.NAMES
    sa.Column("value", sa.Integer, nullable=False),
)

cold_starts = sa.Table(
    "cold_starts",
    metadata,
    sa.Column("start_id", sa.Integer, primary_key=True),
    sa.Column("model_id", sa.String(12), nullable=False, index=True),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

model_aliases = sa.Table(
    "model_aliases",
    metadata,
    sa.Column("account", sa.String(12), primary_key=True),
    sa.Column("alias", sa.String(63), primary_key=True),
    sa.Column("model_id", sa.String(12), nullable=False),
    sa.Column("modified_at", sa.Float, nullable=False),
)

model_scaling = sa.Table(
    "model_scaling",
    metadata,
    sa.Column("model_id", sa.String(12), primary_key=True),
    sa.Column("scaling", sa.JSON, nullable=False),  # serving.schedule.Scaling
)

sagemaker_resources = sa.Table(
    "sagemaker_resources",
    metadata,
    sa.Column("account", sa.String(12), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),  # model, endpoint-config, endpoint, alarm
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),  # the call that made it; of an endpoint also what became of it
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("modified_at", sa.Float, nullable=False),
)

USAGE_COUNTS = (
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

usage_hours = sa.Table(  # metering.usage says what each number is
    "usage_hours",
    metadata,
    sa.Column("hour_ms", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("account", sa.String(12), primary_key=True),
    sa.Column("model_id", sa.String(12), primary_key=True),
    sa.Column("principal", sa.String(2048), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in USAGE_COUNTS),
)

usage_writers = sa.Table(
    "usage_writers",
    metadata,
    sa.Column("writer", sa.String(16), primary_key=True),
    sa.Column("last_batch", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

traffic_migrations = sa.Table(
    "traffic_migrations",
    metadata,
    sa.Column("account", sa.String(12), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),  # what applications call
    sa.Column("body", sa.JSON, nullable=False),  # serving.migration.runner.Kept
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("modified_at", sa.Float, nullable=False),
)
