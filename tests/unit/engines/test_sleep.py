"""How a vLLM copy is put to sleep and woken, against a stand-in that keeps to vLLM's routes and their order."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.server import free_port, wait_for
from tests.unit.engines.test_gpu_engines import H100S, OPTIONS

from outcrop.engines.base import Endpoint
from outcrop.engines.vllm import Vllm
from outcrop.errors import EngineFault
from outcrop.inference.canonical import GenerateRequest

ASK = GenerateRequest("completion", {"prompt": "x", "max_tokens": 1})


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[tuple[Endpoint, Path]]:
    """Where it listens, and what it was asked, a line of JSON each."""
    port, asked = free_port(), tmp_path / "asked"
    process = subprocess.Popen([sys.executable, "-m", "tests.support.openai_engine", str(port), str(asked)])
    try:
        wait_for(lambda: _listens(port))
        yield Endpoint(f"http://127.0.0.1:{port}", "key"), asked
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("level", "routes"),
    [
        (1, ["/sleep?level=1", "/wake_up"]),
        (2, ["/sleep?level=2", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"]),
    ],
)
async def test_a_copy_that_slept_answers_as_before(
    stand_in: tuple[Endpoint, Path], level: int, routes: list[str]
) -> None:
    endpoint, asked = stand_in
    engine = Vllm(OPTIONS, H100S, request_timeout_s=5)
    try:
        before = (await engine.complete(endpoint, ASK)).choices[0].text
        await engine.sleep(endpoint, level)
        with pytest.raises(EngineFault):
            await engine.complete(endpoint, ASK)
        await engine.wake(endpoint, level)
        assert (await engine.complete(endpoint, ASK)).choices[0].text == before
    finally:
        await engine.aclose()

    told = [json.loads(line)["path"] for line in asked.read_text().splitlines()]
    assert [path for path in told if not path.startswith("/v1")] == routes


async def test_a_wake_that_was_none_is_noticed(stand_in: tuple[Endpoint, Path]) -> None:
    endpoint, _ = stand_in
    engine = Vllm(OPTIONS, H100S, request_timeout_s=5)
    try:
        await engine.sleep(endpoint, 2)
        await engine.wake(endpoint, 1)  # its weights were dropped: memory is there again, what was in it is not
        assert (await engine.complete(endpoint, ASK)).choices[0].text == "!!!!"
        with pytest.raises(EngineFault):
            await engine.sleep(Endpoint("http://127.0.0.1:1", "key"), 1)
    finally:
        await engine.aclose()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
