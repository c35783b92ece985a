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
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from msgspec import structs

from outcrop.engines.base import CopySpec, Endpoint, Engine
from outcrop.errors import EngineFault, ModelNotFound, ModelNotReady, ServiceError, ShuttingDown
from outcrop.ids import CopyId, random_id
from outcrop.inference.canonical import GenerateRequest
from outcrop.launchers.local import LocalLauncher, Process
from outcrop.launchers.page_cache import resident_share
from outcrop.serving import policy, proof, room, router, schedule, starts
from outcrop.serving.copies import Copy, CopyStatus, DecisionRecord, Lease, Model, ModelStatus
from outcrop.serving.gate import StartGate
from outcrop.serving.hold import Ask, HoldQueue, Limits, Seat
from outcrop.serving.lifecycle import SERVING, State, advance
from outcrop.serving.making_room import Landlord
from outcrop.serving.proof import ProofReport
from outcrop.serving.starts import ColdStarts, Tier
from outcrop.settings import Settings

log = structlog.get_logger(__name__)

TICK_S = 1.0
STOP_GRACE_S = 5.0
READY_POLL_S = 0.01
EXAMINE_S = 0.5  # a process that crashed is gone within this time
MISSED_PROBES = 3  # in a row, of a copy that does not answer, before it is replaced
KEEP_PLACE_S = 30.0  # a place in the queue waits this much longer than its request was told to
CACHED_SHARE = 0.8  # of an artefact's pages in memory, from which a start reads no disk
ANYONE = Ask()


class Fleet:
    """All copies of one server on one launcher. Single event loop, no locks.

    *on_start* is told of every start that succeeded (model id, tier, seconds), so that they are remembered.
    *model_count*: how many models may be asked here, which bounds what one copy takes of the cores.
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
        model_count: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._engines = {engine.name: engine for engine in engines}
        self._launcher = launcher
        self._settings = settings
        self._clock = clock
        self._wall = wall
        self._on_start = on_start
        self._params = policy.Params(
            max_copies=settings.max_copies, keep_alive_s=settings.keep_alive_s, hold_limit_s=settings.hold_limit_s
        )
        self._models: dict[str, Model] = {}
        self._learned: dict[str, ColdStarts] = {}
        self._scaling: dict[str, schedule.Scaling] = {}
        self._running: dict[tuple[str, str], Lease] = {}
        self._landlord = Landlord(
            memory_bytes=memory_bytes, cores=cores, threads=settings.cpu_threads, model_count=model_count
        )
        self._gate = StartGate(settings.starts_in_parallel)
        self._bell = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
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
        model, now = self._model(spec), self._clock()
        if model.is_removed:
            raise ModelNotFound("The model was deleted.")
        if ask.invocation_id and (earlier := self._running.get((ask.principal, ask.invocation_id))) is not None:
            self._supersede(earlier)
        model.active_at = now
        if model.failure is not None and now < model.retry_at:
            raise EngineFault(f"{model.failure} The next start is tried in {model.retry_at - now:.0f} s.")
        model.demand.arrived(now)
        copy = None if model.queue.peek() else router.choose(model.copies, ask.prefix)
        lease = self._lend(model, copy, ask) if copy is not None else await self._held(model, ask, hold_s)
        if task is not None:
            # Whatever ends the request, a generator that was never started included, no slot is lost.
            lease.task = task
            task.add_done_callback(lambda _: lease.release())
            if ask.invocation_id:
                self._running[ask.principal, ask.invocation_id] = lease
        return lease

    async def warm(self, spec: CopySpec, *, wait_s: float) -> None:
        """Start a copy when there is none, as a request would, and wait for it. Raises as ``acquire`` does.

        The copy counts as just used: its keep-alive begins anew.
        """
        (await self.acquire(spec, hold_s=wait_s)).release()

    def configure(self, model_id: str, scaling: schedule.Scaling) -> None:
        """Set one model's scaling from now on."""
        self._scaling[model_id] = scaling
        if model_id in self._models:
            self._models[model_id].scaling = scaling
            self._bell.set()

    def scaling(self, model_id: str) -> schedule.Scaling:
        """What is set for the model."""
        return self._scaling.get(model_id, schedule.DEFAULTS)

    def learned(self, model_id: str, seen: Iterable[tuple[Tier, float]]) -> None:
        """Starts of this model that were measured before."""
        self._learned.setdefault(model_id, ColdStarts()).seed(seen)

    def adopt(self, spec: CopySpec) -> None:
        """Make the model known, so that its schedule holds before anyone asked it."""
        self._model(spec)
        self._bell.set()

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

    def retire(self, model_id: str) -> None:
        """Drain the model's copies and start none until it is asked again."""
        model = self._models.get(model_id)
        if model is not None:
            model.active_at = -1e9
            for copy in model.copies:
                if copy.state in SERVING:
                    self._drain(model, copy, self._settings.request_timeout_s)
            self._bell.set()

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
                slots=copy.slots,
                threads=copy.spec.threads,
                requests=copy.requests,
                idle_s=0.0 if copy.in_flight else round(max(0.0, now - max(model.active_at, copy.born_at)), 3),
                start_timings=copy.start_timings,
            )
            for model in self._models.values()
            for copy in model.copies
        ]

    def model_status(self, spec: CopySpec) -> ModelStatus:
        """How warm a model is. Reads the page cache; blocks for milliseconds on a large artefact. Wakes nothing."""
        model = self._models.get(spec.model_id)
        known = model.starts if model else self._learned.get(spec.model_id, ColdStarts())
        states = [copy.state for copy in model.copies] if model else []
        best = next((state for state in State if state is not State.STARTING and state in states), None)
        if model and model.failure:
            state = "failed"
        elif model and model.blocked_since is not None:
            state = "waiting for room"
        elif best in SERVING:
            state = str(best)
        else:
            state = "starting" if State.STARTING in states else str(best or self._tier(spec))
        return ModelStatus(
            model_id=spec.model_id,
            state=state,
            held=len(model.queue) if model else 0,
            wake_s={tier: known.known(tier) for tier in Tier},
            failure=model.failure if model else None,
            memory_bytes=room.used_bytes([spec]),
        )

    async def remove(self, model_id: str) -> None:
        """Drain and stop the model's copies and forget it."""
        model = self._models.get(model_id)
        if model is None:
            return
        model.is_removed = True
        model.queue.fail(ModelNotFound("The model was deleted."))
        self._bell.set()
        while model.copies:
            await asyncio.sleep(0.01)
        self._models.pop(model_id, None)
        self._learned.pop(model_id, None)
        self._scaling.pop(model_id, None)
        await asyncio.to_thread(self._forget_logs, model_id, 0)

    async def prove(self, spec: CopySpec, request: GenerateRequest, probes: list[tuple[str, list[int]]]) -> ProofReport:
        """Start one copy apart from the routed ones, compare tokens, generate, stop it. Raises EngineFault."""
        engine = self._engines[spec.engine]
        begun = self._clock()
        process, endpoint = await self._launch(spec, "proof")
        try:
            spawned = self._clock()
            await self._until_ready(spec, endpoint)
            ready = self._clock()
            mismatches = await _mismatches(engine, endpoint, probes if engine.can_tokenize else ())
            asked = self._clock()
            answer = await engine.complete(endpoint, request)
            answered = self._clock()
            first, *others = proof.PROMPTS
            answers = [await engine.complete(endpoint, proof.question(first))]
            spoken = self._clock() - answered
            if proof.repeated_token(answers[0]) is not None:
                answers += [await engine.complete(endpoint, proof.question(prompt)) for prompt in others]
            tokens = answers[0].usage.completion_tokens
            return ProofReport(
                spawn_s=round(spawned - begun, 4),
                load_s=round(ready - spawned, 4),
                first_token_s=round(answered - asked, 4),
                text=answer.choices[0].text if answer.choices else "",
                mismatches=mismatches,
                tokens_per_s=round(tokens / spoken, 2) if tokens and spoken > 0 else None,
                memory_bytes=await asyncio.to_thread(process.peak_memory_bytes),
                diagnosis=proof.diagnosis(answers),
            )
        finally:
            await process.stop(STOP_GRACE_S)

    # -- the owner ------------------------------------------------------------------------------------

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
                    self._reconcile(model)
                    if is_tick:
                        self._look_after(model)
                except Exception:
                    log.exception("reconciling a model failed", model_id=model.spec.model_id)

    def _reconcile(self, model: Model) -> None:
        now = self._clock()
        self._release_held(model)
        ready = [copy for copy in model.copies if copy.is_ready]
        starting = [copy for copy in model.copies if copy.state is State.STARTING]
        current = len(ready) + len(starting)
        params = self._params_of(model)
        facts = self._facts(model, ready, starting, params)
        decision = policy.decide(facts, params)
        model.demand.decided(now, decision.up)
        desired = 0 if model.is_removed else decision.desired
        self._note(model, facts, decision, current)
        for _ in range(desired - current):
            if not self._order(model, now):
                break
        else:
            model.blocked_since = None
        for copy in ready:
            if model.is_removed:
                self._drain(model, copy, self._settings.drain_s)
            elif copy.copy_id in decision.retire:
                if desired or self._settings.stop_idle:
                    self._drain(model, copy, self._settings.request_timeout_s)
                elif copy.state is State.READY:
                    copy.state = advance(copy.state, State.EVICTABLE)

    def _facts(self, model: Model, ready: list[Copy], starting: list[Copy], params: policy.Params) -> policy.Facts:
        now = self._clock()
        rate_60, rate_15, count_15 = model.demand.rates(now)
        cold_start_s = model.starts.expected_s(Tier.CACHED)
        facts = policy.Facts(
            ready=len(ready),
            starting=len(starting),
            in_flight=sum(copy.in_flight for copy in ready),
            held=len(model.queue) + model.queue.kept,
            slots=model.spec.slots,
            idle_s=max(0.0, now - model.active_at),
            rate_60=rate_60,
            rate_15=rate_15,
            count_15=count_15,
            work_s=model.demand.work_s,
            cold_start_s=cold_start_s,
            is_backing_off=now < model.retry_at,
            copies=tuple(
                policy.CopyFacts(
                    copy_id=copy.copy_id,
                    in_flight=copy.in_flight,
                    served_s=None if copy.served_at is None else now - copy.served_at,
                )
                for copy in ready
            ),
        )
        window_s = policy.scale_in_window_s(facts, params)
        return policy.Facts(**{**_values(facts), "peak": model.demand.peak(now, window_s)})

    def _params_of(self, model: Model) -> policy.Params:
        if model.scaling is schedule.DEFAULTS:
            return self._params
        now = datetime.fromtimestamp(self._wall(), UTC)
        active = [floor for floor in model.scaling.floors if schedule.is_active(floor, now)]
        return schedule.params_at(self._params, model.scaling, active)

    def _note(self, model: Model, facts: policy.Facts, decision: policy.Decision, current: int) -> None:
        """Keep the decision with what it saw; the same one again is counted, not repeated."""
        record = DecisionRecord(
            at=self._wall(),
            desired=decision.desired,
            current=current,
            reason=decision.reason,
            facts={name: value for name, value in _values(facts).items() if name != "copies"},
        )
        last = model.decisions[-1] if model.decisions else None
        if last is not None and (last.desired, last.current) == (record.desired, record.current):
            model.decisions[-1] = structs.replace(record, times=last.times + 1)
            return
        model.decisions.append(record)
        if decision.desired != current:
            log.info("scaling", model_id=model.spec.model_id, copies=decision.desired, reason=decision.reason)

    def _order(self, model: Model, now: float) -> bool:
        """Start one more copy, if the node has room or idle copies can make it; whether it was started."""
        plan = self._landlord.plan(model, list(self._models.values()), now)
        for owner, copy in plan.evicted:
            log.info("evicting", copy_id=copy.copy_id, model_id=owner.spec.model_id, for_model=model.spec.model_id)
            owner.active_at = -1e9  # its keep-alive is over: only a new request brings it back
            self._drain(owner, copy, self._settings.request_timeout_s)
        if not plan.may_start:
            model.blocked_since = now if model.blocked_since is None else model.blocked_since
            return False
        spec = structs.replace(model.spec, threads=plan.threads)
        copy = Copy(CopyId(random_id(8)), spec, now)
        model.copies.append(copy)
        self._spawn(self._bring_up(model, copy), f"start-{copy.copy_id}")
        return True

    async def _bring_up(self, model: Model, copy: Copy) -> None:
        try:
            async with self._gate.turn(copy.spec.weight_bytes):
                begun = self._clock()
                copy.start_timings["queued_s"] = round(begun - copy.born_at, 4)
                copy.tier = await asyncio.to_thread(self._tier, copy.spec)
                await asyncio.to_thread(self._forget_logs, copy.spec.model_id, self._settings.copy_logs_kept)
                copy.process, copy.endpoint = await self._launch(copy.spec, copy.copy_id)
                copy.start_timings["spawn_s"] = round(self._clock() - begun, 4)
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
        now = self._clock()
        copy.state = advance(copy.state, State.READY)
        copy.ready_at = copy.probed_at = model.active_at = now
        model.failure, model.retry_at = None, 0.0
        took = now - begun
        model.starts.learn(copy.tier, took)
        self._on_start(copy.spec.model_id, copy.tier, took)
        copy.start_timings["ready_s"] = round(now - copy.born_at, 4)
        log.info("copy is ready", copy_id=copy.copy_id, model_id=copy.spec.model_id, start_s=round(took, 3))
        self._spawn(self._watch(model, copy), f"watch-{copy.copy_id}")
        self._release_held(model)
        self._bell.set()

    async def _start_failed(self, model: Model, copy: Copy, exc: ServiceError) -> None:
        copy.state = advance(copy.state, State.FAILED)
        if copy.process is not None:
            await copy.process.stop(0)
        model.copies.remove(copy)
        log.error("copy failed to start", copy_id=copy.copy_id, model_id=copy.spec.model_id, reason=exc.message)
        self._count_failure(model, exc.message)

    def _count_failure(self, model: Model, reason: str) -> None:
        model.failures += 1
        model.retry_at = self._clock() + starts.backoff_s(model.failures)
        if model.failures >= starts.FAILURES_TO_FAIL and not any(copy.is_ready for copy in model.copies):
            model.failure = f"The model's copies failed {model.failures} times in a row: {reason}"
            model.queue.fail(EngineFault(model.failure))
        self._bell.set()

    async def _watch(self, model: Model, copy: Copy) -> None:
        """Notice a process that died by itself; its requests hear it from their broken connections."""
        assert copy.process is not None
        status = await copy.process.wait()
        if copy.state in SERVING:
            copy.state = advance(copy.state, State.FAILED)
            model.copies.remove(copy)
            log.error("copy died", copy_id=copy.copy_id, model_id=copy.spec.model_id, status=status)
            await copy.process.stop(0)
            if copy.requests and not copy.answered:
                # It never answered anything: starting it again at once would be a crash loop.
                lines = copy.process.last_log_lines()
                self._count_failure(model, f"a copy died with status {status} before it answered. {lines}")
            self._bell.set()

    # -- health ---------------------------------------------------------------------------------------

    def _look_after(self, model: Model) -> None:
        """Once a tick: stalled streams, silent copies, growing logs. Wakes nothing, keeps nothing awake."""
        now, loop_now = self._clock(), asyncio.get_running_loop().time()
        for copy in model.copies:
            if copy.process is not None:
                copy.process.trim_log(self._settings.copy_log_bytes)
            if copy.state not in SERVING or copy.is_suspect:
                continue
            waits = [
                loop_now - lease.engine.awaiting_since
                for lease in copy.leases
                if lease.engine.awaiting_since is not None
            ]
            if waits and max(waits) > self._settings.stall_s:
                self._replace(copy, f"no token for {max(waits):.0f} s")
            elif now - copy.probed_at >= self._settings.probe_s:
                copy.probed_at = now
                self._spawn(self._probe(copy), f"probe-{copy.copy_id}")

    async def _probe(self, copy: Copy) -> None:
        assert copy.endpoint is not None
        if await self._engines[copy.spec.engine].is_ready(copy.endpoint):
            copy.missed_probes = 0
            return
        copy.missed_probes += 1
        if copy.missed_probes >= MISSED_PROBES and copy.state in SERVING:
            self._replace(copy, f"{copy.missed_probes} health checks without an answer")

    def _replace(self, copy: Copy, reason: str) -> None:
        """End a copy that is up but of no use; ``_watch`` buries it and the policy orders another."""
        log.error("replacing a copy", copy_id=copy.copy_id, model_id=copy.spec.model_id, reason=reason)
        copy.is_suspect = True
        if copy.process is not None:
            self._spawn(copy.process.stop(0), f"replace-{copy.copy_id}")

    def suspect(self, copy: Copy) -> None:
        if copy.is_ready:
            copy.is_suspect = True
            self._spawn(self._examine(copy), f"examine-{copy.copy_id}")

    async def _examine(self, copy: Copy) -> None:
        """Give a suspect copy its requests back when it answers, else end it; ``_watch`` then buries it."""
        assert copy.process is not None
        assert copy.endpoint is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXAMINE_S):
                await copy.process.wait()
        if copy.process.returncode is None and await self._engines[copy.spec.engine].is_ready(copy.endpoint):
            copy.is_suspect = False
            self._bell.set()
        else:
            await copy.process.stop(0)

    # -- starting and stopping ------------------------------------------------------------------------

    def _drain(self, model: Model, copy: Copy, limit_s: float) -> None:
        """Send the copy no more requests; stop it once its own have ended, at the latest after *limit_s*."""
        copy.state = advance(copy.state, State.DRAINING)
        self._spawn(self._take_down(model, copy, limit_s), f"stop-{copy.copy_id}")

    async def _take_down(self, model: Model, copy: Copy, limit_s: float) -> None:
        assert copy.process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while copy.in_flight and copy.process.returncode is None:
                    await asyncio.sleep(0.02)
        await copy.process.stop(STOP_GRACE_S)
        if copy.state is State.DRAINING:
            copy.state = advance(copy.state, State.STOPPED)
        if copy in model.copies:
            model.copies.remove(copy)
        log.info("copy stopped", copy_id=copy.copy_id, model_id=copy.spec.model_id, requests=copy.requests)
        self._bell.set()

    async def _launch(self, spec: CopySpec, name: str) -> tuple[Process, Endpoint]:
        engine = self._engines[spec.engine]
        secret = secrets.token_urlsafe(24)
        process = await self._launcher.start(
            engine.command(spec),
            engine.child_config(spec, secret),
            self.log_folder / f"{spec.model_id}-{name}.log",
            self._deadline_s(spec),
        )
        return process, Endpoint(f"http://127.0.0.1:{process.announced['port']}", secret)

    async def _until_ready(self, spec: CopySpec, endpoint: Endpoint) -> None:
        deadline_s, engine = self._deadline_s(spec), self._engines[spec.engine]
        try:
            async with asyncio.timeout(deadline_s):
                while not await engine.is_ready(endpoint):
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError as exc:
            raise EngineFault(f"The copy was not ready after {deadline_s:g} s.") from exc

    def _deadline_s(self, spec: CopySpec) -> float:
        model = self._models.get(spec.model_id)
        known = model.starts if model else ColdStarts()
        return self._settings.start_deadline_s or known.deadline_s(spec.weight_bytes)

    def _tier(self, spec: CopySpec) -> Tier:
        return Tier.CACHED if resident_share(spec.artifact) >= CACHED_SHARE else Tier.DISK

    def _forget_logs(self, model_id: str, kept: int) -> None:
        """Remove all but the newest *kept* logs of the model's copies."""
        found = sorted(self.log_folder.glob(f"{model_id}-*.log"), key=lambda path: path.stat().st_mtime)
        for path in found[: len(found) - kept]:
            path.unlink(missing_ok=True)

    @property
    def log_folder(self) -> Path:
        return Path(self._settings.logs) / "copies"

    # -- slots ----------------------------------------------------------------------------------------

    def _model(self, spec: CopySpec) -> Model:
        model = self._models.get(spec.model_id)
        if model is None:
            settings = self._settings
            limits = Limits(
                requests=settings.hold_queue_requests,
                bytes=settings.hold_queue_bytes,
                principal_requests=settings.hold_queue_requests_per_principal,
                principal_bytes=settings.hold_queue_bytes_per_principal,
            )
            model = self._models[spec.model_id] = Model(
                spec,
                HoldQueue[Lease](limits, self._clock),
                active_at=-1e9,
                starts=self._learned.setdefault(spec.model_id, ColdStarts()),
                scaling=self._scaling.get(spec.model_id, schedule.DEFAULTS),
            )
        return model

    async def _held(self, model: Model, ask: Ask, hold_s: float) -> Lease:
        seat: Seat[Lease] = model.queue.join(ask)
        waiter = seat.waiter
        assert waiter is not None
        self._bell.set()
        try:
            async with asyncio.timeout(hold_s):
                return await waiter
        except TimeoutError:
            if _was_served(waiter):
                return waiter.result()  # the slot came in the same instant
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
        model.active_at = now
        return lease

    def give_back(self, lease: Lease) -> None:
        model, copy, now = lease.model, lease.copy, self._clock()
        copy.in_flight -= 1
        copy.outstanding -= lease.ask.weight
        copy.leases.discard(lease)
        model.active_at = now
        if not lease.broke:
            copy.answered += 1
            model.failures = 0
            model.demand.served(now - lease.begun_at, lease.beside, self._params.interference)
        key = (lease.ask.principal, lease.ask.invocation_id or "")
        if self._running.get(key) is lease:
            del self._running[key]
        self._release_held(model)
        if not copy.in_flight:
            self._bell.set()  # another model may be waiting for this one to rest

    def _supersede(self, earlier: Lease) -> None:
        """End an attempt whose retry has come: its client no longer listens, and one invocation generates once."""
        log.info("a retry takes over", model_id=earlier.copy.spec.model_id, copy_id=earlier.copy_id)
        if earlier.task is not None:
            earlier.task.cancel()

    def _release_held(self, model: Model) -> None:
        while (ask := model.queue.peek()) and (copy := router.choose(model.copies, ask.prefix)) is not None:
            found = model.queue.next()
            if found is None:
                return
            waiter, asked = found
            waiter.set_result(self._lend(model, copy, asked))

    def _remaining_start_s(self, model: Model) -> float:
        """What is left of the start under way, or the whole of the next one; at least 1 s."""
        now = self._clock()
        begun = [(copy.born_at, copy.tier) for copy in model.copies if copy.state is State.STARTING]
        if not begun:
            return max(1.0, model.starts.expected_s(Tier.CACHED), model.retry_at - now)
        born_at, tier = min(begun)
        return max(1.0, model.starts.expected_s(tier) - (now - born_at))

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _was_served(waiter: asyncio.Future[Lease]) -> bool:
    return waiter.done() and not waiter.cancelled() and waiter.exception() is None


def _values(facts: policy.Facts) -> dict[str, Any]:
    return {each.name: getattr(facts, each.name) for each in fields(facts)}


async def _mismatches(engine: Engine, endpoint: Endpoint, probes: Iterable[tuple[str, list[int]]]) -> list[str]:
    """Each probe text that the engine tokenises otherwise than the checkpoint's tokenizer does, with both."""
    found = []
    for text, wanted in probes:
        given = await engine.tokenize(endpoint, text)
        if given != wanted:
            at = next((n for n, (one, two) in enumerate(zip(given, wanted, strict=False)) if one != two), 0)
            found.append(
                f"{text[:40]!r} gives {given[at : at + 6]} from token {at} on, the tokenizer {wanted[at : at + 6]}"
            )
    return found
