"""Weeks of traffic in virtual time, under the live policy or another rule: latency, waiting, copies, windows.

A heap of events; all requests of a copy advance at one rate, so that an answer costs one heap operation. Several
tenants share nodes of limited memory: a copy that does not fit evicts idle ones by the live order
(``serving.eviction``) or waits. What the model does not know: batches of tokens, memory of the cache, start times that
depend on each other, failures. Pure.
"""

from __future__ import annotations

import heapq
import itertools
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from outcrop.metering.windows import CopyWindows
from outcrop.planning.copy_model import CopyModel
from outcrop.planning.rules import Load, Rule
from outcrop.planning.traces import Numbers, Trace
from outcrop.serving import eviction
from outcrop.serving.eviction import Resident

LONG_WAIT_S = 5.0
_STARTED, _TICK = -1, -2
_MOMENT_S = 0.02  # held requests that come within it are decided for together
_BATCH = 200_000  # arrivals, about, that are unpacked from arrays at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """*waited*: share of requests held longer than 5 s before they ran. *copy_hours* counts starts and idling.

    *reserved_hours*: hours with n copies, by n, in the order of the load-duration curve. *windows*: billed ones.
    """

    rule: str
    requests: int
    waited: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    slow_share: float  # of requests over the SLO that was given
    copy_hours: float
    busy_hours: float
    starts: int
    evictions: int
    blocked: int  # starts that found no room at first
    windows: int
    peak: int
    hours_at: tuple[float, ...]  # with at least 1, 2, ... copies
    span_s: float
    latencies: array[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    trace: Trace
    rule: Rule
    copy: CopyModel
    cold_start_s: float
    copy_bytes: int = 0
    slo_s: float = math.inf


@dataclass(slots=True, eq=False)
class _Copy:
    number: int
    born_at: float
    ready_at: float
    node: int = 0
    virtual: float = 0.0
    at: float = 0.0
    busy_since: float = 0.0  # when it last began to work
    running: list[tuple[float, int, float, float, int]] = field(default_factory=list)
    is_retired: bool = False
    is_evictable: bool = False  # retired, and kept until someone needs its room
    version: int = 0
    windows: CopyWindows = field(default_factory=CopyWindows)

    def advance(self, now: float, kappa: float, beside: float) -> None:
        """Work until *now*; *beside*: how much slower for the copies at work beside it."""
        if self.running:
            self.virtual += (now - self.at) / ((1 + kappa * (len(self.running) - 1)) * beside)
        self.at = now

    def next_end(self, kappa: float, beside: float) -> float:
        slower = (1 + kappa * (len(self.running) - 1)) * beside
        return self.at + max(0.0, self.running[0][0] - self.virtual) * slower


class Nodes:
    """Memory of a fleet in bytes by node. Unlimited when there is none."""

    def __init__(self, count: int = 0, memory_bytes: int = 0) -> None:
        self.free = [memory_bytes] * count

    def place(self, size: int) -> int | None:
        """The node with the most room, which now holds *size* more; None when it has too little."""
        if not self.free:
            return 0
        node = max(range(len(self.free)), key=self.free.__getitem__)
        if self.free[node] < size:
            return None
        self.free[node] -= size
        return node

    def leave(self, node: int, size: int) -> None:
        if self.free:
            self.free[node] += size


class Fleet:
    """Tenants on nodes in one virtual time."""

    def __init__(self, tenants: Sequence[Tenant], nodes: Nodes | None = None) -> None:
        self.nodes = nodes or Nodes()
        self.models = [_Model(tenant, self) for tenant in tenants]
        self._events: list[tuple[float, int, _Model, _Copy | None, int]] = []
        self._order = itertools.count()

    def run(self, progress: Callable[[float], None] = lambda _: None) -> list[Result]:
        """Play all requests to their answers; results in the order of the tenants. *progress* hears shares of 1."""
        for model in self.models:
            model.begin()
        events, end = (
            self._events,
            max((float(m.tenant.trace.at_s.max()) for m in self.models if len(m.tenant.trace)), default=0.0),
        )
        for arrivals in self._arrivals(end):
            for now, number, seconds in arrivals:
                while events and events[0][0] <= now:
                    self._next(is_over=False)
                self.models[number].arrival(now, seconds)
            progress(min(1.0, now / end) if end else 1.0)
        while events:
            self._next(is_over=True)
        progress(1.0)
        return [model.result(end) for model in self.models]

    def _arrivals(self, end: float) -> Iterator[Iterable[tuple[float, int, float]]]:
        """Arrival, tenant and work of all requests in order, a slice of time after the other: sorted whole, the
        requests of a hundred tenants would be held three times over."""
        total = sum(len(model.tenant.trace) for model in self.models)
        slices = max(1, math.ceil(total / _BATCH))
        edges = np.linspace(0.0, end, slices + 1)[1:]
        edges[-1] = np.inf
        begun = [0] * len(self.models)
        for edge in edges:
            parts: list[tuple[Numbers, Numbers, int]] = []
            for number, model in enumerate(self.models):
                trace = model.tenant.trace
                until = int(np.searchsorted(trace.at_s, edge))
                if until > begun[number]:
                    some = slice(begun[number], until)
                    work = trace.work_s(model.tenant.copy, some)
                    parts.append((trace.at_s[some], work, number))
                    begun[number] = until
            if not parts:
                continue
            at = np.concatenate([part[0] for part in parts])
            work = np.concatenate([part[1] for part in parts])
            who = np.concatenate([np.full(len(part[0]), part[2], dtype=np.int32) for part in parts])
            order = np.argsort(at, kind="stable")
            yield zip(at[order].tolist(), who[order].tolist(), work[order].tolist(), strict=True)

    def push(self, at: float, model: _Model, copy: _Copy | None, version: int) -> None:
        heapq.heappush(self._events, (at, next(self._order), model, copy, version))

    def make_room(self, size: int) -> bool:
        """Evict idle copies of one node so that *size* bytes fit there; whether it could be done."""
        if not self.nodes.free:
            return True
        by_node: dict[int, list[tuple[_Model, _Copy]]] = {}
        for model in self.models:
            for copy in model.copies:
                if copy.is_evictable:
                    by_node.setdefault(copy.node, []).append((model, copy))
        best: tuple[float, list[tuple[_Model, _Copy]]] | None = None
        for node, held in by_node.items():
            names = {f"{id(copy)}": (model, copy) for model, copy in held}
            residents = [model.resident(name, copy) for name, (model, copy) in names.items()]
            taken = eviction.choose(residents, bytes_needed=size - self.nodes.free[node])
            if taken is not None:
                lost = sum(eviction.value_per_byte(each) for each in residents if each.copy_id in taken)
                if best is None or lost < best[0]:
                    best = lost, [names[name] for name in taken]
        if best is None:
            return False
        for model, copy in best[1]:
            model.evict(copy)
        return True

    def _next(self, *, is_over: bool) -> None:
        now, _, model, copy, version = heapq.heappop(self._events)
        model.event(now, copy, version, is_over=is_over)


class _Model:
    def __init__(self, tenant: Tenant, fleet: Fleet) -> None:
        self.tenant = tenant
        self.copies: list[_Copy] = []
        self._fleet = fleet
        self._rule = tenant.rule
        self._kappa = tenant.copy.kappa
        self._nu = tenant.copy.nu
        self._busy = 0  # copies at work
        self._beside = 1.0  # how much slower they are for each other
        self._slots = tenant.copy.slots
        self._queue: deque[tuple[float, float]] = deque()
        self._numbers = itertools.count()
        self._active_at = -1e9
        self._now = self._answered_at = 0.0
        self._seen: deque[float] = deque(maxlen=64)  # last arrivals, for the long-run rate
        self._waited = 0
        self._latency_s = array("d")
        self._busy_s = self._copy_s = 0.0
        self._starts = self._evictions = self._blocked = self._windows = self._peak = 0
        self._ticks_at: float | None = None
        self._heard_at = -1e9
        self._at_count: list[float] = []  # seconds with at least 1, 2, ... copies
        self._counted_at = 0.0
        self._live = 0

    def begin(self) -> None:
        if self._rule.is_scheduled or self._rule.floor_at(0.0):
            self._scale(0.0)
            self._tick(0.0)

    def arrival(self, now: float, work_s: float) -> None:
        self._now = now
        self._rule.arrived(now)
        self._active_at = now
        self._seen.append(now)
        self._queue.append((now, work_s))
        self._serve(now)
        if self._queue:
            if self._rule.hears_held:
                self._hear(now)
            elif all(copy.is_retired for copy in self.copies):
                self._scale(now)  # event-driven at zero, for every rule: Knative's activator does the same
        if self._ticks_at is None or self._ticks_at > now + self._rule.tick_s:
            self._tick(now)

    def event(self, now: float, copy: _Copy | None, version: int, *, is_over: bool) -> None:
        self._now = now
        if copy is None:
            if self._ticks_at != now:
                return  # an earlier tick took its place
            self._ticks_at = None
            self._scale(now)
            # After the last arrival, copies that a floor holds would tick for ever.
            has_floor = self._rule.is_scheduled or bool(self._rule.floor_at(now))
            if self._queue or self._running() or (has_floor and not is_over) or (self._kept() and not has_floor):
                self._tick(now)
        elif version == _STARTED:
            if not copy.is_retired:
                copy.at = self._active_at = now
                self._serve(now)
                self._scale(now)
        elif version == copy.version and copy.running:
            self._complete(now, copy)

    def resident(self, name: str, copy: _Copy) -> Resident:
        span = max(1.0, self._now - self._seen[0]) if self._seen else 1e9
        return Resident(
            copy_id=name,
            bytes_freed=self.tenant.copy_bytes,
            rate=len(self._seen) / span,
            cold_start_s=self.tenant.cold_start_s,
        )

    def evict(self, copy: _Copy) -> None:
        self._evictions += 1
        self._bury(copy)

    def result(self, end: float) -> Result:
        for copy in list(self.copies):
            if not copy.is_evictable:
                until = max(end, self._answered_at, copy.born_at)
                self._count(until, -1)
                self._copy_s += until - copy.born_at
        ordered = np.sort(np.frombuffer(self._latency_s)) if self._latency_s else np.zeros(0)
        total = len(ordered)

        def at(share: float) -> float:
            return float(ordered[max(0, math.ceil(share * total) - 1)]) if total else 0.0

        return Result(
            rule=self._rule.name,
            requests=total,
            waited=self._waited / max(1, total),
            mean_s=float(ordered.mean()) if total else 0.0,
            p50_s=at(0.50),
            p95_s=at(0.95),
            p99_s=at(0.99),
            slow_share=float((ordered > self.tenant.slo_s).mean()) if total else 0.0,
            copy_hours=self._copy_s / 3600,
            busy_hours=self._busy_s / 3600,
            starts=self._starts,
            evictions=self._evictions,
            blocked=self._blocked,
            windows=self._windows,
            peak=self._peak,
            hours_at=tuple(seconds / 3600 for seconds in self._at_count),
            span_s=end,
            latencies=self._latency_s,
        )

    # -- inside ---------------------------------------------------------------------------------------

    def _complete(self, now: float, copy: _Copy) -> None:
        copy.advance(now, self._kappa, self._beside)
        beside = len(copy.running) - 1
        _, _, at, begun, joined = heapq.heappop(copy.running)
        self._latency_s.append(now - at)
        self._answered_at = now
        self._waited += begun - at > LONG_WAIT_S
        self._windows += len(copy.windows.served(int(begun * 1000), int(now * 1000)))
        if not copy.running:
            self._busy_s += now - copy.busy_since
            self._work_beside(now, -1)
        self._rule.served(now - begun, min(beside, joined))
        self._active_at = now
        self._schedule(copy)
        if copy.is_retired and not copy.running:
            self._rest(now, copy)
        if self._queue:
            self._serve(now)

    def _serve(self, now: float) -> None:
        while self._queue:
            best: _Copy | None = None
            for copy in self.copies:
                if copy.ready_at > now or len(copy.running) >= self._slots:
                    continue
                if copy.is_retired and not copy.is_evictable:
                    continue
                if best is None or len(copy.running) < len(best.running):
                    best = copy
            if best is None:
                return
            if best.is_evictable:
                self._revive(now, best)
            at, work_s = self._queue.popleft()
            best.advance(now, self._kappa, self._beside)
            if not best.running:
                best.busy_since = now
                self._work_beside(now, 1)
            heapq.heappush(best.running, (best.virtual + work_s, next(self._numbers), at, now, len(best.running)))
            self._schedule(best)

    def _scale(self, now: float) -> None:
        live = [copy for copy in self.copies if not copy.is_retired]
        ready = [copy for copy in live if copy.ready_at <= now]
        running = self._running()
        load = Load(
            now=now,
            ready=len(ready),
            starting=len(live) - len(ready),
            in_flight=running,
            held=len(self._queue),
            idle_s=0.0 if running or self._queue else now - self._active_at,
        )
        desired = self._rule.desired(load)
        for _ in range(desired - len(live)):
            if not self._start(now):
                break
        for copy in sorted(ready, key=lambda c: len(c.running))[: max(0, len(live) - desired)]:
            copy.is_retired = True
            if not copy.running:
                self._rest(now, copy)

    def _hear(self, now: float) -> None:
        """Decide for a held request; for those that come within a moment, once at its end."""
        if now - self._heard_at >= _MOMENT_S:
            self._heard_at = now
            self._scale(now)
        elif self._ticks_at is None or self._ticks_at > self._heard_at + _MOMENT_S:
            self._heard_at += _MOMENT_S
            self._ticks_at = self._heard_at
            self._fleet.push(self._ticks_at, self, None, _TICK)

    def _start(self, now: float) -> bool:
        resting = next((copy for copy in self.copies if copy.is_evictable), None)
        if resting is not None:
            self._revive(now, resting)
            self._serve(now)
            return True
        size = self.tenant.copy_bytes
        node = self._fleet.nodes.place(size)
        if node is None and self._fleet.make_room(size):
            node = self._fleet.nodes.place(size)
        if node is None:
            self._blocked += 1
            return False
        copy = _Copy(next(self._numbers), now, now + self.tenant.cold_start_s, node)
        self.copies.append(copy)
        self._starts += 1
        self._count(now, 1)
        self._fleet.push(copy.ready_at, self, copy, _STARTED)
        return True

    def _rest(self, now: float, copy: _Copy) -> None:
        """A retired copy has no request left: it goes, or where memory is shared it is kept until someone needs it."""
        self._copy_s += now - copy.born_at
        self._count(now, -1)
        if self._fleet.nodes.free:
            copy.is_evictable = True
        else:
            self._bury(copy)

    def _revive(self, now: float, copy: _Copy) -> None:
        copy.is_retired = copy.is_evictable = False
        copy.born_at = copy.at = now
        self._count(now, 1)

    def _bury(self, copy: _Copy) -> None:
        self._fleet.nodes.leave(copy.node, self.tenant.copy_bytes)
        self.copies.remove(copy)

    def _count(self, now: float, change: int) -> None:
        """Keep the load-duration curve: how long at least so many copies were there."""
        for number in range(self._live):
            self._at_count[number] += now - self._counted_at
        self._counted_at, self._live = now, self._live + change
        while len(self._at_count) < self._live:
            self._at_count.append(0.0)
        self._peak = max(self._peak, self._live)

    def _work_beside(self, now: float, change: int) -> None:
        """One copy more or less at work: all others run at another pace from now on."""
        self._busy += change
        if not self._nu:
            return
        at_work = [copy for copy in self.copies if copy.running]
        for copy in at_work:
            copy.advance(now, self._kappa, self._beside)
        self._beside = 1 + self._nu * max(0, self._busy - 1)
        for copy in at_work:
            self._schedule(copy)

    def _schedule(self, copy: _Copy) -> None:
        copy.version += 1
        if copy.running:
            self._fleet.push(copy.next_end(self._kappa, self._beside), self, copy, copy.version)

    def _tick(self, now: float) -> None:
        """The next decision: a tick ahead, later where a resting model's cannot differ before."""
        at = now + self._rule.tick_s
        if not self._queue and not self._running() and all(copy.ready_at <= now for copy in self.copies):
            rests_until = self._rule.rests_until(self._active_at)
            if rests_until is not None and rests_until > at:
                at += math.ceil((rests_until - at) / self._rule.tick_s) * self._rule.tick_s
        self._ticks_at = at
        self._fleet.push(at, self, None, _TICK)

    def _running(self) -> int:
        return sum(len(copy.running) for copy in self.copies)

    def _kept(self) -> bool:
        return any(not copy.is_evictable for copy in self.copies)


def simulate(tenant: Tenant, progress: Callable[[float], None] = lambda _: None) -> Result:
    """One tenant with all the room it wants."""
    (result,) = Fleet([tenant]).run(progress)
    return result
