"""What networks and object stores do to an import, between a real server of each: it ends well, or says by name why not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.checkpoints import make_checkpoint
from tests.support.fault_proxy import FaultProxy
from tests.support.s3 import MotoServer, S3Server
from tests.support.server import Server, wait_for

SHARD = r"/model-00002-of-00004\.safetensors"
HEADER_READS = 1  # of each shard, by the preflight
HEADER = "bytes=0-65535"


@pytest.fixture(scope="module")
def s3(moto: MotoServer) -> S3Server:
    """The server that is broken; ``tests/swift`` puts another in its place."""
    return moto


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3.url).start()
    yield proxy
    proxy.stop()


@pytest.fixture
def faults(proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy, healthy and without a past."""
    proxy.heal()
    proxy.seen.clear()
    yield proxy
    proxy.heal()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("faults") / "four", shards=4, hidden=128)


def started(home: Path, s3: S3Server, proxy: FaultProxy, **settings: object) -> Server:
    stores = json.dumps([s3.store(endpoint=proxy.url)])
    given = {"cpu_threads": 1, "imports_in_parallel": 8, "source_retry_s": 6, "source_stall_s": 1, **settings}
    return Server(home, object_stores=stores, **given).start()


@pytest.fixture(scope="module")
def server(s3: S3Server, proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = started(tmp_path_factory.mktemp("home"), s3, proxy)
    yield server
    server.stop()


def outcrop(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as a person types it."""
    return subprocess.run(
        [sys.executable, "-m", "outcrop.cli.main", *words],
        env={**os.environ, "OUTCROP_HOME": str(server.home)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def detail(server: Server, job: str) -> dict[str, Any]:
    found: dict[str, Any] = server.admin(f"/outcrop/v1/import-jobs/{job}")["detail"]
    return found


@pytest.mark.parametrize(
    ("kind", "times", "skip"),
    [
        ("error", 7, HEADER_READS),
        ("error", 5, 0),
        ("reset", 5, HEADER_READS),
        ("truncate", 3, HEADER_READS),
        ("stall", 1, HEADER_READS),
        ("expired", 1, HEADER_READS),
    ],
    ids=["errors", "errors in the preflight", "resets", "cut bodies", "silence", "expired credentials"],
)
def test_an_import_outlasts_what_passes(
    server: Server, s3: S3Server, faults: FaultProxy, checkpoint: Path, kind: str, times: int, skip: int
) -> None:
    name = f"outlasts-{kind}-{times}"
    uri = s3.upload(checkpoint, "faulty-models", name)
    faults.fail(kind, SHARD, times=times, skip=skip)

    job = server.ended_job(server.create_job(uri, name), timeout_s=90)

    assert job["status"] == "Completed", job.get("failureMessage")
    assert sum(entry.fault == kind for entry in faults.seen) == times
    for entry in detail(server, job["jobName"])["files"]:
        assert entry["sha256"] == hashlib.sha256((checkpoint / entry["name"]).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("error", "keeps failing (HTTP 500 InternalError)"),
        ("reset", "keeps failing"),
        ("expired", "(ExpiredToken). Renew the session token"),
        ("corrupt", "model-00002-of-00004.safetensors arrived with another"),
    ],
)
def test_an_import_that_cannot_go_on_says_why(
    server: Server, s3: S3Server, faults: FaultProxy, checkpoint: Path, kind: str, told: str
) -> None:
    uri = s3.upload(checkpoint, "faulty-models", f"ends-{kind}")
    faults.fail(kind, SHARD, times=10_000, skip=HEADER_READS)

    job = server.ended_job(server.create_job(uri, f"ends-{kind}"), timeout_s=90)

    assert job["status"] == "Failed"
    assert told in job["failureMessage"]
    assert not list((server.home / "store" / "staging").iterdir())


def test_an_object_that_is_replaced_midway_fails_the_job_by_name(
    server: Server, s3: S3Server, faults: FaultProxy, checkpoint: Path
) -> None:
    uri = s3.upload(checkpoint, "faulty-models", "replaced")
    faults.fail("stall", SHARD, skip=HEADER_READS)
    arn = server.create_job(uri, "replaced")
    wait_for(lambda: any(entry.fault == "stall" for entry in faults.seen))
    key = "replaced/model-00002-of-00004.safetensors"
    body = bytearray((checkpoint / "model-00002-of-00004.safetensors").read_bytes())
    body[-1] ^= 1
    s3.client("s3").put_object(Bucket="faulty-models", Key=key, Body=bytes(body))

    job = server.ended_job(arn, timeout_s=90)

    assert job["status"] == "Failed"
    assert "model-00002-of-00004.safetensors was replaced in the bucket" in job["failureMessage"]


def test_a_server_that_was_killed_asks_only_for_the_files_that_it_does_not_have(
    tmp_path: Path, s3: S3Server, faults: FaultProxy, checkpoint: Path
) -> None:
    uri = s3.upload(checkpoint, "faulty-models", "killed")
    server = started(tmp_path / "home", s3, faults, source_stall_s=60)
    try:
        faults.fail("stall", SHARD, times=10_000, skip=HEADER_READS)
        arn = server.create_job(uri, "killed")
        journals = server.home / "store" / "staging"

        def has_all_but_one() -> bool:
            notes = [json.loads(path.read_bytes()) for path in journals.glob("*/files.json")]
            return bool(notes) and len(notes[0]) == len(list(checkpoint.iterdir())) - 1

        wait_for(has_all_but_one, 30)
        server.kill()
        faults.heal()
        faults.seen.clear()
        server.start()
        job = server.ended_job(arn)

        assert job["status"] == "Completed", job.get("failureMessage")
        for number in (1, 3, 4):
            ranges = {entry.range for entry in faults.asked(f"/model-0000{number}-of-00004")}
            assert ranges == {HEADER}
        assert {entry.range for entry in faults.asked(SHARD)} > {HEADER}
    finally:
        server.stop()


def test_a_cancelled_job_stops_asking_and_leaves_nothing(
    server: Server, s3: S3Server, faults: FaultProxy, checkpoint: Path
) -> None:
    uri = s3.upload(checkpoint, "faulty-models", "cancelled")
    faults.fail("stall", SHARD, times=10_000, skip=HEADER_READS)
    arn = server.create_job(uri, "cancelled")
    wait_for(lambda: any(entry.fault == "stall" for entry in faults.seen))

    done = outcrop(server, "jobs", "cancel", "job-cancelled")

    assert done.returncode == 0, done.stderr
    assert "while transferring" in done.stderr
    job = server.client("bedrock").get_model_import_job(jobIdentifier=arn)
    assert job["status"] == "Failed"
    assert "was cancelled by arn:aws:iam::" in job["failureMessage"]
    assert not list((server.home / "store" / "staging").iterdir())
    assert outcrop(server, "jobs", "cancel", "job-cancelled").returncode == 2, "it has ended"
    count = len(faults.asked(SHARD))
    faults.heal()
    again = server.ended_job(server.create_job(uri, "cancelled-again"))
    assert again["status"] == "Completed", "the name and the quota are free again"
    assert len(faults.asked(SHARD)) > count


def test_one_import_more_than_the_limit_is_refused_while_the_first_is_watched_and_cancelled(
    tmp_path: Path, s3: S3Server, faults: FaultProxy, checkpoint: Path
) -> None:
    uri = s3.upload(checkpoint, "faulty-models", "quota")
    server = started(tmp_path / "home", s3, faults, imports_in_parallel=1, source_stall_s=60)
    try:
        faults.fail("stall", SHARD, times=10_000, skip=HEADER_READS)
        arn = server.create_job(uri, "first", clientRequestToken="once")
        wait_for(lambda: any(entry.fault == "stall" for entry in faults.seen))

        with pytest.raises(ClientError) as refused:
            server.create_job(uri, "second")
        assert refused.value.response["Error"]["Code"] == "ServiceQuotaExceededException"
        assert "Concurrent model import jobs" in str(refused.value)
        assert server.create_job(uri, "first", clientRequestToken="once") == arn

        watch = subprocess.Popen(
            [sys.executable, "-m", "outcrop.cli.main", "jobs", "watch", "job-first"],
            env={**os.environ, "OUTCROP_HOME": str(server.home)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watch.stderr is not None
        assert any("MB/s" in line for line in watch.stderr), "lines come while the job goes on"
        faults.heal()
        outcrop(server, "jobs", "cancel", "job-first")
        assert "was cancelled by" in watch.stderr.read()
        assert watch.wait(30) == 1
        assert server.ended_job(server.create_job(uri, "second"))["status"] == "Completed"
    finally:
        server.stop()


def test_progress_tells_bytes_rate_and_time_left(
    server: Server, s3: S3Server, faults: FaultProxy, checkpoint: Path
) -> None:
    uri = s3.upload(checkpoint, "faulty-models", "watched")
    faults.latency_s = 0.4
    try:
        arn = server.create_job(uri, "watched")
        seen: list[dict[str, Any]] = []

        def has_moved() -> bool:
            found = server.admin("/outcrop/v1/import-jobs/job-watched")
            seen.extend([found["detail"]["transfer"]] if "transfer" in found["detail"] else [])
            return bool(seen) and seen[-1]["bytes_per_s"] > 0

        wait_for(has_moved, 30)
    finally:
        faults.latency_s = 0.0
    job = server.ended_job(arn)

    assert job["status"] == "Completed"
    assert 0 < seen[-1]["done_bytes"] <= seen[-1]["total_bytes"]
    assert seen[-1]["eta_s"] is not None
