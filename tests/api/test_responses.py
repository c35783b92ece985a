"""OpenAI's Responses through the OpenAI SDK, against a real engine."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from tests.support.server import Server

ASKED: Any = {"model": "tiny", "temperature": 0, "max_output_tokens": 12}
TOOL: Any = {
    "type": "function",
    "name": "add",
    "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
    "strict": True,
}


@pytest.fixture(scope="module")
def sdk(server: Server, model: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.credentials.bearer_key, max_retries=0)


def test_a_response_says_what_a_chat_says(sdk: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "for each"}]
    chat = sdk.chat.completions.create(model="tiny", messages=messages, max_tokens=12, temperature=0)

    found = sdk.responses.create(instructions="be brief", input="for each", **ASKED)

    assert found.output_text == chat.choices[0].message.content
    assert (found.status, chat.choices[0].finish_reason) in [("incomplete", "length"), ("completed", "stop")]
    assert found.usage is not None
    assert chat.usage is not None
    assert found.usage.input_tokens == chat.usage.prompt_tokens
    assert found.usage.output_tokens == chat.usage.completion_tokens


def test_events_add_up_to_the_response(sdk: openai.OpenAI) -> None:
    whole = sdk.responses.create(input="for each", **ASKED)
    with sdk.responses.stream(input="for each", **ASKED) as stream:
        events = list(stream)
    last = events[-1].response  # type: ignore[union-attr]

    assert events[-1].type == f"response.{last.status}"
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert last.output_text == whole.output_text
    assert last.usage == whole.usage
    assert last.status == whole.status


def test_one_response_follows_another(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(input="for each", **ASKED)
    second = sdk.responses.create(input="and then", previous_response_id=first.id, **ASKED)
    apart = sdk.responses.create(
        input=[
            {"role": "user", "content": "for each"},
            {"role": "assistant", "content": [{"type": "output_text", "text": first.output_text}]},  # type: ignore[list-item]
            {"role": "user", "content": [{"type": "input_text", "text": "and then"}]},
        ],
        store=False,
        **ASKED,
    )

    assert second.output_text == apart.output_text
    assert second.previous_response_id == first.id
    assert sdk.responses.retrieve(second.id).output_text == second.output_text
    sdk.responses.delete(second.id)
    for gone in (second.id, apart.id):
        with pytest.raises(openai.NotFoundError, match="not found"):
            sdk.responses.retrieve(gone)


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_is_called_and_its_result_read(sdk: openai.OpenAI, stream: bool) -> None:
    asked: Any = {**ASKED, "input": "add", "tools": [TOOL], "tool_choice": "required", "max_output_tokens": 200}
    if stream:
        with sdk.responses.stream(**asked, parallel_tool_calls=False) as opened:
            found = opened.get_final_response()
    else:
        found = sdk.responses.create(**asked, parallel_tool_calls=False)
    (call,) = [item for item in found.output if item.type == "function_call"]

    assert call.name == "add"
    assert isinstance(json.loads(call.arguments)["a"], bool)
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "true"}]
    after = sdk.responses.create(input=results, previous_response_id=found.id, tools=[TOOL], **ASKED)
    assert after.status in ("completed", "incomplete")


class Point(BaseModel):
    x: bool


def test_text_is_held_to_a_schema(sdk: openai.OpenAI) -> None:
    found = sdk.responses.parse(input="a point", text_format=Point, **{**ASKED, "max_output_tokens": 100})

    assert isinstance(found.output_parsed, Point)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"instructions": 5}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_not_served_is_refused_by_name(sdk: openai.OpenAI, asked: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.responses.create(**{**ASKED, "input": "x", **asked})

    assert refused.value.param == param


def test_a_response_to_follow_must_be_kept(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="resp_none"):
        sdk.responses.create(input="x", previous_response_id="resp_none", **ASKED)


def test_the_input_is_counted_as_it_would_be_read(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "instructions": "be brief", "input": "for each", "tools": [TOOL]}
    counted = sdk.responses.input_tokens.count(**asked)
    answer = sdk.responses.create(max_output_tokens=1, **asked)

    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens


def test_only_an_allowed_tool_is_called(sdk: openai.OpenAI) -> None:
    other = {**TOOL, "name": "other"}
    chosen: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}
    answer = sdk.responses.create(
        model="tiny", input="for each", tools=[other, TOOL], tool_choice=chosen, max_output_tokens=60,
        parallel_tool_calls=False,
    )  # fmt: skip

    assert [item.name for item in answer.output if item.type == "function_call"] == ["add"]
