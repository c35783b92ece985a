"""What the fleet knows of a model and its copies, and the lease that a request holds. Written by the fleet only."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from msgspec import Struct

from outcrop.engines import prompts
from outcrop.engines.base import CopySpec, Endpoint, Engine
from outcrop.errors import EngineTimeout
from outcrop.ids import CopyId
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest
from outcrop.inference.embeddings import Embeddings, EmbedRequest
from outcrop.launchers.local import Process
from outcrop.serving.demand import Demand
from outcrop.serving.hold import Ask, HoldQueue
from outcrop.serving.lifecycle import ENDED, SERVING, State
from outcrop.serving.router import Homes
from outcrop.serving.schedule import DEFAULTS, Scaling
from outcrop.serving.starts import ColdStarts, Stage, Tier
from outcrop.telemetry.requests import ColdStart, Decision

DECISIONS_KEPT = 200


@dataclass(slots=True, eq=False)
class Progress:
    """When a copy was last seen to get on with its requests. Times are seconds on the fleet's clock."""

    moved_at: float
    checked_at: float
    value: float | None = None  # what the engine said last
    cpu_s: float | None = None  # what its processes had used then
    is_asking: bool = False


@dataclass(slots=True, eq=False)
class Copy:
    """One engine process and what is known of it."""

    copy_id: CopyId
    spec: CopySpec
    born_at: float
    tier: Tier = Tier.DISK
    stage: Stage = Stage.QUEUED  # of its start
    begun_at: float | None = None  # when its turn to start came, or the fetching of its files began
    awake: CopySpec | None = None  # of one asleep, or on its way to sleep or back: what it takes when it serves
    may_sleep: bool = True  # False: its model was told to rest while it was on its way to sleep
    sleep_level: int = 0  # of one asleep (``engines.base.Asleep``)
    canary: str = ""  # how it began to answer a fixed question before it slept
    state: State = State.STARTING
    process: Process | None = None
    starting: asyncio.Task[None] | None = None  # what brings it up, or wakes it
    endpoint: Endpoint | None = None
    cache_slots: int | None = None  # requests that its cache holds, as its engine found out
    in_flight: int = 0
    outstanding: int = 0  # tokens of its running requests
    requests: int = 0
    answered: int = 0  # of those, ended without breaking the copy
    ready_at: float = 0.0
    served_at: float | None = None  # its first request
    probed_at: float = 0.0
    missed_probes: int = 0
    progress: Progress | None = None  # of the requests that run on it; None while it rests
    is_suspect: bool = False  # a request found its connection broken; takes none until it was examined
    leases: set[Lease] = field(default_factory=set)
    start_timings: dict[str, float] = field(default_factory=dict)
    decision: Decision | None = None  # what ordered it
    cold_start: ColdStart | None = None  # once it is ready

    def started(self, now: float, wall: float) -> ColdStart:
        """Note how the copy came up. *now*: on the fleet's clock; *wall*: the same in seconds since the epoch."""
        total_s, gate_s = now - self.born_at, self.start_timings.get("queued_s", 0.0)
        told = self.process.announced.get("stages", {}) if self.process is not None else {}
        spawn_s = self.start_timings.get("spawn_s", 0.0) - sum(told.values())
        fetch_s = self.start_timings.get("fetch_s")
        fetched = {} if fetch_s is None else {"fetch": fetch_s}
        stages = {**fetched, "gate": gate_s, "spawn": round(max(0.0, spawn_s), 4), **told}
        stages["ready"] = round(max(0.0, total_s - sum(stages.values())), 4)
        self.cold_start = ColdStart(
            self.copy_id, str(self.tier), wall - total_s, round(total_s, 4), stages, self.decision
        )
        return self.cold_start

    @property
    def is_ready(self) -> bool:
        return self.state in SERVING and not self.is_suspect

    @property
    def slots(self) -> int:
        """Requests at a time: what was derived, or less when its engine found less memory than that takes."""
        return min(self.spec.slots, self.cache_slots or self.spec.slots)

    @property
    def metered_state(self) -> str | None:
        """The state that its time is counted in (``metering.usage.COPY_STATES``); None once it has ended."""
        if self.state in ENDED:
            return None
        if self.state in SERVING and self.in_flight:
            return "busy"
        return "idle" if self.state is State.READY else str(self.state)


class DecisionRecord(Decision, frozen=True):
    """A scaling decision; *times*: how often in a row it came out."""

    times: int = 1


@dataclass(slots=True, eq=False)
class Model:
    """One model's queue, copies and memory of itself."""

    spec: CopySpec
    queue: HoldQueue[Lease]
    active_at: float
    spec_given: CopySpec  # without what an operator set
    copies: list[Copy] = field(default_factory=list)
    homes: Homes = field(default_factory=Homes)
    demand: Demand = field(default_factory=Demand)
    starts: ColdStarts = field(default_factory=ColdStarts)
    scaling: Scaling = DEFAULTS
    decisions: deque[DecisionRecord] = field(default_factory=lambda: deque(maxlen=DECISIONS_KEPT))
    failures: int = 0  # in a row; an answer of a copy that came up after the last one ends the row
    failed_at: float = 0.0
    retry_at: float = 0.0
    failure: str | None = None  # set once starts failed too often in a row; cleared by the next ready copy
    blocked_since: float | None = None  # wants a copy, and the node has no room
    is_removed: bool = False
    retired_at: float | None = None  # its copies go once nobody waits for them
    placed: asyncio.Future[Copy] | None = None  # of a proof run: resolved with its only copy once there is room for it

    def cold_until(self, joined_at: float, now: float) -> float:
        """When the first copy became ready for a request that joined at *joined_at* and found none; at most *now*."""
        return min((copy.ready_at for copy in self.copies if copy.ready_at > joined_at), default=now)

    def rest(self) -> None:
        """What was asked so far asks for no copy any more: only a new request brings one back."""
        self.active_at = -1e9
        self.demand.rest()


class Events(Protocol):
    """Who is told what happens to copies, when it does."""

    def copy_ready(self, model_id: str, start: ColdStart) -> None: ...

    def start_failed(self, model_id: str) -> None: ...

    def copy_ended(self, model_id: str, reason: str) -> None:
        """*reason*: drained, evicted, replaced or died."""

    def decided(self, model_id: str, current: int, desired: int) -> None:
        """A decision that differs from what is there."""


class _Unobserved:
    def copy_ready(self, model_id: str, start: ColdStart) -> None: ...

    def start_failed(self, model_id: str) -> None: ...

    def copy_ended(self, model_id: str, reason: str) -> None: ...

    def decided(self, model_id: str, current: int, desired: int) -> None: ...


UNOBSERVED: Events = _Unobserved()


class Owner(Protocol):
    """What a lease owes its fleet."""

    def give_back(self, lease: Lease) -> None: ...

    def lend_beside(self, lease: Lease, count: int) -> list[Lease]: ...

    def suspect(self, copy: Copy) -> None: ...


class Lease:
    """One slot of one copy, held for one request. ``engine`` is the copy's engine, watched for a stall."""

    __slots__ = (
        "_extra",
        "_is_released",
        "_owner",
        "ask",
        "begun_at",
        "beside",
        "broke",
        "cold_start",
        "copy",
        "engine",
        "held_s",
        "model",
        "task",
    )

    def __init__(self, owner: Owner, model: Model, copy: Copy, ask: Ask, engine: Engine, now: float) -> None:
        self._owner = owner
        self._is_released = False
        self._extra: list[Lease] = []
        self.model = model
        self.copy = copy
        self.ask = ask
        self.begun_at = now
        self.beside = copy.in_flight
        self.broke = False
        self.held_s = 0.0  # how long the request waited while no copy was ready
        self.cold_start: ColdStart | None = None  # of its copy, when the request waited for it
        self.task: asyncio.Task[Any] | None = None
        self.engine = Watched(engine, self)

    @property
    def endpoint(self) -> Endpoint:
        assert self.copy.endpoint is not None
        return self.copy.endpoint

    @property
    def copy_id(self) -> str:
        return self.copy.copy_id

    @property
    def is_released(self) -> bool:
        return self._is_released

    def release(self) -> None:
        """Give the slot back; again is nothing."""
        if not self._is_released:
            self._is_released = True
            self._owner.give_back(self)
            for lease in self._extra:
                lease.broke = self.broke
                lease.release()

    def widen(self, count: int) -> int:
        """Take up to *count* more slots of the copy, of those that are free now; how many this lease then has."""
        if not self._is_released:
            self._extra += self._owner.lend_beside(self, count - len(self._extra))
        return 1 + len(self._extra)

    def report_broken(self) -> None:
        """Say that the copy broke the connection: no other request is sent there before the fleet has looked."""
        self.broke = True
        self._owner.suspect(self.copy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Watched:
    """An engine as one lease sees it: whether it is waited for, and since when the next token of a stream is.

    The time that a slow client takes to read does not count. Before the first token, and for an answer that is not
    streamed, only the engine can say whether it gets on: a long prompt is no stall.
    """

    __slots__ = ("_engine", "_is_beginning", "_lease", "awaiting_since", "clock")

    def __init__(self, engine: Engine, lease: Lease) -> None:
        self._engine = engine
        self._lease = lease
        self._is_beginning = False
        self.awaiting_since: float | None = None
        self.clock: Callable[[], float] = asyncio.get_running_loop().time

    @property
    def is_awaited(self) -> bool:
        return self._is_beginning or self.awaiting_since is not None

    async def complete(self, endpoint: Endpoint, request: GenerateRequest) -> Completion:
        self._is_beginning = True
        try:
            return await prompts.complete(self._engine, endpoint, request)
        except EngineTimeout:
            self._lease.report_broken()
            raise
        finally:
            self._is_beginning = False

    async def stream(self, endpoint: Endpoint, request: GenerateRequest) -> AsyncGenerator[list[Chunk], None]:
        self._is_beginning = True
        try:
            async with aclosing(prompts.stream(self._engine, endpoint, request)) as chunks:
                async for batch in chunks:
                    self._is_beginning, self.awaiting_since = False, None
                    yield batch
                    self.awaiting_since = self.clock()
        except EngineTimeout:
            self._lease.report_broken()
            raise
        finally:
            self._is_beginning, self.awaiting_since = False, None

    async def embed(self, endpoint: Endpoint, request: EmbedRequest, *, normalize: bool) -> Embeddings:
        try:
            return await self._engine.embed(endpoint, request, normalize=normalize)
        except EngineTimeout:
            self._lease.report_broken()
            raise

    async def count_tokens(self, endpoint: Endpoint, request: GenerateRequest) -> int:
        return await prompts.count_tokens(self._engine, endpoint, request)


class CopyStatus(Struct, frozen=True):
    """A copy as operators see it."""

    copy_id: str
    model_id: str
    state: str
    pid: int | None
    age_s: float
    in_flight: int
    slots: int
    threads: int
    requests: int
    idle_s: float
    start_timings: dict[str, float]
    devices: tuple[int, ...] = ()  # its GPUs
    stage: str | None = None  # of one that starts: the fleet's word (``starts.Stage``), or more from the engine's log
    share: float | None = None  # of its start that is over, by how long earlier ones took
    remaining_s: float | None = None  # what is left of it by the same; 0 when it takes longer than they did
    sleep_level: int | None = None  # of one asleep: 1 keeps its weights in memory, 2 reads them again


class ModelStatus(Struct, frozen=True):
    """A model as operators see it. *wake_s*: expected cold start by tier, from its own starts; None when unknown."""

    model_id: str
    state: str  # ready, evictable, starting, draining, waiting for room, failed, cached, disk
    held: int
    wake_s: dict[str, float | None]
    failure: str | None
    memory_bytes: int
