"""Prometheus metrics of one server, on a registry of their own so that two servers fit one process.

What happened is counted here; what is true now (copies, queues, memory) is asked for at every scrape (``watch``). The
label ``model`` has at most MOST_MODELS values, then ``other``: names of models that do not exist never become one, and
those of deleted models are forgotten (``forget_gone``).

The library writes the page; the counting is ours, because its counters take a lock each, which one event loop does not
need, and a request moves a dozen of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from outcrop import __version__
from outcrop.telemetry import metric_table as table
from outcrop.telemetry.metric_table import Kind, Row
from outcrop.telemetry.requests import ColdStart, RequestRecord

MOST_MODELS = 1000
OTHER, UNKNOWN = "other", "unknown"

Reading = tuple[Row, Sequence[str], float]  # a row of the table, the values of its labels, the value


class Count:
    """A number that grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Spread:
    """How values spread over buckets. *bounds*: upper ends, ascending; what is above the last has a bucket too."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Spread:
        """The same values, which no longer change."""
        found = Spread(self.bounds)
        found.counts, found.total = list(self.counts), self.total
        return found

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper end and how many values are at most that, as Prometheus has them."""
        found, seen = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            found.append(("+Inf" if bound == float("inf") else str(bound), float(seen)))
        return found


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
        self._name_of = name_of
        self._names = names
        self._models: dict[str, _Meters] = {}
        self._counts: dict[Row, dict[tuple[str, ...], Count]] = {}
        self._spreads: dict[Row, dict[tuple[str, ...], Spread]] = {}
        self._sources: list[Callable[[], Iterable[Reading]]] = [lambda: [(table.BUILD, (__version__,), 1)]]

    def watch(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Ask *read* at every scrape for what is true then."""
        self._sources.append(read)

    def names_too(self, names: Callable[[], Iterable[str]]) -> None:
        """Keep the series of *names* besides: what is asked and is no model."""
        models = self._names
        if models is not None:
            self._names = lambda: (*models(), *names())

    # -- what happens ----------------------------------------------------------------------------------

    def request(self, record: RequestRecord) -> None:
        """Count one request, once, at its end."""
        meters = self._of(record.model or UNKNOWN)
        meters.outcome(record.operation, record.outcome).value += 1
        meters.held.observe(record.held_s)
        meters.queued.observe(record.queued_s)
        if record.outcome == "ok":
            meters.invocations.value += 1
            meters.latency.observe(record.total_s)
            meters.input_tokens.value += record.input_tokens or 0
            meters.output_tokens.value += record.output_tokens or 0
        elif record.blame:
            meters.errors[record.blame].value += 1
        if record.first_token_s is not None:
            meters.first_token.observe(record.first_token_s)
            if record.output_tokens is not None and record.output_tokens > 1:
                meters.token_time.observe((record.total_s - record.first_token_s) / (record.output_tokens - 1))
        if record.retries:
            meters.retries.value += record.retries
        if record.cold_start is not None:
            self.count(table.COLD_REQUESTS, meters.label, record.cold_start.tier).value += 1

    def copy_ready(self, model_id: str, start: ColdStart) -> None:
        """A copy answered for the first time."""
        self.spread(table.COLD_START, self._label(model_id), start.tier).observe(start.total_s)
        for stage, seconds in start.stages.items():
            self.spread(table.COLD_START_STAGE, start.tier, stage).observe(seconds)

    def start_failed(self, model_id: str) -> None:
        self.count(table.START_FAILURES, self._label(model_id)).value += 1

    def copy_ended(self, model_id: str, reason: str) -> None:
        """*reason*: drained, evicted, replaced or died."""
        self.count(table.COPIES_ENDED, self._label(model_id), reason).value += 1

    def decided(self, model_id: str, current: int, desired: int) -> None:
        """A scaling decision that differs from what is there."""
        direction = "up" if desired > current else "down" if desired else "to zero"
        self.count(table.DECISIONS, self._label(model_id), direction).value += 1

    def forget(self, model: str) -> None:
        """Drop the series of a model that is gone."""
        del self._models[model]
        stores: tuple[dict[Row, Any], ...] = (self._counts, self._spreads)
        for row, series in (item for store in stores for item in store.items()):
            if row.labels[:1] == ("model",):
                for labels in [labels for labels in series if labels[0] == model]:
                    del series[labels]

    def forget_gone(self) -> None:
        """Drop the series of all that there no longer is."""
        if self._names is not None:
            for gone in set(self._models) - {OTHER, UNKNOWN, *self._names()}:
                self.forget(gone)

    # -- the page --------------------------------------------------------------------------------------

    def page(self) -> Callable[[], bytes]:
        """What is true now; what is returned writes it out, in the format that Prometheus scrapes, on any thread.

        A page of many models takes a while to write (about 1 ms a model), for which no request should wait.
        """
        self.forget_gone()
        taken = _Taken(
            counts={
                row: {labels: each.value for labels, each in series.items()} for row, series in self._counts.items()
            },
            spreads={
                row: {labels: each.copy() for labels, each in series.items()} for row, series in self._spreads.items()
            },
            readings=self._read(),
        )
        return taken.written

    def _read(self) -> list[Reading]:
        """What the sources say now; of models that are too many to have a name of their own, added up."""
        shown = set(self._models)
        found: list[Reading] = []
        others: dict[tuple[Row, Sequence[str]], float] = {}
        for row, labels, value in (reading for read in self._sources for reading in read()):
            if row.labels[:1] != ("model",):
                found.append((row, labels, value))
            elif labels[0] in shown or len(shown) < MOST_MODELS:
                shown.add(labels[0])
                found.append((row, labels, value))
            elif row is not table.KV_USE:  # shares of caches do not add up
                key = row, (OTHER, *labels[1:])
                others[key] = others.get(key, 0.0) + value
        return found + [(row, labels, value) for (row, labels), value in others.items()]

    # -- series ----------------------------------------------------------------------------------------

    def count(self, row: Row, *labels: str) -> Count:
        """The series of *row* with these labels, made when there is none."""
        series = self._counts.setdefault(row, {})
        return series.setdefault(labels, Count())

    def spread(self, row: Row, *labels: str) -> Spread:
        """The series of *row*, a histogram, with these labels, made when there is none."""
        series = self._spreads.setdefault(row, {})
        return series.setdefault(labels, Spread(row.buckets))

    def _label(self, model_id: str) -> str:
        return self._of(self._name_of(model_id) or UNKNOWN).label

    def _of(self, model: str) -> _Meters:
        meters = self._models.get(model)
        if meters is None:
            if len(self._models) >= MOST_MODELS and model not in (OTHER, UNKNOWN):
                return self._of(OTHER)
            meters = self._models[model] = _Meters(model, self)
        return meters


@dataclass(slots=True, eq=False)
class _Taken(Collector):
    """The values of one moment."""

    counts: dict[Row, dict[tuple[str, ...], float]]
    spreads: dict[Row, dict[tuple[str, ...], Spread]]
    readings: list[Reading]

    def written(self) -> bytes:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        return generate_latest(registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is shows when it is collected."""
        return ()

    def collect(self) -> Iterable[Metric]:
        for row, spreads in self.spreads.items():
            histogram = HistogramMetricFamily(row.name, row.help, labels=row.labels)
            for labels, spread in spreads.items():
                histogram.add_metric(labels, spread.cumulative(), spread.total)
            yield histogram
        counted = [(row, labels, value) for row, series in self.counts.items() for labels, value in series.items()]
        families: dict[Row, CounterMetricFamily | GaugeMetricFamily] = {}
        for row, values, value in (*counted, *self.readings):
            family = families.get(row)
            if family is None:
                made = CounterMetricFamily if row.kind is Kind.COUNTER else GaugeMetricFamily
                family = families[row] = made(row.name, row.help, labels=row.labels)
            family.add_metric(list(values), value)
        yield from families.values()


class _Meters:
    """One model's own series of the request path, looked up once."""

    __slots__ = (
        "_metrics",
        "_outcomes",
        "errors",
        "first_token",
        "held",
        "input_tokens",
        "invocations",
        "label",
        "latency",
        "output_tokens",
        "queued",
        "retries",
        "token_time",
    )

    def __init__(self, label: str, metrics: Metrics) -> None:
        self.label = label
        self.invocations = metrics.count(table.INVOCATIONS, label)
        self.latency = metrics.spread(table.LATENCY, label)
        self.first_token = metrics.spread(table.FIRST_TOKEN, label)
        self.input_tokens = metrics.count(table.INPUT_TOKENS, label)
        self.output_tokens = metrics.count(table.OUTPUT_TOKENS, label)
        self.errors = {
            "throttled": metrics.count(table.THROTTLES, label),
            "client": metrics.count(table.CLIENT_ERRORS, label),
            "server": metrics.count(table.SERVER_ERRORS, label),
        }
        self.held = metrics.spread(table.HELD, label)
        self.queued = metrics.spread(table.QUEUED, label)
        self.token_time = metrics.spread(table.TOKEN_TIME, label)
        self.retries = metrics.count(table.RETRIES, label)
        self._metrics = metrics
        self._outcomes: dict[tuple[str, str], Count] = {}

    def outcome(self, operation: str, outcome: str) -> Count:
        found = self._outcomes.get((operation, outcome))
        if found is None:
            found = self._outcomes[operation, outcome] = self._metrics.count(
                table.REQUESTS, self.label, operation, outcome
            )
        return found
