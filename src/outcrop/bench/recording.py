"""``python -m outcrop.bench.recording``: a real run with scaling, kept so that the planner can be held to it.

A server of its own serves one model. First one pinned copy is driven in a closed loop, then two: what a copy is, and
what copies take from each other on one machine. Then requests arrive at their own times, in phases with bursts and
rests, while copies come and go from zero. What was measured is kept with the ledger's copy-seconds and cold starts;
``outcrop plan validate`` replays it in the simulator.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import typer

from outcrop.bench.drive import Driver, Record, Run, Shape, calibrated
from outcrop.bench.endpoints import OpenAI
from outcrop.bench.gateway import SAMPLE, import_with_cli, server
from outcrop.bench.measures import steady
from outcrop.bench.payloads import Lengths, Payload

MODEL = "bench"
BESIDE = 2  # pinned copies of the second closed loop
COUNTED = ("starting", "idle", "busy", "draining")  # what the simulator counts as a copy's time


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is recorded. *phases*: (seconds, arrivals as a share of what one full copy serves)."""

    settings: dict[str, str]
    scaling: dict[str, Any]
    payload: Payload
    users: tuple[int, ...]
    per_level: int
    phases: tuple[tuple[float, float], ...]


def plans(calibration: str, speedup: float) -> dict[str, Plan]:
    """The sample on the CPU engine with at most two copies of one thread; simulated copies with at most six."""
    simulated = {"calibration": calibration, "speedup": speedup, "seed": 1}
    return {
        "sample": Plan(
            settings={"OUTCROP_CPU_THREADS": "1", "OUTCROP_STOP_IDLE": "true"},
            scaling={"slots": 4, "max_copies": 2, "keep_alive_s": 6.0, "window_s": 10.0},
            payload=Payload(tokens_in=Lengths(mean=200), tokens_out=Lengths(mean=80)),
            users=(1, 2, 4),
            per_level=120,  # of a tenth of a second each: fewer leave kappa uncertain by several per cent
            phases=2 * ((12, 0.3), (10, 0.9), (9, 0), (10, 0.5), (9, 0), (12, 1.1), (10, 0.2)),
        ),
        "simulated": Plan(
            settings={
                "OUTCROP_ENGINE_BY_MODEL": json.dumps({MODEL: "simulated"}),
                "OUTCROP_SIMULATED": json.dumps(simulated),
                "OUTCROP_STOP_IDLE": "true",
            },
            scaling={"slots": 24, "max_copies": 6, "keep_alive_s": 12.0, "window_s": 15.0},
            payload=Payload(tokens_in=Lengths(mean=1000), tokens_out=Lengths(mean=220)),
            users=(1, 8, 16, 24),
            per_level=30,
            phases=((15, 0.4), (20, 2.0), (20, 4.0), (25, 0), (15, 2.5), (8, 0.5)),
        ),
    }


class Recorder:
    """One server and its model. *session* speaks to the server's own resources."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: OpenAI, plan: Plan, payload: Payload) -> None:
        self._session = session
        self._endpoint = endpoint
        self._plan = plan
        self._payload = payload

    async def record(self, seed: int) -> dict[str, Any]:
        closed = await self._closed(1, self._plan.users, seed)
        beside = await self._closed(BESIDE, (BESIDE * self._plan.users[-1],), seed)
        full = closed[self._plan.users[-1]]
        capacity = len(steady(full)) / (full.steady[1] - full.steady[0])
        await self._scaling(self._plan.scaling)
        await self._until_no_copies()
        before = await self._usage()
        opened = await self._open(capacity, seed)
        await self._until_no_copies()
        after = await self._usage()
        spent = {name: after[name] - before.get(name, 0) for name in after}
        return {
            "closed": {str(users): [_timed(each) for each in steady(run)] for users, run in closed.items()},
            "beside": {str(users): [_timed(each) for each in steady(run)] for users, run in beside.items()},
            "beside_copies": BESIDE,
            "open": [_timed(each) for each in sorted(opened.records, key=lambda record: record.due_s)],
            "engine": opened.engine or "llama.cpp",
            "slots": self._plan.scaling["slots"],
            "scaling": self._plan.scaling,
            "capacity_of_a_copy": round(capacity, 4),
            "phases": self._plan.phases,
            "copy_s": round(sum(spent[f"{state}_ms"] for state in COUNTED) / 1000, 3),
            "cold_starts": spent["cold_starts"],
            "cold_start_s": round(
                sum(spent[f"start_{stage}_ms"] for stage in ("queued", "spawn", "load"))
                / max(1, spent["cold_starts"])
                / 1000,
                4,
            ),
            "slip_p99_s": round(
                sorted(each.sent_s - each.due_s for each in opened.records)[-len(opened.records) // 100], 5
            ),
            "cores": len(os.sched_getaffinity(0)),
        }

    async def _closed(self, copies: int, levels: tuple[int, ...], seed: int) -> dict[int, Run]:
        """So many pinned copies, with each of the *levels* of users at a time."""
        await self._scaling({**self._plan.scaling, "min_copies": copies, "max_copies": copies})
        async with asyncio.timeout(180):
            while sum(copy["state"] == "ready" for copy in (await self._get("status"))["copies"]) < copies:
                await asyncio.sleep(0.1)
        driver, found = Driver(self._endpoint, self._payload), {}
        for users in levels:
            count = max(self._plan.per_level, 4 * users)
            found[users] = await driver.run(
                Shape(users=users, requests=count, warm_s=1.0, most_s=60, seed=seed + users)
            )
        return found

    async def _open(self, capacity: float, seed: int) -> Run:
        rng, due, at = random.Random(seed), [], 0.0  # noqa: S311  (load, not secrets)
        for seconds, share in self._plan.phases:
            due += sorted(at + rng.uniform(0, seconds) for _ in range(round(seconds * share * capacity)))
            at += seconds
        shape = Shape(schedule=tuple(due), requests=len(due), warm_s=0, most_s=at + 60, seed=seed)
        return await Driver(self._endpoint, self._payload).run(shape)

    async def _scaling(self, wanted: dict[str, Any]) -> None:
        async with self._session.put(f"/outcrop/v1/models/{MODEL}/scaling", json=wanted) as answer:
            answer.raise_for_status()

    async def _until_no_copies(self) -> None:
        async with asyncio.timeout(180):
            while (await self._get("status"))["copies"]:
                await asyncio.sleep(0.1)

    async def _usage(self) -> dict[str, int]:
        rows = (await self._get(f"usage/0/{2**53}"))["rows"]
        names = [name for name, value in rows[0].items() if isinstance(value, int)] if rows else []
        return {name: sum(row[name] for row in rows) for name in names}

    async def _get(self, path: str) -> Any:
        async with self._session.get(f"/outcrop/v1/{path}") as answer:
            answer.raise_for_status()
            return await answer.json()


async def record(plan: Plan, seed: int) -> dict[str, Any]:
    """What ``outcrop plan validate`` reads."""
    with tempfile.TemporaryDirectory() as folder:
        async with server(Path(folder), **plan.settings) as (url, keys, _):
            await asyncio.to_thread(import_with_cli, Path(folder), SAMPLE)
            endpoint = OpenAI(f"{url}/v1", MODEL, keys.bearer_key, stream=False)
            payload = await calibrated(endpoint, plan.payload)
            headers = {"Authorization": f"Bearer {keys.bearer_key}"}
            async with aiohttp.ClientSession(url, headers=headers) as session:
                return await Recorder(session, endpoint, plan, payload).record(seed)


def _timed(record: Record) -> dict[str, Any]:
    return {
        "due_s": record.due_s,
        "latency_s": round(record.latency_s, 6),
        "tokens_in": record.tokens_in,
        "tokens_out": record.tokens_out,
        **({"error": record.error} if record.error else {}),
    }


def main(
    name: str = typer.Argument("sample", help="sample (the CPU engine), or simulated (larger)."),
    out: Path = typer.Option(..., help="File for the recording, which outcrop plan validate reads."),
    calibration: str = typer.Option("qwen2.5-14b-a100-40gb", help="Of simulated copies."),
    speedup: float = typer.Option(5.0, min=1, help="How many times faster than that they run."),
    seed: int = typer.Option(1, help="The same seed sends the same requests."),
) -> None:
    """Record a run with scaling, cold starts included."""
    known = plans(calibration, speedup)
    if name not in known:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}.")
    found = asyncio.run(record(known[name], seed))
    if found["engine"] == "simulated":
        found["engine"] = f"simulated {calibration}, {speedup:g} times faster"
    raw = msgspec.json.encode(found) + b"\n"
    out.write_bytes(gzip.compress(raw, mtime=0) if out.suffix == ".gz" else raw)
    typer.echo(f"{len(found['open'])} requests, {found['cold_starts']} cold starts, {found['copy_s']} copy-seconds")


if __name__ == "__main__":
    typer.run(main)
