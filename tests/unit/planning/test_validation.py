"""The planner beside recorded runs."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from outcrop.cli.plan import app
from outcrop.errors import BadSetting
from outcrop.planning.copy_model import CopyModel
from outcrop.planning.rules import Ours
from outcrop.planning.simulator import simulate
from outcrop.planning.traces import Trace
from outcrop.planning.validation import Recording, Request, read, validate
from outcrop.planning.virtual import Tenant
from outcrop.serving.policy import Params
from outcrop.serving.schedule import Scaling

RECORDINGS = Path(__file__).parents[3] / "benchmarks" / "recordings"
COPY = CopyModel(c0_s=0.02, c_in_s=0.0002, c_out_s=0.01, kappa=0.05, slots=4)
LIMITS = {"slots": 4, "max_copies": 2, "keep_alive_s": 20.0}


def drawn(count: int, span_s: float, seed: int) -> Trace:
    rng = np.random.default_rng(seed)
    tokens = [rng.lognormal(mean, 0.3, count).astype(np.float32).round() for mean in (5, 4)]
    return Trace("made", np.sort(rng.uniform(0, span_s, count)), *tokens)


def recorded(*, slower: float = 1.0) -> Recording:
    """A run as the simulator itself would have it, its closed loop *slower* times slower than its copies were."""
    trace = drawn(400, 300, 1)
    rule = Ours("live", Params(), COPY, 2.0, Scaling(max_copies=2, keep_alive_s=20.0))
    played = simulate(Tenant(trace=trace, rule=rule, copy=COPY, cold_start_s=2.0))
    closed = {}
    for users in (1, 2, 4):
        alone = drawn(80, 10, users)
        works = alone.work_s(COPY) * (1 + COPY.kappa * (users - 1)) * slower
        rows = zip(works, alone.tokens_in, alone.tokens_out, strict=True)
        closed[str(users)] = [Request(0.0, float(w), int(i), int(o)) for w, i, o in rows]
    # Of the whole only sums are compared: which request took how long does not matter.
    latencies = list(played.latencies or ())
    return Recording(
        closed=closed,
        beside={},
        beside_copies=2,
        open=[
            Request(float(at), took, int(i), int(o))
            for at, took, i, o in zip(trace.at_s, latencies, trace.tokens_in, trace.tokens_out, strict=True)
        ],
        engine="made up",
        slots=4,
        scaling=LIMITS,
        copy_s=played.copy_hours * 3600,
        cold_starts=played.starts,
        cold_start_s=2.0,
        cores=2,
        slip_p99_s=0.004,
    )


@pytest.mark.parametrize("name", ["simulated", "sample"])
def test_the_simulator_stays_near_recorded_runs(name: str) -> None:
    found = validate(read(RECORDINGS / f"{name}.json.gz"))

    assert found.holds
    *shares, starts = found.rows
    assert {row.measure: abs(row.error) < 0.06 for row in shares} == {row.measure: True for row in shares}
    assert abs(starts.simulated - starts.measured) <= 1


def test_a_run_that_went_as_the_model_says_is_replayed_without_an_error() -> None:
    found = validate(recorded())

    assert found.holds
    assert [abs(row.error) < 0.01 for row in found.rows] == [True] * 4
    assert 0 < found.load < found.busiest < 1


def test_a_copy_that_was_measured_wrongly_shows_and_fails_the_command(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json.gz"
    good.write_bytes(msgspec.json.encode(recorded()))
    bad.write_bytes(gzip.compress(msgspec.json.encode(recorded(slower=1.5))))

    assert CliRunner().invoke(app, ["validate", str(good)]).exit_code == 0
    assert validate(read(bad)).row("P95 s").error > 0.2
    rows = CliRunner().invoke(app, ["validate", str(good), "--markdown"]).output.splitlines()
    assert rows[2].startswith("| the sample on made up, up to 2 copies: 400 requests in ")
    assert rows[5].endswith("| +0 |")
    assert "sent late by 4 ms at P99" in rows[-1]
    told = CliRunner().invoke(app, ["validate", str(good), str(bad)])
    assert told.exit_code == 1
    assert "off by more than 10 %" in told.output


def test_a_recording_with_failed_requests_or_none_is_refused(tmp_path: Path) -> None:
    whole = recorded()
    failed = msgspec.structs.replace(whole, open=[*whole.open, Request(1.0, 1.0, error="timeout")])

    with pytest.raises(BadSetting, match="1 requests of the recording failed"):
        validate(failed)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(BadSetting, match="no recording"):
        read(tmp_path / "a.json")
