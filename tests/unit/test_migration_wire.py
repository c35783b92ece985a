"""Calls, answers and frames between the doors of a migration."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.api.migration import framing
from outcrop.api.migration.calls import Bound, Call, addressed, bound, call_of
from outcrop.api.migration.reading import Pieces, StreamFailed, read, response_id
from outcrop.awswire.eventstream import encode_chunk, encode_event, encode_exception, encode_message
from outcrop.errors import EngineFault, InvalidRequest, ModelNotReady, ServiceError, ShuttingDown, Throttled
from outcrop.serving.migration.plan import Side, read_side

ARN = "arn:aws:bedrock:us-east-1:000000000000:imported-model/abcdefghijkl"
HERE, ENDPOINT = read_side("bedrock:m"), read_side("sagemaker:e")
THERE = read_side("bedrock:m@https://h?region=us-east-1")
OPENAI = read_side("openai:gpt@https://h/v1?key_file=/k")
CHAT = {"model": "live", "messages": [{"role": "user", "content": "x"}]}


FOLLOWING = {"model": "live", "input": "x", "previous_response_id": "resp_1"}
ASKING = {
    "input": {"text": "q"},
    "retrieveAndGenerateConfiguration": {
        "type": "EXTERNAL_SOURCES",
        "externalSourcesConfiguration": {"modelArn": "live", "sources": [{"sourceType": "BYTE_CONTENT"}]},
    },
}


def asking(model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(ASKING))
    found["retrieveAndGenerateConfiguration"]["externalSourcesConfiguration"]["modelArn"] = model
    return found


def call(path: str, body: Any) -> Call:
    found = addressed(path)
    assert found is not None
    made = call_of(*found, path, json.dumps(body).encode())
    assert made is not None
    return made


def taken(path: str, body: Any, side: Side) -> tuple[str, str, Any] | None:
    found: Bound | None = bound(call(path, body), side)
    return None if found is None else (found.door, found.path, json.loads(found.body))


def test_requests_for_inference_are_told_by_their_path_and_name() -> None:
    assert addressed(
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A000000000000%3Aimported-model%2Fabcdefghijkl/invoke"
    ) == (
        "invoke",
        ARN,
    )
    assert addressed("/model/m/converse-stream") == ("converse", "m")
    assert addressed("/endpoints/e/invocations-response-stream") == ("sagemaker", "e")
    assert addressed("/v1/chat/completions") == ("chat", None)
    assert addressed("/model/m/count-tokens") == ("count", "m")
    assert addressed("/endpoints/e/async-invocations") == ("async", "e")
    assert addressed("/v1/responses") == ("responses", None)
    assert call("/retrieveAndGenerate", ASKING).name == "live"
    assert call_of("retrieve", None, "/retrieveAndGenerate", b'{"retrieveAndGenerateConfiguration":{}}') is None
    for path in ("/v1/models", "/v1/responses/resp_1", "/model-import-jobs", "/endpoints/e"):
        assert addressed(path) is None
    assert call_of("chat", None, "/v1/chat/completions", b"[1]") is None
    assert call_of("chat", None, "/v1/chat/completions", b'{"model": 3}') is None
    assert call("/v1/chat/completions", {**CHAT, "stream": True}).is_stream
    assert call("/endpoints/e/invocations-response-stream", {}).is_stream


@pytest.mark.parametrize(
    ("path", "body", "side", "said"),
    [
        ("/model/live/invoke", {"prompt": "x"}, HERE, ("invoke", "/model/m/invoke", {"prompt": "x"})),
        ("/model/live/converse", {"messages": []}, THERE, ("converse", "/model/m/converse", {"messages": []})),
        ("/model/live/converse", {"messages": []}, ENDPOINT, None),
        ("/model/live/converse", {"messages": []}, OPENAI, None),
        (
            "/model/live/invoke-with-response-stream",
            {"prompt": "x"},
            ENDPOINT,
            ("sagemaker", "/endpoints/e/invocations-response-stream", {"prompt": "x", "stream": True}),
        ),
        ("/endpoints/live/invocations", {"prompt": "x"}, THERE, ("invoke", "/model/m/invoke", {"prompt": "x"})),
        (
            "/endpoints/live/invocations-response-stream",
            {"prompt": "x", "stream": True},
            HERE,
            ("invoke", "/model/m/invoke-with-response-stream", {"prompt": "x"}),
        ),
        ("/endpoints/live/invocations", "text", HERE, None),
        ("/endpoints/live/invocations", {"prompt": "x"}, OPENAI, None),
        (
            "/endpoints/live/invocations",
            {"messages": []},
            OPENAI,
            ("chat", "/chat/completions", {"messages": [], "model": "gpt"}),
        ),
        ("/v1/chat/completions", CHAT, HERE, ("chat", "/v1/chat/completions", {**CHAT, "model": "m"})),
        ("/v1/chat/completions", CHAT, OPENAI, ("chat", "/chat/completions", {**CHAT, "model": "gpt"})),
        ("/v1/chat/completions", CHAT, THERE, ("invoke", "/model/m/invoke", {"messages": CHAT["messages"]})),
        (
            "/v1/chat/completions",
            CHAT,
            ENDPOINT,
            ("sagemaker", "/endpoints/e/invocations", {"messages": CHAT["messages"]}),
        ),
        ("/v1/completions", {"model": "live", "prompt": "x"}, THERE, None),
        ("/v1/responses", FOLLOWING, HERE, ("responses", "/v1/responses", {**FOLLOWING, "model": "m"})),
        ("/v1/responses", FOLLOWING, OPENAI, ("responses", "/responses", {**FOLLOWING, "model": "gpt"})),
        ("/v1/responses", FOLLOWING, THERE, None),
        ("/v1/responses", FOLLOWING, ENDPOINT, None),
        ("/model/live/count-tokens", {"input": {}}, HERE, ("count", "/model/m/count-tokens", {"input": {}})),
        ("/model/live/count-tokens", {"input": {}}, THERE, ("count", "/model/m/count-tokens", {"input": {}})),
        ("/model/live/count-tokens", {"input": {}}, ENDPOINT, None),
        ("/retrieveAndGenerate", ASKING, HERE, ("retrieve", "/retrieveAndGenerate", asking("m"))),
        ("/retrieveAndGenerate", ASKING, THERE, None),
        (
            "/endpoints/live/async-invocations",
            {"p": 1},
            ENDPOINT,
            ("async", "/endpoints/e/async-invocations", {"p": 1}),
        ),
        ("/endpoints/live/async-invocations", {"prompt": "x"}, HERE, None),
        (
            "/v1/embeddings",
            {"model": "live", "input": "x"},
            HERE,
            ("embeddings", "/v1/embeddings", {"model": "m", "input": "x"}),
        ),
    ],
)
def test_a_call_is_asked_of_another_service_as_that_takes_it_or_not_at_all(
    path: str, body: Any, side: Side, said: Any
) -> None:
    assert taken(path, body, side) == said


def test_a_call_needs_the_permission_of_its_own_operation() -> None:
    asked = {
        "/endpoints/e/async-invocations": "InvokeEndpointAsync",
        "/endpoints/e/invocations-response-stream": "InvokeEndpointWithResponseStream",
        "/model/m/count-tokens": "CountTokens",
        "/model/m/converse": "InvokeModel",
    }
    for path, operation in asked.items():
        assert call(path, {}).operation == operation
    assert call("/v1/responses", {**FOLLOWING, "stream": True}).operation == "InvokeModelWithResponseStream"
    assert call("/retrieveAndGenerate", ASKING).operation == "InvokeModel"


def test_a_body_that_needs_no_change_keeps_its_bytes() -> None:
    raw = b'{ "prompt":"x" , "n":1e3 }'
    made = call_of("sagemaker", "live", "/endpoints/live/invocations", raw)
    assert made is not None
    found = bound(made, HERE)
    assert found is not None
    assert found.body == raw


def part(data: bytes) -> bytes:
    return encode_message(((":event-type", "PayloadPart"), (":message-type", "event")), data)


STREAMS = {
    "invoke": encode_chunk(b'{"generation":"a b"}')
    + encode_event("heartbeat", b"{}")
    + encode_chunk(
        b'{"generation":" c","amazon-bedrock-invocationMetrics":{"inputTokenCount":3,"outputTokenCount":2}}'
    ),
    "converse": encode_event("messageStart", b'{"role":"assistant"}')
    + encode_event("contentBlockDelta", b'{"delta":{"text":"a b c"}}')
    + encode_event("metadata", b'{"usage":{"inputTokens":3,"outputTokens":2}}'),
    "sagemaker": part(b'data: {"choices":[{"delta":{"content":"a b')
    + part(
        b'"}}]}\n\ndata: {"choices":[{"delta":{"content":" c"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    )
    + part(b"data: [DONE]\n\n"),
    "chat": b': waiting\n\ndata: {"choices":[{"delta":{"content":"a b"}}]}\n\ndata: {"choices":[{"delta":{"content":" c"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n',
    "responses": b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1","usage":null}}\n\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a b"}\n\n'
    b'data: {"type":"response.output_text.delta","delta":" c"}\n\n'
    b'data: {"type":"response.completed","response":{"id":"resp_1","output":[{"type":"message","content":'
    b'[{"type":"output_text","text":"a b c"}]}],"usage":{"input_tokens":3,"output_tokens":2}}}\n\n',
}


@pytest.mark.parametrize("door", STREAMS)
def test_every_kind_of_stream_is_read_alike(door: Any) -> None:
    found = read(door, STREAMS[door], is_stream=True)

    assert (found.text, found.tokens_in, found.tokens_out, found.error) == ("a b c", 3, 2, "")


@given(data=st.data(), door=st.sampled_from(sorted(STREAMS)))
def test_a_stream_says_the_same_wherever_it_is_cut(data: st.DataObject, door: Any) -> None:
    raw = STREAMS[door]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = Pieces(door)
    found = [piece for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) for piece in pieces.feed(raw[a:b])]

    whole = Pieces(door)
    assert found + pieces.end() == whole.feed(raw) + whole.end()


@pytest.mark.parametrize("source", ["invoke", "sagemaker", "chat"])
@pytest.mark.parametrize("caller", ["invoke", "sagemaker", "chat"])
def test_a_stream_in_another_doors_frames_says_the_same(source: Any, caller: Any) -> None:
    documents = Pieces(source).feed(STREAMS[source])
    framed = b"".join(framing.piece(caller, document) for document in documents) + framing.last(caller)

    assert read(caller, framed, is_stream=True).text == "a b c"


@pytest.mark.parametrize(
    ("door", "raw", "name"),
    [
        ("invoke", encode_exception("modelStreamErrorException", "died"), "modelStreamErrorException"),
        ("chat", b'data: {"error":{"message":"died","code":"engine_error"}}\n\n', "engine_error"),
        ("sagemaker", encode_exception("ModelStreamError", "died"), "ModelStreamError"),
        ("sagemaker", part(b'data: {"error":{"message":"died"}}\n\n'), "error"),
        ("responses", b'data: {"type":"error","code":"engine_error","message":"died"}\n\n', "engine_error"),
        (
            "responses",
            b'data: {"type":"response.failed","response":{"error":{"code":"engine_error","message":"died"}}}\n\n',
            "engine_error",
        ),
    ],
)
def test_a_stream_that_breaks_is_told_by_name(door: Any, raw: bytes, name: str) -> None:
    assert read(door, raw, is_stream=True).error == name
    with pytest.raises(StreamFailed, match="died"):
        Pieces(door).feed(raw)
    for caller in ("invoke", "sagemaker", "chat", "responses"):
        assert read(caller, framing.broken(caller, EngineFault("died")), is_stream=True).error  # type: ignore[arg-type]


def test_what_a_model_says_of_errors_breaks_no_stream_of_a_response() -> None:
    said = json.dumps({"type": "response.output_text.delta", "delta": '{"type": "error"}'})

    assert read("responses", f"data: {said}\n\n".encode(), is_stream=True).error == ""


def test_the_id_of_a_response_is_found_whole_and_at_the_beginning_of_its_stream() -> None:
    whole = b'{"previous_response_id":"resp_0", "id": "resp_1","output":[{"id":"msg_1"}]}'
    assert response_id(whole) == response_id(STREAMS["responses"]) == "resp_1"
    assert response_id(b'{"id":"chatcmpl-1"}') == ""


def test_bytes_that_are_no_stream_are_an_error_and_no_defect() -> None:
    assert read("invoke", b"\0" * 64, is_stream=True).error == "BrokenFrame"
    assert read("sagemaker", b"plain", is_stream=False).text == "plain"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"generation": "t"}, "t"),
        ({"outputs": [{"text": "t"}]}, "t"),
        ({"choices": [{"message": {"content": "t"}}]}, "t"),
        ([{"generated_text": "t"}], "t"),
        ({"output": {"message": {"content": [{"text": "t"}]}}}, "t"),
        ({"choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": "f"}}]}}]}, '[{"name":"f"}]'),
        ({"output": {"text": "t"}}, "t"),
        ({"output": [{"type": "message", "content": [{"type": "output_text", "text": "t"}]}]}, "t"),
        ({"output": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "{}"),
        ({"verdict": "ok"}, '{"verdict": "ok"}'),
    ],
)
def test_what_an_answer_says_is_found_in_every_form(answer: Any, text: str) -> None:
    assert read("invoke", json.dumps(answer).encode(), is_stream=False).text == text


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind"),
    [
        (429, {"x-amzn-errortype": "ModelNotReadyException:http://"}, {"message": "m"}, ModelNotReady),
        (503, {}, {"error": {"message": "m", "code": "model_not_ready"}}, ModelNotReady),
        (429, {"x-amzn-errortype": "ThrottlingException"}, {"message": "m"}, Throttled),
        (503, {}, {}, ShuttingDown),
        (400, {}, {"message": "m"}, InvalidRequest),
        (500, {}, {"message": "m"}, EngineFault),
        (424, {"x-amzn-errortype": "ModelError"}, {"Message": "m", "OriginalStatusCode": 413}, InvalidRequest),
        (424, {"x-amzn-errortype": "ModelError"}, {"Message": "m", "OriginalStatusCode": 500}, EngineFault),
        (424, {"x-amzn-errortype": "ModelErrorException"}, {"message": "m"}, EngineFault),
    ],
)
def test_a_remote_answer_is_the_fact_behind_it(
    status: int, headers: dict[str, str], body: Any, kind: type[ServiceError]
) -> None:
    assert type(framing.error_of(status, headers, json.dumps(body).encode())) is kind
