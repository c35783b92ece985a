"""Slots: who gets one, who waits for one, who gives one back. Synchronous but for the waiting itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import structlog
from msgspec import structs

from outcrop.engines.base import Engine
from outcrop.errors import EngineFault, ModelNotFound, ModelNotReady, Throttled
from outcrop.serving import router
from outcrop.serving.copies import Copy, Lease, Model
from outcrop.serving.health import Health
from outcrop.serving.hold import TAKEN_OVER, Ask, Seat
from outcrop.serving.lifecycle import State, advance
from outcrop.serving.starts import Tier

log = structlog.get_logger(__name__)

KEEP_PLACE_S = 30.0  # a place in the queue waits this much longer than its request was told to


class Lending:
    """*ring*: called when something changed that a decision depends on; *changed*: when a copy got or lost a request.

    Times are seconds on *clock*.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        health: Health,
        *,
        interference: float,
        ring: Callable[[], None],
        changed: Callable[[Copy], None],
        clock: Callable[[], float],
    ) -> None:
        self._engines = engines
        self._health = health
        self._interference = interference
        self._ring = ring
        self._changed = changed
        self._clock = clock
        self._running: dict[tuple[str, str], Lease] = {}  # by principal and invocation
        self._placing: dict[tuple[str, str], int] = {}  # the last attempt of each invocation that wants a slot
        self._attempts = count()

    @property
    def running(self) -> int:
        """Invocations with an id that run now."""
        return len(self._running)

    async def acquire(self, model: Model, *, hold_s: float, ask: Ask, task: asyncio.Task[Any] | None) -> Lease:
        """A slot on a ready copy of *model*. Raises ModelNotReady, Throttled, EngineFault, ModelNotFound.

        *task* runs the request to its end, and the lease ends with it. One invocation generates once: a retry of it
        takes the place of an attempt that waits, and ends one that runs.
        """
        if model.is_removed:
            raise ModelNotFound("The model was deleted.")
        if not ask.invocation_id:
            return self._bound(await self._slot(model, hold_s, ask), task)
        key = ask.principal, ask.invocation_id
        if (earlier := self._running.get(key)) is not None:
            self._supersede(earlier)
        attempt = self._placing[key] = next(self._attempts)
        try:
            lease = self._bound(await self._slot(model, hold_s, ask), task)
            if self._placing.get(key) != attempt:  # the retry came when the slot of this one was on its way
                lease.release()
                raise Throttled(TAKEN_OVER)
        finally:
            if self._placing.get(key) == attempt:
                del self._placing[key]
        if task is not None:
            self._running[key] = lease
        return lease

    def _bound(self, lease: Lease, task: asyncio.Task[Any] | None) -> Lease:
        """*lease*, which ends with *task*: whatever ends the request, no slot is lost, and be it that a generator was
        never started.
        """
        if task is not None:
            lease.task = task
            task.add_done_callback(lambda _: lease.release())
        return lease

    async def _slot(self, model: Model, hold_s: float, ask: Ask) -> Lease:
        now = self._clock()
        model.active_at = now
        if model.failure is not None and now < model.retry_at:
            raise EngineFault(f"{model.failure} The next start is tried in {model.retry_at - now:.0f} s.")
        model.demand.arrived(now)
        copy = None if model.queue.peek() else self._choice(model, ask)
        if copy is not None:
            return self._lend(model, copy, ask)
        is_cold = not any(copy.is_ready for copy in model.copies)
        lease = await self._held(model, ask, hold_s)
        if is_cold:
            lease.held_s = model.cold_until(now, lease.begun_at) - now
            lease.cold_start = lease.copy.cold_start if lease.copy.ready_at > now else None
        return lease

    def release_held(self, model: Model) -> None:
        """Give free slots to those who wait, in their order."""
        while (ask := model.queue.peek()) and (copy := self._choice(model, ask)) is not None:
            found = model.queue.next()
            if found is None:
                return
            waiter, asked = found
            waiter.set_result(self._lend(model, copy, asked))

    def give_back(self, lease: Lease) -> None:
        model, copy, now = lease.model, lease.copy, self._clock()
        copy.in_flight -= 1
        copy.outstanding -= lease.ask.weight
        copy.leases.discard(lease)
        self._changed(copy)
        if copy.is_ready:  # the last request of a copy that goes is no reason for another copy
            model.active_at = now
        if not lease.broke:
            copy.answered += 1
            if copy.ready_at >= model.failed_at:  # an older one says nothing of why another does not come up
                model.failures = 0
            own = model.scaling.interference
            model.demand.served(now - lease.begun_at, lease.beside, self._interference if own is None else own)
        key = (lease.ask.principal, lease.ask.invocation_id or "")
        if self._running.get(key) is lease:
            del self._running[key]
        self.release_held(model)
        if not copy.in_flight:
            self._ring()  # another model may be waiting for this one to rest

    def lend_beside(self, lease: Lease, count: int) -> list[Lease]:
        """Up to *count* more slots of the lease's copy; none while others wait for one."""
        model, copy = lease.model, lease.copy
        if model.queue.peek() or not copy.is_ready:
            return []
        ask = structs.replace(lease.ask, invocation_id=None)
        found = []
        for _ in range(min(count, copy.slots - copy.in_flight)):
            model.demand.arrived(self._clock())
            found.append(self._lend(model, copy, ask))
        return found

    def suspect(self, copy: Copy) -> None:
        self._health.suspect(copy)

    async def _held(self, model: Model, ask: Ask, hold_s: float) -> Lease:
        seat: Seat[Lease] = model.queue.join(ask)
        waiter = seat.waiter
        assert waiter is not None
        self._ring()
        try:
            async with asyncio.timeout(hold_s):
                return await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                return waiter.result()  # the slot, or why there will be none, came in the same instant
            if model.is_removed:
                raise ModelNotFound("The model was deleted.") from None
            wait_s = self._remaining_start_s(model)
            model.queue.leave(seat, waiter, keep_s=wait_s + KEEP_PLACE_S)
            raise ModelNotReady(
                "Model is not ready for inference. Wait and try your request again.", retry_after_s=wait_s
            ) from None
        except asyncio.CancelledError:
            if _was_served(waiter):
                waiter.result().release()
            model.queue.leave(seat, waiter, keep_s=KEEP_PLACE_S)
            raise

    def _choice(self, model: Model, ask: Ask) -> Copy | None:
        return router.choose(model.copies, ask.prefix, model.homes.of(ask.prefix))

    def _lend(self, model: Model, copy: Copy, ask: Ask) -> Lease:
        now = self._clock()
        if copy.state is State.EVICTABLE:
            copy.state = advance(copy.state, State.READY)
        lease = Lease(self, model, copy, ask, self._engines[copy.spec.engine], now)
        copy.in_flight += 1
        copy.outstanding += ask.weight
        copy.requests += 1
        copy.served_at = now if copy.served_at is None else copy.served_at
        copy.leases.add(lease)
        model.homes.sent(ask.prefix, copy, model.copies)
        self._changed(copy)
        model.active_at = now
        return lease

    def _supersede(self, earlier: Lease) -> None:
        """End an attempt whose retry has come: its client no longer listens, and one invocation generates once."""
        log.info("a retry takes over", model_id=earlier.copy.spec.model_id, copy_id=earlier.copy_id)
        if earlier.task is not None:
            earlier.task.cancel()

    def _remaining_start_s(self, model: Model) -> float:
        """What is left of the start under way, or the whole of the next one; at least 1 s."""
        now = self._clock()
        begun = [(copy.born_at, copy.tier) for copy in model.copies if copy.state is State.STARTING]
        if not begun:
            return max(1.0, model.starts.expected_s(Tier.CACHED), model.retry_at - now)
        born_at, tier = min(begun)
        return max(1.0, model.starts.expected_s(tier) - (now - born_at))


def _was_served(waiter: asyncio.Future[Lease]) -> bool:
    return waiter.done() and not waiter.cancelled() and waiter.exception() is None
