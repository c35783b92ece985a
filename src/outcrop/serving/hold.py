"""Requests that wait for a copy: bounded, fair between principals, released only into free slots.

Within a principal first come, first served; between principals in turn. A request that carries an invocation id keeps
its place for a while after it left, so that the retry of an SDK goes on where the first attempt stood; a retry that
comes while the first attempt still waits takes its place over, so that one invocation never generates twice.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from msgspec import Struct

from outcrop.errors import Throttled
from outcrop.settings import Settings

T = TypeVar("T")
TAKEN_OVER = "A retry of this invocation took its place over; this attempt ends."


class Ask(Struct, frozen=True):
    """What the queue and the router know of a request. *weight*: tokens it may take; *prefix*: of its prompt."""

    principal: str = ""
    invocation_id: str | None = None
    size_bytes: int = 0
    weight: int = 1
    prefix: int | None = None


class Limits(Struct, frozen=True):
    """Most requests, and most bytes of their bodies, that wait for one model: of everyone, and of one principal."""

    requests: int
    bytes: int
    principal_requests: int
    principal_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            requests=settings.hold_queue_requests,
            bytes=settings.hold_queue_bytes,
            principal_requests=settings.hold_queue_requests_per_principal,
            principal_bytes=settings.hold_queue_bytes_per_principal,
        )


@dataclass(slots=True, eq=False)
class Seat(Generic[T]):
    """A place in the queue since *joined_at*. Without a *waiter* it is kept for a retry until *kept_until*."""

    ask: Ask
    waiter: asyncio.Future[T] | None
    joined_at: float
    kept_until: float = 0.0


class HoldQueue(Generic[T]):
    """Waiters of one model. Times are seconds on *clock*."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._lanes: OrderedDict[str, deque[Seat[T]]] = OrderedDict()  # by principal, the next in turn first
        self._by_key: dict[tuple[str, str], Seat[T]] = {}

    def __len__(self) -> int:
        return sum(1 for _ in self._live())

    @property
    def kept(self) -> int:
        """Places of requests that left and may still come back."""
        self._forget_expired()
        return sum(seat.waiter is None for lane in self._lanes.values() for seat in lane)

    def join(self, ask: Ask) -> Seat[T]:
        """A place; an earlier one of the same invocation is taken over. Raises Throttled when the queue is full."""
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        key = (ask.principal, ask.invocation_id) if ask.invocation_id else None
        seat = self._by_key.get(key) if key else None
        if seat is not None:
            if seat.waiter is not None and not seat.waiter.done():
                seat.waiter.set_exception(Throttled(TAKEN_OVER))
            seat.waiter = waiter
            return seat
        self._forget_expired()
        self._check_room(ask)
        seat = Seat(ask, waiter, self._clock())
        self._lanes.setdefault(ask.principal, deque()).append(seat)
        if key:
            self._by_key[key] = seat
        return seat

    def leave(self, seat: Seat[T], waiter: asyncio.Future[T] | None, *, keep_s: float) -> None:
        """The request behind *waiter* gave up; with an invocation id its place stays for *keep_s* seconds."""
        if seat.waiter is not waiter:
            return  # a retry has taken it over
        seat.waiter = None
        if seat.ask.invocation_id and keep_s > 0:
            seat.kept_until = self._clock() + keep_s
        else:
            self._remove(seat)

    def next(self) -> tuple[asyncio.Future[T], Ask] | None:
        """The waiter whose turn it is, taken out of the queue; None when nobody waits."""
        for principal in list(self._lanes):
            for seat in self._lanes[principal]:
                if seat.waiter is not None and not seat.waiter.done():
                    self._lanes.move_to_end(principal)
                    self._remove(seat)
                    return seat.waiter, seat.ask
        return None

    def peek(self) -> Ask | None:
        """What ``next`` would give a slot to."""
        return next((seat.ask for seat in self._live()), None)

    def has_from(self, at: float) -> bool:
        """Whether somebody waits who came at *at* or before."""
        return any(seat.joined_at <= at for seat in self._live())

    def keep_no_place(self) -> None:
        """Forget the places of requests that left: who comes back is a new one."""
        for lane in list(self._lanes.values()):
            for seat in [seat for seat in lane if seat.waiter is None]:
                self._remove(seat)

    def fail(self, exc: Exception) -> None:
        """Tell every waiter, and keep no place."""
        waiters = [seat.waiter for seat in self._live()]
        self._lanes.clear()
        self._by_key.clear()
        for waiter in waiters:
            if waiter is not None:
                waiter.set_exception(exc)

    def _live(self) -> Iterator[Seat[T]]:
        for lane in self._lanes.values():
            for seat in lane:
                if seat.waiter is not None and not seat.waiter.done():
                    yield seat

    def _check_room(self, ask: Ask) -> None:
        lane = self._lanes.get(ask.principal, deque())
        everyone = [seat for other in self._lanes.values() for seat in other]
        limits = self._limits
        for seats, most, most_bytes, whose, setting in (
            (lane, limits.principal_requests, limits.principal_bytes, "of this principal ", "_PER_PRINCIPAL"),
            (everyone, limits.requests, limits.bytes, "", ""),
        ):
            if len(seats) >= most:
                raise Throttled(
                    f"{most} requests {whose}are already waiting for this model. Retry later or raise "
                    f"OUTCROP_HOLD_QUEUE_REQUESTS{setting}."
                )
            if sum(seat.ask.size_bytes for seat in seats if seat.waiter is not None) + ask.size_bytes > most_bytes:
                raise Throttled(
                    f"Requests {whose}with more than {most_bytes} bytes are already waiting for this model. Retry "
                    f"later or raise OUTCROP_HOLD_QUEUE_BYTES{setting}."
                )

    def _forget_expired(self) -> None:
        now = self._clock()
        for lane in list(self._lanes.values()):
            for seat in [seat for seat in lane if seat.waiter is None and seat.kept_until <= now]:
                self._remove(seat)

    def _remove(self, seat: Seat[T]) -> None:
        lane = self._lanes.get(seat.ask.principal)
        if lane is not None and seat in lane:
            lane.remove(seat)
            if not lane:
                del self._lanes[seat.ask.principal]
        if seat.ask.invocation_id:
            self._by_key.pop((seat.ask.principal, seat.ask.invocation_id), None)
