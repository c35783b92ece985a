"""The real vLLM, on the CPU, behind the real doors: one import, one server, every route."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from botocore.exceptions import ClientError
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server, wait_for

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server whose model "real" runs on vLLM; its ARN. The copy is started by the import's proof run, then by use."""
    folder = tmp_path_factory.mktemp("vllm")
    checkpoint = make_checkpoint(folder / "checkpoint", hidden=256)  # its attention wants heads of 32 values or more
    server = Server(
        folder / "home",
        vllm=os.environ["OUTCROP_TEST_VLLM"],
        engine_by_model='{"real": "vllm"}',
        request_timeout_s=300,
        hold_limit_s=600,
        stream_hold_limit_s=600,
        memory_bytes=20_000_000_000,
    ).start()
    try:
        job = server.ended_job(server.create_job(server.put(checkpoint, "real"), "real"), timeout_s=600)
        assert job["status"] == "Completed", job.get("failureMessage")
        server.client("bedrock-runtime").invoke_model(modelId=job["importedModelArn"], body=json.dumps(CHAT))
        yield server, job["importedModelArn"]
    finally:
        server.stop()


def invoke(server: Server, arn: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.client("bedrock-runtime").invoke_model(modelId=arn, body=json.dumps(body))
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-engine"] == "vllm"
    found: dict[str, Any] = json.loads(answer["body"].read())
    return found


def sdk(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.credentials.bearer_key, timeout=300)


def test_it_reads_the_checkpoint_itself_and_its_start_is_told_by_stages(served: tuple[Server, str]) -> None:
    server, _ = served
    facts = server.admin("/outcrop/v1/models/real")["facts"]
    (copy,) = server.status()["copies"]

    assert facts["engine"] == "vllm"
    assert "artifact_bytes" not in facts
    assert copy["slots"] > 1
    assert {"weights_s", "engine_s"} <= copy["start_timings"].keys()
    assert copy["start_timings"]["weights_s"] < copy["start_timings"]["ready_s"]


def test_bedrock_and_openai_clients_get_the_same_greedy_answer(served: tuple[Server, str]) -> None:
    server, arn = served
    messages = [{"role": "user", "content": [{"text": "Hello"}]}]
    runtime = server.client("bedrock-runtime")

    invoked = invoke(server, arn, CHAT)
    conversed = runtime.converse(modelId=arn, messages=messages, inferenceConfig={"maxTokens": 8, "temperature": 0})
    asked = sdk(server).chat.completions.create(model="real", **CHAT)  # type: ignore[call-overload]
    stream = runtime.invoke_model_with_response_stream(modelId=arn, body=json.dumps(CHAT))["body"]
    pieces = [json.loads(event["chunk"]["bytes"]) for event in stream]

    text = invoked["choices"][0]["message"]["content"]
    assert text == asked.choices[0].message.content == conversed["output"]["message"]["content"][0]["text"]
    assert text == "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces if piece["choices"])
    assert invoked["usage"]["completion_tokens"] == asked.usage.completion_tokens == 8
    assert pieces[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == 8


def test_log_probabilities_come_in_one_form_whatever_the_route(served: tuple[Server, str]) -> None:
    server, arn = served
    chat = invoke(server, arn, {**CHAT, "max_tokens": 2, "logprobs": True, "top_logprobs": 3})
    plain = sdk(server).completions.create(model="real", prompt="Hello", max_tokens=2, temperature=0, logprobs=3)

    (first, _) = chat["choices"][0]["logprobs"]["content"]
    assert len(first["top_logprobs"]) == 3
    assert first["logprob"] == max(entry["logprob"] for entry in first["top_logprobs"])
    assert plain.choices[0].logprobs is not None
    assert len(plain.choices[0].logprobs.tokens or []) == 2


def test_prompt_logprobs_are_vllm_s_own(served: tuple[Server, str]) -> None:
    server, arn = served
    answer = invoke(server, arn, {**CHAT, "max_tokens": 1, "prompt_logprobs": 1})

    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "form",
    [
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "(yes|no)"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "string", "enum": ["yes", "no"]}},
            }
        },
    ],
    ids=["choice", "regex", "json_schema"],
)
def test_structured_outputs_are_enforced_by_the_engine(served: tuple[Server, str], form: dict[str, Any]) -> None:
    server, arn = served
    answer = invoke(server, arn, {**CHAT, "max_tokens": 60, **form})

    assert answer["choices"][0]["message"]["content"].strip('"') in ("yes", "no")


def test_a_named_tool_is_called(served: tuple[Server, str]) -> None:
    server, _ = served
    answer = sdk(server).chat.completions.create(  # type: ignore[call-overload]
        model="real", **{**CHAT, "max_tokens": 60}, tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "add"}},
    )  # fmt: skip

    assert answer.choices[0].message.tool_calls[0].function.name == "add"


def test_a_stop_sequence_is_named_and_choices_are_counted(served: tuple[Server, str]) -> None:
    server, arn = served
    free = invoke(server, arn, CHAT)["choices"][0]["message"]["content"]
    mark = free[2:5]
    several = invoke(server, arn, {**CHAT, "n": 2})
    answer = server.client("bedrock-runtime").converse(
        modelId=arn,
        messages=[{"role": "user", "content": [{"text": "Hello"}]}],
        inferenceConfig={"maxTokens": 8, "temperature": 0, "stopSequences": [mark]},
    )

    assert answer["stopReason"] == "stop_sequence"
    assert len(several["choices"]) == 2
    assert several["usage"]["completion_tokens"] == 16


def test_tokens_are_counted_without_generating(served: tuple[Server, str]) -> None:
    server, arn = served
    messages = [{"role": "user", "content": [{"text": "Hello"}]}]
    answer = server.client("bedrock-runtime").converse(modelId=arn, messages=messages, inferenceConfig={"maxTokens": 1})

    counted = server.client("bedrock-runtime").count_tokens(modelId=arn, input={"converse": {"messages": messages}})
    assert counted["inputTokens"] == answer["usage"]["inputTokens"]


def test_a_prompt_beyond_the_context_is_the_callers_error(served: tuple[Server, str]) -> None:
    server, arn = served

    with pytest.raises(ClientError) as refused:
        invoke(server, arn, {"prompt": "word " * 3000, "max_tokens": 1})
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    assert "512" in str(refused.value)


def test_a_client_that_leaves_ends_the_generation(served: tuple[Server, str]) -> None:
    server, arn = served
    body = json.dumps({**CHAT, "max_tokens": 400, "ignore_eos": True})
    stream = server.client("bedrock-runtime").invoke_model_with_response_stream(modelId=arn, body=body)["body"]
    next(iter(stream))
    stream.close()

    wait_for(lambda: all(copy["in_flight"] == 0 for copy in server.status()["copies"]), 10)


def test_a_killed_copy_takes_its_whole_process_group_with_it(served: tuple[Server, str]) -> None:
    server, _ = served
    (copy,) = server.status()["copies"]
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    group = [pid for pid in pids if group_of(pid) == copy["pid"]]
    assert len(group) > 1  # the parent, the API server, the engine core

    os.kill(copy["pid"], 9)
    wait_for(lambda: not any(group_of(pid) == copy["pid"] for pid in group), 20)


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
