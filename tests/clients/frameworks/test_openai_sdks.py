"""The OpenAI SDKs: Python in the major version that other libraries hold back, and Node."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.clients.conftest import Scenarios, value


@pytest.fixture(scope="module")
def python(run_python: Callable[[str], Scenarios]) -> Scenarios:
    return run_python("openai_python.py")


@pytest.fixture(scope="module")
def node(run_node: Callable[[str], Scenarios]) -> Scenarios:
    return run_node("openai_node.mjs")


def test_the_python_sdk_is_of_the_older_major_version(python: Scenarios) -> None:
    assert value(python, "version").startswith("2.")


def test_both_list_the_models(python: Scenarios, node: Scenarios) -> None:
    assert {"roomy", "tools"} <= set(value(python, "models"))
    assert {"roomy", "tools"} <= set(value(node, "models"))
    assert value(python, "model") == "model"


def test_a_chat_is_answered_whole_streamed_and_async_with_one_text(python: Scenarios, node: Scenarios) -> None:
    whole = value(python, "chat")

    assert whole["tokens"] == 6
    assert value(python, "chat_stream") == whole
    assert value(python, "chat_async") == whole["text"]
    assert value(node, "chat") == whole["text"]
    assert value(node, "chatStream") == whole
    assert value(node, "streamRunner") == whole["text"]


def test_a_completion_is_answered(python: Scenarios) -> None:
    assert value(python, "completion") == {"tokens": 4, "stop": "length"}


def test_a_json_schema_is_kept(python: Scenarios) -> None:
    assert '"Paris"' in value(python, "json_schema")


def test_a_tool_is_called_when_it_is_named_and_when_one_is_required(python: Scenarios, node: Scenarios) -> None:
    for call in (value(python, "forced_tool"), value(node, "forcedTool")):
        assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})


@pytest.mark.parametrize(
    ("scenario", "name"),
    [("unknown_model", "NotFoundError"), ("bad_request", "BadRequestError"), ("wrong_key", "AuthenticationError")],
)
def test_errors_are_the_python_sdk_s_own_classes(python: Scenarios, scenario: str, name: str) -> None:
    assert python[scenario]["error"]["name"] == name


@pytest.mark.parametrize(("scenario", "status"), [("unknownModel", 404), ("badRequest", 400), ("wrongKey", 401)])
def test_errors_have_their_status_in_node(node: Scenarios, scenario: str, status: int) -> None:
    assert node[scenario]["error"]["status"] == status
