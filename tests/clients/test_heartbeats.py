"""Streams held through a cold start, as the JavaScript and OpenAI SDKs hear them: no heartbeat reaches a caller."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.clients.conftest import PROGRAMS, value
from tests.support.server import Server

MODELS = {
    name: f"cold-{name.lower()}" for name in ("invokeStream", "converseStream", "whole", "openai", "python", "raw")
}


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Server]:
    """A server with one cold model per call, each of which takes a second to start; a heartbeat every 50 ms."""
    server = Server(
        tmp_path_factory.mktemp("heartbeats") / "home",
        heartbeat_s=0.05,
        engine_by_model=json.dumps(dict.fromkeys(MODELS.values(), "simulated")),
        simulated=json.dumps({"start_s": 1.0}),
        imports_in_parallel=len(MODELS),
    ).start()
    jobs = [server.create_job(server.put(tiny, name), name) for name in MODELS.values()]
    assert {server.ended_job(job)["status"] for job in jobs} == {"Completed"}
    yield server
    server.stop()


def test_such_a_stream_does_carry_heartbeats(cold: Server) -> None:
    body = {"model": MODELS["raw"], "prompt": "x", "max_tokens": 2, "stream": True}
    request = urllib.request.Request(
        f"{cold.url}/v1/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {cold.credentials.bearer_key}"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        heard = response.read().decode()
    assert heard.count(": waiting for a copy\n\n") >= 3
    assert heard.endswith("data: [DONE]\n\n")


def test_the_javascript_sdks_hear_none(cold: Server, environment: dict[str, str], node_folder: Path) -> None:
    keys = cold.credentials
    variables = {
        **environment,
        "AWS_ACCESS_KEY_ID": keys.access_key_id,
        "AWS_SECRET_ACCESS_KEY": keys.secret_access_key,
        "OUTCROP_URL": cold.url,
        "OUTCROP_BEARER_KEY": keys.bearer_key,
        "OUTCROP_COLD_MODELS": json.dumps(MODELS),
    }
    assert (PROGRAMS / "heartbeats.mjs").exists()
    done = subprocess.run(
        ["node", str(node_folder / "heartbeats.mjs")],
        env=variables,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])

    assert set(value(found, "invokeStream")) == {"chunk"}
    kinds = list(dict.fromkeys(value(found, "converseStream")))
    assert kinds == ["messageStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"]
    assert value(found, "whole") == 4
    assert set(value(found, "openai")) == {"chat.completion.chunk"}


def test_the_openai_sdk_for_python_hears_none(cold: Server) -> None:
    client = openai.OpenAI(base_url=f"{cold.url}/v1", api_key=cold.credentials.bearer_key)
    stream = client.chat.completions.create(
        model=MODELS["python"], messages=[{"role": "user", "content": "x"}], max_tokens=4, stream=True
    )
    assert {chunk.object for chunk in stream} == {"chat.completion.chunk"}
