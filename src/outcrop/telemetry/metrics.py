"""Prometheus metrics of one server, on a registry of their own so that two servers fit one process."""

from __future__ import annotations

import time
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from outcrop.inference.canonical import Usage


class Times(Protocol):
    """What the metrics need of a measured request."""

    started: float
    held_s: float
    first_byte_at: float | None


class Metrics:
    """Counters and histograms by model name; *outcome* is ``ok``, ``cancelled`` or the name of the error."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "outcrop_requests_total", "Inference requests ended.", ["model", "outcome"], registry=self.registry
        )
        self._tokens = Counter(
            "outcrop_tokens_total", "Tokens of answered requests.", ["model", "direction"], registry=self.registry
        )
        self._latency = Histogram(
            "outcrop_request_seconds", "Whole request, waiting included.", ["model"], registry=self.registry
        )
        self._held = Histogram("outcrop_held_seconds", "Waiting for a copy.", ["model"], registry=self.registry)
        self._first = Histogram(
            "outcrop_time_to_first_token_seconds", "Streams only.", ["model"], registry=self.registry
        )

    def request(self, model: str, outcome: str, times: Times, usage: Usage | None) -> None:
        """Record one request, once, at its end."""
        self._requests.labels(model, outcome).inc()
        self._latency.labels(model).observe(time.perf_counter() - times.started)
        self._held.labels(model).observe(times.held_s)
        if times.first_byte_at is not None:
            self._first.labels(model).observe(times.first_byte_at - times.started)
        if usage is not None:
            self._tokens.labels(model, "input").inc(usage.prompt_tokens)
            self._tokens.labels(model, "output").inc(usage.completion_tokens)

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self.registry)
