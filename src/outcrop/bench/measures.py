"""From records to numbers: percentiles with confidence, throughput, and what must agree when nothing is lost. Pure.

Only requests that were both due and answered in the steady window count. Confidence intervals are order statistics
(binomial), which assume nothing of the distribution.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from outcrop.bench.drive import SLIP_S, Record, Run

CONFIDENCE = 0.95


class Percentile(Struct, frozen=True):
    """*low* and *high*: between them it lies with 95 %; None where there are too few requests to say."""

    value: float
    low: float | None
    high: float | None


class Summary(Struct, frozen=True, kw_only=True):
    """One level. Seconds, tokens per second, requests per minute; *little*: (users - X R) / users of a closed loop.

    *void*: why the run says nothing; None when it is good. *client_cpu_ms*: the benchmark's own cost per request.
    *itl_s*: the mean over requests of (last - first token) / (tokens - 1).
    """

    users: int
    offered_rate: float
    requests: int
    seconds: float
    mean_s: float
    p50: Percentile
    p95: Percentile
    p99: Percentile
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    itl_s: float | None
    rpm: float
    tokens_in: float
    tokens_out: float
    tokens_per_s: float
    errors: dict[str, int]
    little: float | None
    slip_p99_s: float
    client_cpu_ms: float
    client_cpu_share: float
    copies_most: int | None = None
    void: str | None = None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that *share* of *ordered* do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def interval(count: int, share: float) -> tuple[int, int] | None:
    """Ranks (from 1) between which the *share*-quantile of *count* values lies with 95 %; None where none are such."""
    if count < 2:
        return None
    tail, below, low, high = (1 - CONFIDENCE) / 2, 0.0, None, None
    for successes in range(count + 1):
        below += math.exp(
            math.lgamma(count + 1)
            - math.lgamma(successes + 1)
            - math.lgamma(count - successes + 1)
            + successes * math.log(share)
            + (count - successes) * math.log(1 - share)
        )
        if low is None and below > tail:
            low = successes
        if below >= 1 - tail:
            high = successes + 1
            break
    if not low or high is None or high > count:
        return None
    return low, high


def with_interval(ordered: Sequence[float], share: float) -> Percentile:
    ranks = interval(len(ordered), share)
    low, high = (ordered[ranks[0] - 1], ordered[ranks[1] - 1]) if ranks else (None, None)
    return Percentile(percentile(ordered, share), low, high)


def steady(run: Run) -> list[Record]:
    """The requests that count."""
    begin, end = run.steady
    return [record for record in run.records if record.due_s >= begin and record.last_s <= end]


def summary(run: Run) -> Summary:
    shape, (begin, end) = run.shape, run.steady
    counted = steady(run)
    good = [record for record in counted if record.error is None]
    latencies = sorted(record.latency_s for record in good)
    firsts = sorted(record.first_s - record.due_s for record in good if record.first_s is not None)
    gaps = [
        (record.last_s - record.first_s) / (record.tokens_out - 1)
        for record in good
        if record.first_s is not None and record.tokens_out is not None and record.tokens_out > 1
    ]
    seconds = max(1e-9, end - begin)
    # Throughput counts what ended in the window, also what began before it: else every window loses its edges.
    ended = [record for record in run.records if begin < record.last_s <= end]
    answered = [record for record in ended if record.error is None]
    mean = sum(latencies) / len(latencies) if latencies else 0.0
    slips = sorted((record.sent_s - record.due_s) / run.speedup for record in run.records)
    slip = percentile(slips, 0.99)
    all_mean = sum(record.latency_s for record in ended) / len(ended) if ended else 0.0
    tokens_out = sum(record.tokens_out or 0 for record in answered)
    return Summary(
        users=0 if shape.is_open else shape.users,
        offered_rate=shape.rate or (len(shape.schedule) / shape.schedule[-1] if shape.schedule else 0.0),
        requests=len(good),
        seconds=round(seconds, 3),
        mean_s=mean,
        p50=with_interval(latencies, 0.50),
        p95=with_interval(latencies, 0.95),
        p99=with_interval(latencies, 0.99),
        ttft_p50_s=percentile(firsts, 0.50) if firsts else None,
        ttft_p95_s=percentile(firsts, 0.95) if firsts else None,
        itl_s=sum(gaps) / len(gaps) if gaps else None,
        rpm=60 * len(answered) / seconds,
        tokens_in=sum(record.tokens_in or 0 for record in answered) / max(1, len(answered)),
        tokens_out=tokens_out / max(1, len(answered)),
        tokens_per_s=tokens_out / seconds,
        errors=dict(Counter(record.error for record in counted if record.error is not None)),
        little=None if shape.is_open else (shape.users - len(ended) / seconds * all_mean) / shape.users,
        slip_p99_s=slip,
        client_cpu_ms=1000 * run.client_cpu_s / max(1, len(run.records)),
        client_cpu_share=run.client_cpu_s * run.speedup / max(1e-9, run.wall_s),
        copies_most=max((sample.copies for sample in run.samples), default=None) if run.samples else None,
        void=_void(run, good, slip),
    )


def _void(run: Run, good: list[Record], slip: float) -> str | None:
    if not good:
        return "no request was answered in the steady window"
    if run.shape.is_open and slip > SLIP_S:
        return f"the client sent late: P99 {1000 * slip:.0f} ms, over {1000 * SLIP_S:.0f} ms"
    return None


def ratio(one: Sequence[float], other: Sequence[float], share: float, *, seed: int = 1) -> Percentile:
    """Quantile of *one* over that of *other*, with a bootstrap interval of 95 % over the requests."""
    rng = random.Random(seed)  # noqa: S311
    draws = sorted(
        percentile(sorted(rng.choices(one, k=len(one))), share)
        / max(1e-12, percentile(sorted(rng.choices(other, k=len(other))), share))
        for _ in range(400)
    )
    value = percentile(sorted(one), share) / max(1e-12, percentile(sorted(other), share))
    return Percentile(value, percentile(draws, 0.025), percentile(draws, 0.975))


def over_time(run: Run, step_s: float = 10.0) -> list[dict[str, Any]]:
    """The run in slices of *step_s*: requests per minute, median and P95 latency, and what the server said."""
    rows = []
    for number in range(math.ceil(run.wall_s / step_s)):
        begin, end = number * step_s, (number + 1) * step_s
        mine = sorted(r.latency_s for r in run.records if begin < r.last_s <= end and r.error is None)
        seen = [sample for sample in run.samples if begin <= sample.at_s < end]
        rows.append(
            {
                "at_s": begin,
                "rpm": 60 * len(mine) / step_s,
                "p50_s": percentile(mine, 0.5) if mine else None,
                "p95_s": percentile(mine, 0.95) if mine else None,
                "copies": max((sample.copies for sample in seen), default=None),
                "held": max((sample.held for sample in seen), default=None),
            }
        )
    return rows
