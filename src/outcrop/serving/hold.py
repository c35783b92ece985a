"""Requests that wait for a copy: first come first served, bounded, released only into free slots."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from outcrop.errors import Throttled

T = TypeVar("T")


class HoldQueue(Generic[T]):
    """Waiters of one model. A waiter that gave up or was cancelled is passed over."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiters: deque[asyncio.Future[T]] = deque()

    def __len__(self) -> int:
        return sum(not waiter.done() for waiter in self._waiters)

    def join(self) -> asyncio.Future[T]:
        """A place in the queue. Raises Throttled when the queue is full."""
        if len(self._waiters) >= self._limit:
            self._waiters = deque(waiter for waiter in self._waiters if not waiter.done())
        if len(self._waiters) >= self._limit:
            raise Throttled(
                f"{self._limit} requests are already waiting for this model. Retry later or raise "
                "OUTCROP_HOLD_QUEUE_REQUESTS."
            )
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def next(self) -> asyncio.Future[T] | None:
        """The first waiter that still waits, taken out of the queue."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    def fail(self, exc: Exception) -> None:
        """Tell every waiter."""
        while (waiter := self.next()) is not None:
            waiter.set_exception(exc)
