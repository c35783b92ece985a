"""Structured waiting: task groups whose failure is the first fact, and threads that a cancellation waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TypeVar, TypeVarTuple

_T = TypeVar("_T")
_A = TypeVarTuple("_A")


@asynccontextmanager
async def tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup that raises the first exception among its tasks itself."""
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as group_of:
        first = group_of
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
    if first is not None:
        raise first


async def in_thread(call: Callable[[*_A], _T], *arguments: *_A, threads: Executor | None = None) -> _T:
    """*call* in a thread. A cancellation is passed on only when the thread is done.

    ``asyncio.to_thread`` leaves the thread running: it could still write into a folder that is being removed because
    of that very cancellation, or use a handle that has been closed.
    """
    running = asyncio.get_running_loop().run_in_executor(threads, call, *arguments)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
