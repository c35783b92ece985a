"""Bodies that are not what they should be: a refusal in the dialect of the door, on every door that takes a body."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import pytest
from tests.support.server import Server

BODIES = {
    "cut off": b'{"prompt":"x"',
    "no object": b'["prompt"]',
    "no JSON": b"\x00\x01",
    "invalid UTF-8": b'{"prompt":"\xff"}',
    "lone surrogate": b'{"prompt":"\\ud800"}',
    "nested deep": b'{"prompt":' * 50_000 + b"1" + b"}" * 50_000,
    "nested lists": b'{"messages":' + b"[" * 900 + b"]" * 900 + b"}",
    "a name twice": b'{"prompt":"a","max_tokens":1,"prompt":"b"}',
    "not a number": b'{"prompt":"x","temperature":NaN}',
    "beyond a double": b'{"prompt":"x","temperature":1e400}',
    "five thousand digits": b'{"prompt":"x","max_tokens":1' + b"0" * 5000 + b"}",
    "over 64 bits": b'{"prompt":"x","seed":99999999999999999999}',
    "two values": b'{"prompt":"x"} {"prompt":"y"}',
}
AWS_DOORS = [
    ("POST", "/model/{model}/invoke"),
    ("POST", "/model/{model}/invoke-with-response-stream"),
    ("POST", "/model/{model}/converse"),
    ("POST", "/model/{model}/converse-stream"),
    ("POST", "/model-import-jobs"),
    ("PUT", "/logging/modelinvocations"),
]


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    bearer = {"authorization": f"Bearer {server.credentials.bearer_key}"}
    with httpx.Client(base_url=server.url, headers=bearer, timeout=60) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), AWS_DOORS)
def test_a_bad_body_is_a_validation_exception(client: httpx.Client, model: str, method: str, path: str) -> None:
    for name, body in BODIES.items():
        answer = client.request(method, path.format(model=quote(model, safe="")), content=body)
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (400, "ValidationException"), name
        assert answer.json().keys() == {"message"}, name


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_bad_body_is_an_invalid_request_to_openai_clients(client: httpx.Client, model: str, path: str) -> None:
    for name, body in BODIES.items():
        answer = client.post(path, content=body)
        assert answer.status_code == 400, name
        assert answer.json()["error"]["type"] == "invalid_request_error", name


def test_bad_base64_names_the_member(client: httpx.Client, model: str) -> None:
    body = {"messages": [{"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": "!!!"}}}]}]}
    answer = client.post(f"/model/{quote(model, safe='')}/converse", json=body)

    assert answer.status_code == 400
    assert "messages.1.member.content.1.member.image.source.bytes" in answer.json()["message"]
    assert "base64" in answer.json()["message"]


def test_a_body_over_25_million_bytes_is_refused(client: httpx.Client, model: str) -> None:
    body = b'{"prompt":"' + b"x" * 25_000_000 + b'"}'
    bedrock = client.post(f"/model/{quote(model, safe='')}/invoke", content=body)
    openai = client.post("/v1/completions", content=body)

    assert (bedrock.status_code, bedrock.headers["x-amzn-errortype"]) == (400, "ValidationException")
    assert "25000000 bytes" in bedrock.json()["message"]
    assert (openai.status_code, openai.json()["error"]["code"]) == (413, "request_too_large")
