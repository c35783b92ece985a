"""What a replay counts, and what it gives: latency, waiting, copies over time, billed windows. Pure."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import numpy as np

LONG_WAIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """*waited*: share of requests held longer than 5 s before they ran. *copy_hours* counts starts and idling.

    *reserved_hours*: hours with n copies, by n, in the order of the load-duration curve. *windows*: billed ones.
    """

    rule: str
    requests: int
    waited: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    slow_share: float  # of requests over the SLO that was given
    copy_hours: float
    busy_hours: float
    starts: int
    evictions: int
    blocked: int  # starts that found no room at first
    windows: int
    peak: int
    hours_at: tuple[float, ...]  # with at least 1, 2, ... copies
    span_s: float
    latencies: array[float] | None = None
    unanswered: int = 0  # held for ever: others kept the room


class Tally:
    """One tenant's counts while it is played. Times in s of the virtual clock."""

    def __init__(self) -> None:
        self.latency_s = array("d")
        self.waited = 0
        self.busy_s = self.copy_s = 0.0
        self.starts = self.evictions = self.blocked = self.windows = 0
        self._peak = 0
        self._at_count: list[float] = []  # seconds with at least 1, 2, ... copies
        self._counted_at = 0.0
        self._live = 0

    def copies(self, now: float, change: int) -> None:
        """One copy more or less: keeps the load-duration curve, how long at least so many were there."""
        for number in range(self._live):
            self._at_count[number] += now - self._counted_at
        self._counted_at, self._live = now, self._live + change
        while len(self._at_count) < self._live:
            self._at_count.append(0.0)
        self._peak = max(self._peak, self._live)

    def result(self, rule: str, span_s: float, slo_s: float, unanswered: int) -> Result:
        ordered = np.sort(np.frombuffer(self.latency_s)) if self.latency_s else np.zeros(0)
        total = len(ordered)

        def at(share: float) -> float:
            return float(ordered[max(0, math.ceil(share * total) - 1)]) if total else 0.0

        return Result(
            rule=rule,
            requests=total,
            waited=self.waited / max(1, total),
            mean_s=float(ordered.mean()) if total else 0.0,
            p50_s=at(0.50),
            p95_s=at(0.95),
            p99_s=at(0.99),
            slow_share=float((ordered > slo_s).mean()) if total else 0.0,
            copy_hours=self.copy_s / 3600,
            busy_hours=self.busy_s / 3600,
            starts=self.starts,
            evictions=self.evictions,
            blocked=self.blocked,
            windows=self.windows,
            peak=self._peak,
            hours_at=tuple(seconds / 3600 for seconds in self._at_count),
            span_s=span_s,
            latencies=self.latency_s,
            unanswered=unanswered,
        )
