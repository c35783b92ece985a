"""Requests that are asked of the other side as well, after the caller has the first byte; nobody waits for them.

Bounded per migration, dropped and counted when full, each with a deadline. The source is asked twice now and then: what
it does not agree on with itself is noise, and no fault of the target.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import structlog

from outcrop.api.http import Stream
from outcrop.api.migration.reading import Heard, read
from outcrop.api.migration.sides import Asked
from outcrop.api.migration.splitter import MOST_COMPARED_BYTES, Split, Splitter
from outcrop.errors import EngineTimeout, ModelNotReady, ServiceError
from outcrop.serving.migration.compare import Comparison, compared
from outcrop.serving.migration.kept import Difference
from outcrop.serving.migration.observe import Outcome
from outcrop.serving.migration.split import SideName

log = structlog.get_logger(__name__)

_SHOWN_CHARS = 600


class Shadows:
    """Runs them, each in a task of its own."""

    def __init__(self, splitter: Splitter) -> None:
        self._splitter = splitter
        self._tasks: set[asyncio.Task[None]] = set()

    def after(self, split: Split, given: SideName) -> None:
        """The caller has an answer of *given*: ask the other side too, if this request is one of the sample."""
        live = split.live
        if live.state.phase == "warming":
            if live.warms_by_traffic and not live.is_warming and split.bound("target") is not None:
                live.is_warming = True
                self._begin(self._warm(split))
            return
        other: SideName = "target" if given == "source" else "source"
        if split.bound(other) is None or not live.wants_comparison():
            return
        if live.shadows >= live.plan.shadows_at_a_time:
            live.kept.shadows_dropped += 1
            return
        live.shadows += 1
        self._begin(self._compare(split, given, other))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="migration shadow")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _warm(self, split: Split) -> None:
        """A copy of a request until one is answered; it counts as nothing."""
        try:
            asked, _ = await self._whole(split, "target", split.live.plan.warm_limit_s)
            if asked.error is None:
                self._splitter.migrations.is_warm(split.live)
        except Exception:
            log.exception("a shadow hit a defect", migration=split.live.plan.name)
        finally:
            split.live.is_warming = False

    async def _compare(self, split: Split, given: SideName, other: SideName) -> None:
        live = split.live
        try:
            limit_s = live.plan.shadow_timeout_s
            asked, said = await self._whole(split, other, limit_s)
            content = await split.content
            if content is None:
                return  # the caller got no whole answer: there is nothing to hold this one against
            outcome = _outcome(asked)
            heard = read(asked.door, said, is_stream=split.call.is_stream) if said else Heard("")
            if outcome == "ok" and heard.error:
                outcome = "failed"
            self._splitter.observe(
                split, asked, outcome, "shadow", heard=heard, seconds=_seconds(asked), error=heard.error
            )
            if outcome != "ok" or not said:
                return
            answers = {given: content, other: said}
            await self._judge(split, answers, is_noise=False)
            if given == "source" and live.wants_noise():
                again, repeated = await self._whole(split, "source", limit_s)
                if again.error is None and repeated:
                    await self._judge(split, {"source": content, "target": repeated}, is_noise=True)
        except Exception:
            log.exception("a shadow hit a defect", migration=live.plan.name)
        finally:
            live.shadows -= 1

    async def _whole(self, split: Split, side: SideName, limit_s: float) -> tuple[Asked, bytes]:
        """The side's whole answer; a stream is read to its end. Empty for what is too long to compare."""
        wanted = split.bound(side)
        assert wanted is not None
        asked = Asked(side, wanted.door, time.perf_counter())
        data = b""
        try:
            async with asyncio.timeout(limit_s):
                asked = await split.ask(side, is_copy=True)
                if isinstance(asked.response, Stream):
                    data = await _read(asked.response, asked)
                elif asked.response is not None and asked.error is None:
                    data = asked.response.body
        except TimeoutError:
            asked.error = EngineTimeout(f"no answer within {limit_s:g} s")
        except ServiceError as exc:  # inside an open stream
            asked.error = exc
        if asked.is_elsewhere and asked.error is None:
            asked.heard(read(asked.door, data, is_stream=split.call.is_stream) if data else Heard(""))
        if asked.facts is not None:
            if asked.error is not None:
                asked.facts.failed(asked.error)
            self._splitter.recorder.end(asked.facts)
        return asked, data if len(data) <= MOST_COMPARED_BYTES else b""

    async def _judge(self, split: Split, answers: dict[SideName, bytes], *, is_noise: bool) -> None:
        live, call = split.live, split.call
        texts = {side: self._text(split, side, data, is_noise=is_noise) for side, data in answers.items()}
        found = await asyncio.to_thread(compared, texts["source"], texts["target"], live.plan.ignored_fields)
        difference = None
        if not is_noise:
            difference = _difference(call.body, texts, found)
            kept = {str(side): text.encode() for side, text in texts.items()}
            await self._splitter.migrations.keep_pair(live, call.body, kept, "application/json")
        self._splitter.migrations.compared(live, found, difference, is_noise=is_noise)

    def _text(self, split: Split, side: SideName, data: bytes, *, is_noise: bool) -> str:
        wanted = split.bound("source" if is_noise else side)
        assert wanted is not None
        return read(wanted.door, data, is_stream=split.call.is_stream).text


async def _read(stream: Stream, asked: Asked) -> bytes:
    """The stream to its end; the time of its first part is kept in *asked*."""
    kept: list[bytes] = []
    size = 0
    async with aclosing(stream.parts) as parts:
        async for part in parts:
            if not kept:
                asked.first_s = time.perf_counter() - asked.begun
            size += len(part)
            if size <= MOST_COMPARED_BYTES:
                kept.append(part)
    return b"".join(kept) if size <= MOST_COMPARED_BYTES else b""


def _seconds(asked: Asked) -> float:
    return asked.first_s if asked.first_s is not None else asked.took_s


def _outcome(asked: Asked) -> Outcome:
    """The caller's side answered the same request, so whatever is none here is this side's failure."""
    if asked.error is None:
        return "ok"
    return "not_ready" if isinstance(asked.error, ModelNotReady) else "failed"


def _difference(body: bytes, texts: dict[SideName, str], found: Comparison) -> Difference | None:
    if found.score >= 1:
        return None
    return Difference(
        at=time.time(),
        score=found.score,
        method=found.method,
        differences=found.differences,
        asked=body.decode(errors="replace")[:_SHOWN_CHARS],
        source=texts["source"][:_SHOWN_CHARS],
        target=texts["target"][:_SHOWN_CHARS],
    )
