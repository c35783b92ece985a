"""Imports from OpenStack Swift's S3 API: every fault of ``tests/e2e/test_transfer_faults``, and what Swift has of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.e2e.test_transfer_faults import *  # noqa: F403  (the same tests, against this server)
from tests.support.fault_proxy import FaultProxy
from tests.support.server import Server
from tests.support.swift import SwiftServer


@pytest.fixture(scope="module")
def s3(swift: SwiftServer) -> SwiftServer:
    return swift


def test_a_multipart_upload_is_imported(server: Server, swift: SwiftServer, checkpoint: Path) -> None:
    uri = swift.upload(checkpoint, "swift-models", "multipart")
    shard = "model-00001-of-00004.safetensors"
    body = (checkpoint / shard).read_bytes()
    key = {"Bucket": "swift-models", "Key": f"multipart/{shard}"}
    client = swift.client()
    upload = client.create_multipart_upload(**key)["UploadId"]
    part = client.upload_part(**key, UploadId=upload, PartNumber=1, Body=body)
    parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
    client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload={"Parts": parts})
    assert "-1" in client.head_object(**key)["ETag"]

    job = server.ended_job(server.create_job(uri, "multipart"))

    assert job["status"] == "Completed", job.get("failureMessage")


def test_files_of_one_part_are_verified_by_their_etag(server: Server, swift: SwiftServer, checkpoint: Path) -> None:
    uri = swift.upload(checkpoint, "swift-models", "verified")

    job = server.ended_job(server.create_job(uri, "verified"))

    files = server.admin(f"/outcrop/v1/import-jobs/{job['jobName']}")["detail"]["files"]
    assert {entry["verified"] for entry in files} == {"MD5"}


def test_a_wrong_secret_is_told_as_such(
    tmp_path: Path, swift: SwiftServer, proxy: FaultProxy, checkpoint: Path
) -> None:
    uri = swift.upload(checkpoint, "swift-models", "secret")
    stores = json.dumps([swift.store(secret_access_key="wrong")])
    server = Server(tmp_path / "home", object_stores=stores, cpu_threads=1).start()
    try:
        job = server.ended_job(server.create_job(uri, "secret"))
    finally:
        server.stop()

    assert "SignatureDoesNotMatch" in job["failureMessage"]
