"""Every metric that is exported: one row each. The registry, ``docs/reference/metrics.md`` and the tests of dashboard
and alert rules are made from it."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Kind(StrEnum):
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"


SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
WAIT_S = (0.0, 0.001, *LONG_S)  # most requests wait for nothing, and that is to be seen


class Row(Struct, frozen=True):
    """*name* is without the ``_total`` that a counter gets. *cloudwatch*: the metric of AWS/Bedrock that it is."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ("model",)
    cloudwatch: str = ""
    buckets: tuple[float, ...] = LONG_S

    @property
    def exported(self) -> str:
        """The name in queries; a histogram's has ``_bucket``, ``_sum`` or ``_count`` behind it."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


def _counter(name: str, text: str, *labels: str, aws: str = "") -> Row:
    return Row(f"outcrop_{name}", Kind.COUNTER, text, labels or ("model",), aws)


def _gauge(name: str, text: str, *labels: str, aws: str = "") -> Row:
    return Row(f"outcrop_{name}", Kind.GAUGE, text, labels or ("model",), aws)


def _histogram(name: str, text: str, *labels: str, aws: str = "", buckets: tuple[float, ...] = LONG_S) -> Row:
    return Row(f"outcrop_{name}", Kind.HISTOGRAM, text, labels or ("model",), aws, buckets)


# Requests, counted once, at their end.
INVOCATIONS = _counter("invocations", "Requests that were answered.", aws="Invocations")
LATENCY = _histogram("invocation_latency_seconds", "Whole answered request.", aws="InvocationLatency")
FIRST_TOKEN = _histogram("time_to_first_token_seconds", "To the first token of a stream.", aws="TimeToFirstToken")
INPUT_TOKENS = _counter("input_token_count", "Tokens read, of answered requests.", aws="InputTokenCount")
OUTPUT_TOKENS = _counter("output_token_count", "Tokens generated, of answered requests.", aws="OutputTokenCount")
THROTTLES = _counter(
    "invocation_throttles", "Requests told to come again: not ready in time, queue full.", aws="InvocationThrottles"
)
CLIENT_ERRORS = _counter(
    "invocation_client_errors", "Requests refused for what they ask.", aws="InvocationClientErrors"
)
SERVER_ERRORS = _counter(
    "invocation_server_errors", "Requests that engine or server failed.", aws="InvocationServerErrors"
)
REQUESTS = _counter(
    "requests",
    "Requests that ended; outcome is ok, replayed (a kept answer), cancelled (the caller left) or the error's name.",
    "model",
    "operation",
    "outcome",
)
HELD = _histogram("held_seconds", "Part of a request in which no copy was ready.", buckets=WAIT_S)
QUEUED = _histogram(
    "queued_seconds", "Part of a request in which copies were ready and all slots taken.", buckets=WAIT_S
)
TOKEN_TIME = _histogram(
    "inter_token_seconds", "Mean time between tokens of a stream, after the first.", buckets=SHORT_S
)
RETRIES = _counter("request_retries", "Copies that broke before the first byte, so that another one answered.")
COLD_REQUESTS = _counter(
    "cold_requests", "Requests that waited for a copy's start, by tier of the start.", "model", "tier"
)

# Copies and decisions, counted when they happen.
COLD_START = _histogram("cold_start_seconds", "Order of a copy to its first ready answer.", "model", "tier")
COLD_START_STAGE = _histogram("cold_start_stage_seconds", "The same by stage, over all models.", "tier", "stage")
START_FAILURES = _counter("copy_start_failures", "Copies that did not become ready.")
COPIES_ENDED = _counter("copies_ended", "Copies that ended: drained, evicted, replaced, died.", "model", "reason")
DECISIONS = _counter(
    "scaling_decisions", "Scaling decisions that changed something: up, down, to zero.", "model", "direction"
)

# What is true at the scrape.
MODEL_COPY = _gauge(
    "model_copy", "Copies by state: starting, ready, evictable, draining ...", "model", "state", aws="ModelCopy"
)
SLOTS = _gauge("slots", "Requests that the ready copies can run at a time.")
SLOTS_BUSY = _gauge("slots_busy", "Requests that run.")
QUEUE = _gauge("queue_requests", "Requests that wait for a copy or a slot.")
KV_USE = _gauge(
    "kv_cache_use_ratio", "Part of the key-value cache in use, mean of the ready copies, as their engine says."
)

# Migrations of traffic, at the scrape; counters are those that the migration keeps over a restart.
_MIGRATION = ("account", "migration")
MIGRATION_PHASE = _gauge("migration_phase", "1 for the phase that a migration is in.", *_MIGRATION, "phase")
MIGRATION_STEP = _gauge("migration_step", "Number of the step, from 1.", *_MIGRATION)
MIGRATION_SHARE = _gauge("migration_target_share_ratio", "Part of everybody's requests for the target.", *_MIGRATION)
MIGRATION_REQUESTS = _counter(
    "migration_requests", "Requests by side and whom for: caller, or shadow.", *_MIGRATION, "side", "role"
)
MIGRATION_FAILURES = _counter(
    "migration_failures", "Those without an answer: failed, not_ready, refused by both.", *_MIGRATION, "side", "outcome"
)
MIGRATION_FALLBACKS = _counter(
    "migration_fallbacks", "Requests that the source answered in the target's place.", *_MIGRATION, "reason"
)
MIGRATION_PAIRS = _counter(
    "migration_pairs", "Compared pairs of answers: of both sides, or of the source twice.", *_MIGRATION, "between"
)
MIGRATION_AGREEMENT = _counter(
    "migration_agreement",
    "Sum of how far pairs agree, 0 to 1 each; over the pairs it is the mean.",
    *_MIGRATION,
    "between",
)
MIGRATION_DISAGREEMENTS = _counter("migration_disagreements", "Pairs of both sides that differ at all.", *_MIGRATION)
MIGRATION_DROPPED = _counter(
    "migration_dropped", "Shadows left out, and pairs not kept, for want of room.", *_MIGRATION, "what"
)
MIGRATION_ROLLBACKS = _counter("migration_rollbacks", "Migrations taken back, by the guard that did it.", "guard")
MEMORY_USED = Row("outcrop_copy_memory_used_bytes", Kind.GAUGE, "Memory promised to copies on this node.", ())
MEMORY_LIMIT = Row("outcrop_copy_memory_limit_bytes", Kind.GAUGE, "Memory that copies may take on this node.", ())
LIVE = Row("outcrop_requests_live", Kind.GAUGE, "Inference requests under way, waiting ones included.", ())
TASKS = Row("outcrop_tasks", Kind.GAUGE, "Tasks of the server's event loop; flat under steady load.", ())
RECORDS_DROPPED = Row("outcrop_request_records_dropped", Kind.COUNTER, "Request records that could not be written.", ())
SPANS_DROPPED = Row("outcrop_traces_dropped", Kind.COUNTER, "Traces given up because the exporter was behind.", ())
AUDIT_RECORDS = Row("outcrop_audit_records", Kind.COUNTER, "Audit records that were written.", ())
AUDIT_LOST = Row("outcrop_audit_records_lost", Kind.COUNTER, "Audit records that could not be written.", ())
INVOCATION_LOGS = Row(
    "outcrop_invocation_logs_delivered",
    Kind.COUNTER,
    "Invocation log records that a bucket has.",
    (),
    "ModelInvocationLogsS3DeliverySuccess",
)
INVOCATION_LOGS_LOST = Row(
    "outcrop_invocation_logs_lost",
    Kind.COUNTER,
    "Invocation log records lost: no room while they waited, or the bucket refused them.",
    (),
    "ModelInvocationLogsS3DeliveryFailure",
)
INVOCATION_LOG_BODIES = Row(
    "outcrop_invocation_log_bodies_delivered",
    Kind.COUNTER,
    "Large bodies of invocation logs that a bucket has.",
    (),
    "ModelInvocationLargeDataS3DeliverySuccess",
)
INVOCATION_LOG_BODIES_LOST = Row(
    "outcrop_invocation_log_bodies_lost",
    Kind.COUNTER,
    "Large bodies of invocation logs that the bucket refused.",
    (),
    "ModelInvocationLargeDataS3DeliveryFailure",
)
INVOCATION_LOG_WAITING = Row(
    "outcrop_invocation_log_waiting_bytes", Kind.GAUGE, "Bodies that wait for their bucket.", ()
)
BUILD = Row("outcrop_build_info", Kind.GAUGE, "Always 1; the version of this server.", ("version",))

TABLE = tuple(row for row in list(globals().values()) if isinstance(row, Row))
