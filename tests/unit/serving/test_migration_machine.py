"""The life of a migration: only forwards, back at the first breach, over restarts and pauses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.errors import InvalidRequest
from outcrop.serving.migration import machine
from outcrop.serving.migration.guards import Baseline, Breach, breaches, learned
from outcrop.serving.migration.kept import Footing, Kept
from outcrop.serving.migration.machine import OPEN, State, advance, begun
from outcrop.serving.migration.observe import Facts, Observation, Pair, SideFacts, Window, percentile
from outcrop.serving.migration.plan import Guards, Plan, Price, read_steps

BREACH = Breach(guard="error_rate", value=1, limit=0.1, said="all failed")


def plan(**changes: Any) -> Plan:
    steps = read_steps("shadow:10,50,100", hold_s=10, min_requests=5)
    guards = changes.pop("guards", Guards(no_data_s=30, min_requests=10))
    return Plan(name="live", source="bedrock:a", target="bedrock:b", steps=steps, guards=guards, **changes)


def at(state: State, now: float, *, seen: int = 0, is_warm: bool = True, found: list[Breach] | None = None) -> State:
    changed = msgspec.structs.replace(state, seen=seen)
    return advance(plan(), changed, now=now, is_warm=is_warm, found=found or [])


def running(step: int = 0, since: float = 0.0) -> State:
    return State(phase="running", since=since, step=step)


def test_every_step_is_held_for_its_time_and_its_requests_and_the_last_one_takes_over() -> None:
    state = at(begun(0.0), 3.0)
    assert (state.phase, state.step, state.since) == ("running", 0, 3.0)
    assert at(state, 12.9, seen=99).step == 0
    assert at(state, 13.0, seen=4).step == 0
    state = at(state, 13.0, seen=5)
    assert (state.step, state.seen) == (1, 0)
    state = at(state, 23.0, seen=5)
    assert state.step == 2
    state = at(state, 33.0, seen=5)
    assert state.phase == "completing"
    assert [event.what for event in state.events][1:3] == [
        "step 1 of 3: 10 % of the requests are also asked of the target",
        "step 2 of 3: the target answers 50 %",
    ]


def test_a_breach_takes_everything_back_at_once_also_while_paused() -> None:
    for state in (running(1), machine.paused(running(1), 1.0)):
        back = at(state, 2.0, found=[BREACH])
        assert (back.phase, back.reason, back.evidence) == ("rolled-back", "all failed", [BREACH])


def test_no_data_is_a_breach() -> None:
    assert at(running(), 39.9, seen=4).phase == "running"
    back = at(running(), 40.0, seen=4)
    assert back.phase == "rolled-back"
    assert back.reason == "no data: 4 requests in 40 s of step 1, 5 needed"


def test_a_target_that_does_not_get_warm_is_given_up() -> None:
    assert at(begun(0.0), 900.0, is_warm=False).phase == "warming"
    back = at(begun(0.0), 900.1, is_warm=False)
    assert "did not answer within 900 s" in back.reason


def test_a_pause_is_no_time_of_the_step() -> None:
    paused = machine.paused(running(), 4.0)
    assert at(paused, 1e6, seen=99) == msgspec.structs.replace(paused, seen=99)
    resumed = machine.resumed(paused, 1000.0)
    assert at(resumed, 1005.9, seen=5).step == 0
    assert at(resumed, 1006.0, seen=5).step == 1


@pytest.mark.parametrize(
    ("order", "phases"),
    [
        (machine.paused, {"running"}),
        (machine.resumed, {"paused"}),
        (machine.aborted, {"warming", "running", "paused"}),
    ],
)
def test_orders_are_only_for_phases_that_can_follow_them(order: Any, phases: set[str]) -> None:
    for phase in (*OPEN, "completed", "rolled-back", "aborted"):
        state = State(phase=phase, since=0)  # type: ignore[arg-type]
        if phase in phases:
            assert order(state, 1.0).phase != phase
        else:
            with pytest.raises(InvalidRequest, match=phase):
                order(state, 1.0)


@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from(["tick", "breach", "pause", "resume", "abort", "restart"]),
            st.floats(min_value=-5, max_value=60),
            st.integers(min_value=0, max_value=9),
        ),
        max_size=60,
    )
)
def test_no_order_of_events_goes_back_a_step_leaves_an_end_or_forgets_anything(
    moves: list[tuple[str, float, int]],
) -> None:
    state, now = begun(0.0), 0.0
    for move, passed, seen in moves:
        before, now = state, now + passed
        orders = {"pause": machine.paused, "resume": machine.resumed, "abort": machine.aborted}
        if move in orders:
            try:
                state = orders[move](state, now)
            except InvalidRequest:
                assert state is before
        elif move == "restart":
            footing = Footing(keys=["live"], doors=["invoke"])
            kept = msgspec.to_builtins(Kept(plan=plan(), state=state, footing=footing))
            state = msgspec.convert(kept, Kept).state
            assert state == before
        else:
            state = at(state, now, seen=seen, found=[BREACH] if move == "breach" else [])
        if before.phase not in OPEN:
            assert state.phase == before.phase
        if state.phase in OPEN:
            assert before.step <= state.step <= before.step + 1
        if state.phase == "completing" and before.phase != "completing":
            assert (before.phase, before.step) == ("running", 2)
        assert len(state.events) >= len(before.events)


# -- what the guards see ----------------------------------------------------------------------------


def seen(side: str, outcome: str = "ok", *, at: float = 1.0, seconds: float = 0.1, **more: Any) -> Observation:
    return Observation(at=at, side=side, role="primary", outcome=outcome, seconds=seconds, **more)  # type: ignore[arg-type]


def facts(*observations: Observation, pairs: tuple[Pair, ...] = (), now: float = 10.0, **prices: Price) -> Facts:
    window = Window(300.0, 0.0)
    for observation in observations:
        window.add(observation)
    for pair in pairs:
        window.pair(pair)
    return window.facts(now, prices.get("source", Price()), prices.get("target", Price()))


def broken(found: Facts, baseline: Baseline | None = None, **changes: Any) -> list[str]:
    return [breach.guard for breach in breaches(plan(**changes), found, baseline or Baseline())]


def test_failures_are_held_against_the_sources_own_and_need_not_wait_for_more_requests() -> None:
    many = [seen("source")] * 20
    assert broken(facts(*many, seen("target", "failed", error="X"))) == []  # one alone is no verdict
    assert broken(facts(*many, *[seen("target", "failed", error="X")] * 2)) == ["error_rate"]  # over 0.02 of 10
    generous = Guards(error_rate=0.2, min_requests=10)
    assert broken(facts(*many, *[seen("target", "failed", error="X")] * 2), guards=generous) == []
    assert broken(facts(*many, *[seen("target", "failed", error="X")] * 3), guards=generous) == ["error_rate"]
    failing = [*[seen("source", "failed")] * 10, *[seen("source")] * 10]
    assert broken(facts(*failing, *[seen("target", "failed")] * 5, *[seen("target")] * 5)) == []
    assert broken(facts(*many, *[seen("target", "refused")] * 50)) == []


def test_not_ready_is_counted_apart_and_not_at_all_where_it_was_agreed() -> None:
    assert broken(facts(*[seen("target", "not_ready")] * 2)) == ["not_ready_rate"]
    assert broken(facts(*[seen("target", "not_ready", excused=True, fell_back=True)] * 50)) == []


def test_the_fallback_budget_is_a_floor_and_a_share() -> None:
    lenient = Guards(error_rate=1, not_ready_rate=1, min_requests=10)
    back = seen("target", "failed", fell_back=True)
    assert broken(facts(*[back] * 10), guards=lenient) == []
    assert broken(facts(*[back] * 11), guards=lenient) == ["fallback_budget"]
    assert broken(facts(*[back] * 11, *[seen("target")] * 120), guards=lenient) == []
    assert broken(facts(*[back] * 11), guards=lenient, fallback=False) == []


def test_latency_is_held_against_the_source_whole_answers_and_streams_apart() -> None:
    source, slow = [seen("source")] * 20, [seen("target", seconds=0.6)] * 20
    assert broken(facts(*source, *slow)) == ["p95"]
    assert broken(facts(*source, *slow[:9])) == []
    streams = [seen("target", seconds=0.6, is_stream=True)] * 20
    assert broken(facts(*source, *streams)) == []
    assert broken(facts(*source, *streams), Baseline(first_p95_s=0.1)) == ["first_part_p95"]
    # The source has no traffic any more: what it was last measured at stands.
    assert broken(facts(*slow), Baseline(p95_s=0.1)) == ["p95"]
    assert broken(facts(*slow), Baseline(p95_s=0.5)) == []
    assert broken(facts(*slow), guards=Guards(p95_s=0.5, min_requests=10)) == ["p95"]


def test_agreement_is_held_against_what_the_source_agrees_with_itself() -> None:
    pairs = tuple(Pair(at=1, is_noise=False, score=0.7) for _ in range(10))
    noise = tuple(Pair(at=1, is_noise=True, score=0.75) for _ in range(5))
    assert broken(facts(pairs=pairs)) == []  # nobody knows yet how far the source agrees with itself
    assert broken(facts(pairs=pairs), noise_percent=0) == ["agreement"]
    assert broken(facts(pairs=pairs[:9])) == []
    assert broken(facts(pairs=pairs + noise)) == []
    assert broken(facts(pairs=pairs), Baseline(noise=0.75)) == []
    assert broken(facts(pairs=pairs + noise), guards=Guards(agreement_min=0.8, min_requests=10)) == ["agreement"]


def test_cost_is_counted_by_the_hour_the_token_and_the_window() -> None:
    price = Price(usd_per_hour=1, usd_per_1000_tokens_in=0.1, usd_per_1000_tokens_out=0.2, usd_per_window=0.5)
    found = facts(*[seen("target", tokens_in=100, tokens_out=50)] * 10, target=price)
    assert found.target_usd_per_hour == pytest.approx(1 + 0.5 * 12 + (0.1 + 0.1) * 360)
    assert broken(found, guards=Guards(usd_per_hour=50, min_requests=10)) == ["usd_per_hour"]
    assert broken(found, guards=Guards(usd_per_hour=80, min_requests=10)) == []


def test_a_baseline_is_learned_from_enough_requests_only() -> None:
    few = facts(*[seen("source", seconds=0.3)] * 9)
    assert learned(Baseline(p95_s=0.1), few, plan()).p95_s == 0.1
    enough = facts(*[seen("source", seconds=0.3)] * 10)
    assert learned(Baseline(p95_s=0.1), enough, plan()).p95_s == 0.3


def test_a_window_forgets_what_is_old_and_what_was_before_the_step() -> None:
    window = Window(100.0, 0.0)
    for second in range(200):
        window.add(seen("target", at=float(second)))
    assert window.facts(200.0, Price(), Price()).target.requests == 100
    assert window.facts(200.0, Price(), Price(), last_s=10).target.requests == 10
    window.restart(200.0)
    assert window.facts(200.0, Price(), Price()).target == SideFacts()


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1), st.floats(min_value=0.01, max_value=1))
def test_a_percentile_is_the_nearest_rank(values: list[float], share: float) -> None:
    found = percentile(sorted(values), share)
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_a_long_migration_keeps_a_bounded_time_line() -> None:
    kept = Kept(plan=plan(), state=running(), footing=Footing(keys=[], doors=[]))
    for second in range(5000):
        kept.draw(float(second), 0.5, facts())
    assert len(kept.rows) <= 400
    assert kept.interval_s > 2
    ats = [row.at for row in kept.rows]
    assert ats == sorted(ats)
    assert ats[0] == 0
