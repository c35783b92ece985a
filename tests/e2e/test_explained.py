"""What went wrong with a request, explained afterwards: a copy that died under it, a start that it waited for."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import Server, wait_for

CONVERSE = [{"role": "user", "content": [{"text": "for each"}]}]


@pytest.fixture(scope="module")
def bumpy(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Server]:
    """A server that opens held streams almost at once, with a model ``bumpy``."""
    server = Server(tmp_path_factory.mktemp("bumpy"), cpu_threads=1, heartbeat_s=0.01).start()
    server.import_model(tiny, "bumpy")
    yield server
    server.stop()


def ask(server: Server, operation: str) -> dict[str, Any]:
    arn = server.client("bedrock").get_imported_model(modelIdentifier="bumpy")["modelArn"]
    runtime = server.client("bedrock-runtime")
    answer: dict[str, Any] = getattr(runtime, operation)(
        modelId=arn, messages=CONVERSE, inferenceConfig={"maxTokens": 8, "temperature": 0}
    )
    return answer


def explained(server: Server, answer: dict[str, Any]) -> dict[str, Any]:
    return server.admin(f"/outcrop/v1/requests/{answer['ResponseMetadata']['RequestId']}")


def test_a_stream_opened_while_it_is_held_says_so_and_its_trace_which_start_it_waited_for(bumpy: Server) -> None:
    answer = ask(bumpy, "converse_stream")
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    list(answer["stream"])

    record = explained(bumpy, answer)["request"]

    assert headers["x-outcrop-cold-start"] == "pending"
    assert re.match(r"held;dur=[1-9]", headers["x-outcrop-timing"])
    assert "first-token" not in headers["x-outcrop-timing"]
    assert record["cold_start"]["copy_id"] == record["attempts"][0]["copy_id"]
    assert record["held_s"] > 0.01
    assert (record["outcome"], record["output_tokens"]) == ("ok", 8)


def test_a_copy_that_died_under_a_request_and_the_one_that_answered_are_both_in_its_trace(bumpy: Server) -> None:
    ask(bumpy, "converse")
    (copy,) = bumpy.status()["copies"]
    answers: list[dict[str, Any]] = []
    caller = threading.Thread(target=lambda: answers.append(ask(bumpy, "converse")))
    os.kill(copy["pid"], signal.SIGSTOP)
    caller.start()
    wait_for(lambda: any(copy["in_flight"] for copy in bumpy.status()["copies"]))
    os.kill(copy["pid"], signal.SIGKILL)
    caller.join(30)

    found = explained(bumpy, answers[0])

    first, second = found["request"]["attempts"]
    assert first["copy_id"] == copy["copy_id"]
    assert second["copy_id"] == found["request"]["cold_start"]["copy_id"] != copy["copy_id"]
    ran = [(step["name"], step["copy_id"], step["is_broken"]) for step in found["steps"] if step["name"] != "queue"]
    assert ("generate", first["copy_id"], True) in ran
    assert ran.count(("decode", second["copy_id"], False)) == 1
    top = bumpy.admin("/outcrop/v1/top")["models"][0]
    assert (top["failed"], top["live"], top["waiting"]) == (0, 0, 0)
