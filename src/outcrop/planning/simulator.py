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
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from outcrop.planning.played import Result
from outcrop.planning.traces import Numbers
from outcrop.planning.virtual import Nodes, Tenant, VirtualCopy, VirtualModel
from outcrop.serving import eviction

_GIVEN_UP_S = 86400.0  # without an answer, after the last arrival: a day of schedules has gone by
_BATCH = 200_000  # arrivals, about, that are unpacked from arrays at a time


class Fleet:
    """Tenants on nodes in one virtual time."""

    def __init__(self, tenants: Sequence[Tenant], nodes: Nodes | None = None) -> None:
        self.nodes = nodes or Nodes()
        self.models = [VirtualModel(tenant, self) for tenant in tenants]
        self._events: list[tuple[float, int, VirtualModel, VirtualCopy | None, int]] = []
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
        # A request may wait for ever where others hold all the room, by least copies or a schedule.
        while events and events[0][0] <= max(end, *(model.answered_at for model in self.models)) + _GIVEN_UP_S:
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

    def push(self, at: float, model: VirtualModel, copy: VirtualCopy | None, version: int) -> None:
        heapq.heappush(self._events, (at, next(self._order), model, copy, version))

    def make_room(self, size: int) -> bool:
        """Evict idle copies of one node so that *size* bytes fit there; whether it could be done."""
        if not self.nodes.free:
            return True
        by_node: dict[int, list[tuple[VirtualModel, VirtualCopy]]] = {}
        for model in self.models:
            for copy in model.copies:
                if copy.is_evictable:
                    by_node.setdefault(copy.node, []).append((model, copy))
        best: tuple[float, list[tuple[VirtualModel, VirtualCopy]]] | None = None
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


def simulate(tenant: Tenant, progress: Callable[[float], None] = lambda _: None) -> Result:
    """One tenant with all the room it wants."""
    (result,) = Fleet([tenant]).run(progress)
    return result
