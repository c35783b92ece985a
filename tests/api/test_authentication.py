"""Nobody gets in: every listener path, every way to get a signature wrong."""

from __future__ import annotations

import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import pytest
from botocore import UNSIGNED
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from tests.support.checkpoints import make_checkpoint
from tests.support.copies import UnixConnection, asked, listening_ports, listening_sockets
from tests.support.server import Server

from outcrop.engines.llama_cpp_child import PREFIX


def code(call: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    found: str = refused.value.response["Error"]["Code"]
    return found


def test_a_request_without_credentials_is_refused(server: Server) -> None:
    client = boto3.client(
        "bedrock", endpoint_url=server.url, region_name="us-east-1", config=Config(signature_version=UNSIGNED)
    )

    assert code(client.list_imported_models) == "MissingAuthenticationTokenException"


def test_an_unknown_access_key_is_refused(server: Server) -> None:
    client = server.client("bedrock", aws_access_key_id="AKIAAAAAAAAAAAAAAAAA")

    assert code(client.list_imported_models) == "UnrecognizedClientException"


def test_a_wrong_secret_is_refused(server: Server) -> None:
    client = server.client("bedrock", aws_secret_access_key="x" * 40)

    assert code(client.list_imported_models) == "InvalidSignatureException"


def test_another_region_is_refused(server: Server) -> None:
    client = server.client("bedrock", region_name="eu-central-1")

    assert code(client.list_imported_models) == "InvalidSignatureException"


def test_a_signature_from_an_hour_ago_is_refused_and_says_so(server: Server) -> None:
    keys = server.credentials
    request = AWSRequest("GET", f"{server.url}/imported-models")
    with mock.patch("botocore.auth.get_current_datetime", return_value=datetime.now(UTC) - timedelta(hours=1)):
        SigV4Auth(Credentials(keys.access_key_id, keys.secret_access_key), "bedrock", "us-east-1").add_auth(request)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(request.url, headers=dict(request.headers)))

    assert refused.value.code == 403
    assert b"Signature expired" in refused.value.read()


@pytest.mark.parametrize("path", ["/metrics", "/outcrop/v1/status", "/v1/models", "/imported-models", "/nowhere"])
def test_only_health_answers_without_credentials(server: Server, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.url + path)

    assert refused.value.code in (401, 403)
    assert urllib.request.urlopen(server.url + "/healthz").read() == b"ok"
    assert urllib.request.urlopen(server.url + "/readyz").read() == b"ok"


def test_the_engine_behind_a_copy_asks_for_its_own_secret(server: Server, model: str) -> None:
    server.client("bedrock-runtime").invoke_model(modelId=model, body='{"prompt":"x","max_gen_len":1}')
    pid = next(copy["pid"] for copy in server.status()["copies"] if copy["model_arn"] == model)
    path = listening_sockets([pid], server.home / "run" / "sockets")[pid]

    assert listening_ports([pid]) == []
    assert asked(UnixConnection(path), "POST", f"{PREFIX}/v1/completions", None)[0] == 401
    assert Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:] == [
        b"-P",
        b"-m",
        b"outcrop.engines.llama_cpp_child",
        b"",
    ]


def test_credentials_are_private(server: Server) -> None:
    assert (server.home / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert server.credentials.secret_access_key not in (server.home / "server.log").read_text()


def test_a_bearer_key_works_in_boto3_over_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path / "home", tls=True, cpu_threads=1).start()
    try:
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", server.credentials.bearer_key)
        authority = str(server.home / "tls" / "ca.pem")
        clients = {
            name: boto3.client(name, endpoint_url=server.url, region_name="us-east-1", verify=authority)
            for name in ("bedrock", "bedrock-runtime")
        }
        monkeypatch.setenv("AWS_CA_BUNDLE", authority)
        arn = server.import_model(make_checkpoint(tmp_path / "model"), "tls")

        assert clients["bedrock"].get_imported_model(modelIdentifier="tls")["modelArn"] == arn
        answer = clients["bedrock-runtime"].invoke_model(modelId=arn, body='{"prompt":"x","max_gen_len":1}')
        assert b"generation" in answer["body"].read()
    finally:
        assert server.stop() == 0
