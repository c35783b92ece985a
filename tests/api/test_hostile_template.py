"""A chat template that passes its import and turns on the server later: time and memory stay the engine's own trouble."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.server import Server, wait_for

WORD = "zanzibar"
TURNED = (
    "{% if '" + WORD + "' in messages[0]['content'] %}{harm}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOPS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
GROWS = (
    "{% set ns = namespace(a='" + "x" * 1000 + "') %}"
    "{% for i in range(40) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}"
)


def served(home: Path, tiny: Path, harm: str) -> tuple[Server, str]:
    """A server with an innocent model, and one whose template does *harm* at the word; the latter's ARN."""
    folder = shutil.copytree(tiny, home.parent / "checkpoint")
    path = folder / "tokenizer_config.json"
    template = TURNED.replace("{harm}", harm)
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    server = Server(home, cpu_threads=1, imports_in_parallel=2, slots=2, stall_s=1, probe_s=0.5).start()
    server.import_model(tiny, "innocent")
    return server, server.import_model(folder, "turned")


def ask(server: Server, arn: str, text: str) -> Any:
    return server.client("bedrock-runtime").converse(
        modelId=arn, messages=[{"role": "user", "content": [{"text": text}]}], inferenceConfig={"maxTokens": 2}
    )


@pytest.fixture(params=[LOOPS, GROWS], ids=["loops", "grows"])
def turned(request: pytest.FixtureRequest, tmp_path: Path, tiny: Path) -> Iterator[tuple[Server, str]]:
    server, arn = served(tmp_path / "home", tiny, request.param)
    yield server, arn
    server.stop()


def test_a_template_that_turns_in_serving_fails_its_request_and_nothing_else(turned: tuple[Server, str]) -> None:
    server, arn = turned
    assert ask(server, arn, "Hello")["usage"]["outputTokens"] == 2
    innocent = server.client("bedrock").get_imported_model(modelIdentifier="innocent")["modelArn"]

    with pytest.raises(ClientError) as caught:
        ask(server, arn, WORD)

    assert caught.value.response["Error"]["Code"] in (
        "ModelErrorException",
        "ModelTimeoutException",
        "ValidationException",
    )
    assert ask(server, innocent, WORD)["usage"]["outputTokens"] == 2
    wait_for(lambda: ask(server, arn, "Hello")["usage"]["outputTokens"] == 2, 30)
