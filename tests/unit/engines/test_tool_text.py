from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.engines.tool_text import OPEN_TAG, ForcedCalls, TaggedCalls, as_text, forced_grammar, joined
from outcrop.errors import InvalidRequest

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SUB = {"type": "function", "function": {"name": "sub"}}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def written(calls: list[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(
        f'{{"name": "{name}", "arguments": {msgspec.json.encode(arguments).decode()}}}' for name, arguments in calls
    )


def read(reader: Any, text: str, step: int) -> tuple[str, list[tuple[str, Any]]]:
    pieces = [reader.feed(text[start : start + step]) for start in range(0, len(text), step)] + [reader.finish()]
    deltas = [{"id": "c", **call} if "type" in call else call for piece in pieces for call in piece.calls]
    calls = [(c["function"]["name"], msgspec.json.decode(c["function"]["arguments"])) for c in joined(deltas)]
    return "".join(piece.text for piece in pieces), calls


@given(
    st.lists(st.tuples(st.sampled_from(["add", "sub"]), st.dictionaries(st.text(max_size=4), json_values)), max_size=3),
    st.integers(1, 9),
)
def test_forced_calls_are_read_alike_however_the_text_is_cut(
    calls: list[tuple[str, dict[str, Any]]], step: int
) -> None:
    assert read(ForcedCalls(), written(calls), step) == ("", calls)


@given(st.text(alphabet="ab<tol_cal>/\n{", max_size=30).filter(lambda words: OPEN_TAG not in words), st.integers(1, 9))
def test_words_around_tagged_calls_come_through_unchanged(words: str, step: int) -> None:
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'

    assert read(TaggedCalls(), words + call + words, step) == (words + words, [("add", {"a": 1})])


@pytest.mark.parametrize("text", ["<tool_call>{", "<tool_", "<tool_call>[]</tool_call>", "<tool_call>x</tool_call>"])
def test_what_is_no_call_stays_the_text_that_it_is(text: str) -> None:
    assert read(TaggedCalls(), text, 3) == (text, [])


def test_a_named_choice_that_is_no_tool_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'mul'"):
        forced_grammar([ADD], {"function": {"name": "mul"}}, may_repeat=True)


@pytest.mark.parametrize(
    ("choice", "may_repeat", "root"),
    [
        ("required", True, 'root ::= call ("\\n" call){0,15}'),
        ("required", False, "root ::= call"),
        ({"function": {"name": "sub"}}, True, "root ::= call"),
    ],
)
def test_calls_may_be_several_only_where_the_caller_allows_it(choice: Any, may_repeat: bool, root: str) -> None:
    grammar = forced_grammar([ADD, SUB], choice, may_repeat=may_repeat)

    assert grammar.splitlines()[0] == root
    assert ("add" in grammar) == (choice == "required")


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]

    system, user, assistant, result = as_text(messages, [ADD])

    assert system["content"].startswith("Be brief.\n\nYou may call these functions:\n")
    assert user == messages[1]
    assert assistant["content"] == '<tool_call>{"name": "add", "arguments": {"a":1}}</tool_call>'
    assert result == {"role": "user", "content": "<tool_response>2</tool_response>"}
