"""The simulator: its copies keep their own law, the live policy decides, nodes are shared by the live order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcrop.delivery.warm_hours import usd
from outcrop.errors import BadSetting
from outcrop.planning.advise import Level, advise
from outcrop.planning.copy_model import CopyModel, Timed, fit
from outcrop.planning.costs import Prices, constructed_fleet, costs, load_duration, windows_usd
from outcrop.planning.played import Result
from outcrop.planning.rules import Always, KnativeLike, Ours, QueueThreshold, Rule
from outcrop.planning.simulator import Fleet, simulate
from outcrop.planning.traces import Trace, read_trace
from outcrop.planning.virtual import Nodes, Tenant
from outcrop.serving.policy import Params
from outcrop.serving.schedule import Floor, Scaling

TRACE = Path(__file__).parents[3] / "benchmarks" / "traces" / "bursty-day.csv.gz"
COPY = CopyModel()
SECONDS = CopyModel(c0_s=0.0, c_in_s=0.0, c_out_s=1.0, kappa=0.0, slots=4)  # an answer token a second
OLD = Prices(unit_minute=0.0785, unit_month=1.95, copy_hour=2.61, proxy_hour=0.115)
NEW = Prices(unit_minute=0.05718, unit_month=1.95, copy_hour=2.61, proxy_hour=0.115)


def trace(*requests: tuple[float, float]) -> Trace:
    """Requests as (arrival in s, seconds alone on a ``SECONDS`` copy)."""
    table = np.array(requests, dtype=np.float64).reshape(-1, 2)
    return Trace("made", table[:, 0], np.zeros(len(table)), table[:, 1])


def ours(copy: CopyModel = COPY, cold_start_s: float = 30, **limits: object) -> Ours:
    scaling = Scaling(**({"max_copies": 10, "keep_alive_s": 300.0} | limits))  # type: ignore[arg-type]
    return Ours("ours", Params(interference=copy.kappa), copy, cold_start_s, scaling)


def play(requests: Trace, rule: Rule, copy: CopyModel = SECONDS, cold_start_s: float = 30) -> Result:
    return simulate(Tenant(trace=requests, rule=rule, copy=copy, cold_start_s=cold_start_s))


def test_a_lone_request_takes_the_cold_start_and_its_own_work() -> None:
    result = play(trace((100.0, 4.0)), ours(SECONDS))

    assert result.p95_s == pytest.approx(34)
    assert (result.starts, result.windows) == (1, 1)
    assert result.copy_hours == pytest.approx((34 + 300) / 3600, abs=10 / 3600)
    assert result.busy_hours == pytest.approx(4 / 3600)


def test_requests_beside_each_other_slow_each_other_by_the_copy_s_law() -> None:
    model = CopyModel(c0_s=0, c_in_s=0, c_out_s=1, kappa=0.5, slots=4)
    result = play(trace((0.0, 10.0), (0.0, 10.0)), KnativeLike(4, 1, 300), model, 0)

    assert result.p95_s == pytest.approx(15)  # two at a time, each half as slow again


def test_copies_that_share_a_machine_slow_each_other_while_both_are_at_work() -> None:
    model = CopyModel(c0_s=0, c_in_s=0, c_out_s=1, kappa=0.0, slots=1, nu=0.5)
    result = play(trace((0.0, 10.0), (0.0, 4.0)), Always(2), model, 0)

    # Both run at two thirds until the short one ends at 6 s; then 6 s of the other's work are left.
    assert sorted(result.latencies or ()) == pytest.approx([6, 12])


def test_no_more_requests_run_than_fit() -> None:
    model = CopyModel(c0_s=0, c_in_s=0, c_out_s=1, kappa=0.0, slots=1)
    result = play(trace(*[(0.0, 10.0)] * 3), KnativeLike(1, 1, 300), model, 0)

    assert result.p95_s == pytest.approx(30)
    assert result.waited == pytest.approx(2 / 3)


def test_every_request_is_answered_once_and_the_live_policy_makes_fewest_wait() -> None:
    requests = read_trace(TRACE)
    live, knative, queue = (
        play(requests, rule, COPY, 120)
        for rule in (ours(cold_start_s=120), KnativeLike(COPY.slots, 10, 300), QueueThreshold(10, 300))
    )

    assert live.requests == knative.requests == queue.requests == len(requests)
    assert live.waited < min(knative.waited, queue.waited)
    assert live.copy_hours < queue.copy_hours


def test_a_resting_model_is_not_asked_each_tick_and_ends_when_its_keep_alive_does() -> None:
    rule, asked = ours(SECONDS), []
    decide = rule.desired
    rule.desired = lambda load: asked.append(load.now) or decide(load)  # type: ignore[method-assign,func-returns-value]

    result = play(trace((0.0, 1.0), (20_000.0, 1.0)), rule)

    assert result.starts == 2
    assert result.copy_hours == pytest.approx(2 * 331 / 3600, rel=0.03)
    assert len(asked) < 300  # of 20,000 ticks


def test_copies_that_are_always_there_are_paid_to_the_end_of_the_trace() -> None:
    result = play(trace((10.0, 1.0), (36_000.0, 1.0)), Always(2), cold_start_s=0)

    assert result.starts == 2
    assert result.copy_hours == pytest.approx(20, rel=0.01)
    assert load_duration(result) == pytest.approx([1, 1], rel=0.01)


def test_a_schedule_starts_a_copy_before_the_first_request_of_the_day() -> None:
    floor = Floor(cron="0 8 * * *", for_s=3600.0, min_copies=1)
    requests = trace((60.0, 1.0), (8 * 3600 + 600.0, 1.0))

    with_it, without = play(requests, ours(SECONDS, floors=(floor,))), play(requests, ours(SECONDS))

    assert sorted(with_it.latencies or ()) == pytest.approx([1, 31])
    assert sorted(without.latencies or ()) == pytest.approx([31, 31])


def test_the_live_policy_hears_at_once_of_a_request_that_finds_no_slot() -> None:
    model = CopyModel(c0_s=0, c_in_s=0, c_out_s=1, kappa=0.0, slots=1)
    result = play(trace((0.0, 100.0), (10.3, 1.0)), ours(model, 5), model, 5)

    assert sorted(result.latencies or ()) == pytest.approx([6, 105])  # a start and its own second, no tick between


def test_a_fleet_s_arrivals_come_in_order_and_each_once_however_they_are_sliced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(3)
    tenants = [trace(*[(at, 1.0) for at in np.sort(draw.uniform(0, 5000, 300))]) for _ in range(3)]
    whole = [sorted(result.latencies or ()) for result in fleet(9, *tenants)]

    monkeypatch.setattr("outcrop.planning.simulator._BATCH", 50)

    assert [sorted(result.latencies or ()) for result in fleet(9, *tenants)] == whole
    assert [len(each) for each in whole] == [300, 300, 300]


def fleet(nodes: int, *tenants: Trace) -> list[Result]:
    made = [
        Tenant(trace=each, rule=ours(SECONDS, keep_alive_s=10.0), copy=SECONDS, cold_start_s=5, copy_bytes=10)
        for each in tenants
    ]
    return Fleet(made, Nodes(nodes, 10)).run()


def test_an_idle_copy_stays_until_another_tenant_needs_its_room() -> None:
    one, other = fleet(1, trace((0.0, 1.0), (1000.0, 1.0), (3000.0, 1.0)), trace((2000.0, 1.0)))

    assert (one.starts, one.evictions) == (2, 1)  # warm at 1000, gone at 3000
    assert sorted(one.latencies or ()) == pytest.approx([1, 6, 6])
    assert (other.starts, other.evictions) == (1, 1)
    assert other.p95_s == pytest.approx(6)


def test_who_finds_no_room_because_others_hold_it_for_ever_is_told_as_unanswered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outcrop.planning.simulator._GIVEN_UP_S", 600.0)
    tenants = [
        Tenant(trace=each, rule=ours(SECONDS, min_copies=1), copy=SECONDS, cold_start_s=5, copy_bytes=10)
        for each in (trace((0.0, 1.0)), trace((10.0, 1.0), (20.0, 1.0)))
    ]

    one, other = Fleet(tenants, Nodes(1, 10)).run()

    assert (one.requests, one.unanswered) == (1, 0)
    assert (other.requests, other.unanswered) == (0, 2)


def test_a_start_without_room_waits_for_a_running_copy_to_end() -> None:
    one, other = fleet(1, trace((0.0, 100.0)), trace((10.0, 1.0)))

    assert one.p95_s == pytest.approx(105)
    assert other.blocked > 0
    assert 90 < other.p95_s < 140  # after the first one's keep-alive


def test_the_fit_gives_back_the_copy_that_made_the_measurements() -> None:
    true, rng = CopyModel(c0_s=0.08, c_in_s=0.0003, c_out_s=0.02, kappa=0.03, slots=16), np.random.default_rng(1)
    levels = {}
    for users in (1, 4, 8, 16):
        drawn = [(int(rng.lognormal(6.9, 0.2)), int(rng.lognormal(5.3, 0.2))) for _ in range(60)]
        slower = 1 + true.kappa * (users - 1)
        levels[users] = [Timed(i, o, true.work_s(i, o) * slower * rng.normal(1, 0.01)) for i, o in drawn]

    shared = [Timed(each.tokens_in, each.tokens_out, each.latency_s * 1.4) for each in levels[8]]

    found = fit(levels, 16, {(2, 16): shared})

    assert found.model.nu == pytest.approx(0.4, rel=0.1)
    assert fit(levels, 16).model.nu == 0
    assert found.model.kappa == pytest.approx(true.kappa, rel=0.05)
    assert found.model.work_s(1000, 220) == pytest.approx(true.work_s(1000, 220), rel=0.02)
    assert max(map(abs, found.error_mean.values())) < 0.05
    with pytest.raises(BadSetting, match="level of 1 user"):
        fit({4: levels[4]}, 16)


def test_the_published_prices_give_the_published_arithmetic() -> None:
    assert round(730 * OLD.copy_hour) == 1905
    assert (round(730 * OLD.serverless_copy_hour), round(730 * NEW.serverless_copy_hour)) == (3438, 2504)
    assert (round(OLD.break_even, 2), round(NEW.break_even, 2)) == (0.55, 0.76)
    assert (round(OLD.break_even_with_proxy, 2), round(NEW.break_even_with_proxy, 2)) == (0.53, 0.73)
    assert round(730 * OLD.proxy_hour) == 84
    assert (round(OLD.serverless_copy_hour, 2), round(NEW.serverless_copy_hour, 2)) == (4.71, 3.43)


def test_a_single_reserved_copy_is_undercut_by_two_fifths_only_at_a_low_duty() -> None:
    # One copy and its proxy cost 60 % of the instance's hour: f p + proxy = 0.6 r.
    duties = [(0.6 * each.copy_hour - each.proxy_hour) / each.serverless_copy_hour for each in (NEW, OLD)]

    assert [round(duty, 2) for duty in duties] == [0.42, 0.31]
    for prices, duty in zip((NEW, OLD), duties, strict=True):
        reserved, serverless = constructed_fleet(prices, peaks=[1], means=[duty])
        assert 1 - serverless / reserved == pytest.approx(0.4)


def test_a_tenant_that_is_always_busy_pays_the_published_two_fifths_more_serverless() -> None:
    week = 7 * 24
    serverless = windows_usd(174 * 12, NEW) + week * NEW.proxy_hour

    assert round(week * NEW.copy_hour) == 438
    assert round(serverless) == 616
    assert round(serverless / (week * NEW.copy_hour) - 1, 2) == 0.41


def test_a_call_each_fourteen_minutes_bills_over_a_third_of_the_time() -> None:
    assert round(usd(14, 730, NEW.unit_minute, 1) / (730 * NEW.serverless_copy_hour), 2) == 0.36


def test_a_constructed_portfolio_saves_what_was_published() -> None:
    # Production with three peak copies that averages 1.6, and three stages used 24 % of the week.
    peaks, means = [3, 1, 1, 1], [1.6, 0.24, 0.24, 0.24]
    reserved, old = constructed_fleet(OLD, peaks=peaks, means=means)
    _, new = constructed_fleet(NEW, peaks=peaks, means=means)

    assert round(reserved, 2) == 15.66
    assert (round(old, 2), round(new, 2)) == (11.39, 8.42)
    assert (round(1 - old / reserved, 2), round(1 - new / reserved, 2)) == (0.27, 0.46)


@pytest.mark.parametrize(("rpm", "copies", "usd"), [(11, 1, 7.1), (133, 1, 0.59), (232, 3, 1.02)])
def test_the_published_table_costs_what_was_worked_out_per_thousand_requests(
    rpm: float, copies: int, usd: float
) -> None:
    an_hour = windows_usd(12 * copies, OLD)

    assert 1000 * an_hour / (60 * rpm) == pytest.approx(usd, rel=0.01)


def test_a_copy_that_is_always_busy_is_cheaper_reserved_and_a_rare_one_is_not() -> None:
    busy = play(trace(*[(float(at), 30.0) for at in range(0, 36_000, 20)]), ours(SECONDS))
    rare = play(trace((0.0, 1.0), (30_000.0, 1.0)), ours(SECONDS))

    assert costs(busy, OLD).cheapest == "reserved"
    assert costs(busy, OLD).saving < 0
    assert costs(rare, OLD).cheapest == "serverless"
    assert costs(rare, OLD).saving > 0.5
    assert costs(busy, OLD).own is None


def test_the_hybrid_reserves_what_is_up_for_more_than_the_break_even_and_bills_the_rest_by_windows() -> None:
    always = [(float(at), 10.0) for at in range(0, 36_000, 10)]
    bursts = [(at + 0.5, 60.0) for at in (3_600.0, 18_000.0) for _ in range(8)]
    result = play(trace(*always, *bursts), ours(SECONDS))
    told, shares, hours = costs(result, NEW), load_duration(result), result.span_s / 3600

    above = sum(shares[1:]) / sum(shares)
    assert shares[0] > NEW.break_even > shares[1]
    assert told.reserved_copies == 1
    assert told.hybrid == pytest.approx(
        hours * (NEW.copy_hour + NEW.proxy_hour + NEW.unit_month / 730) + windows_usd(result.windows * above, NEW)
    )
    assert told.hybrid < min(told.serverless, told.reserved)
    assert told.cheapest == "hybrid"


def test_the_advice_is_the_cheapest_that_holds_the_level() -> None:
    day = read_trace(TRACE).first(0.4)
    found = advise(day, COPY, 20, Level(slo_s=60, slow_share=0.2), NEW, most_copies=3)
    held = [choice for choice in found if choice.holds]

    assert held
    assert found[0].usd == min(choice.usd for choice in held)
    impossible = advise(day, COPY, 20, Level(slo_s=0.001, slow_share=0.0), NEW, most_copies=1)
    assert not any(choice.holds for choice in impossible)
