"""The scaling policy as a function: each failure mode that others are known for, and the rule that answers it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.serving.demand import Demand
from outcrop.serving.policy import CopyFacts, Facts, Params, decide, keep_alive_s

CALM = Facts(ready=0, starting=0, in_flight=0, held=0, slots=4, idle_s=1e9)
PARAMS = Params(max_copies=3, keep_alive_s=10)


@pytest.mark.parametrize(
    ("facts", "desired"),
    [
        ({}, 0),
        ({"held": 1, "idle_s": 0}, 1),
        ({"held": 1, "idle_s": 0, "starting": 1}, 1),
        ({"held": 9, "ready": 1, "in_flight": 4, "idle_s": 0}, 3),
        ({"held": 90, "idle_s": 0}, 3),
        ({"ready": 1, "idle_s": 9}, 1),
        ({"ready": 1, "idle_s": 10}, 0),
        ({"ready": 1, "idle_s": 10, "in_flight": 1}, 1),
        ({"starting": 1, "idle_s": 10}, 1),
        ({"held": 1, "idle_s": 0, "is_backing_off": True}, 0),
    ],
)
def test_copies_follow_what_waits_and_runs(facts: dict[str, float], desired: int) -> None:
    assert decide(replace(CALM, **facts), PARAMS).desired == desired  # type: ignore[arg-type]


def test_a_first_copy_is_explained_by_who_waits() -> None:
    assert decide(replace(CALM, held=1, idle_s=0, rate_60=0.1), PARAMS).reason == "requests wait, and there is no copy"


def test_arrivals_times_work_ask_for_copies_before_anything_waits() -> None:
    busy = replace(CALM, ready=1, in_flight=2, idle_s=0, rate_60=4.0, rate_15=4.0, count_15=60, work_s=2.0, slots=8)

    decision = decide(busy, PARAMS)

    assert decision.desired == 2
    assert "requests/s" in decision.reason


def test_a_rising_rate_is_forecast_to_the_end_of_a_cold_start_and_at_most_doubled() -> None:
    steady = replace(CALM, ready=1, in_flight=1, idle_s=0, rate_60=1.0, rate_15=1.0, count_15=15, work_s=4.0, slots=8)
    rising = replace(steady, rate_15=2.0, count_15=30, cold_start_s=60.0)
    few = replace(rising, count_15=7)

    assert decide(steady, Params(max_copies=9)).desired == 1
    assert decide(rising, Params(max_copies=9)).desired > 1
    assert (
        decide(replace(rising, cold_start_s=1e6), Params(max_copies=9)).up == 3
    )  # 2 x 2 requests/s of 4 s, 8 at a time
    assert decide(few, Params(max_copies=9)).desired == 1


def test_copies_that_are_starting_are_not_ordered_again() -> None:
    waiting = replace(CALM, held=8, idle_s=0, starting=2)

    assert decide(waiting, PARAMS).desired == 2


def test_a_backlog_that_a_cold_start_would_outlive_orders_nothing_more() -> None:
    backlog = replace(CALM, ready=1, in_flight=4, held=3, idle_s=0, work_s=0.5, cold_start_s=30.0)
    long_work = replace(backlog, work_s=300.0)

    assert "backlog" not in decide(replace(backlog, slots=32), PARAMS).reason
    assert "backlog" in decide(replace(long_work, slots=32), PARAMS).reason


def test_a_peak_keeps_copies_until_its_window_has_passed() -> None:
    after = replace(CALM, ready=3, in_flight=1, idle_s=0, peak=3)

    assert decide(after, PARAMS).desired == 3
    assert decide(replace(after, peak=1), PARAMS).desired == 1


def test_a_peak_starts_no_copy_again_that_died() -> None:
    assert decide(replace(CALM, ready=1, in_flight=1, idle_s=0, peak=3), PARAMS).desired == 1


def test_the_least_loaded_copies_retire_and_paid_ones_only_at_the_end_of_their_window() -> None:
    copies = (
        CopyFacts(copy_id="busy", in_flight=2, served_s=290.0),
        CopyFacts(copy_id="free", in_flight=0, served_s=100.0),
    )
    facts = replace(CALM, ready=2, in_flight=2, idle_s=0, copies=copies)

    assert decide(facts, PARAMS).retire == ("free",)
    assert decide(facts, replace(PARAMS, paid_window_s=300)).retire == ("busy",)


def test_scheduled_copies_are_kept_without_traffic() -> None:
    decision = decide(CALM, replace(PARAMS, min_copies=2))

    assert decision.desired == 2
    assert "scheduled" in decision.reason


def test_keep_alive_breaks_even_at_tens_of_seconds_for_a_short_start_and_minutes_for_a_long_one() -> None:
    params = Params()

    assert 10 <= keep_alive_s(replace(CALM, cold_start_s=2.0), params) <= 60
    assert 250 <= keep_alive_s(replace(CALM, cold_start_s=30.0), params) <= 400
    assert keep_alive_s(replace(CALM, cold_start_s=30.0), replace(params, keep_alive_s=300)) == 300


FACTS = st.builds(
    Facts,
    ready=st.integers(0, 5),
    starting=st.integers(0, 5),
    in_flight=st.integers(0, 100),
    held=st.integers(0, 2000),
    slots=st.integers(1, 32),
    idle_s=st.floats(0, 1e6),
    rate_60=st.floats(0, 1e3),
    rate_15=st.floats(0, 1e3),
    count_15=st.integers(0, 15_000),
    work_s=st.floats(0, 1e3),
    cold_start_s=st.floats(0, 1e4),
    peak=st.integers(0, 10),
    is_backing_off=st.booleans(),
)


@given(FACTS, st.integers(0, 3), st.integers(1, 10))
def test_whatever_the_facts_the_limits_hold_and_waiting_is_never_left_at_zero(
    facts: Facts, least: int, most: int
) -> None:
    decision = decide(facts, Params(min_copies=least, max_copies=most, keep_alive_s=10))

    assert decision.desired <= max(least, most, facts.ready + facts.starting)
    assert decision.up <= max(least, most)
    if (facts.held or facts.in_flight) and not facts.is_backing_off:
        assert decision.desired >= 1
    if not facts.is_backing_off:
        assert decision.desired >= least
    assert decision.reason


def test_demand_counts_arrivals_in_both_windows_and_forgets_them() -> None:
    demand = Demand()
    for tenth in range(600):
        demand.arrived(tenth / 10)

    assert demand.rates(59.9) == pytest.approx((10.0, 10.0, 150))
    assert demand.rates(90) == pytest.approx((5.0, 0.0, 0), abs=0.2)
    assert demand.rates(200) == (0.0, 0.0, 0)
    assert 0 < demand.long_run_rate(200) < 1


def test_demand_learns_work_as_it_would_be_alone() -> None:
    demand = Demand()
    demand.served(3.0, beside=4, interference=0.5)

    assert demand.work_s == pytest.approx(1.0)


def test_the_peak_is_the_largest_within_the_window() -> None:
    demand = Demand()
    for now, up in ((0, 2), (10, 5), (20, 1), (30, 3)):
        demand.decided(now, up)

    assert demand.peak(40, 60) == 5
    assert demand.peak(80, 60) == 3
    assert demand.peak(200, 60) == 0
