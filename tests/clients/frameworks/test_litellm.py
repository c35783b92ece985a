"""LiteLLM: its routes to imported models, some of which apply a chat template by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.clients.conftest import Scenarios, value


@pytest.fixture(scope="module")
def found(run_python: Callable[[str], Scenarios]) -> Scenarios:
    return run_python("litellm_calls.py")


# qwen2 and qwen3 count no tokens: LiteLLM 1.106.2 looks for a "usage" that this format does not have.
@pytest.mark.parametrize("route", ["llama", "deepseek_r1", "qwen2", "qwen3", "openai", "converse", "converse_async"])
def test_every_route_answers(found: Scenarios, route: str) -> None:
    answer = value(found, route)

    assert answer["text"] != ""
    assert answer["tokens"] == (0 if route.startswith("qwen") else 5)


@pytest.mark.parametrize("route", ["llama", "qwen3", "converse"])
def test_a_stream_has_the_text_of_the_whole_answer(found: Scenarios, route: str) -> None:
    assert value(found, f"{route}_stream") == value(found, route)["text"]


def test_the_bedrock_and_the_openai_routes_give_one_text(found: Scenarios) -> None:
    assert value(found, "openai")["text"] == value(found, "converse")["text"] == value(found, "openai_api")["text"]


def test_a_named_tool_is_called(found: Scenarios) -> None:
    call = value(found, "converse_forced_tool")

    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})
    assert call["stop"] == "tool_calls"


@pytest.mark.parametrize(
    ("scenario", "name"),
    [
        ("unknown_model", "NotFoundError"),
        ("refused_request", "BadRequestError"),
        ("wrong_secret", "PermissionDeniedError"),
    ],
)
def test_errors_become_litellm_s_own(found: Scenarios, scenario: str, name: str) -> None:
    assert found[scenario]["error"]["name"] == name
