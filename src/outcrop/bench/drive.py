"""The load itself: so many users in a closed loop, or arrivals that do not wait for answers. Records every request.

Closed loop: each user sends its next request when the last one is answered; it slows down with the server. Open loop:
requests are sent at their own times, and latency counts from the intended one, so that a stalled server cannot hide
behind the requests that were not sent. A run whose own schedule slipped says nothing and is void.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import Struct, structs

from outcrop.bench.endpoints import Answer, Ask, Endpoint, ask_once
from outcrop.bench.payloads import Payload, words
from outcrop.errors import BadSetting

SLIP_S = 0.010  # P99 of actual minus intended send time from which an open run is void


class Record(Struct, frozen=True, omit_defaults=True):
    """One request. Times in s since the run began; *due_s*: when it should have been sent."""

    due_s: float
    sent_s: float
    last_s: float
    first_s: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    status: int = 200
    error: str | None = None

    @property
    def latency_s(self) -> float:
        return self.last_s - self.due_s


class Sample(Struct, frozen=True):
    """What the server said of itself at one moment, where it can be asked."""

    at_s: float
    copies: int
    starting: int
    held: int
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A level of load. Closed with *users*, open with *rate* per s (Poisson) or *schedule* (send times in s).

    Ends once *requests* were answered in the steady window, at the latest after *most_s*. The steady window begins
    when *warm_s* have passed and twice as many requests as users were answered.
    """

    users: int = 1
    rate: float = 0.0
    schedule: tuple[float, ...] = ()
    requests: int = 200
    warm_s: float = 30.0
    most_s: float = 600.0
    timeout_s: float = 120.0
    seed: int = 1

    @property
    def is_open(self) -> bool:
        return bool(self.rate or self.schedule)

    @property
    def warm_requests(self) -> int:
        return 0 if self.is_open else 2 * self.users


@dataclass(slots=True)
class Run:
    """What one level gave. *steady*: seconds between which it counts.

    *engine*: ``simulated`` when no model made the answers. *speedup*: by which times were stretched (``stretched``).
    """

    shape: Shape
    records: list[Record] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    steady: tuple[float, float] = (0.0, 0.0)
    client_cpu_s: float = 0.0
    wall_s: float = 0.0
    engine: str = ""
    speedup: float = 1.0

    def stretched(self, speedup: float) -> Run:
        """The run as it would have been at the pace of the calibration: simulated copies ran *speedup* times faster.

        Raises BadSetting for answers of a real engine, whose times are what they are.
        """
        if speedup != 1 and self.engine != "simulated":
            raise BadSetting("--speedup is for simulated copies, and these answers are a real engine's. Leave it out.")
        return Run(
            shape=replace(self.shape, rate=self.shape.rate / speedup),
            records=[_stretched(record, speedup) for record in self.records],
            samples=[structs.replace(sample, at_s=sample.at_s * speedup) for sample in self.samples],
            steady=(self.steady[0] * speedup, self.steady[1] * speedup),
            client_cpu_s=self.client_cpu_s,
            wall_s=self.wall_s * speedup,
            engine=self.engine,
            speedup=speedup,
        )


def _stretched(record: Record, speedup: float) -> Record:
    first = None if record.first_s is None else record.first_s * speedup
    times = {"due_s": record.due_s * speedup, "sent_s": record.sent_s * speedup, "last_s": record.last_s * speedup}
    return structs.replace(record, first_s=first, **times)


Look = Callable[[], tuple[int, int, int, int] | None]


class Driver:
    """Drives one endpoint. *look*: copies, starting, held and in flight of the server; it blocks and may be None.

    *progress* hears of the run while it goes.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        payload: Payload,
        *,
        look: Look | None = None,
        progress: Callable[[Run, int], None] = lambda *_: None,
    ) -> None:
        self._endpoint = endpoint
        self._payload = payload
        self._look = look
        self._progress = progress

    async def run(self, shape: Shape) -> Run:
        """One level, from cold connections to its end."""
        run, cpu, begun = Run(shape), _cpu_s(), time.perf_counter()
        async with _session() as session:
            level = _Level(self._endpoint, session, run, begun)
            watch = asyncio.create_task(self._watch(level))
            try:
                asks = self._payload.asks(shape.seed)
                await (_open(level, asks) if shape.is_open else _closed(level, asks))
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
        run.wall_s = time.perf_counter() - begun
        run.client_cpu_s = _cpu_s() - cpu
        run.steady = (level.steady_from or 0.0, level.ended_at or run.wall_s)
        return run

    async def _watch(self, level: _Level) -> None:
        while True:
            await asyncio.sleep(1)
            if self._look is not None and (seen := await asyncio.to_thread(self._look)) is not None:
                level.run.samples.append(Sample(round(level.now(), 3), *seen))
            self._progress(level.run, level.counted)


class _Level:
    def __init__(self, endpoint: Endpoint, session: Any, run: Run, begun: float) -> None:
        self.run = run
        self.begun = begun
        self.steady_from: float | None = 0.0 if run.shape.warm_s <= 0 and not run.shape.warm_requests else None
        self.ended_at: float | None = None
        self.counted = 0
        self._endpoint = endpoint
        self._session = session

    def now(self) -> float:
        return time.perf_counter() - self.begun

    @property
    def is_over(self) -> bool:
        return self.ended_at is not None

    async def one(self, ask: Ask, due_s: float) -> None:
        answer = await ask_once(self._session, self._endpoint, ask, self.run.shape.timeout_s)
        self.run.records.append(self._record(answer, due_s))
        self.run.engine = answer.engine or self.run.engine
        shape, now = self.run.shape, self.now()
        if self.steady_from is None:
            if now >= shape.warm_s and len(self.run.records) >= shape.warm_requests:
                self.steady_from = now
        elif not self.is_over:
            self.counted += 1
        if not self.is_over and (self.counted >= shape.requests or now >= shape.most_s):
            self.ended_at = now

    def _record(self, answer: Answer, due_s: float) -> Record:
        heard = answer.heard
        return Record(
            due_s=round(due_s, 6),
            sent_s=round(answer.sent - self.begun, 6),
            last_s=round(answer.last - self.begun, 6),
            first_s=None if answer.first is None else round(answer.first - self.begun, 6),
            tokens_in=heard.tokens_in,
            tokens_out=heard.tokens_out,
            status=answer.status,
            error=heard.error,
        )


async def _closed(level: _Level, asks: Iterator[Ask]) -> None:
    async def user() -> None:
        while not level.is_over and level.now() < level.run.shape.most_s:
            await level.one(next(asks), level.now())

    async with asyncio.TaskGroup() as users:
        for _ in range(level.run.shape.users):
            users.create_task(user())


async def _open(level: _Level, asks: Iterator[Ask]) -> None:
    shape, rng = level.run.shape, random.Random(level.run.shape.seed)  # noqa: S311
    async with asyncio.TaskGroup() as sent:
        for due_s in shape.schedule or _poisson(shape.rate, rng):
            if level.is_over or due_s >= shape.most_s:
                return
            if (wait_s := due_s - level.now()) > 0:
                await asyncio.sleep(wait_s)
            sent.create_task(level.one(next(asks), due_s))


def _poisson(rate: float, rng: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


async def calibrated(endpoint: Endpoint, payload: Payload, timeout_s: float = 300) -> Payload:
    """*payload* with the endpoint's own tokens per word, from two prompts. Raises BadSetting when it gives no count."""
    if payload.prompts:
        return payload
    counts = []
    async with _session() as session:
        long = max(20, round(payload.tokens_in.mean * 0.4))  # words; no prompt longer than what will be asked
        for length in (long // 5, long):
            answer = await ask_once(session, endpoint, Ask(words(length), 1), timeout_s)
            if answer.heard.error or answer.heard.tokens_in is None:
                raise BadSetting(
                    f"the endpoint did not answer a first question: {answer.heard.error or 'it counts no tokens'} "
                    f"(HTTP {answer.status}) {answer.heard.message} Check its address, the model and the credentials."
                )
            counts.append(answer.heard.tokens_in)
    per_word = (counts[1] - counts[0]) / (long - long // 5)
    return replace(payload, words_per_token=1 / max(per_word, 1e-3), fixed_tokens=counts[0] - long // 5 * per_word)


@asynccontextmanager
async def _session() -> AsyncIterator[Any]:
    try:
        import aiohttp
    except ImportError as exc:
        raise BadSetting("the benchmark needs aiohttp: pip install 'outcrop[bench]'.") from exc
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as session:
        yield session


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
