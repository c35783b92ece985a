from __future__ import annotations

from typing import Any

import pytest

from outcrop.engines.answer_text import Piece
from outcrop.engines.llama_cpp_request import CHAT, COMPLETION, PENALTY_WINDOW, Template, plan, read_template
from outcrop.engines.tool_text import ForcedCalls, TaggedCalls
from outcrop.errors import InvalidRequest
from outcrop.inference.canonical import GenerateRequest

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "boolean"}}}


def chat(**body: Any) -> GenerateRequest:
    return GenerateRequest(kind="chat", body={"messages": MESSAGES, **body})


def completion(**body: Any) -> GenerateRequest:
    return GenerateRequest(kind="completion", body={"prompt": "p", **body})


def test_what_the_caller_leaves_open_is_neutral_and_not_llama_cpp_s_taste() -> None:
    body = plan(completion()).body

    assert body == {
        "prompt": "p",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "cache_prompt": True,
    }


def test_penalties_look_back_on_the_whole_context_under_the_engine_s_own_names() -> None:
    body = plan(completion(repetition_penalty=1.2)).body

    assert (body["repeat_penalty"], body["repeat_last_n"]) == (1.2, PENALTY_WINDOW)
    assert "repetition_penalty" not in body


def test_each_choice_has_a_seed_of_its_own() -> None:
    how = plan(completion(n=2, seed=-1))

    assert [how.of_choice(index)["seed"] for index in (0, 1)] == [2**32 - 1, 0]


@pytest.mark.parametrize(
    ("asked", "path", "reading"),
    [
        (chat(), CHAT, None),
        (chat(tools=[TOOL]), CHAT, None),
        (chat(tools=[TOOL], tool_choice="none"), CHAT, None),
        (chat(tools=[TOOL], tool_choice="required"), COMPLETION, ForcedCalls),
        (chat(response_format=SCHEMA), COMPLETION, None),
        (chat(tools=[TOOL], tool_choice="none", response_format=SCHEMA), COMPLETION, None),
        (completion(structured_outputs={"choice": ["a"]}), COMPLETION, None),
    ],
)
def test_what_is_held_to_a_grammar_is_completed_after_its_template(
    asked: GenerateRequest, path: str, reading: object
) -> None:
    how = plan(asked)

    assert (how.path, how.reading) == (path, reading)
    assert ("grammar" in how.body) == (
        asked.body.keys() & {"response_format", "structured_outputs"} != set()
    ) or reading
    assert (how.template is not None) == (asked.kind == "chat" and path == COMPLETION)


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    assert "tools" not in plan(chat(tools=[TOOL], tool_choice="none")).body


def test_a_template_that_knows_no_tools_gets_them_in_words() -> None:
    how = plan(chat(tools=[TOOL]), Template(takes_tools=False))

    assert how.reading is TaggedCalls
    assert how.template is not None
    assert "add" in how.template["messages"][0]["content"]


def test_a_template_that_writes_calls_between_tags_is_read_here_and_not_by_the_engine() -> None:
    tags = read_template("<tool_call>{{ tools }}", takes_tools=True)
    other = read_template("[TOOL_CALLS]{{ tools }}", takes_tools=True)

    assert plan(chat(tools=[TOOL]), tags).reading is TaggedCalls
    assert plan(chat(tools=[TOOL]), tags).template == {"messages": MESSAGES, "tools": [TOOL]}
    assert plan(chat(tools=[TOOL]), other).path == CHAT


def test_an_answer_to_a_prompt_that_begins_a_thought_thinks_before_it_is_held_to_a_grammar() -> None:
    how = plan(chat(response_format=SCHEMA), read_template("<think>", takes_tools=False))

    assert how.rendered("<|assistant|>").body["grammar"].startswith("root ::= boolean")
    opened = how.rendered("<|assistant|><think>\n")
    assert opened.body["grammar"].splitlines()[0] == 'root ::= thought "</think>" [\\n]{0,2} answer'
    assert "answer ::= boolean" in opened.body["grammar"]
    reader = opened.reader()
    assert reader is not None
    assert reader.feed("hm</think>\ntrue") == Piece("true", (), "hm")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (chat(tools=[TOOL], response_format=SCHEMA), "tools"),
        (completion(response_format=SCHEMA, structured_outputs={"regex": "a"}), "not both"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(asked: GenerateRequest, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        plan(asked)
