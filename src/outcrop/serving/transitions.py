"""The moves of copies once they are decided: placed, started, ready, failed, asleep, woken, drained, gone.

Called by the fleet's task only, and by the tasks that it spawns for what takes time. Every move goes through the table
of ``lifecycle``; nothing here decides whether a copy is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import structlog
from msgspec import structs

from outcrop.engines.base import Asleep
from outcrop.errors import EngineFault, KeyUnavailable, ServiceError
from outcrop.ids import CopyId, random_id
from outcrop.metering.meter import Meter
from outcrop.serving import room, starts
from outcrop.serving.background import Background
from outcrop.serving.bring_up import BringUp
from outcrop.serving.copies import Copy, Events, Model
from outcrop.serving.lending import Lending
from outcrop.serving.lifecycle import SERVING, State, advance
from outcrop.serving.making_room import Landlord
from outcrop.serving.sleeping import Sleeping
from outcrop.serving.starts import SLEEPING, Stage, Tier
from outcrop.settings import Settings

log = structlog.get_logger(__name__)

STOP_GRACE_S = 5.0


class Transitions:
    """*models*: the fleet's, by id. *ring* wakes its task; *changed* is told of a copy whose state changed; *on_start*
    of every start that succeeded (model id, tier, seconds). Times are seconds on *clock*.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        landlord: Landlord,
        bring_up: BringUp,
        lending: Lending,
        sleeping: Sleeping,
        background: Background,
        settings: Settings,
        events: Events,
        meter: Meter | None,
        ring: Callable[[], None],
        changed: Callable[[Copy], None],
        on_start: Callable[[str, Tier, float], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._models = models
        self._landlord = landlord
        self._bring_up = bring_up
        self._lending = lending
        self._sleeping = sleeping
        self._background = background
        self._settings = settings
        self._events = events
        self._meter = meter
        self._ring = ring
        self._changed = changed
        self._on_start = on_start
        self._clock = clock
        self._wall = wall

    def order(self, model: Model, now: float) -> bool:
        """Start one more copy, if the node has room or idle copies can make it; whether it was started."""
        copy = self.place(model, now)
        if copy is None:
            return False
        copy.decision = model.decisions[-1]
        begun = self._wake(model, copy) if copy.tier in SLEEPING else self._start(model, copy)
        copy.starting = self._background.spawn(begun, f"start-{copy.copy_id}")
        return True

    def place(self, model: Model, now: float) -> Copy | None:
        """A further copy that has its room; None while it has not, and idle copies may be going for it."""
        plan = self._landlord.plan(model, list(self._models.values()), now)
        for owner, copy in plan.evicted:
            log.info("evicting", copy_id=copy.copy_id, model_id=owner.spec.model_id, for_model=model.spec.model_id)
            self._make_way(owner, copy)
            if not any(each.in_flight for each in owner.copies):
                owner.rest()  # what it was asked before must not bring the copy back, at the cost of the other model
        if not plan.may_start:
            if not plan.is_refused:  # or room would be kept for what may not use it
                model.blocked_since = now if model.blocked_since is None else model.blocked_since
            return None
        if (asleep := self._sleeper(model)) is not None:
            asleep.spec = room.between(asleep.awake or model.spec, asleep.spec)
            asleep.state, asleep.born_at = advance(asleep.state, State.STARTING), now
            asleep.tier = Tier.ASLEEP if asleep.sleep_level == 1 else Tier.ASLEEP_EMPTY
            asleep.stage, asleep.begun_at = Stage.WAKING, now
            self._changed(asleep)
            return asleep
        spec = structs.replace(model.spec, threads=plan.threads, devices=plan.devices)
        copy = Copy(CopyId(random_id(8)), spec, now)
        model.copies.append(copy)
        return copy

    async def _start(self, model: Model, copy: Copy) -> None:
        try:
            took = await self._bring_up.start(copy, model.starts)
        except ServiceError as exc:
            await self._start_failed(model, copy, exc)
            return
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            log.exception("starting a copy hit a defect", copy_id=copy.copy_id)
            await self._start_failed(model, copy, EngineFault(f"The copy did not start: {exc}"))
            return
        self._is_ready(model, copy, took)
        self._background.spawn(self._watch(model, copy), f"watch-{copy.copy_id}")

    def _is_ready(self, model: Model, copy: Copy, took: float) -> None:
        """*copy* takes requests from now on, *took* seconds after its turn to start came."""
        now = self._clock()
        copy.state = advance(copy.state, State.READY)
        copy.ready_at = copy.probed_at = model.active_at = now
        copy.starting = None
        model.failure, model.retry_at = None, 0.0
        model.starts.learn(copy.tier, took)
        self._on_start(copy.spec.model_id, copy.tier, took)
        self._changed(copy)
        copy.start_timings["ready_s"] = round(now - copy.born_at, 4)
        self._events.copy_ready(copy.spec.model_id, copy.started(now, self._wall()))
        if self._meter is not None:
            times = copy.start_timings
            stages = {"queued": times["queued_s"], "spawn": times["spawn_s"], "load": took - times["spawn_s"]}
            self._meter.started(copy.spec.model_id, stages)
        log.info("copy is ready", copy_id=copy.copy_id, model_id=copy.spec.model_id, start_s=round(took, 3))
        self._lending.release_held(model)
        self._ring()

    def abandon(self, model: Model, copy: Copy) -> None:
        """End a start that nobody wants any more; again is nothing."""
        if copy.starting is not None:
            starting, copy.starting = copy.starting, None
            starting.cancel()
            self._background.spawn(self._abandoned(model, copy, starting), f"stop-{copy.copy_id}")

    async def _abandoned(self, model: Model, copy: Copy, starting: asyncio.Task[None]) -> None:
        await asyncio.wait([starting])
        if copy.state is not State.STARTING:
            return  # it had just failed by itself
        await _stopped(copy, STOP_GRACE_S)
        copy.state = advance(copy.state, State.STOPPED)
        self._gone(model, copy, "drained")

    async def _start_failed(self, model: Model, copy: Copy, exc: ServiceError) -> None:
        await _stopped(copy, 0)  # until then it has its room, and no other start is tried
        copy.state = advance(copy.state, State.FAILED)
        self._changed(copy)
        if self._meter is not None:
            self._meter.start_failed(copy.spec.model_id)
        model.copies.remove(copy)
        self._events.start_failed(copy.spec.model_id)
        log.error("copy failed to start", copy_id=copy.copy_id, model_id=copy.spec.model_id, reason=exc.message)
        # Without its key no further try helps: whoever waits hears it now.
        self._count_failure(model, exc.message, by=starts.FAILURES_TO_FAIL if isinstance(exc, KeyUnavailable) else 1)

    def _count_failure(self, model: Model, reason: str, by: int = 1) -> None:
        model.failures, model.failed_at = model.failures + by, self._clock()
        model.retry_at = model.failed_at + starts.backoff_s(model.failures)
        if model.failures >= starts.FAILURES_TO_FAIL and not any(copy.is_ready for copy in model.copies):
            model.failure = f"The model's copies failed {model.failures} times in a row: {reason}"
            model.queue.fail(EngineFault(model.failure))
        self._ring()

    async def _watch(self, model: Model, copy: Copy) -> None:
        """Notice a process that died by itself; its requests hear it from their broken connections."""
        assert copy.process is not None
        status = await copy.process.wait()
        if copy.state in SERVING or copy.state is State.ASLEEP:
            copy.state = advance(copy.state, State.FAILED)
            self._changed(copy)
            model.copies.remove(copy)
            self._events.copy_ended(copy.spec.model_id, "replaced" if copy.is_suspect else "died")
            log.error("copy died", copy_id=copy.copy_id, model_id=copy.spec.model_id, status=status)
            await copy.process.stop(0)
            if copy.requests and not copy.answered:
                # It never answered anything: starting it again at once would be a crash loop.
                lines = copy.process.last_log_lines()
                self._count_failure(model, f"a copy died with status {status} before it answered. {lines}")
            self._ring()

    def _make_way(self, model: Model, copy: Copy) -> None:
        """Let an idle copy go for another model: asleep where that can be, else for good."""
        ways, models = self._sleeping.ways(copy) if copy.state in SERVING else (), list(self._models.values())
        fitting = (way for way in ways if self._landlord.can_keep(copy, room.between(copy.spec, way.spec), models))
        way = next(fitting, None)
        if way is None:
            self.drain(model, copy, self._settings.request_timeout_s, "evicted")
            return
        # Its room is kept from now on, or another copy would start in what this one is about to take.
        copy.awake, copy.spec = copy.spec, room.between(copy.spec, way.spec)
        copy.state = advance(copy.state, State.DRAINING)
        self._changed(copy)
        self._background.spawn(self._put_to_sleep(model, copy, way), f"sleep-{copy.copy_id}")

    async def _put_to_sleep(self, model: Model, copy: Copy, way: Asleep) -> None:
        try:
            while copy.in_flight:
                await asyncio.sleep(0.02)
            await self._sleeping.put(copy, way)
        except Exception as exc:
            is_known = isinstance(exc, ServiceError)
            log.warning("a copy cannot sleep and goes", copy_id=copy.copy_id, reason=str(exc), exc_info=not is_known)
            await self._take_down(model, copy, 0, "evicted")
            return
        is_dead = copy.process is not None and copy.process.returncode is not None
        if is_dead or not copy.may_sleep:  # who watched it saw it end while it was on its way to sleep
            await self._take_down(model, copy, 0, "died" if is_dead else "drained")
            return
        copy.state = advance(copy.state, State.ASLEEP)
        self._changed(copy)
        log.info("copy sleeps", copy_id=copy.copy_id, model_id=copy.spec.model_id, level=way.level, reason=way.reason)
        self._ring()

    def _sleeper(self, model: Model) -> Copy | None:
        """A copy of *model* that sleeps and whose GPUs are free."""
        models = list(self._models.values())
        for copy in model.copies:
            if copy.state is State.ASLEEP and copy.awake and self._landlord.are_free(copy.awake.devices, models):
                return copy
        return None

    async def _wake(self, model: Model, copy: Copy) -> None:
        try:
            took = await self._sleeping.wake(copy)
        except ServiceError as exc:
            await self._start_failed(model, copy, exc)
            return
        except Exception as exc:
            log.exception("waking a copy hit a defect", copy_id=copy.copy_id)
            await self._start_failed(model, copy, EngineFault(f"The copy did not wake: {exc}"))
            return
        copy.spec, copy.awake = copy.awake or copy.spec, None
        self._is_ready(model, copy, took)

    def drain(self, model: Model, copy: Copy, limit_s: float, reason: str = "drained") -> None:
        """Send the copy no more requests; stop it once its own have ended, at the latest after *limit_s*."""
        copy.state = advance(copy.state, State.DRAINING)
        self._changed(copy)
        self._background.spawn(self._take_down(model, copy, limit_s, reason), f"stop-{copy.copy_id}")

    async def _take_down(self, model: Model, copy: Copy, limit_s: float, reason: str) -> None:
        assert copy.process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while copy.in_flight and copy.process.returncode is None:
                    await asyncio.sleep(0.02)
        await _stopped(copy, STOP_GRACE_S)
        if copy.state is State.DRAINING:
            copy.state = advance(copy.state, State.STOPPED)
        self._gone(model, copy, reason)

    def _gone(self, model: Model, copy: Copy, reason: str) -> None:
        self._changed(copy)
        if copy in model.copies:
            model.copies.remove(copy)
        self._events.copy_ended(copy.spec.model_id, reason)
        log.info("copy stopped", copy_id=copy.copy_id, model_id=copy.spec.model_id, requests=copy.requests)
        self._ring()


async def _stopped(copy: Copy, grace_s: float) -> None:
    """End the copy's process, if it has one. One that the kernel does not let go keeps its room, and is tried again."""
    while copy.process is not None:
        try:
            await copy.process.stop(grace_s)
        except TimeoutError:
            log.error("a process does not end; its room stays taken", copy_id=copy.copy_id, pid=copy.process.pid)
        else:
            return
