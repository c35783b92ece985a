"""The delivery step killed in every stage, moved gradually under load, and against a server that stands in for AWS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import make_checkpoint
from tests.support.load import Load
from tests.support.s3 import MotoServer
from tests.support.server import Server

DONE_LINES = {
    "upload": "preflight: done",
    "import": "upload: done",
    "smoke": "import: done",
    "gate": "smoke: done",
    "switch": "gate: done",
}


def arguments(server: Server, folder: Path, name: str, *options: str) -> list[str]:
    base = [sys.executable, "-m", "outcrop.cli.main", "deploy", "--checkpoint", str(folder), "--name", name]
    return [*base, "--alias", f"{name}-live", "--home", str(server.home), "--json", *options]


def deployed(command: list[str], **environment: str) -> dict[str, Any]:
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, **environment}
    )
    assert found.returncode == 0, found.stderr
    told: dict[str, Any] = json.loads(found.stdout)
    return told


@pytest.fixture
def smoke(tmp_path: Path) -> Path:
    path = tmp_path / "smoke.jsonl"
    path.write_text('{"prompt": "Hello", "max_tokens": 2, "min_chars": 0}\n')
    return path


@pytest.mark.parametrize("stage", DONE_LINES)
def test_a_deployment_killed_in_a_stage_goes_on_there(server: Server, tiny: Path, smoke: Path, stage: str) -> None:
    name = f"killed-{stage}"
    command = arguments(server, tiny, name, "--smoke", str(smoke), "--gate", str(smoke))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(DONE_LINES[stage]):
            break
    process.kill()
    process.wait(10)
    process.stderr.close()

    told = deployed(command)

    assert told["outcome"] == "deployed"
    jobs = server.client("bedrock").list_model_import_jobs(nameContains=name)["modelImportJobSummaries"]
    assert len(jobs) == 1
    rows = {row["alias"]: row["model_name"] for row in server.admin("/outcrop/v1/aliases")["aliases"]}
    assert rows[f"{name}-live"].startswith(name)


def test_an_alias_is_moved_gradually_under_load(server: Server, tiny: Path, tmp_path: Path, smoke: Path) -> None:
    first = deployed(arguments(server, tiny, "slow", "--smoke", str(smoke)))
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    (other / "notes.txt").write_text("the same weights, another checkpoint\n")
    steps = ("--gradual", "shadow:50,50,100", "--hold-s", "0.5", "--min-requests", "2")
    with Load(server, ["slow-live"]) as load:
        told = deployed(arguments(server, other, "slow", "--smoke", str(smoke), *steps))
        time.sleep(0.5)

    assert told["migration"]["phase"] == "completed"
    assert told["model_arn"] != first["model_arn"]
    assert (load.failed, load.broken) == ([], [])
    now = next(r["model_name"] for r in server.admin("/outcrop/v1/aliases")["aliases"] if r["alias"] == "slow-live")
    assert server.client("bedrock").get_imported_model(modelIdentifier=now)["modelArn"] == told["model_arn"]


def test_a_checkpoint_is_deployed_to_what_stands_in_for_aws(tmp_path: Path, tiny: Path, smoke: Path) -> None:
    """Another server at the endpoint URLs, its checkpoints in S3, names as a parameter: AWS's side of the differences."""
    moto = MotoServer(is_open=True)
    far = Server(tmp_path / "far", cpu_threads=1, object_stores=json.dumps([moto.store()])).start()
    try:
        keys = far.credentials
        environment = {
            "AWS_ACCESS_KEY_ID": keys.access_key_id,
            "AWS_SECRET_ACCESS_KEY": keys.secret_access_key,
            "AWS_DEFAULT_REGION": keys.region,
            "AWS_ENDPOINT_URL_BEDROCK": far.url,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": far.url,
            "AWS_ENDPOINT_URL_S3": moto.url,
            "AWS_ENDPOINT_URL_SSM": moto.url,
        }
        moto.client("s3").create_bucket(Bucket="models")
        command = [sys.executable, "-m", "outcrop.cli.main", "deploy", "--target", "aws", "--json"]
        command += [
            "--role",
            keys.import_role_arn,
            "--bucket",
            "s3://models/reviewer",
            "--home",
            str(tmp_path / "near"),
        ]
        command += ["--name", "ship", "--alias", "/reviewer/live", "--smoke", str(smoke), "--checkpoint"]
        first = deployed([*command, str(tiny)], **environment)
        assert first["target"] == "aws"
        ssm = moto.client("ssm")
        assert ssm.get_parameter(Name="/reviewer/live")["Parameter"]["Value"] == first["model_arn"]
        # Again: nothing is sent, imported or switched.
        s3 = moto.client("s3")
        before = {row["Key"]: row["LastModified"] for row in s3.list_objects_v2(Bucket="models")["Contents"]}
        (tmp_path / "near" / "deployments").rename(tmp_path / "forgotten")
        assert deployed([*command, str(tiny)], **environment)["model_arn"] == first["model_arn"]
        assert {r["Key"]: r["LastModified"] for r in s3.list_objects_v2(Bucket="models")["Contents"]} == before
        assert len(far.client("bedrock").list_model_import_jobs()["modelImportJobSummaries"]) == 1
        # A second version takes the parameter over; the first one is still there to go back to.
        second = deployed([*command, str(make_checkpoint(tmp_path / "other", seed=3))], **environment)
        assert ssm.get_parameter(Name="/reviewer/live")["Parameter"]["Value"] == second["model_arn"]
        assert second["switched"]["from"] == first["model_arn"]
        refused = subprocess.run(
            [*command, str(tiny), "--gradual", "100"], capture_output=True, text=True, check=False, timeout=60
        )
        assert refused.returncode == 2
        assert "--gradual moves an alias of a server of this project" in refused.stderr
    finally:
        far.stop()
        moto.stop()
