"""Alarms over what endpoints answer: CloudWatch's metric names and semantics, evaluated here. Pure.

Sources: awsdocs/amazon-sagemaker-developer-guide, monitoring-cloudwatch.md (names, units); botocore
``cloudwatch/2010-08-01``, PutMetricAlarm (statistics, comparisons, evaluation periods, missing data).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from outcrop.errors import InvalidRequest

KEPT_S = 7200.0  # how far back samples reach
MOST_SAMPLES = 50_000  # of one endpoint

Metric = Literal["Invocations", "Invocation4XXErrors", "Invocation5XXErrors", "ModelLatency", "OverheadLatency"]
Statistic = Literal["Sum", "Average", "Minimum", "Maximum", "SampleCount", "p50", "p90", "p95", "p99"]
Comparison = Literal[
    "GreaterThanThreshold", "GreaterThanOrEqualToThreshold", "LessThanThreshold", "LessThanOrEqualToThreshold"
]
State = Literal["OK", "ALARM", "INSUFFICIENT_DATA"]


class Sample(msgspec.Struct, frozen=True):
    """One invocation. *at*: seconds on the caller's clock; latencies in microseconds, as CloudWatch has them."""

    at: float
    variant: str
    status: int
    model_us: float
    overhead_us: float


class Alarm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="pascal"):
    """In ALARM while *statistic* of *metric* compares so with *threshold* in each of the last *evaluation_periods*.

    *period*: seconds. Without a variant all of the endpoint count. *treat_missing_data*: what a period
    without invocations counts as; in one with some, errors that there were none of are 0.
    """

    endpoint_name: str
    metric_name: Metric
    threshold: float
    variant_name: str | None = None
    statistic: Statistic = "Sum"
    comparison_operator: Comparison = "GreaterThanThreshold"
    period: int = 60
    evaluation_periods: int = 1
    treat_missing_data: Literal["missing", "breaching", "notBreaching"] = "missing"


class Finding(msgspec.Struct, frozen=True):
    """*values*: of the periods, the newest first; None where there were no data."""

    state: State
    reason: str
    values: tuple[float | None, ...]


def check(alarm: Alarm) -> None:
    """Raise InvalidRequest for an alarm that can never be told."""
    if not 1 <= alarm.period <= 3600:
        raise InvalidRequest(f"Period is {alarm.period}; it must be 1 to 3600 s.", param="Period")
    if not alarm.evaluation_periods >= 1 or alarm.period * alarm.evaluation_periods > KEPT_S:
        raise InvalidRequest(
            f"EvaluationPeriods is {alarm.evaluation_periods}; with a Period of {alarm.period} s it must be 1 to "
            f"{int(KEPT_S // alarm.period)}: samples are kept for {KEPT_S:g} s.",
            param="EvaluationPeriods",
        )
    if not math.isfinite(alarm.threshold):
        raise InvalidRequest("Threshold must be a finite number.", param="Threshold")


def evaluate(alarm: Alarm, samples: Iterable[Sample], now: float) -> Finding:
    """What is true of *alarm* at *now*."""
    mine = [sample for sample in samples if alarm.variant_name in (None, sample.variant)]
    values = []
    for number in range(alarm.evaluation_periods):
        end = now - number * alarm.period
        inside = [sample for sample in mine if end - alarm.period < sample.at <= end]
        values.append(_value(alarm, inside))
    verdicts = [_breaches(alarm, value) for value in values]
    told = ", ".join("no data" if value is None else f"{value:g}" for value in values)
    reason = (
        f"{alarm.metric_name} ({alarm.statistic}, {alarm.period} s) was {told}; threshold: "
        f"{alarm.comparison_operator} {alarm.threshold:g}"
    )
    state: State = "ALARM" if all(verdict is True for verdict in verdicts) else "OK"
    if state == "OK" and all(verdict is None for verdict in verdicts):
        state = "INSUFFICIENT_DATA"
    return Finding(state, reason, tuple(values))


def _value(alarm: Alarm, samples: Sequence[Sample]) -> float | None:
    match alarm.metric_name:
        case "Invocations":
            found = [1.0 for _ in samples]
        case "Invocation4XXErrors":
            found = [float(400 <= sample.status < 500) for sample in samples]
        case "Invocation5XXErrors":
            found = [float(sample.status >= 500) for sample in samples]
        case "ModelLatency":
            found = [sample.model_us for sample in samples if sample.status < 400]
        case "OverheadLatency":
            found = [sample.overhead_us for sample in samples if sample.status < 400]
    if not found:
        return None
    match alarm.statistic:
        case "Sum":
            return sum(found)
        case "Average":
            return sum(found) / len(found)
        case "Minimum":
            return min(found)
        case "Maximum":
            return max(found)
        case "SampleCount":
            return float(len(found))
    share = int(alarm.statistic[1:]) / 100
    return sorted(found)[math.ceil(share * len(found)) - 1]


def _breaches(alarm: Alarm, value: float | None) -> bool | None:
    if value is None:
        return {"missing": None, "breaching": True, "notBreaching": False}[alarm.treat_missing_data]
    match alarm.comparison_operator:
        case "GreaterThanThreshold":
            return value > alarm.threshold
        case "GreaterThanOrEqualToThreshold":
            return value >= alarm.threshold
        case "LessThanThreshold":
            return value < alarm.threshold
    return value <= alarm.threshold
