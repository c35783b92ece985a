"""Several choices of one request, each asked of the engine by itself, brought together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from outcrop.errors import ServiceError
from outcrop.inference.canonical import Chunk

T = TypeVar("T")


async def all_or_first_error(asked: list[Coroutine[Any, Any, T]], width: int) -> list[T]:
    """All results in order, *width* at a time; the first error ends the others and is raised by itself."""
    gate = asyncio.Semaphore(width)

    async def one(wanted: Coroutine[Any, Any, T]) -> T:
        async with gate:
            return await wanted

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(wanted)) for wanted in asked]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        for wanted in asked:
            wanted.close()  # those that never began
    return [task.result() for task in tasks]


async def merged(streams: list[AsyncGenerator[list[Chunk], None]], width: int) -> AsyncGenerator[list[Chunk], None]:
    """The chunks of all *streams* as they come, *width* streams at a time; the first error ends the others.

    Closing it closes them.
    """
    gate = asyncio.Semaphore(width)
    queue: asyncio.Queue[list[Chunk] | BaseException | None] = asyncio.Queue(maxsize=2 * len(streams))

    async def forward(stream: AsyncGenerator[list[Chunk], None]) -> None:
        try:
            async with gate, aclosing(stream):
                async for batch in stream:
                    await queue.put(batch)
            await queue.put(None)
        except ServiceError as exc:
            await queue.put(exc)

    tasks = [asyncio.create_task(forward(stream)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
