"""Starts on one node take turns: so many at a time, the smallest first, so that loads do not starve each other."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator


class StartGate:
    """A bounded door. Those who wait pass in the order of their bytes, then of their coming."""

    def __init__(self, width: int) -> None:
        self._free = width
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def turn(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold one of the places while loading *size_bytes*."""
        if self._free and not self._waiting:
            self._free -= 1
        else:
            called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (size_bytes, next(self._order), called))
            try:
                await called
            except asyncio.CancelledError:
                if called.done() and not called.cancelled():
                    self._leave()  # the turn came in the same instant
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._waiting:
            called = heapq.heappop(self._waiting)[2]
            if not called.done():
                called.set_result(None)
                return
        self._free += 1
