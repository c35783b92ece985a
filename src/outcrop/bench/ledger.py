"""``python -m outcrop.bench.ledger``: the ledger's copy-seconds beside the process table, over a run with scaling.

A server of its own serves the sample; users come and go at random, so that copies start, serve, rest and end. What the
ledger counted is then set beside what a sampler of ``/proc`` saw of the same processes, which knows nothing of the
server.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import typer

from outcrop.bench.gateway import SAMPLE, import_with_cli, server
from outcrop.bench.process_table import Sampler
from outcrop.metering.usage import COPY_STATES

MARKER = b"llama_cpp_child"
SETTINGS = {"OUTCROP_CPU_THREADS": "1", "OUTCROP_SLOTS": "2", "OUTCROP_STOP_IDLE": "true"}
LIMITS = {"max_copies": 3, "keep_alive_s": 15.0, "window_s": 20.0}
PHASE_S = (5.0, 25.0)  # how long a number of users stays
MOST_USERS = 5
THINK_S = 0.4


async def measure(minutes: float, seed: int = 1) -> dict[str, Any]:
    """Seconds of copies by the ledger and by the process table, after *minutes* of users who come and go."""
    draw, answered = random.Random(seed), 0  # noqa: S311  (load, not secrets)
    with tempfile.TemporaryDirectory() as folder, Sampler(MARKER) as sampler:
        async with server(Path(folder), **SETTINGS) as (url, keys, process):
            sampler.parent = process.pid
            await asyncio.to_thread(import_with_cli, Path(folder), SAMPLE)
            headers = {"Authorization": f"Bearer {keys.bearer_key}"}
            async with aiohttp.ClientSession(url, headers=headers, raise_for_status=True) as session:
                await session.put("/outcrop/v1/models/bench/scaling", json=LIMITS)
                until = time.monotonic() + 60 * minutes
                while (left_s := until - time.monotonic()) > 0:
                    phase_s = min(left_s, draw.uniform(*PHASE_S))
                    answered += await _users(session, draw.randint(0, MOST_USERS), phase_s)
                rows, at_end = await _settled(session, sampler)
    counted = {state: sum(row[f"{state}_ms"] for row in rows) / 1000 for state in COPY_STATES}
    ledger_s, table_s = sum(counted.values()), sampler.seconds()
    return {
        "minutes": minutes,
        "answered": answered,
        "in_ledger": sum(row["requests"] for row in rows),
        "copies_started": len(sampler.lives),
        "most_copies_at_a_time": sampler.most,
        "copies_at_end": at_end,
        "ledger_s": round(ledger_s, 3),
        "process_table_s": round(table_s, 3),
        "difference": round(ledger_s / table_s - 1, 5),
        "by_state_s": {state: round(seconds, 3) for state, seconds in counted.items()},
    }


async def _users(session: aiohttp.ClientSession, count: int, for_s: float) -> int:
    """So many users ask, think and ask again for *for_s* seconds; how often they were answered."""
    until, answered = time.monotonic() + for_s, 0
    body = {"model": "bench", "prompt": "for each record", "max_tokens": 24}

    async def user() -> None:
        nonlocal answered
        while time.monotonic() < until:
            async with session.post("/v1/completions", json=body) as answer:
                await answer.read()
            answered += 1
            await asyncio.sleep(THINK_S)

    await asyncio.gather(asyncio.sleep(for_s), *(user() for _ in range(count)))
    return answered


async def _settled(session: aiohttp.ClientSession, sampler: Sampler) -> tuple[list[dict[str, Any]], int]:
    """The ledger once every copy has ended, and how many had not after a minute."""
    async with asyncio.timeout(60):
        while sampler.alive():
            await asyncio.sleep(0.2)
    await asyncio.sleep(0.2)
    async with session.get(f"/outcrop/v1/usage/0/{2**53}") as answer:
        return (await answer.json())["rows"], len(sampler.alive())


def main(
    minutes: float = typer.Option(10.0, min=0.05, help="How long users come and go."),
    seed: int = typer.Option(1, help="The same seed draws the same users."),
    out: Path | None = typer.Option(None, help="Keep the result as JSON."),
) -> None:
    """Compare the ledger's copy-seconds with the process table; exit status 1 when they differ by over 1 %."""
    found = asyncio.run(measure(minutes, seed))
    text = json.dumps(found, indent=1)
    typer.echo(text)
    if out is not None:
        out.write_text(text + "\n")
    if abs(found["difference"]) > 0.01:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
