"""The benchmark and the planner as a person runs them, on a real server."""

from __future__ import annotations

import json
from pathlib import Path

from tests.api.test_commands import outcrop
from tests.support.server import Server

SMALL = ("--requests", "15", "--warm-s", "0", "--tokens-in", "40", "--tokens-out", "6")


def test_a_load_test_is_run_fitted_and_planned_from(server: Server, model: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = outcrop(
        server, "bench", "run", "bedrock:tiny", "--users", "1", "--users", "2", *SMALL, "--out", str(results)
    )

    assert done.returncode == 0, done.stderr
    assert "billed windows x units, as Custom Model Import" in done.stderr
    told = json.loads((results / "summary.json").read_text())["levels"]
    assert {name: level["errors"] for name, level in told.items()} == {"1 user": {}, "2 users": {}}
    assert all(level["tokens_out"] > 0 and level["ttft_p50_s"] > 0 for level in told.values())
    assert abs(told["1 user"]["tokens_in"] - 40) < 12  # the endpoint's own count of what was meant to be 40

    copy = tmp_path / "copy.json"
    fitted = outcrop(server, "plan", "fit", str(results), "--slots", "4", "--out", str(copy))
    assert fitted.returncode == 0, fitted.stderr
    trace = str(results / "requests.jsonl")
    page = tmp_path / "plan.html"
    words = ("plan", "simulate", trace, "--copy", str(copy), "--policy", "all")
    played = outcrop(server, *words, "--out", str(page), "--json")
    assert played.returncode == 0, played.stderr
    rows = json.loads(played.stdout)
    assert {row["rule"] for row in rows} == {"outcrop", "Knative-like", "queue threshold"}
    assert len({row["requests"] for row in rows}) == 1
    assert "<svg" in page.read_text()

    priced = outcrop(server, "plan", "cost", trace, "--copy", str(copy), "--own-copy-hour", "0.4", "--json")
    assert json.loads(priced.stdout)["own_usd"] is not None
    advised = outcrop(server, "plan", "advise", trace, "--copy", str(copy), "--slo-s", "600", "--max", "1", "--json")
    assert json.loads(advised.stdout)[0]["holds"] == "yes"
    assert (
        outcrop(server, "plan", "advise", trace, "--slo-s", "0.001", "--slow-share", "0", "--max", "1").returncode == 1
    )


def test_two_endpoints_are_compared_in_turns(server: Server, model: str) -> None:
    done = outcrop(
        server, "bench", "compare", "openai:tiny", "bedrock:tiny", "--users", "1", "--rounds", "2", *SMALL, "--json"
    )

    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["measure"] for row in rows] == ["P50 s", "P95 s", "RPM"]
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows[:2])


def test_a_target_that_is_none_is_refused_in_one_line(server: Server, model: str) -> None:
    for target, said in (("tiny", "API:MODEL[@URL]"), ("bedrock:absent", "ResourceNotFoundException")):
        done = outcrop(server, "bench", "run", target)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
