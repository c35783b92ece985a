"""Imports from Ceph's S3 gateway: every fault of ``tests/e2e/test_transfer_faults``, and roles of its own STS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.test_transfer_faults import *  # noqa: F403  (the same tests, against this server)
from tests.support.ceph import CephServer
from tests.support.server import Server


@pytest.fixture(scope="module")
def s3(ceph: CephServer) -> CephServer:
    return ceph


@pytest.fixture(scope="module")
def by_role(ceph: CephServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that reads as the role of each job."""
    stores = json.dumps([ceph.store(assume_role=True)])
    server = Server(tmp_path_factory.mktemp("home"), object_stores=stores, cpu_threads=1, source_retry_s=1).start()
    yield server
    server.stop()


def test_a_job_reads_as_its_role(by_role: Server, ceph: CephServer, checkpoint: Path) -> None:
    uri = ceph.upload(checkpoint, "role-models", "v1")
    everything = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}

    job = by_role.ended_job(by_role.create_job(uri, "by-role", role=ceph.role("importer", [everything])))

    assert job["status"] == "Completed", job.get("failureMessage")


def test_a_role_that_may_not_read_is_named(by_role: Server, ceph: CephServer, checkpoint: Path) -> None:
    uri = ceph.upload(checkpoint, "role-models", "v2")
    elsewhere = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::other-models/*"]}
    role = ceph.role("elsewhere", [elsewhere])

    told = by_role.ended_job(by_role.create_job(uri, "by-wrong-role", role=role))["failureMessage"]

    assert f"as {role} (AccessDenied)" in told


def test_a_wrong_secret_is_told_as_the_gateway_tells_it(tmp_path: Path, ceph: CephServer, checkpoint: Path) -> None:
    uri = ceph.upload(checkpoint, "ceph-models", "secret")
    stores = json.dumps([ceph.store(secret_access_key="wrong")])
    server = Server(tmp_path / "home", object_stores=stores, cpu_threads=1).start()
    try:
        job = server.ended_job(server.create_job(uri, "secret"))
    finally:
        server.stop()

    # With its STS on, radosgw 16 gives no better reason.
    assert f"denied by {ceph.url} with the store's credentials (AccessDenied)" in job["failureMessage"]
