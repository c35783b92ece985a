"""Scaling rules for the simulator: the live policy, and what it is compared with.

``Ours`` is ``serving.policy``, ``serving.demand`` and ``serving.schedule``, unchanged; the two rules beside it are
written after the published behaviour of Knative's autoscaler and of a KEDA trigger on waiting requests. Pure.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from outcrop.planning.copy_model import CopyModel
from outcrop.serving.demand import Demand
from outcrop.serving.policy import Facts, Params, decide, keep_alive_s
from outcrop.serving.schedule import DEFAULTS, Scaling, is_active, params_at

TICK_S = 1.0  # of the live fleet
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)  # a trace begins on a Monday at 00:00, where schedules are concerned


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a rule is shown at one moment."""

    now: float
    ready: int
    starting: int
    in_flight: int
    held: int
    idle_s: float


class Rule(Protocol):
    """A scaling rule: hears of arrivals and answers, says how many copies it wants."""

    name: str
    tick_s: float
    is_scheduled: bool  # wants copies at hours of its own, and is asked at every tick for that
    hears_held: bool  # is asked at once when a request finds no slot, not at the next tick

    def arrived(self, now: float) -> None: ...

    def served(self, duration_s: float, beside: int) -> None: ...

    def desired(self, load: Load) -> int: ...

    def rests_until(self, active_at: float) -> float | None:
        """Asked right after a decision about a model without requests: until when the next ones cannot differ.

        None when that is not known.
        """

    def floor_at(self, now: float) -> int:
        """Copies that are wanted whatever the traffic."""


class Ours:
    """The live policy, asked each *tick_s* as the live fleet asks it, and at once when a request is held."""

    hears_held = True

    def __init__(
        self,
        name: str,
        params: Params,
        copy: CopyModel,
        cold_start_s: float,
        scaling: Scaling = DEFAULTS,
        *,
        tick_s: float = TICK_S,
    ) -> None:
        self.name = name
        self.tick_s = tick_s
        self._defaults = params
        self._params = params_at(params, scaling, ())
        self._scaling = scaling
        self._minute = -1
        self.is_scheduled = bool(scaling.floors)
        self._copy = copy
        self._cold_start_s = cold_start_s
        self._demand = Demand()
        self._kept_s: float | None = None

    def arrived(self, now: float) -> None:
        self._demand.arrived(now)

    def served(self, duration_s: float, beside: int) -> None:
        self._demand.served(duration_s, beside, self._params.interference)

    def desired(self, load: Load) -> int:
        rate_60, rate_15, count_15 = self._demand.rates(load.now)
        params = self._params_at(load.now)
        facts = Facts(
            ready=load.ready,
            starting=load.starting,
            in_flight=load.in_flight,
            held=load.held,
            slots=self._copy.slots,
            idle_s=load.idle_s,
            rate_60=rate_60,
            rate_15=rate_15,
            count_15=count_15,
            work_s=self._demand.work_s,
            cold_start_s=self._cold_start_s,
            peak=self._demand.peak(load.now, max(params.window_s, 2 * self._cold_start_s)),
        )
        decision = decide(facts, params)
        self._demand.decided(load.now, decision.up)
        self._kept_s = keep_alive_s(facts, params) if not rate_60 and not facts.peak else None
        return decision.desired

    def rests_until(self, active_at: float) -> float | None:
        if self._kept_s is None or self._scaling.floors:
            return None
        return active_at + self._kept_s

    def floor_at(self, now: float) -> int:
        return self._params_at(now).min_copies

    def _params_at(self, now: float) -> Params:
        if self._scaling.floors and int(now // 60) != self._minute:
            self._minute = int(now // 60)
            at = MONDAY + timedelta(minutes=self._minute)
            active = [floor for floor in self._scaling.floors if is_active(floor, at)]
            self._params = params_at(self._defaults, self._scaling, active)
        return self._params


class _Watching:
    """A rule that looks at the load of the moment alone: it remembers no request, forecasts no rest, has no floors."""

    is_scheduled = hears_held = False

    def arrived(self, now: float) -> None:
        pass

    def served(self, duration_s: float, beside: int) -> None:
        pass

    def rests_until(self, active_at: float) -> float | None:
        return None

    def floor_at(self, now: float) -> int:
        return 0


class KnativeLike(_Watching):
    """Mean concurrency over 60 s against 70 % of a copy's slots, with a 6 s panic window; blind to starting copies.

    Scales down at most by half a tick, never while in panic; to zero *keep_alive_s* after the last request.
    """

    tick_s = 2.0

    def __init__(self, slots: int, most: int, keep_alive_s: float) -> None:
        self.name = "Knative-like"
        self._target = 0.7 * slots
        self._most = most
        self._keep_alive_s = keep_alive_s
        self._seen: deque[tuple[float, int]] = deque()
        self._panic_until, self._panic_copies = -1.0, 0

    def desired(self, load: Load) -> int:
        now, ready = load.now, max(1, load.ready)
        self._seen.append((now, load.in_flight + load.held))
        while self._seen[0][0] < now - 60:
            self._seen.popleft()
        stable = sum(value for _, value in self._seen) / len(self._seen)
        recent = [value for at, value in self._seen if at >= now - 6]
        wanted = math.ceil(stable / self._target)
        urgent = math.ceil(sum(recent) / len(recent) / self._target)
        if urgent / ready >= 2:
            self._panic_until = now + 60
        if now < self._panic_until:
            self._panic_copies = max(self._panic_copies, wanted, urgent)
            wanted = self._panic_copies
        else:
            self._panic_copies = 0
            wanted = max(wanted, math.floor(ready / 2)) if load.ready else wanted
        if load.in_flight + load.held or load.idle_s < self._keep_alive_s:
            wanted = max(wanted, 1 if load.ready or load.held or load.in_flight else 0)
        return min(self._most, wanted)


class QueueThreshold(_Watching):
    """Five waiting requests a copy, polled every 15 s; down to the highest of 300 s, to zero after *keep_alive_s*."""

    tick_s = 15.0

    def __init__(self, most: int, keep_alive_s: float) -> None:
        self.name = "queue threshold"
        self._most = most
        self._keep_alive_s = keep_alive_s
        self._seen: deque[tuple[float, int]] = deque()

    def desired(self, load: Load) -> int:
        current = load.ready + load.starting
        if not load.held and not load.in_flight:
            wanted = 0 if load.idle_s >= self._keep_alive_s else min(current, 1)
        elif load.held:
            wanted = max(current, 1, math.ceil(load.held / 5))
        else:
            wanted = 1
        self._seen.append((load.now, wanted))
        while self._seen[0][0] < load.now - 300:
            self._seen.popleft()
        return min(self._most, max(value for _, value in self._seen))


class Always(_Watching):
    """So many copies, whatever comes: what is reserved."""

    tick_s = 3600.0

    def __init__(self, copies: int) -> None:
        self.name = f"always {copies}"
        self._copies = copies

    def floor_at(self, now: float) -> int:
        return self._copies

    def desired(self, load: Load) -> int:
        return self._copies
