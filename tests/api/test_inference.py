"""Inference through real clients on a real socket: boto3 and the OpenAI SDK."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from botocore.exceptions import ClientError
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server, wait_for

CHAT = [{"role": "user", "content": "for each record in the list"}]
CONVERSE = [{"role": "user", "content": [{"text": "for each record in the list"}]}]


@pytest.fixture(scope="session")
def runtime(server: Server) -> Any:
    return server.client("bedrock-runtime")


@pytest.fixture(scope="session")
def sdk(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.credentials.bearer_key, max_retries=0)


def ask(runtime: Any, model: str, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(runtime.invoke_model(modelId=model, body=json.dumps(body))["body"].read())
    return answer


def refusal(runtime: Any, model: str, body: bytes | str) -> dict[str, Any]:
    with pytest.raises(ClientError) as refused:
        runtime.invoke_model(modelId=model, body=body)
    error: dict[str, Any] = refused.value.response
    return error


def test_prompt_and_max_gen_len_answer_in_bedrock_s_own_format(runtime: Any, model: str) -> None:
    answer = ask(runtime, model, prompt="for each", max_gen_len=5, temperature=0)

    assert set(answer) == {"generation", "prompt_token_count", "generation_token_count", "stop_reason", "logprobs"}
    assert answer["generation_token_count"] == 5
    assert answer["stop_reason"] == "length"


def test_prompt_and_max_tokens_answer_as_a_text_completion(runtime: Any, model: str) -> None:
    answer = ask(runtime, model, prompt="for each", max_tokens=5)

    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["usage"]["completion_tokens"] == 5


def test_messages_answer_as_a_chat_completion(runtime: Any, model: str) -> None:
    answer = ask(runtime, model, messages=CHAT, max_tokens=5, temperature=0)

    assert answer["object"] == "chat.completion"
    assert answer["model"] == f"000000000000-{model.rsplit('/', 1)[1]}"
    assert answer["choices"][0]["finish_reason"] == "length"


def test_invoke_tells_token_counts_and_latency_in_headers(runtime: Any, model: str) -> None:
    response = runtime.invoke_model(modelId=model, body='{"prompt":"for each","max_gen_len":3,"temperature":0}')
    headers = response["ResponseMetadata"]["HTTPHeaders"]

    assert response["contentType"] == "application/json"
    assert headers["x-amzn-bedrock-output-token-count"] == "3"
    assert int(headers["x-amzn-bedrock-input-token-count"]) > 0
    assert int(headers["x-amzn-bedrock-invocation-latency"]) >= 0


def test_a_stream_gives_the_same_text_as_the_whole_answer_and_ends_with_metrics(runtime: Any, model: str) -> None:
    body = {"messages": CHAT, "max_tokens": 12, "temperature": 0}
    stream = runtime.invoke_model_with_response_stream(modelId=model, body=json.dumps(body))["body"]
    chunks = [json.loads(event["chunk"]["bytes"]) for event in stream]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])

    assert text == ask(runtime, model, **body)["choices"][0]["message"]["content"]
    assert chunks[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == 12


def test_converse_and_its_stream_give_the_same_text(runtime: Any, model: str) -> None:
    asked = {"modelId": model, "messages": CONVERSE, "inferenceConfig": {"maxTokens": 8, "temperature": 0}}
    whole = runtime.converse(**asked)
    events = list(runtime.converse_stream(**asked)["stream"])

    text = "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e)
    assert text == whole["output"]["message"]["content"][0]["text"]
    assert whole["stopReason"] == "max_tokens"
    assert whole["usage"]["totalTokens"] == whole["usage"]["inputTokens"] + 8
    assert [next(iter(event)) for event in (events[0], *events[-2:])] == ["messageStart", "messageStop", "metadata"]


def test_the_openai_sdk_chats_streams_and_lists_models(sdk: openai.OpenAI, model: str) -> None:
    whole = sdk.chat.completions.create(model="tiny", messages=CHAT, max_tokens=6, temperature=0)  # type: ignore[arg-type]
    stream = sdk.chat.completions.create(
        model="tiny",
        messages=CHAT,  # type: ignore[arg-type]
        max_tokens=6,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    assert "tiny" in [entry.id for entry in sdk.models.list()]


def test_the_openai_sdk_hears_its_own_errors(server: Server, sdk: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="absent", messages=CHAT)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="context"):
        sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x " * 2000}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_a_prompt_longer_than_the_context_is_a_validation_error_that_says_how_long(runtime: Any, model: str) -> None:
    error = refusal(runtime, model, json.dumps({"prompt": "x " * 2000}))

    assert error["Error"]["Code"] == "ValidationException"
    assert "this model's context holds 512 tokens" in error["Error"]["Message"]


@pytest.mark.parametrize("body", ['{"prompt":', "[]", "nonsense", ""])
def test_malformed_json_is_a_validation_error(runtime: Any, model: str, body: str) -> None:
    assert refusal(runtime, model, body)["Error"]["Code"] == "ValidationException"


def test_a_body_over_25_mb_is_refused_by_its_size(runtime: Any, model: str) -> None:
    error = refusal(runtime, model, b'{"prompt":"' + b"x" * 25_000_000 + b'"}')

    assert "larger than the limit of 25000000 bytes" in error["Error"]["Message"]


def test_an_unknown_model_is_not_found(runtime: Any) -> None:
    arn = "arn:aws:bedrock:us-east-1:000000000000:imported-model/aaaaaaaaaaaa"

    assert refusal(runtime, arn, '{"prompt":"x"}')["ResponseMetadata"]["HTTPStatusCode"] == 404


def test_an_operation_that_is_not_implemented_says_so(server: Server) -> None:
    with pytest.raises(ClientError) as refused:
        server.client("bedrock").list_guardrails()

    assert refused.value.response["Error"]["Code"] == "UnknownOperationException"
    assert "ListGuardrails" in refused.value.response["Error"]["Message"]


def test_messages_to_a_model_without_a_chat_template_are_refused(server: Server, runtime: Any, tmp_path: Path) -> None:
    arn = server.import_model(make_checkpoint(tmp_path / "plain", has_chat_template=False), "plain")

    assert refusal(runtime, arn, json.dumps({"messages": CHAT}))["Error"]["Code"] == "ValidationException"
    with pytest.raises(ClientError, match="This action doesn't support the model that you provided"):
        runtime.converse(modelId=arn, messages=CONVERSE)
    assert ask(runtime, arn, prompt="for each", max_gen_len=2)["generation_token_count"] == 2


def test_http_2_by_prior_knowledge_is_spoken_on_the_same_port(server: Server, model: str) -> None:
    command = ["curl", "-s", "-w", "%{http_version}", "--http2-prior-knowledge", f"{server.url}/healthz"]

    assert subprocess.run(command, capture_output=True, check=True).stdout == b"ok2"


def test_a_client_that_hangs_up_frees_its_slot(server: Server, model: str) -> None:
    body = json.dumps({"model": "tiny", "prompt": "for", "max_tokens": 500, "stream": True, "ignore_eos": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.credentials.bearer_key}\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            assert connection.recv(100)
    time.sleep(0.05)

    wait_for(lambda: all(copy["in_flight"] == 0 for copy in server.status()["copies"]), 10)
