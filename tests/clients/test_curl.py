"""curl signs by itself (``--aws-sigv4``): what people try first from a shell."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.server import Server


def curl(server: Server, path: str, *options: str) -> tuple[int, str]:
    keys = server.credentials
    done = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}"),
            *("--aws-sigv4", f"aws:amz:{keys.region}:bedrock"),
            *("--user", f"{keys.access_key_id}:{keys.secret_access_key}"),
            *options,
            server.url + path,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_curl_lists_models(server: Server, model: str) -> None:
    status, body = curl(server, "/imported-models?maxResults=5&nameContains=tiny")

    assert status == 200, body
    assert model in [summary["modelArn"] for summary in json.loads(body)["modelSummaries"]]


@pytest.mark.parametrize("protocol", ["--http1.1", "--http2-prior-knowledge"])
def test_curl_invokes_and_streams(server: Server, model: str, protocol: str) -> None:
    path = "/model/tiny"  # curl signs an escaped path as it is sent, not escaped once more, which AWS refuses as well
    body = json.dumps({"prompt": "for each", "max_gen_len": 4, "temperature": 0})
    asked = (protocol, "--header", "content-type: application/json", "--data-binary", body)
    status, answer = curl(server, f"{path}/invoke", *asked)
    streamed, events = curl(server, f"{path}/invoke-with-response-stream", *asked, "--output", "/dev/null")

    assert status == 200, answer
    assert json.loads(answer)["generation_token_count"] == 4
    assert (streamed, events) == (200, "")


def test_curl_with_a_wrong_secret_is_refused(server: Server, model: str) -> None:
    keys = server.credentials
    status, body = curl(server, "/imported-models", "--user", f"{keys.access_key_id}:{'x' * 40}")

    assert status == 403
    assert "signature" in json.loads(body)["message"]
