"""How long a caller waits for a copy, and what a held stream hears meanwhile.

A whole answer is held before its headers, for less than the 60 s after which AWS's SDKs stop reading; then it is 429
ModelNotReadyException, which they retry, and the retry takes up its place. A stream is held the same way for a first
while, so that what fails soon is a plain error; then it is opened, and sends heartbeats: for AWS an event of a type
that the service model does not name, which botocore and the JavaScript SDK skip; for OpenAI a comment line of SSE.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from outcrop.access.identities import Principal
from outcrop.errors import InvalidRequest, ServiceError
from outcrop.serving.hold import Ask

HEADER = "x-outcrop-hold"
LONGEST_S = 3600.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """What the hold queue should know of one request. *hold_s*: the caller's own limit; None takes the server's.

    *task*: runs the request to its end; a lease that it took ends with it.
    """

    ask: Ask
    hold_s: float | None
    task: asyncio.Task[Any] | None


def patience(headers: Mapping[str, str], principal: Principal, size_bytes: int) -> Patience:
    """Read ``x-outcrop-hold: <seconds>|fail-fast`` and the invocation id. Raises InvalidRequest."""
    value = headers.get(HEADER)
    ask = Ask(principal=principal.arn, invocation_id=headers.get("amz-sdk-invocation-id"), size_bytes=size_bytes)
    return Patience(ask, None if value is None else _seconds(value), asyncio.current_task())


async def stream_when_ready(
    pending: Awaitable[T],
    parts: Callable[[T], AsyncGenerator[bytes, None]],
    *,
    heartbeat: bytes,
    every_s: float,
    failed: Callable[[ServiceError], bytes],
) -> AsyncGenerator[bytes, None]:
    """The parts of a stream once *pending* has its beginning; after *every_s* seconds of waiting, heartbeats first.

    Raises what *pending* raises while nothing was sent; later that becomes the part that *failed* makes of it.
    """
    task = asyncio.ensure_future(pending)
    try:
        await asyncio.wait({task}, timeout=every_s)
    except asyncio.CancelledError:
        await _give_up(task)
        raise
    return parts(task.result()) if task.done() else _beating(task, parts, heartbeat, every_s, failed)


async def _beating(
    task: asyncio.Future[T],
    parts: Callable[[T], AsyncGenerator[bytes, None]],
    heartbeat: bytes,
    every_s: float,
    failed: Callable[[ServiceError], bytes],
) -> AsyncGenerator[bytes, None]:
    try:
        while not task.done():
            yield heartbeat
            await asyncio.wait({task}, timeout=every_s)
        beginning = task.result()
    except ServiceError as exc:
        yield failed(exc)
        return
    finally:
        if not task.done():
            await _give_up(task)
    async with aclosing(parts(beginning)) as rest:
        async for part in rest:
            yield part


async def _give_up(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _seconds(value: str) -> float:
    if value == "fail-fast":
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_S:
        raise InvalidRequest(
            f"{HEADER}: {value[:40]} is neither fail-fast nor a number of seconds up to {LONGEST_S:g}."
        )
    return seconds
