"""The OpenAI API through the OpenAI SDK, against a real engine."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import openai
import pytest
from tests.support.server import Server, wait_for

CHAT: Any = [{"role": "user", "content": "for each record"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
    },
}


@pytest.fixture(scope="module")
def sdk(server: Server, model: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/openai/v1", api_key=server.credentials.bearer_key, max_retries=0)


def test_a_model_goes_by_its_name_and_by_its_arn_under_bedrock_s_prefix_too(sdk: openai.OpenAI, model: str) -> None:
    by_name = sdk.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4, temperature=0)
    by_arn = sdk.chat.completions.create(model=model, messages=CHAT, max_tokens=4, temperature=0)

    assert by_name.choices[0].message.content == by_arn.choices[0].message.content
    assert (by_name.model, by_arn.model) == ("tiny", model)
    assert sdk.models.retrieve("tiny").id == "tiny"


@pytest.mark.parametrize("stream", [False, True])
def test_the_usage_of_several_choices_counts_them_all(sdk: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "tiny", "prompt": "for each", "max_tokens": 4, "n": 3, "seed": 1, "temperature": 1}
    if not stream:
        whole = sdk.completions.create(**asked)
        usage, finished = whole.usage, [choice.index for choice in whole.choices]
    else:
        chunks = list(sdk.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        usage = chunks[-1].usage
        finished = [c.index for chunk in chunks for c in chunk.choices if c.finish_reason]

    assert usage is not None
    assert usage.completion_tokens == 12
    assert sorted(finished) == [0, 1, 2]


def test_a_required_tool_is_called_in_a_stream_with_its_arguments_in_pieces(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="tiny", messages=CHAT, tools=[TOOL], tool_choice="required", max_tokens=60, stream=True,
        parallel_tool_calls=False,
    )  # fmt: skip
    deltas = [call for chunk in stream for choice in chunk.choices for call in choice.delta.tool_calls or []]

    assert deltas[0].function is not None
    assert (deltas[0].function.name, deltas[0].type) == ("add", "function")
    assert deltas[0].id
    assert len(deltas) > 2
    assert isinstance(json.loads("".join(d.function.arguments or "" for d in deltas if d.function))["a"], bool)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"messages": []}, "messages"),
        ({"n": 99}, "n"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "mul"}}}, "tool_choice"),
        ({"stream_options": {"include_usage": "yes"}}, "include_usage"),
        ({"stream": True, "extra_body": {"prompt_logprobs": 1}}, "prompt_logprobs"),
    ],
)
def test_an_error_names_its_parameter_in_openai_s_shape(sdk: openai.OpenAI, asked: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(**{"model": "tiny", "messages": CHAT, "max_tokens": 2, **asked})

    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert param in refused.value.message


def test_several_prompts_are_answered_as_each_alone(sdk: openai.OpenAI) -> None:
    prompts = ["for each record", "public class", "x = "]
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0, "n": 2, "seed": 3}
    alone = [sdk.completions.create(prompt=prompt, **asked) for prompt in prompts]

    whole = sdk.completions.create(prompt=prompts, **asked)
    streamed = list(
        sdk.completions.create(prompt=prompts, stream=True, stream_options={"include_usage": True}, **asked)
    )

    assert [choice.index for choice in whole.choices] == list(range(6))
    texts = [choice.text for choice in whole.choices]
    assert texts == [choice.text for one in alone for choice in one.choices]
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone if one.usage)
    assert whole.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone if one.usage)
    pieces = [choice for chunk in streamed for choice in chunk.choices]
    assert ["".join(piece.text for piece in pieces if piece.index == index) for index in range(6)] == texts
    assert sorted(piece.index for piece in pieces if piece.finish_reason) == list(range(6))
    assert streamed[-1].usage == whole.usage


def test_a_prompt_is_echoed_from_text_and_from_token_ids(sdk: openai.OpenAI, model: str) -> None:
    text = "for each record in a list"
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 3, "temperature": 0}
    answer = sdk.completions.create(prompt=text, **asked).choices[0].text

    echoed = sdk.completions.create(prompt=text, echo=True, **asked)
    scored = sdk.completions.create(prompt=text, echo=True, logprobs=1, **{**asked, "max_tokens": 0})
    pieces = sdk.completions.create(prompt=text, echo=True, stream=True, **asked)

    assert echoed.choices[0].text == text + answer
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == text + answer
    assert (scored.choices[0].text, scored.choices[0].finish_reason) == (text, "length")
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0
    found = scored.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert "".join(found.tokens) == text
    assert len(found.tokens) == scored.usage.prompt_tokens
    assert found.token_logprobs[0] is None
    assert all(value < 0 for value in found.token_logprobs[1:])


def test_token_ids_are_scored_as_an_evaluation_harness_asks(server: Server, sdk: openai.OpenAI, model: str) -> None:
    prompts = [[5, 17, 40, 8], [9, 21, 33]]

    whole = sdk.completions.create(model="tiny", prompt=prompts, max_tokens=1, temperature=0, logprobs=1, echo=True)

    for prompt, choice in zip(prompts, whole.choices, strict=True):
        found = choice.logprobs
        assert found is not None
        assert found.token_logprobs is not None
        assert found.top_logprobs is not None
        assert len(found.token_logprobs) == len(found.top_logprobs) == len(prompt) + 1
        for value, top in list(zip(found.token_logprobs, found.top_logprobs, strict=True))[1:]:
            assert value is not None
            assert value <= max(top.values()) + 1e-6


@pytest.mark.parametrize("asked", [{"suffix": "x"}, {"best_of": 2}])
def test_what_a_completion_cannot_do_is_refused_by_name(sdk: openai.OpenAI, asked: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(asked))):
        sdk.completions.create(model="tiny", prompt="x", max_tokens=1, **asked)


def test_an_unknown_model_is_openai_s_model_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as absent:
        sdk.embeddings.create(model="absent", input="x")

    assert (absent.value.code, absent.value.param) == ("model_not_found", "model")


def test_a_model_that_generates_text_says_that_it_gives_no_embeddings(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"tiny \(.*\) generates text and gives no embeddings"):
        sdk.embeddings.create(model="tiny", input="x")


def test_hanging_up_on_several_choices_frees_them_all(server: Server, model: str) -> None:
    body = json.dumps({"model": "tiny", "prompt": "for", "n": 3, "max_tokens": 450, "stream": True, "ignore_eos": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.credentials.bearer_key}\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert connection.recv(100)

    wait_for(lambda: all(copy["in_flight"] == 0 for copy in server.status()["copies"]), 10)


FUNCTION: Any = TOOL["function"]


@pytest.mark.parametrize("stream", [False, True])
def test_functions_of_older_scripts_are_called(sdk: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "tiny", "functions": [FUNCTION], "function_call": {"name": "add"}, "max_tokens": 60}
    answer: Any = sdk.chat.completions.create(messages=CHAT, stream=stream, **asked)
    if stream:
        pieces = [chunk.choices[0] for chunk in answer]
        calls = [piece.delta.function_call for piece in pieces if piece.delta.function_call]
        name, arguments, reason = calls[0].name, "".join(c.arguments or "" for c in calls), pieces[-1].finish_reason
    else:
        call = answer.choices[0].message.function_call
        name, arguments, reason = call.name, call.arguments, answer.choices[0].finish_reason
    assert (name, reason) == ("add", "function_call")
    assert set(json.loads(arguments)) == {"a"}

    told: Any = [
        *CHAT,
        {"role": "assistant", "content": None, "function_call": {"name": name, "arguments": arguments}},
        {"role": "function", "name": name, "content": "3"},
    ]
    assert sdk.chat.completions.create(model="tiny", messages=told, functions=[FUNCTION], max_tokens=2).choices


def test_an_answer_without_calls_has_no_list_of_them(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.with_raw_response.create(model="tiny", messages=CHAT, max_tokens=2)

    # OpenAI's Node SDK of 2024 takes any list, an empty one too, for calls, and asks again until it has had ten turns.
    assert "tool_calls" not in json.loads(answer.content)["choices"][0]["message"]


def test_a_conversation_that_ends_with_an_assistant_s_message_gets_a_turn_of_its_own(sdk: openai.OpenAI) -> None:
    ends: Any = [[*CHAT, *[{"role": "assistant", "content": said} for said in turns]] for turns in (["WHERE"], "xy")]
    for messages in ends:
        asked: Any = {"model": "tiny", "messages": messages, "max_tokens": 4, "temperature": 0}
        whole = sdk.chat.completions.create(**asked).choices[0].message.content
        stream = sdk.chat.completions.create(stream=True, **asked)
        streamed = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)

        assert whole == streamed
        assert not whole.startswith("WHERE")


def test_every_answer_has_openai_s_request_id(server: Server, sdk: openai.OpenAI) -> None:
    assert sdk.models.with_raw_response.list().headers["x-request-id"]
    with pytest.raises(openai.AuthenticationError) as refused:
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
    assert refused.value.request_id


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/", 200),
        ("GET", "//v1/models", 200),
        ("GET", "/openai/v1/models", 200),
        ("HEAD", "/v1/models", 200),
        ("HEAD", "/v1/models/tiny", 200),
        ("GET", "/v1/models/tiny/", 200),
        ("POST", "/v1/chat/completions/", 200),
        ("POST", "//v1//chat/completions", 404),
        ("GET", "/v1", 404),
    ],
)
def test_paths_as_clients_spell_them(server: Server, model: str, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    body = json.dumps({"model": "tiny", "messages": CHAT, "max_tokens": 1}) if method == "POST" else None
    connection.request(method, path, body, {"authorization": f"Bearer {server.credentials.bearer_key}"})
    answer = connection.getresponse()
    said = answer.read()
    connection.close()

    assert answer.status == status
    assert said == b"" if method == "HEAD" else json.loads(said)
    assert status == 200 or "error" in json.loads(said)


def test_an_alias_is_listed_and_found_under_its_own_name(server: Server, sdk: openai.OpenAI) -> None:
    server.admin("/outcrop/v1/aliases/current", "PUT", {"model": "tiny"})
    try:
        listed = [found.id for found in sdk.models.list()]
        alone = sdk.models.retrieve("current").id
    finally:
        server.admin("/outcrop/v1/aliases/current", "DELETE")

    assert {"tiny", "current"} <= set(listed)
    assert listed.count("current") == 1
    assert alone == "current"
    assert "current" not in [found.id for found in sdk.models.list()]
