"""One tenant in virtual time: copies with their own law, a queue before them, the rule that scales them. Pure."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from outcrop.metering.windows import CopyWindows
from outcrop.planning.copy_model import CopyModel
from outcrop.planning.played import LONG_WAIT_S, Result, Tally
from outcrop.planning.rules import Load, Rule
from outcrop.planning.traces import Trace
from outcrop.serving.eviction import Resident

_STARTED, _TICK = -1, -2
_MOMENT_S = 0.02  # held requests that come within it are decided for together


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """*copy_bytes*: what a copy takes of a node; *slo_s*: latency above which a request is slow."""

    trace: Trace
    rule: Rule
    copy: CopyModel
    cold_start_s: float
    copy_bytes: int = 0
    slo_s: float = math.inf


@dataclass(slots=True, eq=False)
class VirtualCopy:
    """One copy; all its requests advance at one rate, so that only the next end needs an event."""

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


class Host(Protocol):
    """What a tenant needs of the fleet: events in their order, and room for copies."""

    nodes: Nodes

    def push(self, at: float, model: VirtualModel, copy: VirtualCopy | None, version: int) -> None: ...

    def make_room(self, size: int) -> bool: ...


class VirtualModel:
    """One tenant's copies, queue and rule. Its events come from the fleet; *copy* None is a tick of the rule."""

    def __init__(self, tenant: Tenant, fleet: Host) -> None:
        self.tenant = tenant
        self.copies: list[VirtualCopy] = []
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
        self._now = self.answered_at = 0.0
        self._seen: deque[float] = deque(maxlen=64)  # last arrivals, for the long-run rate
        self._tally = Tally()
        self._ticks_at: float | None = None
        self._heard_at = -1e9

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

    def event(self, now: float, copy: VirtualCopy | None, version: int, *, is_over: bool) -> None:
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

    def resident(self, name: str, copy: VirtualCopy) -> Resident:
        span = max(1.0, self._now - self._seen[0]) if self._seen else 1e9
        return Resident(
            copy_id=name,
            bytes_freed=self.tenant.copy_bytes,
            rate=len(self._seen) / span,
            cold_start_s=self.tenant.cold_start_s,
        )

    def evict(self, copy: VirtualCopy) -> None:
        self._tally.evictions += 1
        self._bury(copy)

    def result(self, end: float) -> Result:
        for copy in list(self.copies):
            if not copy.is_evictable:
                until = max(end, self.answered_at, copy.born_at)
                self._tally.copies(until, -1)
                self._tally.copy_s += until - copy.born_at
        return self._tally.result(self._rule.name, end, self.tenant.slo_s, len(self._queue))

    # -- inside ---------------------------------------------------------------------------------------

    def _complete(self, now: float, copy: VirtualCopy) -> None:
        copy.advance(now, self._kappa, self._beside)
        _, _, at, begun, joined = heapq.heappop(copy.running)
        self._tally.latency_s.append(now - at)
        self.answered_at = now
        self._tally.waited += begun - at > LONG_WAIT_S
        self._tally.windows += len(copy.windows.served(int(begun * 1000), int(now * 1000)))
        if not copy.running:
            self._tally.busy_s += now - copy.busy_since
            self._work_beside(now, -1)
        self._rule.served(now - begun, joined)  # the live fleet too knows those it found there
        self._active_at = now
        self._schedule(copy)
        if copy.is_retired and not copy.running:
            self._rest(now, copy)
        if self._queue:
            self._serve(now)

    def _serve(self, now: float) -> None:
        while self._queue:
            best: VirtualCopy | None = None
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
            self._tally.blocked += 1
            return False
        copy = VirtualCopy(next(self._numbers), now, now + self.tenant.cold_start_s, node)
        self.copies.append(copy)
        self._tally.starts += 1
        self._tally.copies(now, 1)
        self._fleet.push(copy.ready_at, self, copy, _STARTED)
        return True

    def _rest(self, now: float, copy: VirtualCopy) -> None:
        """A retired copy has no request left: it goes, or where memory is shared it is kept until someone needs it."""
        self._tally.copy_s += now - copy.born_at
        self._tally.copies(now, -1)
        if self._fleet.nodes.free:
            copy.is_evictable = True
        else:
            self._bury(copy)

    def _revive(self, now: float, copy: VirtualCopy) -> None:
        copy.is_retired = copy.is_evictable = False
        copy.born_at = copy.at = now
        self._tally.copies(now, 1)

    def _bury(self, copy: VirtualCopy) -> None:
        self._fleet.nodes.leave(copy.node, self.tenant.copy_bytes)
        self.copies.remove(copy)

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

    def _schedule(self, copy: VirtualCopy) -> None:
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
