"""Prometheus metrics of one server, on a registry of their own so that two servers fit one process.

What happened is counted here; what is true now (copies, queues, memory) is asked for at every scrape (``watch``). The
label ``model`` has at most MOST_MODELS values, then ``other``: names of models that do not exist never become one, and
those of deleted models are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outcrop import __version__
from outcrop.telemetry import metric_table as table
from outcrop.telemetry.metric_table import Kind, Row
from outcrop.telemetry.requests import ColdStart, RequestRecord

MOST_MODELS = 1000
OTHER, UNKNOWN = "other", "unknown"

Reading = tuple[Row, Sequence[str], float]  # a row of the table, the values of its labels, the value
M = TypeVar("M", Counter, Gauge, Histogram)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing here reads


class Metrics:
    """All metrics of ``metric_table``. Used by the event loop only."""

    def __init__(
        self,
        name_of: Callable[[str], str | None] = lambda model_id: model_id,
        names: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        """*name_of*: a model's name from its id; None when there is no such model (any more).

        *names*: of the models that there are; the series of others are dropped at a scrape.
        """
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._name_of = name_of
        self._names = names
        self._models: dict[str, _ModelMeters] = {}
        self._families: dict[Row, Counter | Gauge | Histogram] = {}
        self._watched = _Watched()
        self.registry.register(self._watched)
        self._requests = self._made(table.REQUESTS, Counter)
        self._stage = self._made(table.COLD_START_STAGE, Histogram)
        self._made(table.BUILD, Gauge).labels(__version__).set(1)
        for row in _ModelMeters.ROWS:
            if row.kind is Kind.HISTOGRAM:
                self._made(row, Histogram)
            else:
                self._made(row, Counter)
        self._cold_requests = self._made(table.COLD_REQUESTS, Counter)
        self._cold_start = self._made(table.COLD_START, Histogram)
        self._start_failures = self._made(table.START_FAILURES, Counter)
        self._copies_ended = self._made(table.COPIES_ENDED, Counter)
        self._decisions = self._made(table.DECISIONS, Counter)

    def watch(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Ask *read* at every scrape for what is true then."""
        self._watched.sources.append(read)

    # -- what happens ----------------------------------------------------------------------------------

    def request(self, record: RequestRecord) -> None:
        """Count one request, once, at its end."""
        meters = self._of(record.model or UNKNOWN)
        meters.outcome(self._requests, record.operation, record.outcome).inc()
        meters.held.observe(record.held_s)
        meters.queued.observe(record.queued_s)
        if record.outcome == "ok":
            meters.invocations.inc()
            meters.latency.observe(record.total_s)
            meters.input_tokens.inc(record.input_tokens or 0)
            meters.output_tokens.inc(record.output_tokens or 0)
        elif record.blame:
            meters.errors[record.blame].inc()
        if record.first_token_s is not None:
            meters.first_token.observe(record.first_token_s)
            if record.output_tokens is not None and record.output_tokens > 1:
                meters.token_time.observe((record.total_s - record.first_token_s) / (record.output_tokens - 1))
        if record.retries:
            meters.retries.inc(record.retries)
        if record.cold_start is not None:
            self._cold_requests.labels(meters.label, record.cold_start.tier).inc()

    def copy_ready(self, model_id: str, start: ColdStart) -> None:
        """A copy answered for the first time."""
        self._cold_start.labels(self._label(model_id), start.tier).observe(start.total_s)
        for stage, seconds in start.stages.items():
            self._stage.labels(start.tier, stage).observe(seconds)

    def start_failed(self, model_id: str) -> None:
        self._start_failures.labels(self._label(model_id)).inc()

    def copy_ended(self, model_id: str, reason: str) -> None:
        """*reason*: drained, evicted, replaced or died."""
        self._copies_ended.labels(self._label(model_id), reason).inc()

    def decided(self, model_id: str, current: int, desired: int) -> None:
        """A scaling decision that differs from what is there."""
        direction = "up" if desired > current else "down" if desired else "to zero"
        self._decisions.labels(self._label(model_id), direction).inc()

    def forget(self, model: str) -> None:
        """Drop the series of a model that is gone."""
        if self._models.pop(model, None) is None:
            return
        for row, family in self._families.items():
            if row.labels[:1] == ("model",):
                family.remove_by_labels({"model": model})

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        if self._names is not None:
            for gone in set(self._models) - {OTHER, UNKNOWN, *self._names()}:
                self.forget(gone)
        return generate_latest(self.registry)

    # -- labels ----------------------------------------------------------------------------------------

    def _label(self, model_id: str) -> str:
        return self._of(self._name_of(model_id) or UNKNOWN).label

    def _of(self, model: str) -> _ModelMeters:
        meters = self._models.get(model)
        if meters is None:
            if len(self._models) >= MOST_MODELS and model not in (OTHER, UNKNOWN):
                return self._of(OTHER)
            meters = self._models[model] = _ModelMeters(model, self._families)
        return meters

    def _made(self, row: Row, kind: type[M]) -> M:
        more: dict[str, Any] = {"buckets": row.buckets} if row.kind is Kind.HISTOGRAM else {}
        family = kind(row.name, row.help, row.labels, registry=self.registry, **more)
        self._families[row] = family
        return family


class _ModelMeters:
    """One model's own counters, looked up once."""

    ROWS = (
        table.INVOCATIONS,
        table.LATENCY,
        table.FIRST_TOKEN,
        table.INPUT_TOKENS,
        table.OUTPUT_TOKENS,
        table.THROTTLES,
        table.CLIENT_ERRORS,
        table.SERVER_ERRORS,
        table.HELD,
        table.QUEUED,
        table.TOKEN_TIME,
        table.RETRIES,
    )

    def __init__(self, label: str, families: dict[Row, Any]) -> None:
        self.label = label
        made = {row: families[row].labels(label) for row in self.ROWS}
        self.invocations: Counter = made[table.INVOCATIONS]
        self.latency: Histogram = made[table.LATENCY]
        self.first_token: Histogram = made[table.FIRST_TOKEN]
        self.input_tokens: Counter = made[table.INPUT_TOKENS]
        self.output_tokens: Counter = made[table.OUTPUT_TOKENS]
        self.errors: dict[str, Counter] = {
            "throttled": made[table.THROTTLES],
            "client": made[table.CLIENT_ERRORS],
            "server": made[table.SERVER_ERRORS],
        }
        self.held: Histogram = made[table.HELD]
        self.queued: Histogram = made[table.QUEUED]
        self.token_time: Histogram = made[table.TOKEN_TIME]
        self.retries: Counter = made[table.RETRIES]
        self._outcomes: dict[tuple[str, str], Counter] = {}

    def outcome(self, requests: Counter, operation: str, outcome: str) -> Counter:
        found = self._outcomes.get((operation, outcome))
        if found is None:
            found = self._outcomes[operation, outcome] = requests.labels(self.label, operation, outcome)
        return found


class _Watched(Collector):
    """Metrics that are read at the scrape. One source that fails must not hide the others; it shows as missing."""

    def __init__(self) -> None:
        self.sources: list[Callable[[], Iterable[Reading]]] = []

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        families: dict[Row, CounterMetricFamily | GaugeMetricFamily] = {}
        for read in self.sources:
            for row, labels, value in read():
                family = families.get(row)
                if family is None:
                    made = CounterMetricFamily if row.kind is Kind.COUNTER else GaugeMetricFamily
                    family = families[row] = made(row.name, row.help, labels=row.labels)
                family.add_metric(list(labels), value)
        return families.values()
