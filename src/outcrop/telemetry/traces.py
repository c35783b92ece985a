"""Requests as OpenTelemetry traces, sent over OTLP/HTTP. Imported only where traces are asked for.

Spans are made after the fact, from the record of a request that has ended, by a thread of their own: the request pays
for one put into a queue. Names and numbers only, as in the record. A caller's ``traceparent`` is the parent, and its
sampled flag is obeyed; requests without one are sampled by the share that is set.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping
from types import MappingProxyType

import structlog

from outcrop import __version__
from outcrop.errors import BadSetting
from outcrop.telemetry.requests import RequestRecord
from outcrop.telemetry.timeline import DECODE, START, Step, steps

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
except ImportError as exc:
    raise BadSetting(
        "otlp_endpoint is set, but OpenTelemetry is not installed: pip install 'outcrop[otel]' (OUTCROP_OTLP_ENDPOINT)"
    ) from exc

log = structlog.get_logger(__name__)

MOST_WAITING = 2048  # records that wait to become spans; more are dropped and counted
_EXPORT_TIMEOUT_S = 5
_CLOSE_S = 2.0  # that a collector gets to take the last traces
# Semantic conventions for generative AI, gen_ai.operation.name; the body of InvokeModel may be either.
_KIND: Mapping[str, str] = MappingProxyType(
    {
        "Converse": "chat",
        "ConverseStream": "chat",
        "ChatCompletions": "chat",
        "Completions": "text_completion",
        "Embeddings": "embeddings",
    }
)


class Traces:
    """Exporter of one server. *endpoint*: of the collector, without ``/v1/traces``; *sample*: share of new traces."""

    def __init__(self, endpoint: str, *, sample: float) -> None:
        self.dropped = 0
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=Resource.create({"service.name": "outcrop", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("outcrop", __version__)
        self._records: queue.Queue[RequestRecord | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def export(self, record: RequestRecord) -> None:
        """Make a trace of *record* soon. Never blocks."""
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Send what is there, for some seconds at most. Blocks."""
        with contextlib.suppress(queue.Full):
            self._records.put(None, timeout=_CLOSE_S)
        self._thread.join(_CLOSE_S)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends the attempts to reach a collector that is not there
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            try:
                self._spans(record)
            except Exception:
                log.exception("a trace could not be made", request_id=record.request_id)
        self._provider.shutdown()

    def _spans(self, record: RequestRecord) -> None:
        root = self._tracer.start_span(
            f"{record.operation} {record.model}".rstrip(),
            context=_parent(record.traceparent),
            kind=SpanKind.SERVER,
            start_time=_ns(record.at),
            attributes=_attributes(record),
        )
        if not root.is_recording():
            return
        if record.first_token_s is not None:
            root.add_event("first token", timestamp=_ns(record.at + record.first_token_s))
        if record.blame == "server":
            root.set_status(Status(StatusCode.ERROR, record.outcome))
        parents: dict[str, Span] = {"": root}
        for step in steps(record):
            parents[step.name] = self._span(record, step, parents[step.under])
        root.end(_ns(record.at + record.total_s))

    def _span(self, record: RequestRecord, step: Step, parent: Span) -> Span:
        begun = record.at + step.at_s
        attributes: dict[str, str | float] = {"outcrop.copy_id": step.copy_id} if step.copy_id else {}
        start = record.cold_start
        if step.name == START and start is not None:
            attributes["outcrop.tier"] = start.tier
            if start.decision is not None:
                attributes["outcrop.decision"] = start.decision.reason
        span = self._tracer.start_span(
            step.name, context=trace.set_span_in_context(parent), start_time=_ns(begun), attributes=attributes
        )
        if step.is_broken:
            span.set_status(Status(StatusCode.ERROR))
        elif step.name == DECODE and record.outcome == "ok":
            span.add_event("last token", timestamp=_ns(begun + step.for_s))
        span.end(_ns(begun + step.for_s))
        return span


def _parent(traceparent: str | None) -> Context | None:
    """The caller's span as a context; None begins a trace. *traceparent* was checked (``requests.traceparent``)."""
    if traceparent is None:
        return Context()
    _, trace_id, span_id, flags = traceparent.split("-")
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def _attributes(record: RequestRecord) -> dict[str, str | float]:
    found: dict[str, str | float | None] = {
        "gen_ai.provider.name": "outcrop",
        "gen_ai.operation.name": _KIND.get(record.operation),
        "gen_ai.request.model": record.model or None,
        "gen_ai.usage.input_tokens": record.input_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "http.response.status_code": record.status or None,
        "error.type": record.outcome if record.blame else None,
        "aws.request_id": record.request_id,
        "outcrop.outcome": record.outcome,
        "outcrop.principal": record.principal,
        "outcrop.copy_id": record.copy_id or None,
        "outcrop.held_s": record.held_s,
        "outcrop.queued_s": record.queued_s,
    }
    return {name: value for name, value in found.items() if value is not None}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
