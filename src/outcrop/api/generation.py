"""What every inference route shares: hold for a copy, generate, retry a copy that died, measure where time goes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from outcrop.api.holding import Patience
from outcrop.engines import prompts
from outcrop.errors import EngineFault, InvalidRequest, ServiceError
from outcrop.inference.answer import Timings
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest, Usage
from outcrop.inference.embeddings import Embeddings, EmbedRequest, shortened
from outcrop.serving.catalogue import Served
from outcrop.serving.copies import Lease
from outcrop.serving.fleet import Fleet
from outcrop.serving.hold import Ask
from outcrop.serving.kept_answers import KeptAnswers, Key, key_of
from outcrop.serving.router import prefix_of, weight_of
from outcrop.settings import Settings
from outcrop.telemetry.recorder import Recorder
from outcrop.telemetry.requests import RequestFacts

_ANYONE = Patience(Ask(), None, None)
ENGINE = "x-outcrop-engine"
ATTEMPTS = 2  # a copy that dies before its first byte costs the caller nothing: another one answers


@dataclass(slots=True)
class Measured(RequestFacts):
    """One request on its way through here: what is measured of it, and how it may wait."""

    created: int = 0  # seconds since the epoch
    patience: Patience | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)  # headers of the answer

    def timings(self) -> Timings:
        first = None if self.first_byte_at is None else round((self.first_byte_at - self.started) * 1000)
        return Timings(round(self.elapsed() * 1000), first)

    def of_engine(self, engine: str) -> None:
        """Say in the answer which engine made it; a simulated answer must not pass for a real one."""
        self.notes[:] = [note for note in self.notes if note[0] != ENGINE] + [(ENGINE, engine)]


class Generation:
    """Runs canonical requests on copies. Between requests it holds answers that may have been lost on their way."""

    def __init__(self, fleet: Fleet, settings: Settings, recorder: Recorder) -> None:
        self._fleet = fleet
        self._settings = settings
        self._recorder = recorder
        self._kept = KeptAnswers(
            limit_bytes=settings.kept_answer_bytes, keep_s=settings.kept_answer_s, clock=time.monotonic
        )

    @property
    def heartbeat_s(self) -> float:
        """After how long a held stream is opened, and how often it then hears a heartbeat."""
        return self._settings.heartbeat_s

    async def complete(self, served: Served, request: GenerateRequest, measured: Measured) -> Completion:
        """The whole answer. A copy that breaks mid-way is retried once on another one: nothing was sent yet.

        A retry of an invocation that was answered gets that answer, which was lost on its way: it generates once.
        """
        key = self._key(served, request, measured)
        if key is not None and (kept := self._kept.find(key)) is not None:
            measured.replayed()
            return kept
        for attempt in range(1, ATTEMPTS + 1):
            lease = await self._acquire(served, request.body, measured, self._settings.hold_limit_s)
            try:
                completion = await lease.engine.complete(lease.endpoint, _widened(request, lease))
                break
            except EngineFault as exc:
                if exc.engine_status is None:
                    lease.report_broken()
                if exc.engine_status is not None or attempt == ATTEMPTS:
                    raise
            finally:
                lease.release()
                measured.left()
        measured.answered(completion.usage, completion.decode_s)
        if key is not None:
            self._kept.keep(key, completion)
        return completion

    def _key(self, served: Served, request: GenerateRequest, measured: Measured) -> Key | None:
        """By what a retry of this request would find its answer; None for a caller that does not say which retry is."""
        ask = (measured.patience or _ANYONE).ask
        if ask.invocation_id is None or not self._kept.is_on:
            return None
        return key_of(ask.principal, ask.invocation_id, served.spec.model_id, request)

    async def count_tokens(self, served: Served, request: GenerateRequest, measured: Measured) -> int:
        """Tokens that the engine would read for *request*."""
        lease = await self._acquire(served, request.body, measured, self._settings.hold_limit_s)
        try:
            tokens = await lease.engine.count_tokens(lease.endpoint, request)
        finally:
            lease.release()
            measured.left()
        measured.answered(None)
        return tokens

    async def embed(self, served: Served, request: EmbedRequest, measured: Measured) -> Embeddings:
        """The vectors, shortened as asked. Raises InvalidRequest for a model that generates."""
        if not served.facts.embeds:
            raise InvalidRequest(
                f"model {served.facts.name} ({served.record.architecture}) generates text and gives no embeddings; "
                "send messages or a prompt, or import an embedding model",
                param="model",
            )
        normalize = served.spec.normalizes if request.normalize is None else request.normalize
        text = request.inputs[0]
        body = {"prompt": text if isinstance(text, str) else "", "max_tokens": 1}
        lease = await self._acquire(served, body, measured, self._settings.hold_limit_s)
        try:
            if len(request.inputs) > 1:
                request = structs.replace(request, width=lease.widen(len(request.inputs) - 1))
            found = await lease.engine.embed(lease.endpoint, request, normalize=normalize)
        except EngineFault as exc:
            if exc.engine_status is None:
                lease.report_broken()
            raise
        finally:
            lease.release()
            measured.left()
        vectors = [shortened(vector, request.dimensions, normalize=normalize) for vector in found.vectors]
        measured.answered(Usage(found.prompt_tokens, 0))
        return Embeddings(vectors=vectors, prompt_tokens=found.prompt_tokens)

    async def stream(
        self, served: Served, request: GenerateRequest, measured: Measured
    ) -> AsyncGenerator[list[Chunk], None]:
        """The answer's chunks; returns only when the first are there, so that earlier failures are plain errors."""
        if "prompt_logprobs" in request.body:  # as vLLM says of them
            raise InvalidRequest(
                "prompt_logprobs are not available when the answer is streamed.", param="prompt_logprobs"
            )
        measured.is_stream = True
        try:
            return await self._begun(served, request, measured)
        except ServiceError as exc:
            measured.failed(exc)  # the stream may be open already; else the status is set when the error is answered
            raise

    async def _begun(
        self, served: Served, request: GenerateRequest, measured: Measured
    ) -> AsyncGenerator[list[Chunk], None]:
        for attempt in range(1, ATTEMPTS + 1):
            lease = await self._acquire(served, request.body, measured, self._settings.stream_hold_limit_s)
            chunks = lease.engine.stream(lease.endpoint, _widened(request, lease))
            try:
                first = await anext(chunks)
            except BaseException as exc:
                await _close(chunks)
                if isinstance(exc, EngineFault) and exc.engine_status is None:
                    lease.report_broken()
                lease.release()
                measured.left()
                if isinstance(exc, EngineFault) and exc.engine_status is None and attempt < ATTEMPTS:
                    continue
                if isinstance(exc, StopAsyncIteration):
                    raise EngineFault("The engine ended its answer before the first token.") from exc
                raise
            measured.first_byte_at = time.perf_counter()
            return self._rest(first, chunks, measured, lease.release)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _rest(
        self,
        first: list[Chunk],
        chunks: AsyncGenerator[list[Chunk], None],
        measured: Measured,
        release: Callable[[], None],
    ) -> AsyncGenerator[list[Chunk], None]:
        try:
            async with aclosing(chunks):
                usage = first[-1].usage
                measured.chunks = len(first)
                yield first
                async for batch in chunks:
                    usage = batch[-1].usage or usage
                    measured.chunks += len(batch)
                    yield batch
            measured.answered(usage)
        except ServiceError as exc:
            measured.failed(exc)
            raise
        finally:
            release()
            measured.left()
            self._recorder.end(measured)

    async def _acquire(self, served: Served, body: Mapping[str, Any], measured: Measured, limit_s: float) -> Lease:
        patience = measured.patience or _ANYONE
        measured.asks(is_cold=not self._fleet.serving(served.spec.model_id))
        ask = structs.replace(
            patience.ask,
            prefix=prefix_of(body),
            weight=weight_of(body, patience.ask.size_bytes),
        )
        hold_s = limit_s if patience.hold_s is None else patience.hold_s
        try:
            lease = await self._fleet.acquire(served.spec, hold_s=hold_s, ask=ask, task=patience.task)
        except BaseException:
            measured.left()
            raise
        measured.placed(lease.copy_id, lease.held_s, lease.cold_start)
        measured.of_engine(lease.copy.spec.engine)  # the model may have been put on another one while this was held
        return lease


def _widened(request: GenerateRequest, lease: Lease) -> GenerateRequest:
    """*request* with as many slots as it has choices, as far as they are free; the others take their turn."""
    choices = prompts.choices_of(request)
    return structs.replace(request, width=lease.widen(choices - 1)) if choices > 1 else request


async def _close(chunks: AsyncGenerator[list[Chunk], None]) -> None:
    await chunks.aclose()


def usage_or_zero(usage: Usage | None) -> Usage:
    return usage if usage is not None else Usage(prompt_tokens=0, completion_tokens=0)
