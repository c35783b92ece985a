"""Alarms: CloudWatch's statistics over an endpoint's answers."""

from __future__ import annotations

from typing import Any

import pytest

from outcrop.errors import InvalidRequest
from outcrop.serving.alarms import Alarm, Sample, check, evaluate
from outcrop.serving.watch import Watch


def alarm(**fields: Any) -> Alarm:
    given = {"endpoint_name": "e", "metric_name": "Invocation5XXErrors", "threshold": 1.0, "period": 10}
    return Alarm(**{**given, **fields})


def sample(at: float, status: int = 200, variant: str = "v", model_us: float = 1000.0) -> Sample:
    return Sample(at, variant, status, model_us, 50.0)


def test_errors_of_the_last_period_are_summed_and_older_ones_are_over() -> None:
    samples = [sample(1, 500), sample(2, 503), sample(8, 500), sample(9, 200), sample(11, 400)]

    assert evaluate(alarm(), samples, 10.5).state == "ALARM"
    assert evaluate(alarm(), samples, 17.5).values == (1.0,)
    assert evaluate(alarm(), samples, 17.5).state == "OK"
    assert evaluate(alarm(metric_name="Invocation4XXErrors", threshold=0), samples, 12).state == "ALARM"


def test_every_period_has_to_breach() -> None:
    twice = alarm(threshold=0, evaluation_periods=2)

    assert evaluate(twice, [sample(15, 500)], 20).state == "OK"
    assert evaluate(twice, [sample(5, 500), sample(15, 500)], 20).state == "ALARM"


@pytest.mark.parametrize(
    ("statistic", "value"),
    [("Sum", 10), ("Average", 2.5), ("Minimum", 1), ("Maximum", 4), ("SampleCount", 4), ("p50", 2), ("p99", 4)],
)
def test_latency_has_every_statistic_over_answers_alone(statistic: Any, value: float) -> None:
    samples = [sample(1, model_us=us) for us in (1, 2, 3, 4)] + [sample(1, 500, model_us=900)]

    found = evaluate(alarm(metric_name="ModelLatency", statistic=statistic), samples, 5)

    assert found.values == (value,)


@pytest.mark.parametrize(
    ("missing", "state"), [("missing", "INSUFFICIENT_DATA"), ("breaching", "ALARM"), ("notBreaching", "OK")]
)
def test_a_period_without_invocations_counts_as_the_alarm_has_it(missing: Any, state: str) -> None:
    assert evaluate(alarm(treat_missing_data=missing), [], 5).state == state


def test_a_variant_of_its_own_is_watched_alone() -> None:
    samples = [sample(1, 500, "a"), sample(1, 500, "a"), sample(1, 200, "b")]

    assert evaluate(alarm(variant_name="b"), samples, 5).state == "OK"
    assert evaluate(alarm(variant_name="a"), samples, 5).state == "ALARM"


@pytest.mark.parametrize("fields", [{"period": 0}, {"evaluation_periods": 0}, {"threshold": float("nan")}])
def test_an_alarm_that_can_never_be_told_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        check(alarm(**fields))


def test_the_watch_says_which_alarm_fired_and_forgets_old_samples() -> None:
    now = [0.0]
    watch = Watch(lambda: now[0])
    watch.put("0", "calm", alarm(threshold=100))
    watch.put("0", "errors", alarm())
    for _ in range(2):
        watch.note("0", "e", "v", 500, model_s=0.1, overhead_s=0.0)

    assert watch.fired("0", ["calm", "errors"]).startswith("alarm errors: Invocation5XXErrors (Sum, 10 s) was 2; ")
    assert watch.missing("0", ["calm", "other"]) == ["other"]
    now[0] = 60.0
    assert watch.fired("0", ["calm", "errors"]) == ""
