"""The one owner of all copies. Every start and stop is decided and made by its task; requests only count.

A request for a ready copy takes a slot synchronously. One that finds none joins the model's hold queue and rings the
bell; the task then reconciles: facts to ``policy.decide``, decisions to the launcher. A start belongs to the system:
it goes on when its caller leaves, and one start serves all who wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import structlog
from msgspec import Struct

from outcrop.engines.base import CopySpec, Endpoint, Engine
from outcrop.errors import EngineFault, ModelNotReady, ServiceError, ShuttingDown
from outcrop.ids import CopyId, random_id
from outcrop.inference.canonical import GenerateRequest
from outcrop.launchers.local import LocalLauncher, Process
from outcrop.serving import policy, router
from outcrop.serving.hold import HoldQueue
from outcrop.serving.lifecycle import State, advance
from outcrop.settings import Settings

log = structlog.get_logger(__name__)

TICK_S = 1.0
STOP_GRACE_S = 5.0
READY_POLL_S = 0.01
EXAMINE_S = 0.5  # a process that crashed is gone within this time
FIRST_START_GUESS_S = 5.0  # before any start of a model was measured
BACKOFF_S = (0.5, 2.0, 10.0, 60.0)  # after the first, second, ... failed start in a row


@dataclass(slots=True, eq=False)
class Copy:
    """One engine process and what is known of it. Written by the fleet only."""

    copy_id: CopyId
    spec: CopySpec
    born_at: float
    state: State = State.STARTING
    process: Process | None = None
    endpoint: Endpoint | None = None
    in_flight: int = 0
    requests: int = 0
    is_suspect: bool = False  # a request found its connection broken; takes none until it was examined
    start_timings: dict[str, float] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        return self.state is State.READY and not self.is_suspect

    @property
    def slots(self) -> int:
        return self.spec.slots


class CopyStatus(Struct, frozen=True):
    """A copy as operators see it."""

    copy_id: str
    model_id: str
    state: str
    pid: int | None
    age_s: float
    in_flight: int
    requests: int
    idle_s: float
    start_timings: dict[str, float]


class ProofReport(Struct, frozen=True):
    """What a proof run saw. Times in seconds; *mismatches* is empty when the engine tokenises as it should."""

    spawn_s: float
    load_s: float
    first_token_s: float
    text: str
    mismatches: list[str]


@dataclass(slots=True, eq=False)
class _Model:
    spec: CopySpec
    queue: HoldQueue[Lease]
    active_at: float
    copies: list[Copy] = field(default_factory=list)
    failures: int = 0
    retry_at: float = 0.0
    last_start_s: float = FIRST_START_GUESS_S
    is_removed: bool = False


class Lease:
    """One slot of one copy, held for one request."""

    __slots__ = ("_fleet", "_is_released", "_model", "copy", "engine")

    def __init__(self, fleet: Fleet, model: _Model, copy: Copy, engine: Engine) -> None:
        self._fleet = fleet
        self._model = model
        self._is_released = False
        self.copy = copy
        self.engine = engine

    @property
    def endpoint(self) -> Endpoint:
        assert self.copy.endpoint is not None
        return self.copy.endpoint

    @property
    def copy_id(self) -> str:
        return self.copy.copy_id

    def release(self) -> None:
        """Give the slot back; again is nothing."""
        if not self._is_released:
            self._is_released = True
            self._fleet._give_back(self._model, self.copy)

    def report_broken(self) -> None:
        """Say that the copy broke the connection: no other request is sent there before the fleet has looked."""
        self._fleet._suspect(self._model, self.copy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Fleet:
    """All copies of one server on one launcher. Single event loop, no locks."""

    def __init__(
        self,
        engines: Iterable[Engine],
        launcher: LocalLauncher,
        *,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines = {engine.name: engine for engine in engines}
        self._launcher = launcher
        self._settings = settings
        self._clock = clock
        self._params = policy.Params(max_copies=settings.max_copies, keep_alive_s=settings.keep_alive_s)
        self._models: dict[str, _Model] = {}
        self._bell = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._owner: asyncio.Task[None] | None = None
        self._is_closing = False
        self.decisions: deque[tuple[float, str, policy.Decision]] = deque(maxlen=1000)

    async def start(self) -> None:
        self._owner = asyncio.create_task(self._own(), name="fleet")

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, let running ones end for *drain_s*, stop every copy. Again is nothing."""
        self._is_closing = True
        for model in self._models.values():
            model.queue.fail(ShuttingDown("The server is shutting down. Retry on another one.", retry_after_s=5))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while any(copy.in_flight for model in self._models.values() for copy in model.copies):
                    await asyncio.sleep(0.02)
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
            self._owner = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        copies = [copy for model in self._models.values() for copy in model.copies]
        await asyncio.gather(*(copy.process.stop(STOP_GRACE_S) for copy in copies if copy.process is not None))
        self._models.clear()

    async def acquire(self, spec: CopySpec, *, hold_s: float) -> Lease:
        """A slot on a ready copy, waiting up to *hold_s* seconds for one.

        Raises ModelNotReady after that, Throttled when the queue is full, EngineFault when the start failed,
        ShuttingDown while draining.
        """
        if self._is_closing:
            raise ShuttingDown("The server is shutting down. Retry on another one.", retry_after_s=5)
        model = self._model(spec)
        copy = None if len(model.queue) else router.choose(model.copies)
        if copy is not None:
            return self._lend(model, copy)
        waiter = model.queue.join()
        self._bell.set()
        try:
            async with asyncio.timeout(hold_s):
                return await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                return waiter.result()  # the slot came in the same instant
            raise ModelNotReady(
                "Model is not ready for inference. Wait and try your request again.",
                retry_after_s=self._remaining_start_s(model),
            ) from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            raise

    def status(self) -> list[CopyStatus]:
        now = self._clock()
        return [
            CopyStatus(
                copy_id=copy.copy_id,
                model_id=copy.spec.model_id,
                state=copy.state,
                pid=copy.process.pid if copy.process else None,
                age_s=round(now - copy.born_at, 3),
                in_flight=copy.in_flight,
                requests=copy.requests,
                idle_s=0.0 if copy.in_flight else round(now - model.active_at, 3),
                start_timings=copy.start_timings,
            )
            for model in self._models.values()
            for copy in model.copies
        ]

    async def remove(self, model_id: str) -> None:
        """Drain and stop the model's copies and forget it."""
        model = self._models.get(model_id)
        if model is None:
            return
        model.is_removed = True
        model.queue.fail(ModelNotReady("The model was deleted.", retry_after_s=1))
        self._bell.set()
        while model.copies:
            await asyncio.sleep(0.01)
        self._models.pop(model_id, None)

    async def prove(self, spec: CopySpec, request: GenerateRequest, probes: list[tuple[str, list[int]]]) -> ProofReport:
        """Start one copy apart from the routed ones, compare tokens, generate, stop it. Raises EngineFault."""
        begun = self._clock()
        process, endpoint = await self._launch(spec, "proof")
        try:
            spawned = self._clock()
            await self._until_ready(spec, endpoint)
            ready = self._clock()
            mismatches = []
            engine = self._engines[spec.engine]
            for text, ids in probes if engine.can_tokenize else ():
                found = await engine.tokenize(endpoint, text)
                if found != ids:
                    mismatches.append(f"{text[:40]!r} gives {found[:8]}…, the tokenizer {ids[:8]}…")
            asked = self._clock()
            answer = await engine.complete(endpoint, request)
            return ProofReport(
                spawn_s=round(spawned - begun, 4),
                load_s=round(ready - spawned, 4),
                first_token_s=round(self._clock() - asked, 4),
                text=answer.choices[0].text if answer.choices else "",
                mismatches=mismatches,
            )
        finally:
            await process.stop(STOP_GRACE_S)

    # -- the owner ------------------------------------------------------------------------------------

    async def _own(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._bell.wait()
            self._bell.clear()
            for model in list(self._models.values()):
                try:
                    self._reconcile(model)
                except Exception:
                    log.exception("reconciling a model failed", model_id=model.spec.model_id)

    def _reconcile(self, model: _Model) -> None:
        now = self._clock()
        self._release_held(model)
        ready = [copy for copy in model.copies if copy.is_ready]
        starting = [copy for copy in model.copies if copy.state is State.STARTING]
        facts = policy.Facts(
            ready=len(ready),
            starting=len(starting),
            in_flight=sum(copy.in_flight for copy in ready),
            held=len(model.queue),
            idle_s=now - model.active_at,
            slots=model.spec.slots,
            is_backing_off=now < model.retry_at,
        )
        decision = policy.decide(facts, self._params)
        desired = 0 if model.is_removed else decision.desired
        if desired != len(ready) + len(starting):
            self.decisions.append((now, model.spec.model_id, decision))
            log.info("scaling", model_id=model.spec.model_id, copies=desired, reason=decision.reason)
        for _ in range(desired - len(ready) - len(starting)):
            copy = Copy(CopyId(random_id(8)), model.spec, now)
            model.copies.append(copy)
            self._spawn(self._bring_up(model, copy), f"start-{copy.copy_id}")
        surplus = len(ready) + len(starting) - desired
        for copy in sorted(ready, key=lambda copy: copy.in_flight)[: max(0, surplus)]:
            copy.state = advance(copy.state, State.DRAINING)
            self._spawn(self._take_down(model, copy), f"stop-{copy.copy_id}")

    async def _bring_up(self, model: _Model, copy: Copy) -> None:
        try:
            copy.process, copy.endpoint = await self._launch(copy.spec, copy.copy_id)
            copy.start_timings["spawn_s"] = round(self._clock() - copy.born_at, 4)
            await self._until_ready(copy.spec, copy.endpoint)
        except ServiceError as exc:
            await self._start_failed(model, copy, exc)
            return
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            log.exception("starting a copy hit a defect", copy_id=copy.copy_id)
            await self._start_failed(model, copy, EngineFault(f"The copy did not start: {exc}"))
            return
        copy.state = advance(copy.state, State.READY)
        model.failures, model.active_at = 0, self._clock()
        model.last_start_s = self._clock() - copy.born_at
        copy.start_timings["ready_s"] = round(model.last_start_s, 4)
        log.info("copy is ready", copy_id=copy.copy_id, model_id=copy.spec.model_id, start_s=model.last_start_s)
        self._spawn(self._watch(model, copy), f"watch-{copy.copy_id}")
        self._release_held(model)
        self._bell.set()

    async def _start_failed(self, model: _Model, copy: Copy, exc: ServiceError) -> None:
        copy.state = advance(copy.state, State.FAILED)
        if copy.process is not None:
            await copy.process.stop(0)
        model.copies.remove(copy)
        model.failures += 1
        model.retry_at = self._clock() + BACKOFF_S[min(model.failures, len(BACKOFF_S)) - 1]
        log.error("copy failed to start", copy_id=copy.copy_id, model_id=copy.spec.model_id, reason=exc.message)
        if not any(other.is_ready or other.state is State.STARTING for other in model.copies):
            model.queue.fail(exc)
        self._bell.set()

    async def _watch(self, model: _Model, copy: Copy) -> None:
        """Notice a process that died by itself; its requests hear it from their broken connections."""
        assert copy.process is not None
        status = await copy.process.wait()
        if copy.state is State.READY:
            copy.state = advance(copy.state, State.FAILED)
            model.copies.remove(copy)
            log.error("copy died", copy_id=copy.copy_id, model_id=copy.spec.model_id, status=status)
            await copy.process.stop(0)
            self._bell.set()

    def _suspect(self, model: _Model, copy: Copy) -> None:
        if copy.is_ready:
            copy.is_suspect = True
            self._spawn(self._examine(model, copy), f"examine-{copy.copy_id}")

    async def _examine(self, model: _Model, copy: Copy) -> None:
        """Give a suspect copy its requests back when it answers, else end it; ``_watch`` then buries it."""
        assert copy.process is not None
        assert copy.endpoint is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXAMINE_S):
                await copy.process.wait()
        if copy.process.returncode is None and await self._engines[copy.spec.engine].is_ready(copy.endpoint):
            copy.is_suspect = False
            self._release_held(model)
        else:
            await copy.process.stop(0)

    async def _take_down(self, model: _Model, copy: Copy) -> None:
        assert copy.process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                while copy.in_flight:
                    await asyncio.sleep(0.02)
        await copy.process.stop(STOP_GRACE_S)
        if copy.state is State.DRAINING:
            copy.state = advance(copy.state, State.STOPPED)
        if copy in model.copies:
            model.copies.remove(copy)
        log.info("copy stopped", copy_id=copy.copy_id, model_id=copy.spec.model_id, requests=copy.requests)
        self._bell.set()

    async def _launch(self, spec: CopySpec, name: str) -> tuple[Process, Endpoint]:
        secret = secrets.token_urlsafe(24)
        log_path = Path(self._settings.logs) / "copies" / f"{spec.model_id}-{name}.log"
        process = await self._launcher.start(
            self._engines[spec.engine].command(spec),
            self._engines[spec.engine].child_config(spec, secret),
            log_path,
            self._settings.start_deadline_s,
        )
        return process, Endpoint(f"http://127.0.0.1:{process.announced['port']}", secret)

    async def _until_ready(self, spec: CopySpec, endpoint: Endpoint) -> None:
        try:
            async with asyncio.timeout(self._settings.start_deadline_s):
                while not await self._engines[spec.engine].is_ready(endpoint):
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError as exc:
            raise EngineFault(f"The copy was not ready after {self._settings.start_deadline_s:g} s.") from exc

    # -- slots ----------------------------------------------------------------------------------------

    def _model(self, spec: CopySpec) -> _Model:
        model = self._models.get(spec.model_id)
        if model is None:
            queue = HoldQueue[Lease](self._settings.hold_queue_requests)
            model = self._models[spec.model_id] = _Model(spec, queue, self._clock())
        return model

    def _lend(self, model: _Model, copy: Copy) -> Lease:
        copy.in_flight += 1
        copy.requests += 1
        model.active_at = self._clock()
        return Lease(self, model, copy, self._engines[copy.spec.engine])

    def _give_back(self, model: _Model, copy: Copy) -> None:
        copy.in_flight -= 1
        model.active_at = self._clock()
        self._release_held(model)

    def _release_held(self, model: _Model) -> None:
        while len(model.queue) and (copy := router.choose(model.copies)) is not None:
            waiter = model.queue.next()
            if waiter is None:
                return
            waiter.set_result(self._lend(model, copy))

    def _remaining_start_s(self, model: _Model) -> float:
        now = self._clock()
        started = [copy.born_at for copy in model.copies if copy.state is State.STARTING]
        return max(1.0, model.last_start_s - (now - min(started)) if started else model.last_start_s)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
