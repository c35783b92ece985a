"""What the gateway adds: the same streams through it and straight to an engine, in one run (``make bench``).

Two models: the sample, whose engine makes about a token per millisecond, and a random Llama of 100 million parameters,
which is nearer to what people serve. Two copies of each run side by side, one behind the gateway and one bare; rounds
alternate between them, so that other load on the machine falls on both. Also: cold start through the gateway against
the bare process, import time, and the idle server's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import typer

from outcrop.access.credentials_file import Credentials, read
from outcrop.bench import random_llama
from outcrop.engines import copy_socket
from outcrop.engines.base import CopySpec
from outcrop.engines.llama_cpp import LlamaCpp
from outcrop.launchers.local import LocalLauncher, Process

SAMPLE = Path(__file__).parents[3] / "examples" / "apexguru" / "checkpoint"
LEVELS = (1, 4, 16, 32)
PROMPT = "for each record in the list, check it. " * 12
SECRET = "bench"  # noqa: S105  (guards a process that lives for one run)


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-shaped endpoint; *socket*: the path of the Unix socket that it is on."""

    url: str
    key: str
    model: str
    socket: str = ""

    def session(self) -> aiohttp.ClientSession:
        """A client whose connections are its alone, one a request."""
        if self.socket:
            return aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.socket, limit=0, force_close=True))
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


@dataclass(frozen=True, slots=True)
class Sample:
    first_token_s: float
    tokens: int


async def one(session: aiohttp.ClientSession, target: Target, prompt: str, max_tokens: int) -> Sample:
    """One stream; the tokens are counted as the server's usage says."""
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, tokens = time.perf_counter(), 0.0, 0
    headers = {"Authorization": f"Bearer {target.key}"}
    async with session.post(f"{target.url}/v1/chat/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                first = first or time.perf_counter() - begun
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return Sample(first, tokens)


async def level(session: aiohttp.ClientSession, target: Target, concurrency: int, requests: int) -> float:
    """Tokens/s of *requests* requests, *concurrency* at a time."""
    gate = asyncio.Semaphore(concurrency)

    async def gated(number: int) -> Sample:
        async with gate:
            return await one(session, target, f"{number} " + PROMPT, 48)

    begun = time.perf_counter()
    samples = await asyncio.gather(*(gated(number) for number in range(requests)))
    return sum(sample.tokens for sample in samples) / (time.perf_counter() - begun)


async def added_to_first_token(
    sessions: Mapping[Target, aiohttp.ClientSession], gateway: Target, bare: Target, pairs: int
) -> dict[str, float]:
    """Times to first token (ms, medians) of single streams that take turns, and the median of their differences."""
    found: list[tuple[float, float]] = []
    for number in range(pairs + 2):
        # The two ways take turns in going first: whatever the first one warms up helps the second.
        order = (gateway, bare) if number % 2 else (bare, gateway)
        taken = {}
        for target in order:
            sample = await one(sessions[target], target, f"{number} " + PROMPT, 4)
            taken[target.url] = sample.first_token_s * 1000
        if number >= 2:  # the first pairs warm up
            found.append((taken[gateway.url], taken[bare.url]))
    return {
        "gateway_ms": round(statistics.median(ours for ours, _ in found), 3),
        "bare_ms": round(statistics.median(plain for _, plain in found), 3),
        "added_ms": round(statistics.median(ours - plain for ours, plain in found), 3),
    }


async def compare(gateway: Target, bare: Target, rounds: int) -> dict[str, Any]:
    """What is added to the first token; per concurrency the rates, medians over interleaved rounds, and their ratio."""
    rows = []
    async with gateway.session() as to_gateway, bare.session() as to_bare:
        sessions = {gateway: to_gateway, bare: to_bare}
        first = await added_to_first_token(sessions, gateway, bare, 12 * rounds)
        typer.echo(json.dumps(first))
        for concurrency in LEVELS:
            found: dict[str, list[float]] = {"gateway": [], "bare": []}
            for number in range(rounds + 1):
                pairs = (("gateway", gateway), ("bare", bare))
                for name, target in pairs if number % 2 else pairs[::-1]:
                    rate = await level(sessions[target], target, concurrency, max(32, 3 * concurrency))
                    if number:  # the first round warms up
                        found[name].append(rate)
            kept = [ours / plain for ours, plain in zip(found["gateway"], found["bare"], strict=True)]
            rows.append(
                {
                    "concurrency": concurrency,
                    "tokens_per_s": {name: round(statistics.median(rates), 1) for name, rates in found.items()},
                    "kept": round(statistics.median(kept), 3),
                }
            )
            typer.echo(json.dumps(rows[-1]))
    return {"first_token": first, "levels": rows}


@contextlib.asynccontextmanager
async def server(home: Path, **settings: str) -> AsyncIterator[tuple[str, Credentials, subprocess.Popen[bytes]]]:
    """A server of its own process; yields URL, credentials and the process."""
    environment = {
        **os.environ,
        "OUTCROP_LOG_LEVEL": "warning",
        "OUTCROP_HOME": str(home),
        "OUTCROP_PORT": "0",
        **settings,
    }
    process = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-m", "outcrop.cli.main", "serve"], env=environment
    )
    try:
        address = home / "run" / "server.json"
        for _ in range(1000):
            if address.exists():
                break
            await asyncio.sleep(0.02)
        yield json.loads(address.read_text())["url"], read(home), process
    finally:
        process.terminate()
        process.wait(30)


async def start_bare(
    launcher: LocalLauncher, artifact: Path, like: dict[str, Any], log: Path
) -> tuple[Process, Target, float]:
    """The engine alone, started as the fleet starts it; the seconds from spawn to the first answer."""
    engine = LlamaCpp(request_timeout_s=600)
    spec = CopySpec(
        model_id="bare",
        artifact=artifact,
        context_tokens=like["context_tokens"],
        slots=like["slots"],
        threads=like["threads"],
        kv_f32=True,
    )
    begun = time.perf_counter()
    process = await launcher.start(engine.command(spec), engine.child_config(spec, SECRET), log, 120)
    socket, prefix = copy_socket.split(process.url)
    target = Target(f"http://localhost{prefix}", SECRET, "bare", socket)
    async with target.session() as session:
        await one(session, target, "Hello", 1)
    took = time.perf_counter() - begun
    await engine.aclose()
    return process, target, took


async def run(rounds: int, checkpoint: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        async with server(home) as (url, keys, process):
            idle_mb = rss_mb(process.pid)
            import_s = await asyncio.to_thread(import_with_cli, home, checkpoint)
            gateway = Target(url, keys.bearer_key, "bench")
            async with aiohttp.ClientSession() as session:
                begun = time.perf_counter()
                await one(session, gateway, "Hello", 1)
                cold = [time.perf_counter() - begun]
                headers = {"Authorization": f"Bearer {keys.bearer_key}"}
                async with session.get(f"{url}/outcrop/v1/status", headers=headers) as response:
                    like = (await response.json())["models"][0]
            artifact = next((home / "store" / "models").glob("*/model.gguf"))
            launcher = LocalLauncher()
            bare_process, bare, bare_cold = await start_bare(launcher, artifact, like, home / "bare.log")
            try:
                measured = await compare(gateway, bare, rounds)
            finally:
                await bare_process.stop(5)
                launcher.close()
    return {
        "idle_rss_mb": idle_mb,
        "import_s": import_s,
        "cold_start_s": {"gateway": round(cold[0], 3), "bare": round(bare_cold, 3)},
        "cold_start_ratio": round(cold[0] / bare_cold, 3),
        **measured,
    }


def import_with_cli(home: Path, checkpoint: Path) -> float:
    """Seconds of the import job, by its phases."""
    command = [sys.executable, "-m", "outcrop.cli.main", "import", str(checkpoint), "--name", "bench", "--json"]
    environment = {**os.environ, "OUTCROP_HOME": str(home)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True)
    timings: dict[str, float] = json.loads(done.stdout)["timings"]
    return round(sum(timings.values()), 3)


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the gateway adds, beside the engine asked directly.")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds per level and target")
    parser.add_argument("--checkpoint", type=Path, default=SAMPLE, help="checkpoint to serve (the sample)")
    parser.add_argument("--out", type=Path, help="write the result as JSON here as well")
    parser.add_argument("--model", choices=("sample", "100m", "both"), default="both", help="what to serve")
    arguments = parser.parse_args()
    result = {}
    if arguments.model != "100m":
        result["sample" if arguments.checkpoint == SAMPLE else str(arguments.checkpoint)] = asyncio.run(
            run(arguments.rounds, arguments.checkpoint)
        )
    if arguments.model != "sample":
        with tempfile.TemporaryDirectory() as folder:
            parameters = random_llama.write(Path(folder) / "llama", SAMPLE)
            typer.echo(f"a random Llama of {parameters / 1e6:.0f} million parameters")
            result["random-llama-100m"] = asyncio.run(run(max(1, arguments.rounds // 2), Path(folder) / "llama"))
    text = json.dumps(result, indent=2)
    typer.echo(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
