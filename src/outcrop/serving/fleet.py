"""The one owner of all copies. Every start and stop is decided and made by its task; requests only count.

A request for a ready copy takes a slot synchronously. One that finds none joins the model's hold queue and rings the
bell; the task then reconciles: facts to ``policy.decide``, decisions to the launcher. A start belongs to the system:
it goes on when its caller leaves, and one start serves all who wait.

One model's step is in ``reconciling``, how copies come and go once that is decided in ``transitions``, whether one is
of use in ``health``, who gets its slots in ``lending``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import structlog

from outcrop.engines.base import CopySpec, Engine
from outcrop.engines.occupancy import Occupancy
from outcrop.errors import ModelNotFound, ShuttingDown
from outcrop.ids import random_id
from outcrop.inference.canonical import GenerateRequest
from outcrop.launchers.local import LocalLauncher
from outcrop.metering.meter import Meter
from outcrop.serving import policy, proving, room, schedule, seen
from outcrop.serving.background import Background
from outcrop.serving.bring_up import BringUp
from outcrop.serving.copies import UNOBSERVED, Copy, CopyStatus, DecisionRecord, Events, Lease, Model, ModelStatus
from outcrop.serving.health import Health
from outcrop.serving.hold import Ask, HoldQueue, Limits
from outcrop.serving.lending import Lending
from outcrop.serving.lifecycle import ENDED, State
from outcrop.serving.making_room import Allowance, Landlord
from outcrop.serving.proof import ProofReport
from outcrop.serving.readings import occupancies, readings
from outcrop.serving.reconciling import Reconciling
from outcrop.serving.sleeping import Sleeping
from outcrop.serving.starts import ColdStarts, Tier
from outcrop.serving.transitions import STOP_GRACE_S, Transitions
from outcrop.serving.unsealed import Unsealer
from outcrop.settings import Settings
from outcrop.telemetry.metrics import Reading

log = structlog.get_logger(__name__)

TICK_S = 1.0
REMOVED_KEPT = 10_000  # deleted models whose ids are remembered
ANYONE = Ask()


class Fleet:
    """All copies of one server on one launcher. Single event loop, no locks.

    *on_start* is told of every start that succeeded (model id, tier, seconds), so that they are remembered;
    *on_removed* that a model is gone.
    *model_count*: how many models may be asked here, which bounds what one copy takes of the cores. *allowance*: how
    many copies quotas allow, by model id. *meter* is told of every change of a copy.
    """

    def __init__(
        self,
        engines: Iterable[Engine],
        launcher: LocalLauncher,
        *,
        settings: Settings,
        memory_bytes: int,
        cores: int,
        on_start: Callable[[str, Tier, float], None] = lambda *_: None,
        on_removed: Callable[[], None] = lambda: None,
        model_count: Callable[[], int] = lambda: 1,
        gpus: int = 0,
        allowance: Callable[[str], Allowance | None] = lambda _: None,
        events: Events = UNOBSERVED,
        meter: Meter | None = None,
        unsealer: Unsealer | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._engines = {engine.name: engine for engine in engines}
        self._launcher = launcher
        self._settings = settings
        self._clock = clock
        self._wall = wall
        self._on_removed = on_removed
        self._meter = meter
        self._params = policy.Params(
            max_copies=settings.max_copies, keep_alive_s=settings.keep_alive_s, hold_limit_s=settings.hold_limit_s
        )
        self._models: dict[str, Model] = {}
        self._learned: dict[str, ColdStarts] = {}
        self._scaling: dict[str, schedule.Scaling] = {}
        self._removed: OrderedDict[str, None] = OrderedDict()  # models that late requests may still name
        self._landlord = Landlord(
            memory_bytes=memory_bytes,
            cores=cores,
            threads=settings.cpu_threads,
            model_count=model_count,
            gpus=gpus,
            allowance=allowance,
        )
        self._bell = asyncio.Event()
        self._background = Background()
        self._bring_up = BringUp(
            self._engines, launcher, settings=settings, clock=clock, changed=self._changed, unsealer=unsealer
        )
        self._health = Health(
            self._engines, settings=settings, clock=clock, background=self._background, on_recovery=self._bell.set
        )
        self._lending = Lending(
            self._engines,
            self._health,
            interference=self._params.interference,
            ring=self._bell.set,
            changed=self._changed,
            clock=clock,
        )
        self._transitions = Transitions(
            self._models,
            landlord=self._landlord,
            bring_up=self._bring_up,
            lending=self._lending,
            sleeping=Sleeping(self._engines, clock),
            background=self._background,
            settings=settings,
            events=events,
            meter=meter,
            ring=self._bell.set,
            changed=self._changed,
            on_start=on_start,
            clock=clock,
            wall=wall,
        )
        self._reconciling = Reconciling(
            self._models,
            params=self._params,
            landlord=self._landlord,
            lending=self._lending,
            transitions=self._transitions,
            settings=settings,
            events=events,
            changed=self._changed,
            clock=clock,
            wall=wall,
        )
        self._owner: asyncio.Task[None] | None = None
        self._is_closing = False

    async def start(self) -> None:
        """Reap what an earlier server left, then own the copies."""
        await asyncio.to_thread(self._launcher.reap)
        self._owner = asyncio.create_task(self._own(), name="fleet")

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, let running ones end for *drain_s*, stop every copy. Again is nothing."""
        self._is_closing = True
        for model in self._models.values():
            model.queue.fail(ShuttingDown("The server is shutting down. Retry on another one.", retry_after_s=5))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while any(copy.in_flight for copy in seen.all_copies(self._models.values())):
                    await asyncio.sleep(0.02)
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
            self._owner = None
        await self._background.close()
        copies = seen.all_copies(self._models.values())
        stops = (copy.process.stop(STOP_GRACE_S) for copy in copies if copy.process is not None)
        for failed in await asyncio.gather(*stops, return_exceptions=True):
            if failed is not None:
                log.error("a process does not end; the next start of this server ends it", reason=repr(failed))
        if self._meter is not None:
            for copy in copies:
                self._meter.copy(copy.copy_id, copy.spec.model_id, None)
        self._models.clear()
        self._launcher.close()

    async def acquire(
        self, spec: CopySpec, *, hold_s: float, ask: Ask = ANYONE, task: asyncio.Task[Any] | None = None
    ) -> Lease:
        """A slot on a ready copy, waiting up to *hold_s* seconds for one.

        The lease ends with *task*, which runs the request; a retry of the same invocation cancels it.

        Raises ModelNotReady after that, Throttled when the queue is full, EngineFault when starts keep failing,
        ShuttingDown while draining.
        """
        if self._is_closing:
            raise ShuttingDown("The server is shutting down. Retry on another one.", retry_after_s=5)
        self._check_is_there(spec.model_id)
        return await self._lending.acquire(self._model(spec), hold_s=hold_s, ask=ask, task=task)

    def awake(self, model_id: str) -> int:
        """The model's copies that start, serve or drain."""
        model = self._models.get(model_id)
        gone = (*ENDED, State.ASLEEP)
        return 0 if model is None else sum(copy.state not in gone for copy in model.copies)

    async def warm(self, spec: CopySpec, *, wait_s: float) -> None:
        """Start a copy when there is none, as a request would, and wait for it. Raises as ``acquire`` does.

        The copy counts as just used: its keep-alive begins anew.
        """
        (await self.acquire(spec, hold_s=wait_s)).release()

    def configure(self, model_id: str, scaling: schedule.Scaling) -> None:
        """Set one model's scaling from now on. Copies that run otherwise than it says are replaced one by one.

        Raises ModelNotFound when the model was deleted meanwhile.
        """
        self._check_is_there(model_id)
        self._scaling[model_id] = scaling
        model = self._models.get(model_id)
        if model is not None:
            model.scaling = scaling
            model.spec = self.spec_of(model.spec_given)
            self._bell.set()

    def scaling(self, model_id: str) -> schedule.Scaling:
        """What is set for the model."""
        return self._scaling.get(model_id, schedule.DEFAULTS)

    def least_copies(self, model_id: str) -> int:
        """Copies of the model that an operator wants to be there now, asked or not."""
        return seen.params_of(self.scaling(model_id), self._params, self._wall()).min_copies

    def learned(self, model_id: str, measured: Iterable[tuple[Tier, float]]) -> None:
        """Starts of this model that were measured before."""
        self._learned.setdefault(model_id, ColdStarts()).seed(measured)

    def adopt(self, spec: CopySpec) -> None:
        """Make the model known, so that its schedule holds before anyone asked it, and *spec* how it runs from now on.

        Copies that run otherwise are replaced one by one. Raises ModelNotFound when the model was deleted meanwhile.
        """
        self._check_is_there(spec.model_id)
        model = self._model(spec)
        model.spec_given = spec
        model.spec = self.spec_of(spec)
        self._bell.set()

    def spec_of(self, spec: CopySpec) -> CopySpec:
        """*spec* as the model's copies run it: with what an operator set."""
        return room.as_set(spec, self.scaling(spec.model_id), self._engines[spec.engine].fitted)

    def takes_arguments(self, engine: str) -> bool:
        """Whether an operator's arguments reach the command line of the engine with this name."""
        return self._engines[engine].takes_arguments

    def decisions(self, model_id: str) -> list[DecisionRecord]:
        """The last scaling decisions of one model, the oldest first."""
        model = self._models.get(model_id)
        return list(model.decisions) if model else []

    def serving(self, model_id: str) -> int:
        """Copies of the model that answer now."""
        model = self._models.get(model_id)
        return sum(copy.is_ready for copy in model.copies) if model else 0

    def has_room(self, spec: CopySpec) -> bool:
        """Whether a copy of *spec* fits beside those that serve now, without anyone going."""
        return self._landlord.fits(self._model(spec), list(self._models.values()))

    def brings_back_with(self, bring_back: Callable[[str], Awaitable[None]]) -> None:
        """*bring_back* makes an evicted model's files be here again; it raises ServiceError."""
        self._bring_up.bring_back = bring_back

    async def rest(self, model_id: str) -> None:
        """Drain the model's copies and wait until they are gone; the next request starts one."""
        self.retire(model_id)
        model = self._models.get(model_id)
        going = list(model.copies) if model is not None else []
        while model is not None and any(copy in model.copies for copy in going):
            await asyncio.sleep(0.02)

    def retire(self, model_id: str) -> None:
        """Drain the model's copies once who waits now was answered, and start none until it is asked again."""
        model = self._models.get(model_id)
        if model is not None:
            model.retired_at = self._clock()
            self._bell.set()

    def status(self) -> list[CopyStatus]:
        now = self._clock()
        return [
            seen.copy_status(model, copy, now, self._engines[copy.spec.engine])
            for model in self._models.values()
            for copy in model.copies
        ]

    def readings(self, names: Iterable[tuple[str, str]]) -> list[Reading]:
        """What the metrics show of the models in *names* (model id, name), and of the node."""
        return readings(self._models, names, memory_bytes=self._landlord.memory_bytes)

    async def occupancies(self) -> dict[str, list[Occupancy]]:
        """By model id, what the engines of its ready copies say; a copy that says nothing is left out."""
        return await occupancies(seen.all_copies(self._models.values()), self._engines)

    def model_status(self, spec: CopySpec) -> ModelStatus:
        """How warm a model is. Reads the page cache; blocks for milliseconds on a large artefact. Wakes nothing."""
        model = self._models.get(spec.model_id)
        return seen.model_status(spec, model, self._known(spec.model_id))

    async def remove(self, model_id: str) -> None:
        """Drain and stop the model's copies and forget it."""
        self._removed[model_id] = None
        while len(self._removed) > REMOVED_KEPT:
            self._removed.popitem(last=False)
        model = self._models.get(model_id)
        if model is not None:
            model.is_removed = True
            model.queue.fail(ModelNotFound("The model was deleted."))
            self._bell.set()
            while model.copies:
                await asyncio.sleep(0.01)
        self._models.pop(model_id, None)
        self._learned.pop(model_id, None)
        self._scaling.pop(model_id, None)
        self._on_removed()
        await asyncio.to_thread(self._bring_up.forget, model_id)

    async def prove(self, spec: CopySpec, request: GenerateRequest, probes: list[tuple[str, list[int]]]) -> ProofReport:
        """Start one copy apart from the routed ones, compare tokens, generate, stop it. Raises as engines do.

        It waits for room like any first copy, and what it takes counts.
        """
        engine, known = self._engines[spec.engine], self._known(spec.model_id)
        placed: asyncio.Future[Copy] = asyncio.get_running_loop().create_future()
        key, model = f"proof-{random_id(8)}", self._made(spec)
        model.placed = placed
        self._models[key] = model
        self._bell.set()
        try:
            copy = await placed
            if self._meter is not None:
                self._meter.copy(copy.copy_id, spec.model_id, "proving")
            return await proving.prove(self._bring_up, engine, copy, request, probes, known=known, clock=self._clock)
        finally:
            if self._meter is not None and placed.done() and not placed.cancelled():
                self._meter.copy(placed.result().copy_id, spec.model_id, None)
            self._models.pop(key, None)
            self._bell.set()

    def logs_of(self, model_id: str) -> list[Path]:
        """Logs of the model's copies, the oldest first. Blocks."""
        return self._bring_up.logs_of(model_id)

    async def _own(self) -> None:
        ticked = self._clock()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._bell.wait()
            self._bell.clear()
            is_tick = self._clock() - ticked >= TICK_S
            ticked = self._clock() if is_tick else ticked
            # Who has waited longest for room is served first.
            for model in sorted(self._models.values(), key=lambda model: model.blocked_since or float("inf")):
                try:
                    self._reconciling.reconcile(model)
                    if is_tick:
                        self._health.look_after(model)
                except Exception:
                    log.exception("reconciling a model failed", model_id=model.spec.model_id)

    def _check_is_there(self, model_id: str) -> None:
        """Raises ModelNotFound for a deleted model, which whoever looked it up before may still name."""
        if model_id in self._removed:
            raise ModelNotFound("The model was deleted.")

    def _changed(self, copy: Copy) -> None:
        if self._meter is not None:
            self._meter.copy(copy.copy_id, copy.spec.model_id, copy.metered_state)

    def _known(self, model_id: str) -> ColdStarts:
        """What is known of the model's starts; nothing is remembered of a model that is asked about only."""
        return self._learned.get(model_id, ColdStarts())

    def _model(self, spec: CopySpec) -> Model:
        model = self._models.get(spec.model_id)
        if model is None:
            model = self._models[spec.model_id] = self._made(spec)
            model.starts = self._learned.setdefault(spec.model_id, ColdStarts())
        return model

    def _made(self, spec: CopySpec) -> Model:
        return Model(
            self.spec_of(spec),
            HoldQueue[Lease](Limits.of(self._settings), self._clock),
            active_at=-1e9,
            spec_given=spec,
            scaling=self.scaling(spec.model_id),
        )
