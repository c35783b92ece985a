"""The published case, as the document tells it: its commands are taken out of it and run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "walk-through.md"
LIMIT_S = 300


def blocks(page: str) -> list[str]:
    """The commands of a page, block by block."""
    return re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S)


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_walk_through_works_as_it_is_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    found = blocks(PAGE.read_text())
    assert len(found) > 8
    script = "set -euo pipefail\n" + "".join(f"echo '== block {n}' >&2\n{block}" for n, block in enumerate(found, 1))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OUTCROP_HOME": str(home),
        "OUTCROP_PORT": "0",
        "OUTCROP_CPU_THREADS": "1",
    }
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            status = process.wait(LIMIT_S)
        finally:
            # Whatever the script left running, when it ended early, ends with its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        told = (tmp_path / "said").read_text()
    assert status == 0, told[-4000:]

    asked = json.loads((home / "application.json").read_text())
    assert asked["failed"] == 0
    assert asked["answered"] > 10
    assert "completed: the target has taken over" in told
    assert json.loads((home / "deploy.json").read_text())["outcome"] == "deployed"
    page = (home / "migration.html").read_text()
    assert "<svg" in page
    assert "sagemaker:reviews-next" in page
    assert "own-copy-hour: 0.40 USD" in told
    kept = list((home / "migrations" / "reviews").rglob("pairs.jsonl"))
    assert {path.relative_to(home / "migrations" / "reviews").parts[0] for path in kept} == {"source", "target"}
    line = json.loads(kept[0].read_text().splitlines()[0])
    assert line["captureData"]["endpointInput"]["mode"] == "INPUT"
    assert json.loads(line["captureData"]["endpointInput"]["data"])["code"].startswith("public class A")
