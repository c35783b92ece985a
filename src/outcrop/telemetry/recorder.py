"""The one end of every request: counted, kept, traced and, when it was slow or failed, logged. Once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from outcrop.telemetry import logs
from outcrop.telemetry import metric_table as table
from outcrop.telemetry.metrics import Metrics, Reading
from outcrop.telemetry.request_log import RequestLog
from outcrop.telemetry.requests import RequestFacts, RequestRecord

log = structlog.get_logger(__name__)

WINDOW = 200  # requests per model that percentiles are taken of
WINDOW_S = 300.0  # the same, in time


@dataclass(slots=True)
class Activity:
    """What one model's requests amount to since the start; *recent*: (ended at, first token in s or None, total s)."""

    answered: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    recent: deque[tuple[float, float | None, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))


class Recorder:
    """Records of one server's requests. *slow_s*: waiting from which one is logged; 0 logs every request."""

    def __init__(
        self,
        metrics: Metrics,
        requests: RequestLog,
        *,
        slow_s: float,
        meter: Callable[[RequestRecord], None] | None = None,
        export: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self.metrics = metrics
        self.requests = requests
        self._slow_s = slow_s
        self._export = export
        self._meter = meter
        self._live: dict[str, RequestFacts] = {}
        self._activity: dict[str, Activity] = {}
        metrics.watch(self._readings)

    def begin(self, facts: RequestFacts) -> None:
        """From now on the request is under way, and log lines of its task name it."""
        self._live[facts.request_id] = facts
        logs.CURRENT.set(facts)

    def end(self, facts: RequestFacts) -> None:
        """Record the request; again is nothing."""
        if facts.ended_at is not None:
            return
        facts.ended_at = time.perf_counter()
        self._live.pop(facts.request_id, None)
        record = facts.record()
        self.metrics.request(record)
        self.requests.keep(record)
        self._add_up(record)
        if self._meter is not None:
            self._meter(record)
        if self._export is not None:
            self._export(record)
        waited_s = record.held_s + record.queued_s
        if record.blame == "server" or (record.first_token_s or waited_s) >= self._slow_s:
            _tell(record)

    def live(self) -> list[RequestFacts]:
        """Requests under way, the oldest first."""
        return list(self._live.values())

    def running(self, request_id: str) -> RequestRecord | None:
        """What is known of a request that has not ended."""
        facts = self._live.get(request_id)
        return None if facts is None else facts.record()

    def activity(self, model_id: str) -> Activity:
        return self._activity.get(model_id) or Activity()

    def forget(self, known: set[str]) -> None:
        """Drop what is added up of models whose id is not in *known*."""
        for model_id in set(self._activity) - known:
            del self._activity[model_id]

    def _add_up(self, record: RequestRecord) -> None:
        if not record.model_id:
            return
        activity = self._activity.get(record.model_id)
        if activity is None:
            activity = self._activity[record.model_id] = Activity()
        if record.outcome == "ok":
            activity.answered += 1
            activity.input_tokens += record.input_tokens or 0
            activity.output_tokens += record.output_tokens or 0
            activity.recent.append((time.monotonic(), record.first_token_s, record.total_s))
        elif record.blame:
            activity.failed += 1

    def _readings(self) -> list[Reading]:
        return [(table.LIVE, (), len(self._live)), (table.RECORDS_DROPPED, (), self.requests.dropped)]


def _tell(record: RequestRecord) -> None:
    (log.warning if record.blame == "server" else log.info)(
        "request",
        request_id=record.request_id,
        operation=record.operation,
        model=record.model,
        copy_id=record.copy_id,
        principal=record.principal,
        outcome=record.outcome,
        status=record.status,
        held_s=record.held_s,
        queued_s=record.queued_s,
        first_token_s=record.first_token_s,
        total_s=record.total_s,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
    )
