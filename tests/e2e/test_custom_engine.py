"""A model on an engine that somebody else wrote: any command that serves the OpenAI API."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import stuck_engine
from tests.support.server import Server, wait_for

from outcrop.engines.base import Endpoint
from outcrop.engines.custom import Custom
from outcrop.errors import BadSetting
from outcrop.inference.canonical import GenerateRequest


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[tuple[Server, str, Path]]:
    """A server whose model "foreign" runs on a custom engine; its ARN; the file where the engine writes its port."""
    folder = tmp_path_factory.mktemp("custom")
    port_file = folder / "port"
    command = [sys.executable, "-m", "outcrop.bench.upstream", "--port", "{port}", "--port-file", str(port_file)]
    server = Server(
        folder / "home", custom_engine=shlex.join(command), custom_engine_models='["foreign"]', cpu_threads=1
    ).start()
    yield server, server.import_model(tiny, "foreign"), port_file
    server.stop()


def test_a_model_on_a_custom_engine_answers_through_every_route(served: tuple[Server, str, Path]) -> None:
    server, arn, _ = served
    runtime = server.client("bedrock-runtime")
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    whole = json.loads(runtime.invoke_model(modelId=arn, body=json.dumps(chat))["body"].read())
    plain = json.loads(runtime.invoke_model(modelId=arn, body='{"prompt":"Hello","max_gen_len":8}')["body"].read())
    stream = runtime.invoke_model_with_response_stream(modelId=arn, body=json.dumps(chat))["body"]
    pieces = [json.loads(event["chunk"]["bytes"]) for event in stream]

    assert whole["usage"]["completion_tokens"] == 64  # what this engine says, not what was asked for
    assert plain["generation_token_count"] == 64
    assert pieces[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == 8


def test_its_tokens_are_counted_by_asking_it(served: tuple[Server, str, Path]) -> None:
    server, arn, _ = served
    runtime = server.client("bedrock-runtime")
    messages = [{"role": "user", "content": [{"text": "Hello"}]}]
    answer = runtime.converse(modelId=arn, messages=messages)

    counted = runtime.count_tokens(modelId=arn, input={"converse": {"messages": messages}})
    assert counted["inputTokens"] == answer["usage"]["inputTokens"] > 0


async def test_it_is_asked_in_openai_s_words_once_for_each_choice() -> None:
    body = {"messages": [], "logprobs": True, "n": 2}
    engine = Custom("serve {port}", request_timeout_s=1)

    how = await engine._plan(Endpoint("", ""), GenerateRequest(kind="chat", body=body))

    assert how.body == {"messages": [], "logprobs": True}
    assert (how.choices, how.top_logprobs) == (2, 0)


def test_nothing_is_converted_for_an_engine_that_reads_the_checkpoint(served: tuple[Server, str, Path]) -> None:
    server, _, _ = served
    told = server.admin("/outcrop/v1/models/foreign")

    assert told["facts"]["engine"] == "custom"
    assert set(told["timings"]) == {"checking", "transferring", "proving"}


def test_only_the_named_models_run_on_it(served: tuple[Server, str, Path], tiny: Path) -> None:
    server, _, _ = served
    arn = server.import_model(tiny, "own")
    body = json.dumps({"prompt": "for each", "max_gen_len": 3})

    answer: dict[str, Any] = json.loads(
        server.client("bedrock-runtime").invoke_model(modelId=arn, body=body)["body"].read()
    )
    assert answer["generation_token_count"] == 3


def test_a_custom_engine_ends_with_a_server_that_was_killed(tmp_path: Path, tiny: Path) -> None:
    pid_file = tmp_path / "pid"
    program = "import os,pathlib,sys; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    command = [sys.executable, "-c", program, str(pid_file), "-m", "outcrop.bench.upstream", "--port", "{port}"]
    server = Server(tmp_path / "home", custom_engine=shlex.join(command), custom_engine_models='["*"]').start()
    arn = server.import_model(tiny, "foreign")
    server.client("bedrock-runtime").invoke_model(modelId=arn, body='{"prompt":"Hello","max_gen_len":1}')
    pid = int(pid_file.read_text())
    assert Path(f"/proc/{pid}").exists()

    server.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10)


def test_an_engine_that_hangs_while_its_health_page_answers_is_replaced_and_its_request_answered(
    tmp_path: Path, tiny: Path
) -> None:
    stuck = tmp_path / "stuck"
    command = [sys.executable, str(Path(stuck_engine.__file__)), "{port}", str(stuck)]
    server = Server(
        tmp_path / "home", custom_engine=shlex.join(command), custom_engine_models='["*"]', stall_s=3
    ).start()
    try:
        arn = server.import_model(tiny, "stuck")
        runtime, body = server.client("bedrock-runtime"), '{"prompt":"Hello","max_gen_len":1}'
        runtime.invoke_model(modelId=arn, body=body)
        first = server.status()["copies"][0]["copy_id"]
        stuck.touch()
        answers: list[Any] = []
        caller = threading.Thread(target=lambda: answers.append(runtime.invoke_model(modelId=arn, body=body)))
        caller.start()
        wait_for(lambda: "replacing a copy" in (server.home / "server.log").read_text(), 30)
        stuck.unlink()
        caller.join(30)

        assert len(answers) == 1
        assert first not in {copy["copy_id"] for copy in server.status()["copies"]}
    finally:
        server.stop()


@pytest.mark.parametrize("command", ["serve-it --model {model}", "serve-it 'open {port}"])
def test_a_command_that_cannot_work_stops_the_start(command: str) -> None:
    with pytest.raises(BadSetting, match="custom_engine="):
        Custom(command, request_timeout_s=1)
