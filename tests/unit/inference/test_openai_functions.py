import pytest

from outcrop.errors import InvalidRequest
from outcrop.inference.openai_functions import as_tools, in_functions

HI = {"role": "user", "content": "hi"}
ADD = {"name": "add", "parameters": {"type": "object"}}


def test_a_chat_without_functions_is_left_alone():
    answered = {"role": "assistant", "content": "x", "function_call": None}

    assert as_tools({"messages": [HI, answered, HI]}) is None
    assert as_tools({"messages": [HI], "functions": None, "function_call": None}) is None
    assert as_tools({"messages": "no list"}) is None


@pytest.mark.parametrize(
    ("choice", "canonical"),
    [
        (None, None),
        ("auto", "auto"),
        ("none", "none"),
        ({"name": "add"}, {"type": "function", "function": {"name": "add"}}),
    ],
)
def test_functions_are_tools_of_which_one_is_called(choice, canonical):
    asked = as_tools({"messages": [HI], "functions": [ADD], "function_call": choice, "seed": 1})

    tools = [{"type": "function", "function": ADD}]
    chosen = {} if canonical is None else {"tool_choice": canonical}
    assert asked == {"messages": [HI], "seed": 1, "tools": tools, "parallel_tool_calls": False, **chosen}


def test_a_function_s_result_answers_the_call_before_it():
    call = {"name": "add", "arguments": "{}"}
    asked = as_tools(
        {
            "messages": [
                HI,
                {"role": "assistant", "content": None, "function_call": call},
                {"role": "function", "name": "add", "content": "3"},
            ]
        }
    )

    assert asked == {
        "messages": [
            HI,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
            },
            {"role": "tool", "name": "add", "content": "3", "tool_call_id": "call_1"},
        ]
    }


@pytest.mark.parametrize("body", [{"functions": "add"}, {"functions": [ADD], "tools": [{"type": "function"}]}])
def test_functions_that_cannot_be_meant_are_refused_by_name(body):
    with pytest.raises(InvalidRequest, match="functions must be"):
        as_tools({"messages": [HI], **body})


def test_a_call_is_written_as_a_function_s_in_whole_answers_and_in_pieces():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    whole = {"message": {"role": "assistant", "content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    begun = [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}]
    two = {"delta": {"tool_calls": [*begun, {"index": 0, "function": {"arguments": "{"}}]}, "finish_reason": None}
    piece = {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}, "finish_reason": None}
    text = {"message": {"role": "assistant", "content": "x", "tool_calls": []}, "finish_reason": "stop"}

    found = in_functions({"id": "i", "choices": [whole, two, piece, text]})

    assert found["choices"] == [
        {
            "message": {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}},
            "finish_reason": "function_call",
        },
        {"delta": {"function_call": {"name": "add", "arguments": "{"}}, "finish_reason": None},
        {"delta": {"function_call": {"arguments": "}"}}, "finish_reason": None},
        {"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"},
    ]
    assert in_functions({"choices": [], "usage": {}}) == {"choices": [], "usage": {}}
