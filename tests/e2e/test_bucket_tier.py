"""Models whose files are only in their bucket: given up only while the source vouches for them, back when asked."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.server import Server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "home", cpu_threads=1).start()
    yield server
    server.stop()


def ask(server: Server, arn: str) -> str:
    body = json.dumps({"prompt": "for each", "max_gen_len": 5, "temperature": 0})
    answer = server.client("bedrock-runtime").invoke_model(modelId=arn, body=body)
    text: str = json.loads(answer["body"].read())["generation"]
    return text


def shown(server: Server) -> dict[str, Any]:
    (model,) = server.status()["models"]
    return model  # type: ignore[no-any-return]


def spoil(server: Server, name: str) -> None:
    """Replace a file of the bucket, as an upload does, by one that is a byte longer."""
    path = server.home / "buckets" / "artifacts" / "cold" / name
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data + b" ")


def test_an_evicted_model_comes_back_whole_when_it_is_asked_and_its_wake_is_measured(own: Server, tiny: Path) -> None:
    arn = own.import_model(tiny, "cold")
    before = ask(own, arn)
    freed = own.admin("/outcrop/v1/models/cold/evict", method="POST")["freed_bytes"]

    assert freed > 0
    assert (shown(own)["state"], own.status()["copies"]) == ("bucket", [])
    assert own.store_bytes() == 0
    assert ask(own, arn) == before
    assert shown(own)["state"] == "ready"
    assert shown(own)["wake_s"]["bucket"] > shown(own)["wake_s"]["cached"]
    assert list((own.home / "store" / "staging").iterdir()) == []


@pytest.mark.long
def test_an_evicted_model_is_still_evicted_after_a_restart_and_comes_back(own: Server, tiny: Path) -> None:
    arn = own.import_model(tiny, "cold")
    before = ask(own, arn)
    own.admin("/outcrop/v1/models/cold/evict", method="POST")
    own.stop()
    own.start()

    assert shown(own)["state"] == "bucket"
    assert ask(own, arn) == before


def test_local_files_are_kept_when_the_source_no_longer_serves_what_was_imported(own: Server, tiny: Path) -> None:
    arn = own.import_model(tiny, "cold")
    spoil(own, "config.json")

    with pytest.raises(urllib.error.HTTPError) as refused:
        own.admin("/outcrop/v1/models/cold/evict", method="POST")
    assert "config.json in s3://artifacts/cold/ is no longer what was imported" in refused.value.read().decode()
    assert ask(own, arn)


def test_a_source_that_changed_meanwhile_does_not_become_the_model(own: Server, tiny: Path) -> None:
    arn = own.import_model(tiny, "cold")
    own.admin("/outcrop/v1/models/cold/evict", method="POST")
    spoil(own, "config.json")

    with pytest.raises(ClientError) as failed:
        ask(own, arn)
    assert failed.value.response["Error"]["Code"] == "ModelErrorException"
    assert "config.json differ" in failed.value.response["Error"]["Message"]
    assert list((own.home / "store" / "staging").iterdir()) == []
