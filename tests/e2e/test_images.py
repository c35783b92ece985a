"""Images, and what else passes through, to an engine that somebody else wrote: a stand-in that writes down what it hears."""

from __future__ import annotations

import base64
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from botocore.exceptions import ClientError
from tests.support.checkpoints import make_checkpoint
from tests.support.embedders import make_embedder
from tests.support.openai_engine import PROMPT_LOGPROBS
from tests.support.server import Server

from outcrop.checkpoints.families import FAMILIES

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


class Standing:
    """A server whose models run on the stand-in."""

    def __init__(self, server: Server, log: Path, arn: str) -> None:
        self.server, self.arn, self._log = server, arn, log
        self.runtime = server.client("bedrock-runtime")

    def heard(self) -> dict[str, Any]:
        """The body of the last request."""
        body: dict[str, Any] = json.loads(self._log.read_text().splitlines()[-1])["body"]
        return body

    def parts(self) -> list[Any]:
        """The content of the last message of the last request."""
        found: list[Any] = self.heard()["messages"][-1]["content"]
        return found

    def invoke(self, content: list[Any]) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        answer = self.runtime.invoke_model(modelId=self.arn, body=json.dumps(body))
        found: dict[str, Any] = json.loads(answer["body"].read())
        return found


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    folder = tmp_path_factory.mktemp("images")
    checkpoint = make_checkpoint(folder / "vl", "qwen2")
    text = json.loads((checkpoint / "config.json").read_text())
    nested = {key: text[key] for key in text if key not in ("model_type", "architectures")}
    config = {"model_type": "qwen2_vl", "architectures": [FAMILIES["qwen2_vl"].architecture], "text_config": nested}
    (checkpoint / "config.json").write_text(json.dumps({**config, "vision_config": {"depth": 2}}))
    command = [sys.executable, "-m", "tests.support.openai_engine", "{port}", str(folder / "log")]
    server = Server(folder / "home", custom_engine=shlex.join(command), custom_engine_models='["*"]').start()
    yield Standing(server, folder / "log", server.import_model(checkpoint, "seeing"))
    server.stop()


def image(url: str = URL) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_data_urls_reach_the_engine_byte_for_byte_between_the_words(standing: Standing) -> None:
    content = [words("left:"), image(), words("right:"), image(), image(), words("which?")]
    answer = standing.invoke(content)

    assert answer["choices"][0]["message"]["content"] == "3 images"
    assert standing.parts() == content


def test_converse_s_bytes_become_data_urls(standing: Standing) -> None:
    asked = [
        {"text": "What is on"},
        {"image": {"format": "png", "source": {"bytes": PNG}}},
        {"document": {"name": "rules", "format": "txt", "source": {"bytes": b"no loops"}}},
    ]
    messages = [{"role": "user", "content": asked}]
    answer = standing.runtime.converse(modelId=standing.arn, messages=messages)

    assert answer["output"]["message"]["content"] == [{"text": "1 images"}]
    assert standing.parts() == [words("What is on"), image(), words("Document rules:\nno loops")]
    events = list(standing.runtime.converse_stream(modelId=standing.arn, messages=messages)["stream"])
    assert events[1]["contentBlockDelta"]["delta"]["text"] == "1 images"


def test_an_image_that_a_tool_gives_reaches_the_engine_after_the_result(standing: Standing) -> None:
    use = {"toolUse": {"toolUseId": "t1", "name": "look", "input": {}}}
    seen = [{"text": "seen"}, {"image": {"format": "jpeg", "source": {"bytes": PNG}}}]
    messages = [
        {"role": "user", "content": [{"text": "look"}]},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "t1", "content": seen}}]},
    ]
    tools = {"tools": [{"toolSpec": {"name": "look", "inputSchema": {"json": {"type": "object"}}}}]}
    standing.runtime.converse(modelId=standing.arn, messages=messages, toolConfig=tools)

    tool, user = standing.heard()["messages"][-2:]
    assert tool == {"role": "tool", "tool_call_id": "t1", "content": "seen"}
    assert user == {"role": "user", "content": [image(URL.replace("png", "jpeg"))]}


def test_the_openai_api_takes_images(standing: Standing) -> None:
    sdk = openai.OpenAI(base_url=f"{standing.server.url}/v1", api_key=standing.server.credentials.bearer_key)
    messages: Any = [{"role": "user", "content": [image(), words("?")]}]

    assert sdk.chat.completions.create(model="seeing", messages=messages).choices[0].message.content == "1 images"
    assert standing.parts() == [image(), words("?")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([image()] * 4, "4 images; at most 3"),
        ([image("https://example.org/a.png")], "data:image/"),
        ([image("data:image/png;base64,%%")], "base64"),
    ],
)
def test_too_many_images_and_those_that_would_have_to_be_fetched_are_refused(
    content: list[Any], said: str, standing: Standing
) -> None:
    with pytest.raises(ClientError, match=said) as refused:
        standing.invoke(content)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_an_image_may_be_large(standing: Standing) -> None:
    """AWS bounds an image at 3.75 MB; a body at 25 MB."""
    large = base64.b64encode(PNG + bytes(3_700_000)).decode()
    standing.invoke([image(f"data:image/png;base64,{large}"), words("?")])

    assert standing.parts()[0]["image_url"]["url"].endswith(large[-1000:])


def test_prompt_log_probabilities_of_an_engine_that_has_them_are_passed_on(standing: Standing) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "prompt_logprobs": 1}
    chat = standing.runtime.invoke_model(modelId=standing.arn, body=json.dumps(body))["body"].read()
    body = {"prompt": "x", "max_tokens": 1, "prompt_logprobs": 1}
    text = standing.runtime.invoke_model(modelId=standing.arn, body=json.dumps(body))["body"].read()

    assert json.loads(chat)["prompt_logprobs"] == PROMPT_LOGPROBS
    assert json.loads(text)["choices"][0]["prompt_logprobs"] == PROMPT_LOGPROBS
    assert standing.heard()["prompt_logprobs"] == 1


def test_embeddings_of_such_an_engine_are_passed_on(standing: Standing, tmp_path: Path) -> None:
    folder = make_embedder(tmp_path / "model", "qwen3, last token, ended, bare")
    arn = standing.server.import_model(folder, "embedding-elsewhere")
    body = json.dumps({"input": ["a", "b"], "dimensions": 1})
    answer = json.loads(standing.runtime.invoke_model(modelId=arn, body=body)["body"].read())

    assert standing.heard()["input"] == ["a", "b"]
    assert [item["embedding"] for item in answer["data"]] == [[1.0], [1.0]]
    assert answer["usage"]["prompt_tokens"] == 5
