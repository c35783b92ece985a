"""Vercel's AI SDK with a signer and decoder of its own; llama-index and pydantic-ai over Converse."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Scenarios, value


@pytest.fixture(scope="module")
def ai_sdk(run_node: Callable[[str], Scenarios]) -> Scenarios:
    return run_node("ai_sdk.mjs")


@pytest.fixture(scope="module")
def agents(run_python: Callable[[str], Scenarios]) -> Scenarios:
    return run_python("agents_calls.py")


def test_the_ai_sdk_answers_and_streams_one_text(ai_sdk: Scenarios) -> None:
    whole = value(ai_sdk, "text")

    assert (whole["tokens"], whole["finishReason"]) == (6, "length")
    assert value(ai_sdk, "stream") == whole["text"]


def test_the_ai_sdk_may_leave_out_all_that_is_optional(ai_sdk: Scenarios) -> None:
    assert value(ai_sdk, "bare") == 2


def test_the_ai_sdk_calls_a_required_tool(ai_sdk: Scenarios) -> None:
    assert value(ai_sdk, "forcedTool") == {"name": "get_weather", "input": {"city": "Paris"}}


@pytest.mark.parametrize(("scenario", "status"), [("unknownModel", 404), ("wrongSecret", 403)])
def test_the_ai_sdk_hears_errors(ai_sdk: Scenarios, scenario: str, status: int) -> None:
    assert ai_sdk[scenario]["error"]["name"] == "AI_APICallError"
    assert ai_sdk[scenario]["error"]["status"] == status


def test_the_ai_sdk_s_openai_client_answers_streams_and_is_held_to_schemas(ai_sdk: Scenarios) -> None:
    whole = value(ai_sdk, "compatibleText")

    assert (whole["tokens"], whole["finishReason"]) == (6, "length")
    assert value(ai_sdk, "compatibleStream") == whole
    assert value(ai_sdk, "compatibleObject") == {"city": "Paris"}
    assert value(ai_sdk, "compatibleTool") == [{"name": "get_weather", "input": {"city": "Paris"}}]
    assert ai_sdk["compatibleUnknownModel"]["error"]["status"] == 404


def test_the_ai_sdk_s_own_openai_client_speaks_responses(ai_sdk: Scenarios) -> None:
    whole = value(ai_sdk, "responsesText")

    assert (whole["tokens"], whole["finishReason"]) == (16, "length")
    assert value(ai_sdk, "responsesStream") == whole
    assert value(ai_sdk, "responsesTool") == [{"name": "get_weather", "input": {"city": "Paris"}}]


def test_llama_index_chats_and_streams_one_text(agents: Scenarios) -> None:
    assert value(agents, "llama_index_chat") != ""
    assert value(agents, "llama_index_stream") == value(agents, "llama_index_chat")
    assert agents["llama_index_unknown_model"]["error"]["name"] == "ResourceNotFoundException"


def test_pydantic_ai_runs_and_streams_one_text(agents: Scenarios) -> None:
    whole = value(agents, "pydantic_ai_run")

    assert whole["tokens"] == 6
    assert value(agents, "pydantic_ai_stream") == whole["text"]
