"""The audit log of a real server: every call through every door, refused ones, a killed server, the commands."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from botocore.exceptions import ClientError
from tests.support.server import Server

PROMPT = "zanzibar hippopotamus"
CONVERSE = [{"role": "user", "content": [{"text": PROMPT}]}]


@pytest.fixture
def audited(tmp_path: Path, tiny: Path) -> Iterator[Server]:
    server = Server(tmp_path / "home", cpu_threads=1, trusted_proxies='["127.0.0.0/8"]').start()
    server.import_model(tiny, "tiny")
    yield server
    server.stop()


def outcrop(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outcrop.cli.main", "audit", *arguments, "--home", str(server.home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def asked(server: Server, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(outcrop(server, "--json", "--last", "0", *arguments).stdout)
    return found


def test_every_call_is_in_the_log_before_its_answer_also_when_the_server_is_killed(audited: Server) -> None:
    runtime, bedrock = audited.client("bedrock-runtime"), audited.client("bedrock")
    arn = bedrock.get_imported_model(modelIdentifier="tiny")["modelArn"]
    config = {"maxTokens": 2}
    runtime.converse(modelId=arn, messages=CONVERSE, inferenceConfig=config)
    stream = runtime.converse_stream(modelId=arn, messages=CONVERSE, inferenceConfig={"maxTokens": 200})["stream"]
    next(iter(stream))
    client = openai.OpenAI(base_url=f"{audited.url}/v1", api_key=audited.credentials.bearer_key)
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": PROMPT}], max_tokens=2)
    with pytest.raises(ClientError):
        bedrock.get_imported_model(modelIdentifier="nobody")
    with pytest.raises(ClientError):
        audited.client("bedrock", aws_secret_access_key="wrong").list_imported_models()
    audited.client("sagemaker").list_models()
    audited.status()
    headers = {"X-Forwarded-For": "203.0.113.9, 198.51.100.4", "User-Agent": "stranger/1"}
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(f"{audited.url}/foundation-models", headers=headers), timeout=10)
    audited.kill()

    found = {record["eventName"]: record for record in asked(audited)}
    calls = [
        record["eventName"] for record in asked(audited, "--since", "2020-01-01") if record["eventSource"] != "outcrop"
    ]
    assert calls[-7:] == [
        "Converse",
        "ConverseStream",
        "ChatCompletions",
        "GetImportedModel",
        "ListImportedModels",
        "ListModels",
        "ListFoundationModels",
    ]
    assert found["Converse"]["requestParameters"] == {"modelId": arn}
    assert found["Converse"]["resources"][0]["ARN"] == arn
    assert found["Converse"]["sourceIPAddress"] == "127.0.0.1"
    assert "Boto3" in found["Converse"]["userAgent"]
    assert found["Converse"]["userIdentity"]["accessKeyId"] == audited.credentials.access_key_id
    assert found["ChatCompletions"]["additionalEventData"] == {"callWithBearerToken": True}
    assert found["GetImportedModel"]["errorCode"] == "ResourceNotFoundException"
    refused = found["ListImportedModels"]
    assert refused["errorCode"] == "InvalidSignatureException"
    assert refused["userIdentity"] == {"type": "Unknown", "accessKeyId": audited.credentials.access_key_id}
    stranger = found["ListFoundationModels"]
    assert (stranger["errorCode"], stranger["sourceIPAddress"], stranger["userAgent"]) == (
        "MissingAuthenticationTokenException",
        "198.51.100.4",
        "stranger/1",
    )
    assert found["ListModels"]["eventSource"] == "sagemaker.amazonaws.com"
    assert found["GET /outcrop/v1/status"]["readOnly"] is True
    created = found["CreateModelImportJob"]
    assert created["responseElements"]["jobArn"] in [resource["ARN"] for resource in created["resources"]]
    text = b"".join(path.read_bytes() for path in (audited.home / "logs" / "audit").iterdir())
    for secret in (PROMPT, audited.credentials.secret_access_key, audited.credentials.bearer_key):
        assert secret.encode() not in text

    audited.start()  # mends what the kill left, if anything
    audited.stop()
    verified = outcrop(audited, "verify")
    assert verified.returncode == 0, verified.stderr
    head = verified.stdout.split("head ")[1].strip()
    assert outcrop(audited, "verify", "--head", head).returncode == 0


def test_tampering_is_named_by_the_command(audited: Server) -> None:
    audited.stop()
    path = next((audited.home / "logs" / "audit").glob("*.jsonl"))
    path.write_bytes(path.read_bytes().replace(b"CreateModelImportJob", b"GetFoundationModels!", 1))

    verified = outcrop(audited, "verify")

    assert verified.returncode == 1
    assert "its content was changed" in verified.stderr
    assert f"{path}:" in verified.stderr


def test_the_log_is_exported_as_cloudtrail_writes_it(audited: Server, tmp_path: Path) -> None:
    audited.stop()
    (audited.home / "buckets" / "trail").mkdir()
    assert outcrop(audited, "export", "--out", str(tmp_path / "out")).returncode == 0
    done = outcrop(audited, "export", "--out", "s3://trail/x")
    assert done.returncode == 0, done.stderr

    for folder in (tmp_path / "out", audited.home / "buckets" / "trail" / "x"):
        (path,) = folder.rglob("*.json.gz")
        assert path.relative_to(folder).parts[:4] == ("AWSLogs", "000000000000", "CloudTrail", "us-east-1")
        records = json.loads(gzip.decompress(path.read_bytes()))["Records"]
        assert "CreateModelImportJob" in [record["eventName"] for record in records]
