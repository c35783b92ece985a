"""Encrypted models in the weight store: where they are worked on, what is published, what stays apart."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from outcrop.access.weight_keys import WeightKeys
from outcrop.errors import BadSetting, KeyUnavailable, StorageFull
from outcrop.ids import JobId, ModelId
from outcrop.importing.inventory import inventory
from outcrop.importing.vault import Vault
from outcrop.importing.weights import WeightStore
from outcrop.registry.records import ImportJob
from outcrop.serving.unsealed import ENVELOPE

ARN = "arn:aws:kms:us-east-1:000000000000:key/1"
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 100}


def job(job_id: str, model_id: str) -> ImportJob:
    return ImportJob(
        job_id=JobId(job_id),
        account="000000000000",
        job_name=job_id,
        model_name=model_id,
        model_id=ModelId(model_id),
        role_arn="arn:aws:iam::000000000000:role/outcrop-import",
        s3_uri="s3://b/x/",
        client_token=None,
        request={"importedModelKmsKeyId": ARN},
        phase="QUEUED",
        progress=0.0,
        failure=None,
        timings={},
        created_at=0.0,
        modified_at=0.0,
        ended_at=None,
    )


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> WeightKeys:
    monkeypatch.setenv("MASTER", secrets.token_hex(32))
    return WeightKeys({"*": "env:MASTER"}, "us-east-1")


@pytest.fixture
def store(tmp_path: Path, keys: WeightKeys) -> Iterator[WeightStore]:
    store = WeightStore(tmp_path / "store")
    yield store
    Vault(store, keys).sweep([])


def staged(store: WeightStore, vault: Vault, job_id: str) -> Path:
    """A job's folder with a checkpoint and an artefact."""
    vault.prepare(job_id, 1000)
    folder = store.prepare(job_id)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (store.staging(job_id) / "model.gguf").write_bytes(b"GGUF artefact")
    facts = {name: {"sha256": name, "size_bytes": len(content)} for name, content in FILES.items()}
    store.mark_fetched(job_id, "s3://b/x/", facts)
    return store.staging(job_id)


async def published(store: WeightStore, keys: WeightKeys, number: int) -> Path:
    vault = Vault(store, keys)
    made = job(f"job{number}", f"model{number}")
    staged(store, vault, made.job_id)
    await vault.publish(made, ARN)
    return store.model(made.model_id)


async def test_a_job_is_worked_on_in_memory_and_published_encrypted(store: WeightStore, keys: WeightKeys) -> None:
    folder = await published(store, keys, 1)

    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        ENVELOPE,
        "fetched",
        "model.gguf.sealed",
        "checkpoint/config.json.sealed",
        "checkpoint/model.safetensors.sealed",
    }
    assert all(b"weights" not in path.read_bytes() and b"GGUF" not in path.read_bytes() for path in folder.rglob("*.*"))
    assert list((store.root / "staging").iterdir()) == []
    assert list((store.root / "blobs").iterdir()) == []


async def test_without_its_key_nothing_is_published_and_the_job_can_be_repeated(
    store: WeightStore, keys: WeightKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER")
    with pytest.raises(KeyUnavailable):
        await published(store, keys, 1)

    assert list((store.root / "models").iterdir()) == []
    monkeypatch.setenv("MASTER", secrets.token_hex(32))
    assert (await published(store, keys, 1)).exists()


def test_too_little_memory_is_told_with_the_numbers(store: WeightStore, keys: WeightKeys) -> None:
    with pytest.raises(StorageFull, match=r"Encrypting needs 4611686018427387904 bytes in memory \(/dev/shm\)"):
        Vault(store, keys).prepare("job1", 1 << 62)


def test_a_disk_is_no_place_to_work_on_secrets(store: WeightStore, keys: WeightKeys, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="is no tmpfs"):
        Vault(store, keys, tmp_path).prepare("job1", 1)


def test_what_a_crash_left_in_memory_goes_at_the_next_start(store: WeightStore, keys: WeightKeys) -> None:
    vault = Vault(store, keys)
    kept, left = staged(store, vault, "kept").resolve(), staged(store, vault, "left").resolve()

    vault.sweep(["kept"])

    assert (kept.exists(), left.exists()) == (True, False)
    store.sweep(["kept"], [])
    assert [entry.name for entry in (store.root / "staging").iterdir()] == ["kept"]
    store.discard_job("kept")
    assert not kept.exists()


async def test_encrypted_models_of_one_checkpoint_share_nothing(store: WeightStore, keys: WeightKeys) -> None:
    first, second = await published(store, keys, 1), await published(store, keys, 2)

    envelopes = [json.loads((folder / ENVELOPE).read_text())["wrapped"] for folder in (first, second)]
    assert envelopes[0] != envelopes[1]
    sealed = [(folder / "model.gguf.sealed").read_bytes() for folder in (first, second)]
    assert sealed[0][48:] != sealed[1][48:]
    found = inventory(store, {first.name: "one", second.name: "two"}, [])
    assert found["shared"] == []
    assert all(model["shared_bytes"] == 0 for model in found["models"])
