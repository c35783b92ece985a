"""The fleet under generated sequences of events, on virtual time: whatever happens in whatever order, it comes to rest.

What must hold between any two events: no slot is lent twice or lost, no waiter is lost, no count is negative, every copy
has one writer at most, memory and GPUs are nobody's twice, no invocation runs twice, and no model that was told to rest
(retired, or evicted for another one) starts a copy again before it is asked again. What must hold at the end: everything
was answered, every copy runs as configured and is out of its keep-alive, nothing starts any more, nothing is remembered of
deleted models, no process and no task is left.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable
from contextlib import aclosing
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs
from structlog.testing import capture_logs
from tests.support.virtual import GB, FakeEngine, FakeLauncher, VirtualLoop, make_fleet, spec
from tests.unit.serving.test_fleet import ONE, use

from outcrop.engines.base import CopySpec
from outcrop.errors import ModelNotFound, ServiceError, ShuttingDown
from outcrop.inference.canonical import GenerateRequest
from outcrop.serving import rolling, room
from outcrop.serving.copies import Copy, Lease, Model
from outcrop.serving.fleet import Fleet
from outcrop.serving.hold import Ask
from outcrop.serving.lifecycle import ENDED, State
from outcrop.serving.schedule import Floor, Scaling

T = TypeVar("T")
MODELS = 4
DEFECTS = {"reconciling a model failed", "starting a copy hit a defect"}
CHANGES = [
    Scaling(),
    Scaling(slots=1),
    Scaling(slots=3, min_copies=1),
    Scaling(context_tokens=128),
    Scaling(arguments=("--x",), stop_idle=True),
    Scaling(floors=(Floor(cron="* * * * *", for_s=30, min_copies=1),)),
]


class FleetMachine(RuleBasedStateMachine):
    """Any order of requests (whole, streamed, retried, abandoned), crashes, hangs, failing starts, retirements, changed
    configurations, deletions, late changes of deleted models, proof runs and restarts, of two models on processors and
    two that share a GPU and sleep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop, self.launcher = VirtualLoop(), FakeLauncher(start_s=1.0)
        self.memory = 12 * GB
        self.engine = FakeEngine(self.launcher)
        self.engine.can_sleep = True
        self.at_rest: set[str] = set()  # models that may not start a copy before they are asked again
        self.logged = capture_logs()
        self.logs = self.logged.__enter__()
        self.fleet = self.run(self._open())
        self.restarts = 0
        self.requests: list[asyncio.Task[str]] = []
        self.leases: list[Lease] = []
        self.names = count()
        self.specs = [self._new_spec(number) for number in range(MODELS)]
        self.proofs: list[asyncio.Task[Any]] = []
        self.orders: list[asyncio.Task[None]] = []  # deletions and rests, which end by themselves
        self.gone: list[CopySpec] = []

    def _new_spec(self, number: int = 0) -> CopySpec:
        found = spec(f"model-{next(self.names)}", slots=2, weight_bytes=4 * GB, kv_bytes=GB // 10)
        return structs.replace(found, gpus=1, threads=0, weight_bytes=0) if number >= MODELS // 2 else found

    async def _open(self) -> Fleet:
        fleet = make_fleet(
            self.loop,
            self.launcher,
            memory_bytes=self.memory,
            cores=4,
            gpus=1,
            engine=self.engine,
            max_copies=2,
            keep_alive_s=20,
            probe_s=2,
            stall_s=10,
        )
        self._watch_starts(fleet)
        await fleet.start()
        return fleet

    def _watch_starts(self, fleet: Fleet) -> None:
        """Check of every start that somebody wants it."""
        moves = fleet._transitions
        order, make_way = moves.order, moves._make_way

        def ordered(model: Model, now: float) -> bool:
            begun = order(model, now)
            if begun and model.spec.model_id in self.at_rest:
                is_awaited = len(model.queue) or model.queue.kept
                is_rolled = any(rolling.is_outdated(copy, model.spec) for copy in model.copies)
                assert is_awaited or is_rolled or model.scaling.min_copies or model.scaling.floors, "nobody wants it"
                self.at_rest.discard(model.spec.model_id)  # and the new copy has its own keep-alive
            return begun

        def evicted(model: Model, copy: Copy) -> None:
            if not len(model.queue) and not any(each.in_flight for each in model.copies):
                self.at_rest.add(model.spec.model_id)
            make_way(model, copy)

        moves.order, moves._make_way = ordered, evicted  # type: ignore[method-assign]

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    async def lease(self, what: CopySpec, ask: Ask, hold_s: float) -> Lease:
        self.at_rest.discard(what.model_id)
        lease = await self.fleet.acquire(what, hold_s=hold_s, ask=ask, task=asyncio.current_task())
        self.leases.append(lease)
        return lease

    @rule(
        model=st.integers(0, MODELS - 1),
        principal=st.sampled_from("pq"),
        invocation=st.sampled_from([None, "1", "2", "3"]),
        for_s=st.sampled_from([0.0, 0.5, 5.0]),
        hold_s=st.sampled_from([0.0, 2.0, 55.0]),
    )
    def ask(self, model: int, principal: str, invocation: str | None, for_s: float, hold_s: float) -> None:
        ask = Ask(principal=principal, invocation_id=invocation, size_bytes=10)

        async def whole(what: CopySpec) -> str:
            with await self.lease(what, ask, hold_s) as lease:
                await asyncio.sleep(for_s)
                return lease.copy_id

        self.requests.append(self.loop.create_task(whole(self.specs[model])))
        self.run(asyncio.sleep(0))

    @rule(
        model=st.integers(0, MODELS - 1),
        invocation=st.sampled_from([None, "1", "2"]),
        tokens=st.integers(1, 60),
        reads_every_s=st.sampled_from([0.0, 0.0, 3.0]),
    )
    def ask_stream(self, model: int, invocation: str | None, tokens: int, reads_every_s: float) -> None:
        async def stream(what: CopySpec) -> str:
            ask = Ask(principal="p", invocation_id=invocation)
            with await self.lease(what, ask, 55) as lease:
                request = GenerateRequest("completion", {"max_tokens": tokens})
                async with aclosing(lease.engine.stream(lease.endpoint, request)) as chunks:
                    async for _ in chunks:
                        await asyncio.sleep(reads_every_s)
                return lease.copy_id

        self.requests.append(self.loop.create_task(stream(self.specs[model])))
        self.run(asyncio.sleep(0))

    @rule(number=st.integers(0, 30))
    def leave(self, number: int) -> None:
        if self.requests:
            self.requests[number % len(self.requests)].cancel()
            self.run(asyncio.sleep(0))

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.5, 30.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(number=st.integers(0, 5))
    def crash(self, number: int) -> None:
        if processes := list(self.launcher.alive.values()):
            processes[number % len(processes)].die()

    @rule(number=st.integers(0, 5))
    def hang(self, number: int) -> None:
        if processes := list(self.launcher.alive.values()):
            processes[number % len(processes)].is_hung = True

    @rule(number=st.integers(0, 5), busy=st.sampled_from([0.0, 2.0]))
    def stick(self, number: int, busy: float) -> None:
        if processes := list(self.launcher.alive.values()):
            process = processes[number % len(processes)]
            process.is_stuck, process.busy = True, busy

    @rule(model=st.integers(0, MODELS - 1), change=st.sampled_from(CHANGES))
    def configure(self, model: int, change: Scaling) -> None:
        async def configure() -> None:
            self.fleet.configure(self.specs[model].model_id, change)

        self.run(configure())

    @rule(model=st.integers(0, MODELS - 1))
    def remove(self, model: int) -> None:
        self.orders.append(self.loop.create_task(self.fleet.remove(self.specs[model].model_id)))
        self.run(asyncio.sleep(0))
        self.gone.append(self.specs[model])
        self.specs[model] = self._new_spec(model)

    @rule(number=st.integers(0, 5), change=st.sampled_from(CHANGES))
    def change_too_late(self, number: int, change: Scaling) -> None:
        """What was asked of a model before it was deleted, and comes to it after."""
        if self.gone:
            late = self.gone[number % len(self.gone)]

            async def come() -> None:
                with pytest.raises(ModelNotFound):
                    self.fleet.configure(late.model_id, change)
                with pytest.raises(ModelNotFound):
                    self.fleet.adopt(late)
                with pytest.raises(ModelNotFound):
                    await self.fleet.acquire(late, hold_s=55)

            self.run(come())

    @rule(model=st.integers(0, MODELS - 1))
    def warm(self, model: int) -> None:
        async def warm(what: CopySpec) -> str:
            self.at_rest.discard(what.model_id)
            await self.fleet.warm(what, wait_s=55)
            return ""

        self.requests.append(self.loop.create_task(warm(self.specs[model])))
        self.run(asyncio.sleep(0))

    @rule(model=st.integers(0, MODELS - 1))
    def rest(self, model: int) -> None:
        self.at_rest.add(self.specs[model].model_id)
        self.orders.append(self.loop.create_task(self.fleet.rest(self.specs[model].model_id)))
        self.run(asyncio.sleep(0))

    @rule()
    def prove(self) -> None:
        self.proofs.append(self.loop.create_task(self.fleet.prove(self._new_spec(), ONE, [])))
        self.run(asyncio.sleep(0))

    @rule(is_broken=st.booleans())
    def break_starts(self, is_broken: bool) -> None:
        self.launcher.is_broken = is_broken

    @rule(model=st.integers(0, MODELS - 1))
    def retire(self, model: int) -> None:
        async def retire() -> None:
            self.at_rest.add(self.specs[model].model_id)
            self.fleet.retire(self.specs[model].model_id)

        self.run(retire())

    @rule(cache_slots=st.sampled_from([None, 1]))
    def find_memory(self, cache_slots: int | None) -> None:
        """What the engine finds room for, from the next start on."""
        self.engine.cache_slots = cache_slots

    @rule(garbage=st.booleans())
    def wake_up_wrong(self, garbage: bool) -> None:
        self.engine.says = "garbage" if garbage else "fine"

    @rule()
    def restart(self) -> None:
        """The server ends and another one takes over: who waits hears it, who runs has a moment."""
        self.restarts += 1
        self.run(self.fleet.close(1))
        assert not self.launcher.alive, "a process outlived its server"
        for each in (*self.requests, *self.proofs, *self.orders):
            each.cancel()  # its connection, or its job, ends with the server
        self.run(asyncio.sleep(0.1))
        assert not [task for task in asyncio.all_tasks(self.loop) if not task.done()]
        self.fleet, self.gone = self.run(self._open()), []
        self.at_rest.clear()

    @property
    def copies(self) -> list[Copy]:
        return [copy for model in self.fleet._models.values() for copy in model.copies]

    @invariant()
    def no_waiter_is_lost(self) -> None:
        """Who has no answer yet either stands in a queue or has a slot, be it of a copy that has just died."""
        for _ in range(5):
            self.run(asyncio.sleep(0))
        undone = {task for task in self.requests if not task.done()}
        holding = {lease.task for lease in self.leases if not lease.is_released} & undone
        waiting = sum(len(model.queue) for model in self.fleet._models.values())
        assert len(undone) == len(holding) + waiting

    @invariant()
    def no_invocation_runs_twice(self) -> None:
        running = [lease for lease in self.leases if not lease.is_released and lease.ask.invocation_id]
        ending = [lease for lease in running if lease.task and lease.task.cancelling()]
        keys = Counter((each.ask.principal, each.ask.invocation_id) for each in running if each not in ending)
        assert all(times == 1 for times in keys.values())

    @invariant()
    def every_copy_has_one_writer_at_most(self) -> None:
        names = Counter(task.get_name() for task in asyncio.all_tasks(self.loop) if not task.done())
        assert names["fleet"] == 1
        for copy in self.copies:
            writers = [names[f"{what}-{copy.copy_id}"] for what in ("start", "sleep", "stop")]
            assert sum(writers) <= 1, (copy.state, writers)
            assert names[f"watch-{copy.copy_id}"] <= 1

    @invariant()
    def nobody_met_a_defect(self) -> None:
        assert not [entry for entry in self.logs if entry["event"] in DEFECTS]

    @invariant()
    def counts_are_what_they_count(self) -> None:
        assert not any(lease.is_released for lease in self.fleet._lending._running.values())
        for model in self.fleet._models.values():
            assert model.failures >= 0
            assert min(len(model.queue), model.queue.kept) >= 0

    @invariant()
    def slots_memory_and_gpus_hold(self) -> None:
        copies = self.copies
        taken = Counter(device for copy in copies for device in copy.spec.devices)
        assert all(times == 1 for times in taken.values()), "two copies on one GPU"
        for copy in copies:
            assert copy.outstanding >= 0
            assert 0 <= copy.in_flight <= copy.slots
            assert copy.in_flight == len(copy.leases)
            assert copy.state not in ENDED
        for model in self.fleet._models.values():
            undrained = [copy for copy in model.copies if copy.state not in (State.DRAINING, State.ASLEEP)]
            # One more while a copy of an earlier configuration is replaced.
            assert len(undrained) <= 2 + any(rolling.is_outdated(copy, model.spec) for copy in undrained)
        assert len(copies) <= 1 or room.used_bytes(copy.spec for copy in copies) <= self.memory

    def teardown(self) -> None:
        self.launcher.is_broken, self.engine.says, self.engine.cache_slots = False, "fine", None
        for process in self.launcher.alive.values():
            process.is_hung = process.is_stuck = False
        for each in self.specs:
            self.fleet.configure(each.model_id, Scaling())
        self.run(asyncio.sleep(600))
        assert all(each.done() for each in self.proofs), "a proof run never ended"
        assert all(each.done() for each in self.orders), "a deletion or a rest never ended"
        assert not [each.exception() for each in self.orders if not each.cancelled() and each.exception()]
        for proof in self.proofs:
            if not proof.cancelled():
                assert proof.exception() is None or isinstance(proof.exception(), ServiceError)
        assert not any(model.placed for model in self.fleet._models.values())
        for request in self.requests:
            assert request.done(), "a request was never answered"
            if not request.cancelled() and request.exception() is not None:
                assert isinstance(request.exception(), ServiceError), request.exception()
                assert self.restarts or not isinstance(request.exception(), ShuttingDown)
        known = {each.model_id for each in self.specs}
        assert {model.spec.model_id for model in self.fleet._models.values()} <= known
        assert self.fleet._learned.keys() | self.fleet._scaling.keys() <= known
        assert all(copy.state in (State.EVICTABLE, State.ASLEEP) for copy in self.copies)
        started, woken = self.launcher.started, self.engine.woken
        self.run(asyncio.sleep(600))
        assert (self.launcher.started, self.engine.woken) == (started, woken), "something starts that nobody asked for"
        for model in self.fleet._models.values():
            assert not any(rolling.is_outdated(copy, model.spec) for copy in model.copies)
            assert len(model.queue) == 0
            assert model.queue.next() is None
            assert not model.queue.kept
            assert not any(copy.in_flight or copy.outstanding for copy in model.copies)
        assert not self.fleet._lending._running
        assert not self.fleet._lending._placing
        self.at_rest.clear()
        for each in self.specs:  # it still serves, whatever came before
            assert self.run(use(self.fleet, each, for_s=0, hold_s=300))
        self.run(self.fleet.close(1))
        assert not self.launcher.alive, "a process was left behind"
        assert not [task for task in asyncio.all_tasks(self.loop) if not task.done()]
        self.nobody_met_a_defect()
        self.logged.__exit__(None, None, None)
        self.loop.close()


EXAMPLES = int(os.environ.get("OUTCROP_TEST_EXAMPLES", "40"))
TestAnySequenceOfEvents = FleetMachine.TestCase
# Reducing a failure takes minutes; a limit that strikes meanwhile ends the fleet's task and looks like another failure.
TestAnySequenceOfEvents.pytestmark = [pytest.mark.timeout(900 + 5 * EXAMPLES)]
TestAnySequenceOfEvents.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
