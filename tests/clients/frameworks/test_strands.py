"""Strands agents over Converse and the OpenAI API, instructor over both, aioboto3 with an older botocore."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Scenarios, value


@pytest.fixture(scope="module")
def found(run_strands: Callable[[str], Scenarios]) -> Scenarios:
    return run_strands("strands_calls.py")


def test_an_agent_answers_whole_and_streamed_with_one_text(found: Scenarios) -> None:
    whole = value(found, "strands_whole")

    assert whole["stop"] == "stop_sequence"
    assert whole["tokens"] > 0
    assert value(found, "strands_stream") == whole


def test_an_agent_hears_that_max_tokens_cut_the_answer(found: Scenarios) -> None:
    assert found["strands_cut"]["error"]["name"] == "MaxTokensReachedException"
    assert found["strands_openai"]["error"]["name"] == "MaxTokensReachedException"


def test_an_agent_gets_a_structured_answer(found: Scenarios) -> None:
    assert value(found, "strands_structured") == "Paris"


def test_an_agent_goes_on_from_a_tool_s_result(found: Scenarios) -> None:
    assert value(found, "strands_tool_result")["tokens"] > 0


def test_instructor_gets_its_model_from_tools_and_from_a_schema(found: Scenarios) -> None:
    for scenario in ("instructor_tools", "instructor_openai_tools", "instructor_openai_schema"):
        assert value(found, scenario) == "Paris"


def test_an_older_botocore_invokes_streams_and_converses(found: Scenarios) -> None:
    pieces = value(found, "aio_invoke_stream")

    assert value(found, "version").startswith("1.40.")
    assert "".join(piece["generation"] for piece in pieces) == value(found, "aio_invoke")
    assert pieces[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == 5
    assert value(found, "aio_converse")["stop"] == "max_tokens"
    assert value(found, "aio_converse_stream") == value(found, "aio_converse")["text"]
    assert value(found, "aio_forced_tool") == {"city": "Paris"}


@pytest.mark.parametrize("scenario", ["strands_unknown_model", "aio_unknown_model"])
def test_an_unknown_model_is_the_modelled_exception(found: Scenarios, scenario: str) -> None:
    assert found[scenario]["error"]["name"] == "ResourceNotFoundException"
