"""The AWS SDK for JavaScript: HTTP/2 with one session per call, ``:authority`` signed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Scenarios, value
from tests.support.server import Server, wait_for


@pytest.fixture(scope="module")
def found(run_node: Callable[[str], Scenarios]) -> Scenarios:
    return run_node("javascript_sdk.mjs")


def test_invoke_answers_each_format(found: Scenarios) -> None:
    assert value(found, "invoke")["generation_token_count"] == 5
    assert value(found, "invokeChat")["usage"]["completion_tokens"] == 5


def test_an_invoke_stream_gives_the_text_of_the_whole_answer_and_ends_with_metrics(found: Scenarios) -> None:
    pieces = value(found, "invokeStream")

    assert "".join(piece["generation"] for piece in pieces) == value(found, "invoke")["generation"]
    assert pieces[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == 5


def test_converse_takes_an_empty_system_and_says_its_request_id(found: Scenarios) -> None:
    answer = value(found, "converse")

    assert (answer["status"], answer["stopReason"], answer["usage"]["outputTokens"]) == (200, "max_tokens", 6)
    assert len(answer["requestId"]) == 36


def test_converse_stream_has_its_events_in_order_and_the_text_of_converse(found: Scenarios) -> None:
    events = value(found, "converseStream")
    text = "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e)

    assert text == value(found, "converse")["output"]["message"]["content"][0]["text"]
    kinds = list(dict.fromkeys(next(iter(event)) for event in events))
    assert kinds == ["messageStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"]


def test_a_named_tool_is_called(found: Scenarios) -> None:
    answer = value(found, "forcedTool")
    call = answer["output"]["message"]["content"][-1]["toolUse"]

    assert answer["stopReason"] == "tool_use"
    assert (call["name"], call["input"]) == ("get_weather", {"city": "Paris"})


def test_a_streamed_tool_call_names_the_tool_first_and_then_writes_its_input(found: Scenarios) -> None:
    events = value(found, "forcedToolStream")
    start = next(e["contentBlockStart"]["start"]["toolUse"] for e in events if "contentBlockStart" in e)
    deltas = [e["contentBlockDelta"]["delta"] for e in events if "contentBlockDelta" in e]

    assert start["name"] == "get_weather"
    assert '"Paris"' in "".join(delta["toolUse"]["input"] for delta in deltas if "toolUse" in delta)
    assert next(e["messageStop"]["stopReason"] for e in events if "messageStop" in e) == "tool_use"


def test_a_tool_s_result_goes_back_to_the_model(found: Scenarios) -> None:
    assert value(found, "toolResult")["outputTokens"] == 1


@pytest.mark.parametrize(
    ("scenario", "name", "status"),
    [
        ("unknownModel", "ResourceNotFoundException", 404),
        ("badBody", "ValidationException", 400),
        ("tooLong", "ValidationException", 400),
        ("wrongSecret", "InvalidSignatureException", 403),
        ("deletedModel", "ResourceNotFoundException", 404),
    ],
)
def test_errors_are_the_sdk_s_own_classes(found: Scenarios, scenario: str, name: str, status: int) -> None:
    error = found[scenario]["error"]

    assert (error["name"], error["status"]) == (name, status)


def test_a_hundred_sessions_of_one_request_are_all_answered(found: Scenarios) -> None:
    assert value(found, "manySessions") == 100


def test_an_aborted_stream_frees_its_slot(server: Server, found: Scenarios) -> None:
    assert value(found, "abortedStream") is True
    wait_for(lambda: all(copy["in_flight"] == 0 for copy in server.status()["copies"]), 10)


def test_a_model_is_imported_listed_page_by_page_described_and_deleted(found: Scenarios) -> None:
    imported = value(found, "importAndDelete")

    assert imported["status"] == "Completed", imported
    assert {"javascript", "roomy", "tools"} <= set(imported["names"])
    assert imported["created"] is True
