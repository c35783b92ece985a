"""Checkpoints that no engine of this installation serves: kept, described, and honest when they are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import ClientError
from safetensors.numpy import save_file
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server

from outcrop.checkpoints.families import FAMILIES

T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": 64,
    "d_ff": 128,
    "d_kv": 16,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "vocab_size": 512,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Flan-T5 in Hugging Face layout."""
    folder = make_checkpoint(tmp_path_factory.mktemp("t5") / "t5", has_chat_template=False)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "config.json").write_text(json.dumps(T5))
    family = FAMILIES["t5"]
    assert family.tensors is not None
    shapes = family.tensors(family.read(T5))
    random = np.random.default_rng(0)
    tensors = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_model_that_no_engine_here_serves_is_kept_and_says_what_it_needs(server: Server, t5: Path) -> None:
    job = server.ended_job(server.create_job(server.put(t5, "flan"), "flan"))

    assert job["status"] == "Completed", job.get("failureMessage")
    found = server.client("bedrock").get_imported_model(modelIdentifier="flan")
    assert found["modelArchitecture"] == "t5"
    told = server.admin("/outcrop/v1/models/flan")
    assert set(told["timings"]) == {"checking", "transferring"}, "nothing is converted or proven"
    assert told["facts"]["engine"] is None
    assert told["facts"]["scan"]["tensors"] > 0
    assert any("no engine of this installation serves" in note for note in told["facts"]["notes"])

    runtime = server.client("bedrock-runtime")
    for model in (job["importedModelArn"], "flan"):
        with pytest.raises(ClientError) as refused:
            runtime.invoke_model(modelId=model, body='{"prompt":"x"}')
        assert refused.value.response["Error"]["Code"] == "ValidationException"
        assert "It needs tensorrt-llm" in str(refused.value)

    server.client("bedrock").delete_imported_model(modelIdentifier="flan")
    with pytest.raises(ClientError, match="ResourceNotFound"):
        runtime.invoke_model(modelId=job["importedModelArn"], body='{"prompt":"x"}')


def test_kept_models_are_still_there_after_a_restart(tmp_path: Path, t5: Path) -> None:
    server = Server(tmp_path / "home", cpu_threads=1).start()
    try:
        server.ended_job(server.create_job(server.put(t5, "flan"), "flan"))
        server.stop()
        server.start()

        with pytest.raises(ClientError, match="It needs tensorrt-llm"):
            server.client("bedrock-runtime").invoke_model(modelId="flan", body='{"prompt":"x"}')
        assert not server.status()["copies"]
    finally:
        server.stop()
