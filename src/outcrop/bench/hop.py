"""What a hop costs: ``make bench-gateway``.

The same requests to one upstream that computes nothing: straight, through Outcrop (signed InvokeModel and the OpenAI
API), through LiteLLM's proxy and through Ray Serve. Per level the contenders take turns, so that other load on the
machine falls on all of them; every number is relative to the straight way in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import typer

from outcrop.bench.contenders import Contender, litellm, note, outcrop, pace, ray_serve, temporary_folder
from outcrop.bench.load import Plan, Result

LEVELS = (1, 16, 64, 256)
PROMPTS = {"1 kB": 1_000, "400 kB": 400_000}
STREAM_TOKENS = 64
FOREIGN = Path(__file__).parents[3] / ".foreign"


@dataclass(frozen=True, slots=True)
class Level:
    """One row of the table. Times in ms."""

    delay_ms: float
    prompt: str
    pieces: int
    concurrency: int
    token_ms: float = 0.0

    @property
    def title(self) -> str:
        upstream = f"{self.delay_ms:g} ms" if self.delay_ms else "at once"
        paced = f" every {self.token_ms:g} ms" if self.token_ms else ""
        kind = f"stream of {self.pieces}{paced}" if self.pieces else "whole"
        return f"{upstream}, {self.prompt}, {kind}, {self.concurrency} at a time"


def levels(*, is_quick: bool) -> list[Level]:
    """Every level of a run; a quick one leaves out what no target speaks of."""
    if is_quick:
        whole = [Level(delay, "1 kB", 0, at) for delay in (100, 0) for at in LEVELS[:3]]
        return [*whole, Level(0, "1 kB", STREAM_TOKENS, 16), Level(0, "1 kB", STREAM_TOKENS, 32, 10)]
    every = [
        Level(delay, prompt, pieces, at)
        for delay in (100, 0)
        for prompt in PROMPTS
        for pieces in (0, STREAM_TOKENS)
        for at in LEVELS
    ]
    return [*every, Level(0, "1 kB", STREAM_TOKENS, 1, 10), Level(0, "1 kB", STREAM_TOKENS, 32, 10)]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the load generator saw, and the processor time (user and system) that one request cost the server."""

    result: Result
    server_cpu_us: float | None


def cpu_s(pid: int) -> float:
    """Seconds of processor time that *pid* has used, in steps of 10 ms (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(contender: Contender, level: Level, duration_s: float) -> Measured:
    """One level through one contender, by a load generator in a process of its own."""
    plan = Plan(
        host=contender.host,
        port=contender.port,
        request=contender.request("x" * PROMPTS[level.prompt], level.pieces),
        concurrency=level.concurrency,
        duration_s=duration_s,
        pieces=level.pieces,
        spread_s=(level.delay_ms + level.token_ms) / 1000,
    )
    begun_s = cpu_s(contender.pid) if contender.pid else 0.0
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "outcrop.bench.load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(msgspec.json.encode(plan))
    result = msgspec.json.decode(out, type=Result)
    if not (contender.pid and result.requests):
        return Measured(result, None)
    return Measured(result, (cpu_s(contender.pid) - begun_s) / result.requests * 1e6)


async def run(only: Sequence[str], rounds: int, duration_s: float, *, is_quick: bool) -> dict[str, Any]:
    with temporary_folder() as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            contenders = await stack.enter_async_context(outcrop(folder / "home"))
            upstream = contenders[0]
            note("outcrop answers")
            if "litellm" in only:
                python = FOREIGN / "litellm" / "bin" / "python"
                contenders.append(await stack.enter_async_context(litellm(python, upstream, folder, 7391)))
                note("litellm answers")
            if "ray" in only:
                python = FOREIGN / "ray" / "bin" / "python"
                contenders.append(await stack.enter_async_context(ray_serve(python, upstream, folder, 7392)))
                note("ray serve answers")
            rows = []
            for level in levels(is_quick=is_quick):
                await pace(upstream, level.delay_ms, level.token_ms)
                found: dict[str, list[Measured]] = {contender.name: [] for contender in contenders}
                for _ in range(rounds):
                    for contender in contenders:
                        found[contender.name].append(await measure(contender, level, duration_s))
                rows.append(row(level, found))
                note(table([rows[-1]]))
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "rounds": rounds,
        "duration_s": duration_s,
        "levels": rows,
    }


def row(level: Level, found: dict[str, list[Measured]]) -> dict[str, Any]:
    """Medians over the rounds, and each contender beside the direct way."""
    direct = [measured.result for measured in found["direct"]]
    through = {}
    for name, rounds in found.items():
        results = [measured.result for measured in rounds]
        costs = [measured.server_cpu_us for measured in rounds if measured.server_cpu_us is not None]
        pairs = [
            (ours.latency_ms, plain.latency_ms)
            for ours, plain in zip(results, direct, strict=True)
            if ours.latency_ms and plain.latency_ms
        ]
        added = {
            share: _median([ours[share] - plain[share] for ours, plain in pairs]) if pairs else None
            for share in ("p50", "p95", "p99")
        }
        through[name] = {
            "requests_per_s": _median([result.requests_per_s for result in results]),
            "added_ms": added,
            "latency_ms": _medians([result.latency_ms for result in results]),
            "first_byte_ms": _medians([result.first_byte_ms for result in results]),
            "pieces_per_s": _median([result.pieces_per_s for result in results]),
            "piece_delay_ms": _medians([result.piece_delay_ms for result in results]),
            "requests": sum(result.requests for result in results),
            "failures": sum(result.failures for result in results),
            "first_failure": next((result.first_failure for result in results if result.failures), ""),
            "server_cpu_us": _median(costs) if costs else None,
            "load_generator_cpu_s": _median([result.cpu_s for result in results]),
        }
    return {"level": level.title, "through": through}


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def _medians(values: list[dict[str, float]]) -> dict[str, float]:
    filled = [value for value in values if value]
    return {share: _median([value[share] for value in filled]) for share in (filled[0] if filled else {})}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line per level and contender."""
    lines = []
    for entry in rows:
        for name, found in entry["through"].items():
            added, delay = found["added_ms"], found["piece_delay_ms"].get("p50", "")
            cpu = found["server_cpu_us"] or ""
            cells = (*(added[share] for share in ("p50", "p95", "p99")), found["requests_per_s"], delay, cpu)
            cells = (*cells, found["failures"] or "")
            lines.append(f"| {entry['level']} | {name} | " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


HEAD = (
    "| level | through | added p50 ms | p95 | p99 | requests/s | piece delay p50 ms | CPU µs/request | failed |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a hop costs, beside the upstream asked directly.")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds per level and contender")
    parser.add_argument("--duration", type=float, default=2.0, help="seconds of one measurement")
    parser.add_argument("--beside", default="litellm,ray", help="other gateways, comma-separated; empty for none")
    parser.add_argument("--quick", action="store_true", help="fewer levels")
    parser.add_argument("--out", type=Path, help="write the result as JSON here as well")
    arguments = parser.parse_args()
    beside = [name for name in arguments.beside.split(",") if name]
    result = asyncio.run(run(beside, arguments.rounds, arguments.duration, is_quick=arguments.quick))
    typer.echo(f"{HEAD}\n{table(result['levels'])}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
