"""Imports from a real S3 server that checks signatures and policies: what is read, with whose rights, what is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import make_checkpoint
from tests.support.s3 import MotoServer
from tests.support.server import Server

ACCOUNT = "123456789012"  # moto's


def allow(*buckets: str, actions: tuple[str, ...] = ("s3:GetObject", "s3:ListBucket")) -> list[dict[str, Any]]:
    resources = [f"arn:aws:s3:::{bucket}{end}" for bucket in buckets for end in ("", "/*")]
    return [{"Effect": "Allow", "Action": list(actions), "Resource": resources}]


@pytest.fixture(scope="module")
def uploaded(moto: MotoServer, tiny: Path) -> str:
    return moto.upload(tiny, "team-models", "reviews/v1")


@pytest.fixture(scope="module")
def server(moto: MotoServer, uploaded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with stores in it: of a reader, behind a role, of someone who may read nothing, and a wrong secret."""
    reader = moto.user("reader", allow("team-models", "team-absent"))
    nobody = moto.user("nobody", [])
    known = [f"arn:aws:iam::{ACCOUNT}:role/{name}" for name in ("importer", "elsewhere")]
    broker = moto.user("broker", [{"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": known}])
    wrong = {**moto.store(reader), "secret_access_key": "wrong"}
    stores = [
        moto.store(reader, buckets=["team-*"]),
        moto.store(broker, buckets=["role-models"], assume_role=True),
        moto.store(nobody, buckets=["locked-models"]),
        {**wrong, "buckets": ["wrong-secret"]},
        {**moto.store(reader, endpoint="http://127.0.0.1:9"), "buckets": ["unreachable"]},
    ]
    home = tmp_path_factory.mktemp("home")
    server = Server(
        home,
        account=ACCOUNT,
        cpu_threads=1,
        imports_in_parallel=4,
        object_stores=json.dumps(stores),
        source_retry_s=0.5,
    ).start()
    yield server
    server.stop()


def failure(server: Server, uri: str, name: str) -> str:
    job = server.ended_job(server.create_job(uri, name))
    assert job["status"] == "Failed"
    assert not list((server.home / "store" / "staging").glob("*"))
    return str(job["failureMessage"])


def test_a_checkpoint_in_an_object_store_is_imported_and_answers(server: Server, uploaded: str, tiny: Path) -> None:
    job = server.ended_job(server.create_job(uploaded, "from-s3"))

    assert job["status"] == "Completed", job.get("failureMessage")
    body = '{"prompt":"for each record","max_gen_len":2}'
    server.client("bedrock-runtime").invoke_model(modelId=job["importedModelArn"], body=body)
    detail = server.admin(f"/outcrop/v1/import-jobs/{job['jobName']}")["detail"]
    files = {entry["name"]: entry for entry in detail["files"]}
    assert set(files) == {path.name for path in tiny.iterdir()}
    for name, entry in files.items():
        content = (tiny / name).read_bytes()
        assert (entry["size_bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert entry["how"] == "downloaded"
        assert entry["verified"] in ("CRC32", "CRC64NVME"), "the server offers a checksum of the whole object"
    assert detail["scan"]["not_finite"] == []
    assert detail["transfer"]["done_bytes"] == detail["transfer"]["total_bytes"]


def test_a_second_import_of_the_same_objects_moves_nothing(server: Server, uploaded: str) -> None:
    job = server.ended_job(server.create_job(uploaded, "from-s3-again"))

    assert job["status"] == "Completed", job.get("failureMessage")
    detail = server.admin(f"/outcrop/v1/import-jobs/{job['jobName']}")["detail"]
    assert {entry["how"] for entry in detail["files"]} == {"known"}
    shared = server.admin("/outcrop/v1/store")["shared"]
    assert {"from-s3", "from-s3-again"} in [set(entry["models"]) for entry in shared]


def test_a_job_reads_as_its_role_where_the_store_says_so(server: Server, moto: MotoServer, tiny: Path) -> None:
    uri = moto.upload(tiny, "role-models", "v1")
    broker = f"arn:aws:iam::{ACCOUNT}:user/broker"
    role = moto.role("importer", allow("role-models"), trusts={"AWS": broker})

    job = server.ended_job(server.create_job(uri, "by-role", role=role))

    assert job["status"] == "Completed", job.get("failureMessage")


def test_a_role_that_may_not_read_the_bucket_is_named(server: Server, moto: MotoServer, tiny: Path) -> None:
    uri = moto.upload(tiny, "role-models", "v2")
    broker = f"arn:aws:iam::{ACCOUNT}:user/broker"
    role = moto.role("elsewhere", allow("other-models"), trusts={"AWS": broker})

    told = server.ended_job(server.create_job(uri, "by-wrong-role", role=role))["failureMessage"]

    assert f"as {role} (AccessDenied)" in told
    assert "s3:GetObject and s3:ListBucket" in told


def test_a_role_that_cannot_be_assumed_is_told_as_aws_tells_it(server: Server) -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/absent"

    told = server.ended_job(server.create_job("s3://role-models/v1/", "no-role", role=role))["failureMessage"]

    assert "The provided IAM role could not be assumed" in told
    assert role in told


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3://locked-models/v1/", "was denied by"),
        ("s3://wrong-secret/v1/", "SignatureDoesNotMatch"),
        ("s3://team-models/nowhere/", "No checkpoint was found at s3://team-models/nowhere/"),
        ("s3://team-absent/v1/", "has no bucket team-absent"),
        ("s3://unreachable/v1/", "The object store at http://127.0.0.1:9 keeps failing"),
        ("s3://unclaimed/v1/", "no bucket unclaimed here, and no object store claims it"),
    ],
)
def test_a_source_that_cannot_be_read_fails_the_job_and_says_why(server: Server, uri: str, told: str) -> None:
    assert told in failure(server, uri, uri.split("/")[2])


def test_several_imports_run_at_once(server: Server, moto: MotoServer, tmp_path: Path) -> None:
    uris = [
        moto.upload(make_checkpoint(tmp_path / str(seed), seed=seed), "team-models", f"many/{seed}")
        for seed in range(3)
    ]

    jobs = [server.create_job(uri, f"many-{number}") for number, uri in enumerate(uris)]

    assert [server.ended_job(job)["status"] for job in jobs] == ["Completed"] * 3
