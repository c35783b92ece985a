"""Scaling on simulated copies: the published table's load, 1 to 32 users, beside three copies that are always warm.

Copies are real processes of the ``simulated`` engine behind the real server; requests, routing, decisions, starts and
the clock are real, the time that tokens take is a model's (``engines/calibrations.json``) and runs *speedup* times
faster. The policy's own windows (15 s, 60 s) and its tick (1 s) are not scaled, so its reaction counts *speedup* times
harder than in life. Latencies and rates are given as they would be without the speedup.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from msgspec import Struct, field, to_builtins

from outcrop.bench.gateway import SAMPLE, server

MODEL = "load"
TOKENS_IN, TOKENS_OUT, SPREAD = 1000, 220, 0.2  # means of log-normal lengths and their coefficient of variation
CHARS_PER_TOKEN = 4  # as the simulated engine counts
SLOTS = 24  # requests of this size that the cache of one A100 with 40 GB beside a 14 B model holds
LEVELS = ((1, 12.0), (4, 12.0), (16, 12.0), (32, 45.0))  # users and for how long, in s of the real clock
LOOK_S = 0.25


class Moment(Struct):
    """What was seen at *at_s* seconds since the load began, on the real clock."""

    at_s: float
    users: int
    ready: int
    starting: int
    held: int
    p50_s: float | None = None  # of the requests that ended since the moment before


class Level(Struct):
    """One number of users. *reaction_s*: from its beginning to the next order of a copy, None when there was none."""

    users: int
    requests: int
    failures: int
    requests_per_minute: float
    p50_s: float
    p95_s: float
    copies_at_end: int
    reaction_s: float | None = None
    ended: list[tuple[float, float]] = field(default_factory=list)  # (when, how long), on the real clock


class Lengths:
    """Prompt and answer lengths, the same ones in every run."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  (load, not secrets)

    def body(self) -> bytes:
        ask = {"prompt": "x" * (CHARS_PER_TOKEN * self._draw(TOKENS_IN)), "max_tokens": self._draw(TOKENS_OUT)}
        return json.dumps({"model": MODEL, "ignore_eos": True, **ask}).encode()

    def _draw(self, mean: int) -> int:
        sigma = math.sqrt(math.log(1 + SPREAD**2))
        return max(1, round(self._random.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


class Run:
    """A server with one simulated model, its load and its time line."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str, speedup: float) -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}
        self._speedup = speedup
        self._lengths = Lengths(7)
        self._begun = time.monotonic()
        self._users = 0
        self._ended: list[tuple[float, float]] = []
        self.moments: list[Moment] = []

    async def level(self, users: int, for_s: float) -> Level:
        """*users* that each ask again once answered."""
        asked_at, begun, first, self._users = time.time(), time.monotonic(), len(self._ended), users
        failures = 0

        async def user() -> None:
            nonlocal failures
            while time.monotonic() - begun < for_s:
                sent = time.monotonic()
                async with self._session.post(
                    f"{self._url}/v1/completions", data=self._lengths.body(), headers=self._headers
                ) as answer:
                    await answer.read()
                    failures += answer.status != 200
                now = time.monotonic()
                self._ended.append((now - self._begun, now - sent))

        await asyncio.gather(*(user() for _ in range(users)))
        ended = self._ended[first:]
        taken = sorted(took * self._speedup for _, took in ended)
        status, decisions = await self._get("status"), await self._get(f"models/{MODEL}/decisions")
        orders = [row["at"] for row in decisions["decisions"] if row["desired"] > row["current"]]
        since = [at - asked_at for at in orders if at >= asked_at]
        return Level(
            users=users,
            requests=len(ended),
            failures=failures,
            requests_per_minute=round(_per_minute(ended, users) / self._speedup, 1),
            p50_s=round(taken[len(taken) // 2], 2),
            p95_s=round(taken[int(len(taken) * 0.95)], 2),
            copies_at_end=len(_in(status, "ready", "evictable")),
            reaction_s=round(min(since), 3) if since else None,
            ended=ended,
        )

    async def look(self) -> None:
        """Write the time line until cancelled."""
        seen = 0
        while True:
            status = await self._get("status")
            recent, seen = sorted(took for _, took in self._ended[seen:]), len(self._ended)
            (model,) = status["models"]
            self.moments.append(
                Moment(
                    at_s=round(time.monotonic() - self._begun, 2),
                    users=self._users,
                    ready=len(_in(status, "ready", "evictable")),
                    starting=len(_in(status, "starting")),
                    held=model["held"],
                    p50_s=round(recent[len(recent) // 2] * self._speedup, 2) if recent else None,
                )
            )
            await asyncio.sleep(LOOK_S)

    async def configure(self, scaling: dict[str, Any]) -> None:
        path = f"{self._url}/outcrop/v1/models/{MODEL}/scaling"
        async with self._session.put(path, json=scaling, headers=self._headers) as answer:
            answer.raise_for_status()

    async def until_ready(self, copies: int) -> None:
        async with asyncio.timeout(120):
            while len(_in(await self._get("status"), "ready", "evictable")) < copies:
                await asyncio.sleep(0.05)

    async def _get(self, path: str) -> Any:
        async with self._session.get(f"{self._url}/outcrop/v1/{path}", headers=self._headers) as answer:
            answer.raise_for_status()
            return await answer.json()


async def measure(calibration: str, speedup: float, levels: tuple[tuple[int, float], ...] = LEVELS) -> dict[str, Any]:
    """The load on copies that scale from one to three; its last level on three that were there all along; one step."""
    async with _run(calibration, speedup) as run:
        await run.configure({"slots": SLOTS, "max_copies": 3, "min_copies": 1})
        await run.until_ready(1)
        looking = asyncio.create_task(run.look())
        scaled = [await run.level(users, for_s) for users, for_s in levels]
        looking.cancel()
        moments = run.moments
    async with _run(calibration, speedup) as run:
        await run.configure({"slots": SLOTS, "max_copies": 3, "min_copies": 3})
        await run.until_ready(3)
        warm = await run.level(*levels[-1])
    async with _run(calibration, speedup) as run:
        await run.configure({"slots": SLOTS, "max_copies": 3, "min_copies": 1})
        await run.until_ready(1)
        step = await run.level(levels[-1][0], 2.0)
    full_at = next((each.at_s for each in moments if each.ready == 3), math.inf)
    last = scaled[-1]
    # After the third copy is there and one whole round of requests has run on three.
    steady = _per_minute([each for each in last.ended if each[0] >= full_at + 2 * last.p95_s / speedup], 0)
    whole = _per_minute(warm.ended[len(warm.ended) // 4 :], 0)
    return {
        "calibration": calibration,
        "speedup": speedup,
        "slots": SLOTS,
        "levels": [_without_ends(each) for each in scaled],
        "always_warm": _without_ends(warm),
        "step_reaction_s": step.reaction_s,
        "third_copy_after_s": round(full_at - last.ended[0][0] + last.ended[0][1], 2),
        "steady_requests_per_minute": round(steady / speedup, 1),
        "steady_share_of_always_warm": round(steady / whole, 3),
        "time_line": to_builtins(moments),
    }


@asynccontextmanager
async def _run(calibration: str, speedup: float) -> AsyncIterator[Run]:
    settings = {
        "OUTCROP_ENGINE_BY_MODEL": json.dumps({MODEL: "simulated"}),
        "OUTCROP_SIMULATED": json.dumps({"calibration": calibration, "speedup": speedup, "seed": 1}),
    }
    with tempfile.TemporaryDirectory() as folder:
        async with server(Path(folder), **settings) as (url, credentials, _):
            await _imported(folder)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:
                yield Run(session, url, credentials.bearer_key, speedup)


async def _imported(home: str) -> None:
    import os
    import sys

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outcrop.cli.main", "import", str(SAMPLE), "--name", MODEL),
        env={**os.environ, "OUTCROP_HOME": home},
    )
    if await process.wait():
        raise SystemExit("the sample could not be imported")


def _per_minute(ended: list[tuple[float, float]], users: int) -> float:
    """Requests per minute between the first end and the last, on the real clock; the first *users* open the window."""
    window = ended[users:]
    return 60 * (len(window) - 1) / (window[-1][0] - window[0][0]) if len(window) > 1 else 0.0


def _in(status: dict[str, Any], *states: str) -> list[Any]:
    return [copy for copy in status["copies"] if copy["state"] in states]


def _without_ends(level: Level) -> dict[str, Any]:
    found: dict[str, Any] = to_builtins(level)
    del found["ended"]
    return found
