"""What a server records: metrics, requests, usage, traces, invocations, the audit trail; and who writes it down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outcrop.access.audit_log import AuditLog, load_key
from outcrop.api.audit_trail import AuditTrail
from outcrop.app.tasks import runs_until_closed
from outcrop.awswire.service import Router
from outcrop.importing.sources.writing import Buckets
from outcrop.metering.ledger import Ledger
from outcrop.metering.meter import About, Meter
from outcrop.metering.usage import is_proxies
from outcrop.registry.records import ImportedModel
from outcrop.registry.store import Registry
from outcrop.registry.usage_records import UsageRecords
from outcrop.serving.catalogue import Catalogue
from outcrop.settings import Settings
from outcrop.telemetry.invocation_log import InvocationLog
from outcrop.telemetry.metric_table import AUDIT_LOST, AUDIT_RECORDS, SPANS_DROPPED, TASKS
from outcrop.telemetry.metrics import Metrics
from outcrop.telemetry.recorder import Recorder
from outcrop.telemetry.request_log import RequestLog
from outcrop.telemetry.requests import RequestRecord

if TYPE_CHECKING:
    from outcrop.telemetry.traces import Traces  # imports OpenTelemetry, which is an extra


@dataclass(frozen=True, slots=True, kw_only=True)
class Observers:
    """Who is told what happens. *audit* and *traces*: None where they are switched off."""

    metrics: Metrics
    requests: RequestLog
    usage: Ledger
    meter: Meter
    recorder: Recorder
    invocations: InvocationLog
    audit: AuditLog | None
    trail: AuditTrail
    traces: Traces | None

    def forget_gone(self, catalogue: Catalogue) -> None:
        """Drop what is counted of models that are gone."""
        self.recorder.forget({model_id for model_id, _ in catalogue.by_id()})
        self.metrics.forget_gone()

    def start(self, undo: contextlib.AsyncExitStack) -> None:
        """Run what writes records down, until *undo* closes it: the meter last begun, and first ended."""
        if self.audit is not None:
            undo.push_async_callback(asyncio.to_thread, self.audit.close)
            undo.callback(self.trail.tell_of_strangers, is_last=True)
            runs_until_closed(undo, self.audit.run(), "audit")
        if self.traces is not None:
            undo.push_async_callback(asyncio.to_thread, self.traces.close)
        runs_until_closed(undo, self.requests.run(), "request-log")
        undo.push_async_callback(self.invocations.close)
        runs_until_closed(undo, self.invocations.run(), "invocation-log")
        # Runs until after the fleet is closed, and writes what that counted.
        undo.push_async_callback(self.meter.flush, self.usage)
        runs_until_closed(undo, self.meter.run(self.usage), "meter")


async def make_observers(settings: Settings, registry: Registry, catalogue: Catalogue, router: Router) -> Observers:
    """All of them, not yet started. Raises BadSetting for one that cannot be had."""
    metrics = Metrics(catalogue.name_of, lambda: (name for _, name in catalogue.by_id()))
    requests = RequestLog(
        settings.logs / "requests.jsonl", most_bytes=settings.request_log_bytes, kept=settings.request_records
    )
    traces = _traces(settings)
    meter = Meter(_about(catalogue, settings), stored=lambda: _stored(catalogue))
    invocations = InvocationLog(Buckets(settings), region=settings.region, most_bytes=settings.invocation_log_bytes)
    for account, config in (await asyncio.to_thread(registry.attachments.all_logging)).items():
        invocations.configure(account, config)
    audit = await asyncio.to_thread(_audit_log, settings)
    if traces is not None:
        metrics.watch(lambda: [(SPANS_DROPPED, (), traces.dropped)])
    if audit is not None:
        metrics.watch(lambda: [(AUDIT_RECORDS, (), audit.written), (AUDIT_LOST, (), audit.lost)])
    metrics.watch(invocations.readings)
    metrics.watch(lambda: [(TASKS, (), len(asyncio.all_tasks()))])
    return Observers(
        metrics=metrics,
        requests=requests,
        usage=Ledger(UsageRecords(registry)),
        meter=meter,
        recorder=Recorder(
            metrics,
            requests,
            slow_s=settings.slow_request_s,
            meter=lambda record: _meter_request(meter, record),
            export=traces.export if traces is not None else None,
        ),
        invocations=invocations,
        audit=audit,
        trail=AuditTrail(
            audit,
            router=router,
            region=settings.region,
            account=settings.account,
            strangers_per_s=settings.audit_strangers_per_s,
        ),
        traces=traces,
    )


def _traces(settings: Settings) -> Traces | None:
    """Who exports traces, where they are asked for. Raises BadSetting when OpenTelemetry is not installed."""
    if not settings.otlp_endpoint:
        return None
    from outcrop.telemetry.traces import Traces

    return Traces(settings.otlp_endpoint, sample=settings.otlp_sample)


def _audit_log(settings: Settings) -> AuditLog | None:
    """The audit log, its chain's end found and mended; None where it is switched off. Raises BadSetting."""
    if not settings.audit:
        return None
    key = load_key(settings.audit_key, create=settings.audit_key_file is None)
    return AuditLog(
        settings.audit_folder,
        key,
        file_bytes=settings.audit_file_bytes,
        keep_days=settings.audit_keep_days,
        most_bytes=settings.audit_bytes,
        account=settings.account,
    )


def _about(catalogue: Catalogue, settings: Settings) -> Callable[[str], About]:
    """What the meter asks of a model; one that is only being imported has no units yet."""

    def about(model_id: str) -> About:
        served = catalogue.of_id(model_id)
        return _metered(served.record) if served is not None else About(settings.account, 0)

    return about


def _meter_request(meter: Meter, record: RequestRecord) -> None:
    if record.model_id:
        meter.request(
            model_id=record.model_id,
            principal=record.principal,
            outcome=record.outcome,
            # Counting tokens is no invocation, and opens no billed window.
            copy_id=None if record.operation == "CountTokens" or is_proxies(record.model_id) else record.copy_id,
            tokens_in=record.input_tokens or 0,
            tokens_out=record.output_tokens or 0,
            held_s=record.held_s + record.queued_s,
            run_s=record.engine_s,
        )


def _stored(catalogue: Catalogue) -> dict[str, About]:
    return {served.record.model_id: _metered(served.record) for served in catalogue.everything()}


def _metered(record: ImportedModel) -> About:
    return About(record.account, record.model_units, record.facts.get("artifact_bytes", record.facts["weight_bytes"]))
