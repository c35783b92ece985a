"""What every inference route shares: hold for a copy, generate, retry a copy that died, measure, record once."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec import structs

from outcrop.api.holding import Patience
from outcrop.errors import EngineFault, InvalidRequest, ServiceError
from outcrop.inference.answer import Timings
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest, Usage
from outcrop.serving.catalogue import Served
from outcrop.serving.copies import Lease
from outcrop.serving.fleet import Fleet
from outcrop.serving.hold import Ask
from outcrop.serving.router import prefix_of, weight_of
from outcrop.settings import Settings
from outcrop.telemetry.metrics import Metrics

_ANYONE = Patience(Ask(), None, None)
ATTEMPTS = 2  # a copy that dies before its first byte costs the caller nothing: another one answers


@dataclass(slots=True)
class Measured:
    """Where the time of one request went, in seconds."""

    started: float
    request_id: str
    created: int  # seconds since the epoch
    patience: Patience | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)  # headers of the answer
    held_s: float = 0.0
    engine_s: float = 0.0
    first_byte_at: float | None = None

    def timings(self) -> Timings:
        first = None if self.first_byte_at is None else round((self.first_byte_at - self.started) * 1000)
        return Timings(round((time.perf_counter() - self.started) * 1000), first)

    def of_engine(self, engine: str) -> None:
        """Say in the answer which engine made it; a simulated answer must not pass for a real one."""
        self.notes.append(("x-outcrop-engine", engine))

    def gateway_ms(self) -> float:
        """What this server added: all but waiting for a copy and for the engine."""
        return (time.perf_counter() - self.started - self.held_s - self.engine_s) * 1000


class Generation:
    """Runs canonical requests on copies. Holds no state of its own between requests."""

    def __init__(self, fleet: Fleet, settings: Settings, metrics: Metrics) -> None:
        self._fleet = fleet
        self._settings = settings
        self._metrics = metrics

    @property
    def heartbeat_s(self) -> float:
        """After how long a held stream is opened, and how often it then hears a heartbeat."""
        return self._settings.heartbeat_s

    async def complete(self, served: Served, request: GenerateRequest, measured: Measured) -> Completion:
        """The whole answer. A copy that breaks mid-way is retried once on another one: nothing was sent yet."""
        outcome = "cancelled"
        completion: Completion | None = None
        try:
            for attempt in range(1, ATTEMPTS + 1):
                lease = await self._acquire(served, request, measured, self._settings.hold_limit_s)
                begun = time.perf_counter()
                try:
                    completion = await lease.engine.complete(lease.endpoint, request)
                    break
                except EngineFault as exc:
                    if exc.engine_status is None:
                        lease.report_broken()
                    if exc.engine_status is not None or attempt == ATTEMPTS:
                        raise
                finally:
                    lease.release()
                    measured.engine_s += time.perf_counter() - begun
            outcome = "ok"
        except ServiceError as exc:
            outcome = type(exc).__name__
            raise
        finally:
            self._metrics.request(served.facts.name, outcome, measured, completion.usage if completion else None)
        assert completion is not None
        return completion

    async def count_tokens(self, served: Served, request: GenerateRequest, measured: Measured) -> int:
        """Tokens that the engine would read for *request*."""
        lease = await self._acquire(served, request, measured, self._settings.hold_limit_s)
        begun = time.perf_counter()
        try:
            return await lease.engine.count_tokens(lease.endpoint, request)
        finally:
            lease.release()
            measured.engine_s += time.perf_counter() - begun

    async def stream(
        self, served: Served, request: GenerateRequest, measured: Measured
    ) -> AsyncGenerator[list[Chunk], None]:
        """The answer's chunks; returns only when the first are there, so that earlier failures are plain errors."""
        if "prompt_logprobs" in request.body:  # as vLLM says of them
            raise InvalidRequest(
                "prompt_logprobs are not available when the answer is streamed.", param="prompt_logprobs"
            )
        for attempt in range(1, ATTEMPTS + 1):
            try:
                lease = await self._acquire(served, request, measured, self._settings.stream_hold_limit_s)
            except ServiceError as exc:
                self._metrics.request(served.facts.name, type(exc).__name__, measured, None)
                raise
            chunks = lease.engine.stream(lease.endpoint, request)
            begun = time.perf_counter()
            try:
                first = await anext(chunks)
            except BaseException as exc:
                await _close(chunks)
                if isinstance(exc, EngineFault) and exc.engine_status is None:
                    lease.report_broken()
                lease.release()
                if isinstance(exc, EngineFault) and exc.engine_status is None and attempt < ATTEMPTS:
                    continue
                self._metrics.request(served.facts.name, type(exc).__name__, measured, None)
                if isinstance(exc, StopAsyncIteration):
                    raise EngineFault("The engine ended its answer before the first token.") from exc
                raise
            measured.first_byte_at = time.perf_counter()
            measured.engine_s += measured.first_byte_at - begun
            return self._rest(served, first, chunks, measured, lease.release)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _rest(
        self,
        served: Served,
        first: list[Chunk],
        chunks: AsyncGenerator[list[Chunk], None],
        measured: Measured,
        release: Callable[[], None],
    ) -> AsyncGenerator[list[Chunk], None]:
        outcome, usage = "cancelled", None
        try:
            async with aclosing(chunks):
                usage = first[-1].usage
                yield first
                async for batch in chunks:
                    usage = batch[-1].usage or usage
                    yield batch
            outcome = "ok"
        except ServiceError as exc:
            outcome = type(exc).__name__
            raise
        finally:
            release()
            self._metrics.request(served.facts.name, outcome, measured, usage)

    async def _acquire(self, served: Served, request: GenerateRequest, measured: Measured, limit_s: float) -> Lease:
        asked, patience = time.perf_counter(), measured.patience or _ANYONE
        ask = structs.replace(
            patience.ask,
            prefix=prefix_of(request.body),
            weight=weight_of(request.body, patience.ask.size_bytes),
        )
        hold_s = limit_s if patience.hold_s is None else patience.hold_s
        try:
            return await self._fleet.acquire(served.spec, hold_s=hold_s, ask=ask, task=patience.task)
        finally:
            measured.held_s += time.perf_counter() - asked


async def _close(chunks: AsyncGenerator[list[Chunk], None]) -> None:
    await chunks.aclose()


def usage_or_zero(usage: Usage | None) -> Usage:
    return usage if usage is not None else Usage(prompt_tokens=0, completion_tokens=0)
