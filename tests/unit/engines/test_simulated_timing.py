"""The timing model of simulated copies, against the numbers that it was calibrated on."""

from __future__ import annotations

import math
import random

import pytest

from outcrop.engines.simulated import calibration, calibrations
from outcrop.engines.simulated_timing import Batch, Calibration, LoadCost, Sequence
from outcrop.errors import BadSetting

SPREAD = math.sqrt(math.log(1 + 0.2**2))


def closed_loop(copy: Calibration, users: int, *, tokens_in: int = 1000, tokens_out: int = 220) -> tuple[float, float]:
    """Mean latency in s and requests per minute of *users* who ask again as soon as they are answered."""
    rng = random.Random(1)

    def length(mean: int) -> int:
        return max(1, round(rng.lognormvariate(math.log(mean) - SPREAD**2 / 2, SPREAD)))

    batch, now, begun, latencies, number, steady_at = Batch(copy), 0.0, {}, [], 0, 0.0

    def ask() -> None:
        nonlocal number
        number += 1
        begun[number] = now
        batch.add(Sequence(number, length(tokens_in), length(tokens_out)))

    for _ in range(users):
        ask()
    while len(latencies) < 2 * users + max(200, 20 * users):
        step = batch.step()
        assert step is not None
        now += step.seconds
        for key in step.ended:
            latencies.append(now - begun.pop(key))
            ask()
            steady_at = now if len(latencies) == 2 * users else steady_at
    steady = latencies[2 * users :]
    return sum(steady) / len(steady), 60 * len(steady) / (now - steady_at)


@pytest.mark.parametrize(
    ("name", "users", "latency_s", "per_minute"),
    [
        ("qwen2.5-14b-a100-40gb", 1, 5.5, 11),
        ("qwen2.5-14b-a100-40gb", 16, 8.4, 114),
        ("qwen2.5-14b-a100-40gb", 32, 13.0, 148),
        ("qwen2.5-14b-h200", 1, 2.0, 30),
        ("qwen2.5-14b-h200", 16, 3.0, 323),
        ("qwen2.5-14b-h200", 32, 3.9, 484),
        ("qwen2.5-14b-h100", 16, 3.7, 259),
        ("qwen2.5-14b-l40s", 4, 9.9, 24),
        ("custom-model-unit-v1", 1, 5.48, 11),
        ("custom-model-unit-v1", 16, 7.22, 133),
    ],
)
def test_a_closed_loop_on_one_copy_takes_what_its_calibration_was_made_from(
    name: str, users: int, latency_s: float, per_minute: float
) -> None:
    latency, rate = closed_loop(calibration(name), users)

    assert latency == pytest.approx(latency_s, rel=0.05)
    assert rate == pytest.approx(per_minute, rel=0.05)


def small(**changes: object) -> Calibration:
    cost = LoadCost(request_s=1.0, prompt_token_s=0.01, token_s=0.1, interference=0.5)
    given: dict[str, object] = {"cost": cost, "slots": 2, "kv_tokens": 1000, "start_s": 0.0, **changes}
    return Calibration(**given)  # type: ignore[arg-type]


def finish(batch: Batch) -> dict[object, float]:
    now, ended = 0.0, {}
    while (step := batch.step()) is not None:
        now += step.seconds
        ended.update(dict.fromkeys(step.ended, now))
    return ended


def test_a_request_alone_takes_its_own_work() -> None:
    batch = Batch(small())
    batch.add(Sequence("a", 100, 20))

    assert finish(batch)["a"] == pytest.approx(1 + 100 * 0.01 + 20 * 0.1)


def test_two_requests_slow_each_other_down_and_a_third_waits_for_a_slot() -> None:
    batch = Batch(small())
    for name in "abc":
        batch.add(Sequence(name, 100, 20))

    ended = finish(batch)

    assert ended["a"] == ended["b"] == pytest.approx(4 * 1.5)
    assert ended["c"] == pytest.approx(4 * 1.5 + 4)


def test_a_request_that_the_cache_cannot_hold_beside_others_waits_and_one_larger_than_it_runs_alone() -> None:
    batch = Batch(small(kv_tokens=150))
    batch.add(Sequence("first", 100, 20))
    batch.add(Sequence("large", 500, 20))

    assert batch.step() is not None
    assert (batch.running, batch.waiting) == (1, 1)
    assert set(finish(batch)) == {"first", "large"}


def test_a_cancelled_request_gives_its_slot_to_the_next() -> None:
    batch = Batch(small(slots=1))
    batch.add(Sequence("left", 100, 1000))
    batch.add(Sequence("next", 100, 20))
    batch.step()
    batch.cancel("left")

    assert list(finish(batch)) == ["next"]


def test_prompts_are_computed_in_chunks_beside_sequences_that_go_on() -> None:
    batch = Batch(calibration("qwen2.5-14b-h200"))
    batch.add(Sequence("running", 10, 100))
    alone = batch.step()
    batch.add(Sequence("long", 4096, 10))
    beside = [batch.step(), batch.step(), batch.step()]

    assert alone is not None
    assert [set(step.tokens) for step in beside if step] == [{"running"}, {"running", "long"}, {"running", "long"}]
    assert beside[0] is not None
    assert beside[0].seconds > 3 * alone.seconds


def test_every_calibration_says_where_it_is_from() -> None:
    assert all(len(found.source) > 40 and found.start_s > 0 for found in calibrations().values())


def test_a_calibration_that_is_not_there_or_is_none_stops_the_start_by_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadSetting, match=r"nothing.*custom-model-unit-v1"):
        calibration("nothing")
    (tmp_path / "broken.json").write_text('{"slots": 1}')
    with pytest.raises(BadSetting, match="is no calibration"):
        calibration(str(tmp_path / "broken.json"))
