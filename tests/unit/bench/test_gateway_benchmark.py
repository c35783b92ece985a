"""The parts of the gateway benchmark: its upstream, its load generator, its model, its arithmetic."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from outcrop.bench import random_llama, upstream
from outcrop.bench.contenders import Contender
from outcrop.bench.hop import Level, Measured, cpu_s, levels, row, table
from outcrop.bench.load import Plan, Result, Run, percentiles
from outcrop.checkpoints.files import CheckpointFiles, wanted_texts
from outcrop.checkpoints.inspect import inspect


@pytest.fixture
async def direct() -> AsyncIterator[Contender]:
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(upstream.serve(0, listening.set_result))
    yield Contender("direct", "127.0.0.1", await listening)
    task.cancel()


async def measured(contender: Contender, *, pieces: int, concurrency: int = 3) -> Result:
    plan = Plan(
        host=contender.host,
        port=contender.port,
        request=contender.request("x" * 1000, pieces),
        concurrency=concurrency,
        duration_s=0.2,
        pieces=pieces,
    )
    return await Run(plan).go()


async def test_the_upstream_speaks_to_the_openai_sdk(direct: Contender) -> None:
    async with AsyncOpenAI(base_url=f"http://{direct.host}:{direct.port}/v1", api_key="x") as sdk:
        messages = [{"role": "user", "content": "Hello"}]
        whole = await sdk.chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]
        stream = await sdk.chat.completions.create(model="m", messages=messages, max_tokens=5, stream=True)  # type: ignore[arg-type]
        pieces = [chunk async for chunk in stream if chunk.choices]

    assert whole.usage is not None
    assert len(pieces) == 5
    assert pieces[-1].choices[0].finish_reason == "length"


async def test_the_load_generator_counts_whole_answers(direct: Contender) -> None:
    result = await measured(direct, pieces=0)

    assert result.requests >= 3
    assert result.failures == 0
    assert 0 < result.latency_ms["p50"] <= result.latency_ms["p99"]


async def test_the_load_generator_times_every_piece_of_a_stream(direct: Contender) -> None:
    result = await measured(direct, pieces=8)

    assert result.requests >= 3
    assert result.pieces_per_s > 0
    assert 0 < result.piece_delay_ms["p50"] < 10_000


async def test_answers_that_are_errors_are_failures_and_not_requests() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbusy")

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        result = await measured(Contender("broken", "127.0.0.1", port), pieces=0, concurrency=1)

    assert result.requests == 0
    assert result.failures > 0
    assert "busy" in result.first_failure


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentiles([float(number) for number in range(1, 101)]) == {"p50": 51.0, "p95": 96.0, "p99": 100.0}
    assert percentiles([]) == {}


def test_what_is_added_is_relative_to_the_straight_way_of_the_same_round() -> None:
    def measured(p50: float, cpu_us: float | None = None) -> Measured:
        times = {"p50": p50, "p95": p50, "p99": p50}
        return Measured(Result(1, 0, 10.0, times, times, 0.0, {}, 0.0), cpu_us)

    found = {"direct": [measured(10.0), measured(20.0)], "through": [measured(11.0, 150.0), measured(21.0, 250.0)]}
    entry = row(Level(100, "1 kB", 0, 1), found)

    assert entry["through"]["through"]["added_ms"]["p50"] == 1.0
    assert entry["through"]["through"]["server_cpu_us"] == 200.0
    assert entry["through"]["direct"]["server_cpu_us"] is None
    assert "| 100 ms, 1 kB, whole, 1 at a time | through | 1.0 |" in table([entry])


def test_the_processor_time_of_a_process_grows_with_its_work() -> None:
    begun = cpu_s(os.getpid())
    while cpu_s(os.getpid()) == begun:
        sum(range(1000))
    assert cpu_s(os.getpid()) > begun


def test_a_full_run_has_every_level_that_is_promised() -> None:
    titles = {level.title for level in levels(is_quick=False)}

    for concurrency in (1, 16, 64, 256):
        assert f"100 ms, 1 kB, whole, {concurrency} at a time" in titles
        assert f"at once, 400 kB, stream of 64, {concurrency} at a time" in titles
    assert "at once, 1 kB, stream of 64 every 10 ms, 32 at a time" in titles


def test_the_random_llama_is_a_checkpoint_that_can_be_imported(tmp_path: Path) -> None:
    sample = Path(__file__).parents[3] / "examples" / "apexguru" / "checkpoint"
    parameters = random_llama.write(tmp_path / "llama", sample, layers=1)

    folder = tmp_path / "llama"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    texts = {name: (folder / name).read_bytes() for name in wanted_texts(sizes)}
    with (folder / "model.safetensors").open("rb") as weights:
        length = weights.read(8)
        header = length + weights.read(int.from_bytes(length, "little"))
    checkpoint = inspect(CheckpointFiles(sizes, texts, {"model.safetensors": header}))
    assert checkpoint.parameters == parameters
