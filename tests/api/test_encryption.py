"""Weights encrypted at rest: what is on the disk, what runs, and what happens without the key."""

from __future__ import annotations

import json
import secrets
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.server import Server, wait_for

CONVERSE = [{"role": "user", "content": [{"text": "Hello"}]}]
KEY = "alias/models"
KEY_ARN = "arn:aws:kms:us-east-1:000000000000:alias/models"


@pytest.fixture
def master(tmp_path: Path) -> Path:
    path = tmp_path / "master.key"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return path


@pytest.fixture
def keyed(tmp_path: Path, master: Path) -> Iterator[Server]:
    server = Server(
        tmp_path / "home", cpu_threads=1, imports_in_parallel=2, weight_keys=json.dumps({KEY: f"file:{master}"})
    ).start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.stop()


def asks(server: Server, arn: str) -> dict[str, Any]:
    answer: dict[str, Any] = server.client("bedrock-runtime").converse(
        modelId=arn, messages=CONVERSE, inferenceConfig={"maxTokens": 8, "temperature": 0}
    )
    return answer


def plaintext(folder: Path, needles: list[bytes]) -> list[Path]:
    """Files below *folder* that hold one of *needles*."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(needle in path.read_bytes() for needle in needles)]


def test_an_encrypted_model_serves_and_nothing_of_it_is_on_the_disk(keyed: Server, tiny: Path, master: Path) -> None:
    plain = keyed.import_model(tiny, "plain")
    arn = keyed.ended_job(keyed.create_job(keyed.put(tiny, "secret"), "secret", importedModelKmsKeyId=KEY))[
        "importedModelArn"
    ]
    bedrock = keyed.client("bedrock")
    model = bedrock.get_imported_model(modelIdentifier="secret")
    assert model["modelKmsKeyArn"] == KEY_ARN
    assert bedrock.get_model_import_job(jobIdentifier="job-secret")["importedModelKmsKeyArn"] == KEY_ARN
    assert "modelKmsKeyArn" not in bedrock.get_imported_model(modelIdentifier="plain")

    assert asks(keyed, arn)["output"] == asks(keyed, plain)["output"]
    shards = [path.read_bytes() for path in tiny.glob("*.safetensors")]
    needles = [*(raw[-64:] for raw in shards), b"GGUF"]
    folder = keyed.home / "store" / "models" / arn.rpartition("/")[2]
    assert plaintext(folder, needles) == []
    assert {path.name for path in folder.iterdir()} >= {"model.gguf.sealed", "envelope.json"}
    assert list((keyed.home / "store" / "staging").iterdir()) == []
    # What else lies in the store is the plain model's.
    bedrock.delete_imported_model(modelIdentifier="plain")
    wait_for(lambda: plaintext(keyed.home / "store", needles) == [])

    with pytest.raises(urllib.error.HTTPError) as caught:
        keyed.admin("/outcrop/v1/models/secret/evict", method="POST")
    assert "its weights are encrypted" in caught.value.read().decode()
    keyed.stop()
    keyed.start()
    assert asks(keyed, arn)["output"]


def test_without_its_key_a_model_answers_a_clear_error_and_works_again_with_it(
    keyed: Server, tiny: Path, master: Path
) -> None:
    arn = keyed.ended_job(keyed.create_job(keyed.put(tiny, "secret"), "secret", importedModelKmsKeyId=KEY))[
        "importedModelArn"
    ]
    away = master.with_name("away")
    master.rename(away)

    with pytest.raises(ClientError) as caught:
        asks(keyed, arn)
    error = caught.value.response["Error"]
    assert error["Code"] == "ModelErrorException"
    assert f"encrypted with the key {KEY_ARN}, which cannot be used" in error["Message"]
    assert str(master) in error["Message"]

    away.rename(master)
    keyed.stop()
    keyed.start()
    assert asks(keyed, arn)["output"]


def test_a_key_that_the_server_has_not_is_refused_when_the_job_is_made(keyed: Server, tiny: Path) -> None:
    with pytest.raises(
        ClientError, match=r"names the key alias/other, which this server has not.*alias/models"
    ) as caught:
        keyed.create_job(keyed.put(tiny, "x"), "x", importedModelKmsKeyId="alias/other")
    assert caught.value.response["Error"]["Code"] == "ValidationException"


def test_a_killed_import_leaves_nothing_in_the_clear_and_goes_on(keyed: Server, tiny: Path) -> None:
    job = keyed.create_job(keyed.put(tiny, "secret"), "secret", importedModelKmsKeyId=KEY)
    staging = keyed.home / "store" / "staging"
    wait_for(lambda: any(staging.iterdir()))
    (link,) = staging.iterdir()
    keyed.kill()

    assert link.is_symlink()
    memory = link.readlink()
    assert memory.is_relative_to("/dev/shm")
    assert memory.parent.stat().st_mode & 0o777 == 0o700
    keyed.start()
    arn = keyed.ended_job(job)["importedModelArn"]
    assert asks(keyed, arn)["output"]
    assert not memory.exists()
    keyed.client("bedrock").delete_imported_model(modelIdentifier="secret")
    wait_for(lambda: list((keyed.home / "store" / "models").iterdir()) == [])


def test_a_default_key_encrypts_what_names_none(tmp_path: Path, tiny: Path, master: Path) -> None:
    server = Server(tmp_path / "home", cpu_threads=1, weight_keys=json.dumps({"default": f"file:{master}"})).start()
    try:
        arn = server.import_model(tiny, "tiny")
        model = server.client("bedrock").get_imported_model(modelIdentifier="tiny")
        assert model["modelKmsKeyArn"] == "arn:aws:kms:us-east-1:000000000000:alias/default"
        assert asks(server, arn)["output"]
        assert plaintext(server.home / "store", [b"GGUF"]) == []
    finally:
        server.stop()
