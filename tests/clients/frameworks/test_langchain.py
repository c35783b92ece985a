"""LangChain: ChatBedrock and BedrockLLM over InvokeModel, ChatBedrockConverse over Converse."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Scenarios, value


@pytest.fixture(scope="module")
def found(run_python: Callable[[str], Scenarios]) -> Scenarios:
    return run_python("langchain_calls.py")


def test_converse_answers_streams_and_batches_the_same_text(found: Scenarios) -> None:
    whole = value(found, "converse_invoke")
    streamed = value(found, "converse_stream")

    assert whole["stop"] == "max_tokens"
    assert whole["usage"]["output_tokens"] == 6
    # llama.cpp holds white space at the end of a stream back in case a tool call follows, and drops it.
    assert streamed["text"].rstrip() == whole["text"].rstrip()
    assert streamed["pieces"] > 6
    assert value(found, "converse_batch") == [whole["text"]] * 3


def test_a_named_tool_is_called(found: Scenarios) -> None:
    (call,) = value(found, "converse_forced_tool")

    assert call["name"] == "get_weather"
    assert isinstance(call["args"]["city"], str)


def test_a_tool_s_result_goes_back_to_the_model(found: Scenarios) -> None:
    assert value(found, "converse_tool_result")["output_tokens"] == 1


def test_the_chat_class_applies_llama_s_template_and_reads_the_generation(found: Scenarios) -> None:
    assert value(found, "chat_invoke")["usage"]["output_tokens"] == 5
    assert value(found, "chat_stream") == value(found, "chat_invoke")["text"]


def test_the_text_class_reads_the_generation_whole_and_streamed(found: Scenarios) -> None:
    assert value(found, "llm_meta") != ""
    assert value(found, "llm_meta_stream") == value(found, "llm_meta")


@pytest.mark.parametrize("scenario", ["converse_unknown_model", "llm_unknown_model"])
def test_an_unknown_model_is_botocore_s_not_found(found: Scenarios, scenario: str) -> None:
    assert found[scenario]["error"]["name"] == "ResourceNotFoundException"
