"""The delivery step against a running server: deployed, found done, refused, stopped, rolled back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server


def deploy(server: Server, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outcrop.cli.main", "deploy", "--checkpoint", str(folder), "--name", "ship"]
    return subprocess.run(
        [*command, "--alias", "ship-live", "--home", str(server.home), *options],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
        check=False,
    )


def report(found: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(found.stdout)
    return told


def alias(server: Server) -> str | None:
    rows = server.admin("/outcrop/v1/aliases")["aliases"]
    return next((row["model_name"] for row in rows if row["alias"] == "ship-live"), None)


@pytest.fixture
def smoke(tmp_path: Path) -> Path:
    path = tmp_path / "smoke.jsonl"
    path.write_text('{"prompt": "Hello", "max_tokens": 4, "min_chars": 0}\n')
    return path


def test_a_checkpoint_is_deployed_once_and_a_worse_or_broken_one_changes_nothing(
    server: Server, tiny: Path, tmp_path: Path, smoke: Path
) -> None:
    planned = deploy(server, tiny, "--smoke", str(smoke), "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "switch alias ship-live from nothing to ship-" in planned.stdout
    assert alias(server) is None

    first = report(done := deploy(server, tiny, "--smoke", str(smoke), "--gate", str(smoke), "--json"))
    assert done.returncode == 0
    assert first["outcome"] == "deployed"
    assert [stage["stage"] for stage in first["stages"]] == ["preflight", "upload", "import", "smoke", "gate", "switch"]
    live = alias(server)
    assert live is not None
    assert live.startswith("ship-")

    jobs = server.client("bedrock").list_model_import_jobs(nameContains="ship-")["modelImportJobSummaries"]
    again = report(deploy(server, tiny, "--smoke", str(smoke), "--json"))
    assert again["model_arn"] == first["model_arn"]
    assert server.client("bedrock").list_model_import_jobs(nameContains="ship-")["modelImportJobSummaries"] == jobs
    # Without what was kept, the import job's own token still finds the first one.
    shutil.rmtree(server.home / "deployments")
    assert report(deploy(server, tiny, "--json"))["model_arn"] == first["model_arn"]

    other = make_checkpoint(tmp_path / "other", seed=7)
    hopeless = tmp_path / "hopeless.jsonl"
    hopeless.write_text('{"prompt": "Hello", "max_tokens": 2, "equals": "never said"}\n')
    stopped = deploy(server, other, "--smoke", str(hopeless), "--json")
    assert stopped.returncode == 5
    assert "1 of 1 smoke prompts failed" in report(stopped)["reason"]
    gated = deploy(server, other, "--gate", str(hopeless), "--json")
    assert gated.returncode == 5
    assert "0.0% of the gate's cases pass" in report(gated)["reason"]
    assert alias(server) == live

    (other / "config.json").write_text("{}")
    refused = deploy(server, other, "--json")
    assert refused.returncode == 3
    assert "cannot be imported" in report(refused)["reason"]
    assert alias(server) == live


def test_policies_for_aws_are_printed() -> None:
    command = [sys.executable, "-m", "outcrop.cli.main", "deploy", "iam", "--account", "123456789012"]
    found = subprocess.run(
        [*command, "--bucket", "s3://b/models/"], capture_output=True, text=True, timeout=60, check=True
    )

    assert set(json.loads(found.stdout)) == {
        "pipeline",
        "import-role-trust",
        "import-role",
        "proxy-role",
        "bucket-policy-of-another-account",
    }
