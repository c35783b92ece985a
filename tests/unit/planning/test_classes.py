"""Traffic by windows made into requests, and what serverless copies save by activity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from outcrop.cli.plan import app
from outcrop.errors import BadSetting
from outcrop.planning.classes import CLASSES, active_share
from outcrop.planning.traces import read_trace
from outcrop.planning.window_trace import COLUMNS, has_windows, read_windows, realised

TRACES = Path(__file__).parents[3] / "benchmarks" / "traces"


def window(start_s: float, requests: int, cv: float = 1.0) -> dict[str, float]:
    values = (start_s, 600.0, requests, cv, 800.0, 0.5, 100.0, 0.3)
    return dict(zip(COLUMNS[1:], values, strict=True))


def test_windows_become_as_many_requests_in_their_own_time_and_of_their_lengths() -> None:
    found = realised("t", [window(0, 500), window(3000, 2000, 3.0)], seed=1)

    first, second = found.at_s[:500], found.at_s[500:]
    assert len(found) == 2500
    assert 0 < first.min() <= first.max() < 600 < 3000 < second.min() <= second.max() < 3600
    assert np.all(np.diff(found.at_s) >= 0)
    assert found.tokens_in.mean() == pytest.approx(800, rel=0.05)
    assert found.tokens_out.std() / found.tokens_out.mean() == pytest.approx(0.3, rel=0.1)
    gaps = np.diff(second)
    assert gaps.std() / gaps.mean() == pytest.approx(3, rel=0.2)
    assert np.array_equal(found.at_s, realised("t", [window(0, 500), window(3000, 2000, 3.0)], seed=1).at_s)


def test_a_file_of_windows_is_known_by_its_columns_and_a_broken_line_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_text(",".join(COLUMNS) + "\na,0,600,3,1,800,0.5,100,0.3\nb,0,600,many,1,800,0.5,100,0.3\n")

    assert has_windows(path)
    assert not has_windows(TRACES / "bursty-day.csv.gz")
    with pytest.raises(BadSetting, match="line 3"):
        read_windows(path)
    with pytest.raises(BadSetting, match="has no request"):
        realised("t", [window(0, 0)], seed=1)


def test_the_shipped_tenants_cover_every_class_and_no_request_is_made_up() -> None:
    tenants = read_windows(TRACES / "tenants-7d.csv.gz")
    names = [next(name for limit, name in CLASSES if active_share(each, 7 * 86400) < limit) for each in tenants]

    assert len(tenants) == 30
    assert {name: names.count(name) for name in names} == {
        name: count for (_, name), count in zip(CLASSES, (8, 8, 8, 6), strict=True)
    }
    assert read_trace(TRACES / "bursty-day.csv.gz").tokens_in.dtype == np.float32


def test_a_tenant_that_is_rarely_there_saves_and_one_that_always_is_pays_more(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    lines = [f"rare,{start},600,3,1,800,0.5,100,0.3" for start in range(0, 86400, 20_000)]
    lines += [f"busy,{start},600,400,1,800,0.5,100,0.3" for start in range(0, 86400, 600)]
    path.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")

    words = [
        "classes",
        str(path),
        "--days",
        "1",
        "--as-of",
        "2026-07-21",
        "--as-of",
        "2025-03-22",
        "--tenants",
        "--json",
    ]
    done = CliRunner().invoke(app, words)

    assert done.exit_code == 0, done.output
    rows = {row["active"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"rare", "busy", "under 10 %", "over 90 %", "all"}
    assert rows["all"]["requests"] == 15 + 57_600
    assert (rows["rare"]["dearer_2026-07-21"], rows["busy"]["dearer_2026-07-21"]) == (0, 1)
    assert rows["busy"]["serverless_usd_2025-03-22"] > rows["busy"]["serverless_usd_2026-07-21"]
    assert rows["all"]["one_copy_usd"] == pytest.approx(2 * 24 * 2.61, abs=1)
