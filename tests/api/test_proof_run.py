"""What the proof run at an import's end finds, keeps and refuses; the choices that a job's tags carry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError
from safetensors.numpy import load_file, save_file
from tests.api.test_commands import outcrop
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server

ACCEPT = [{"key": "outcrop:proof", "value": "accept"}]


def changed(folder: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """*folder* with each tensor changed whose name ends with *name*."""
    for shard in folder.glob("*.safetensors"):
        tensors = {key: change(value) if key.endswith(name) else value for key, value in load_file(shard).items()}
        save_file(tensors, shard)
    return folder


def overflowing(folder: Path) -> Path:
    return changed(make_checkpoint(folder), "_proj.weight", lambda values: values * np.float32(1e30))


def collapsed(folder: Path) -> Path:
    return changed(make_checkpoint(folder), "model.norm.weight", lambda values: values * np.float32(0))


@pytest.mark.parametrize(
    ("break_", "told"),
    [(overflowing, "its logits are not numbers (NaN)"), (collapsed, "it answers every prompt with the token")],
)
def test_a_model_that_loads_but_does_not_work_fails_its_job_and_is_told_why(
    server: Server, tmp_path: Path, break_: Callable[[Path], Path], told: str
) -> None:
    uri = server.put(break_(tmp_path / "model"), break_.__name__)

    job = server.ended_job(server.create_job(uri, break_.__name__))
    accepted = server.ended_job(server.create_job(uri, f"{break_.__name__}-accepted", jobTags=ACCEPT))

    assert job["status"] == "Failed"
    assert f"The model starts but does not work: {told}" in job["failureMessage"]
    assert accepted["status"] == "Completed"
    model = server.admin(f"/outcrop/v1/models/{break_.__name__}-accepted")
    assert any(told in note for note in model["facts"]["notes"])


def test_the_proof_run_leaves_the_models_first_measurements(server: Server, model: str) -> None:
    proof = server.admin("/outcrop/v1/models/tiny")["facts"]["proof"]

    assert proof["diagnosis"] is None
    assert proof["tokens_per_s"] > 0
    assert proof["memory_bytes"] > 10_000_000
    assert {"spawn_s", "load_s", "first_token_s"} <= set(proof)


def test_quantisation_is_asked_for_by_a_job_tag_and_recorded_on_the_model(server: Server, tiny: Path) -> None:
    tags = [{"key": "outcrop:quantization", "value": "q8_0"}]

    job = server.ended_job(server.create_job(server.put(tiny, "packed"), "packed", jobTags=tags))

    plain = server.admin("/outcrop/v1/models/tiny")["facts"]
    packed = server.admin("/outcrop/v1/models/packed")["facts"]
    assert job["status"] == "Completed"
    assert (plain["artifact_dtype"], packed["artifact_dtype"]) == ("f32", "q8_0")
    assert packed["artifact_bytes"] < 0.5 * plain["artifact_bytes"]


def test_quantisation_is_an_option_of_the_command(server: Server, tiny: Path) -> None:
    done = outcrop(server, "import", str(tiny), "--name", "packed-by-command", "--quantize", "q4_0", "--json")

    assert json.loads(done.stdout)["status"] == "Completed"
    assert server.admin("/outcrop/v1/models/packed-by-command")["facts"]["artifact_dtype"] == "q4_0"


@pytest.mark.parametrize("key", ["outcrop:quantization", "outcrop:proof"])
def test_a_choice_that_is_none_is_refused_at_once(server: Server, tiny: Path, key: str) -> None:
    with pytest.raises(ClientError, match=f"The job tag {key} is 'maybe'") as refused:
        server.create_job("s3://artifacts/tiny/", "no-choice", jobTags=[{"key": key, "value": "maybe"}])

    assert refused.value.response["Error"]["Code"] == "ValidationException"
