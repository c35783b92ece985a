"""Prometheus metrics of one proxy."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SHORT = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """*source* of an error: ``handler``, ``target``, ``proxy``; empty for an answer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.invocations = Counter(
            "outcrop_proxy_invocations_total", "Invocations ended.", ["status", "source"], registry=self.registry
        )
        self.latency = Histogram("outcrop_proxy_seconds", "Whole invocations.", buckets=_SHORT, registry=self.registry)
        self.overhead = Histogram(
            "outcrop_proxy_overhead_seconds",
            "Invocations less the wait for the target: script and proxy.",
            buckets=_SHORT,
            registry=self.registry,
        )
        self.replaced = Counter(
            "outcrop_proxy_workers_replaced_total", "Workers replaced.", ["reason"], registry=self.registry
        )
        self.workers = Gauge("outcrop_proxy_workers_ready", "Workers with the script loaded.", registry=self.registry)
        self.in_flight = Gauge("outcrop_proxy_in_flight", "Invocations that run.", registry=self.registry)
        self.waiting = Gauge("outcrop_proxy_waiting", "Invocations without a worker.", registry=self.registry)
        self.memory = Gauge(
            "outcrop_proxy_worker_memory_bytes", "Resident memory of all workers.", registry=self.registry
        )

    def ended(self, status: int, source: str, total_s: float, target_s: float) -> None:
        """Record one invocation, once, at its end."""
        self.invocations.labels(str(status), source).inc()
        self.latency.observe(total_s)
        self.overhead.observe(max(0.0, total_s - target_s))

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self.registry)
