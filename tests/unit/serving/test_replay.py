"""The replay: its copies keep their own law, and the live policy holds its place beside two other rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from outcrop.bench.replay import Arrival, CopyModel, KnativeLike, Ours, QueueThreshold, read_trace, replay
from outcrop.serving.policy import Params

TRACE = Path(__file__).parents[3] / "benchmarks" / "traces" / "bursty-day.csv.gz"
COPY = CopyModel()


def ours(keep_alive_s: float = 300, most: int = 10, cold_start_s: float = 30) -> Ours:
    params = Params(max_copies=most, keep_alive_s=keep_alive_s, interference=COPY.kappa)
    return Ours("ours", params, COPY, cold_start_s)


def test_a_lone_request_takes_the_cold_start_and_its_own_work() -> None:
    result = replay([Arrival(100.0, 4.0)], ours(), COPY, 30)

    assert result.p95_s == pytest.approx(34)
    assert result.starts == 1
    assert result.copy_hours == pytest.approx((34 + 300) / 3600, abs=10 / 3600)


def test_requests_beside_each_other_slow_each_other_by_the_copy_s_law() -> None:
    model = CopyModel(kappa=0.5, slots=4)
    result = replay([Arrival(0.0, 10.0)] * 2, KnativeLike(4, 1, 300), model, 0)

    assert result.p95_s == pytest.approx(15)  # two at a time, each half as slow again


def test_no_more_requests_run_than_fit() -> None:
    model = CopyModel(kappa=0.0, slots=1)
    result = replay([Arrival(0.0, 10.0)] * 3, KnativeLike(1, 1, 300), model, 0)

    assert result.p95_s == pytest.approx(30)
    assert result.waited == pytest.approx(2 / 3)


def test_every_request_is_answered_once_and_the_live_policy_makes_fewest_wait() -> None:
    arrivals = read_trace(TRACE, COPY)
    rules = [ours(), KnativeLike(COPY.slots, 10, 300), QueueThreshold(10, 300)]

    live, knative, queue = (replay(arrivals, rule, COPY, 120) for rule in rules)

    assert live.requests == knative.requests == queue.requests == len(arrivals)
    assert live.waited < min(knative.waited, queue.waited)
    assert live.copy_hours < queue.copy_hours
