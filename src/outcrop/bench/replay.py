"""Scaling rules over traces of real traffic, in virtual time: requests that wait, latency, copy-hours.

The policy is the live one (``serving.policy`` and ``serving.demand``, unchanged); the two rules beside it are written
after the published behaviour of Knative's autoscaler and of a KEDA trigger on waiting requests. A copy is five numbers:
a request alone takes ``c0 + c_in * input + c_out * output`` seconds, b requests each run ``1 + kappa (b - 1)`` slower,
at most ``slots`` fit. Trust it below four fifths of saturation.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from outcrop.errors import BadSetting
from outcrop.serving.demand import Demand
from outcrop.serving.policy import Facts, Params, decide, scale_in_window_s


@dataclass(frozen=True, slots=True)
class CopyModel:
    """One copy; the defaults are near a 14 B model on an A100 with 40 GB."""

    c0_s: float = 0.05
    c_in_s: float = 0.00025
    c_out_s: float = 0.0236
    kappa: float = 0.0215
    slots: int = 32

    def work_s(self, tokens_in: int, tokens_out: int) -> float:
        return self.c0_s + self.c_in_s * tokens_in + self.c_out_s * tokens_out


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    work_s: float


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

    def arrived(self, now: float) -> None: ...

    def served(self, duration_s: float, beside: int) -> None: ...

    def desired(self, load: Load) -> int: ...


class Ours:
    """The live policy."""

    tick_s = 5.0

    def __init__(self, name: str, params: Params, copy: CopyModel, cold_start_s: float) -> None:
        self.name = name
        self._params = params
        self._copy = copy
        self._cold_start_s = cold_start_s
        self._demand = Demand()

    def arrived(self, now: float) -> None:
        self._demand.arrived(now)

    def served(self, duration_s: float, beside: int) -> None:
        self._demand.served(duration_s, beside, self._copy.kappa)

    def desired(self, load: Load) -> int:
        rate_60, rate_15, count_15 = self._demand.rates(load.now)
        given = {
            "ready": load.ready,
            "starting": load.starting,
            "in_flight": load.in_flight,
            "held": load.held,
            "slots": self._copy.slots,
            "idle_s": load.idle_s,
            "rate_60": rate_60,
            "rate_15": rate_15,
            "count_15": count_15,
            "work_s": self._demand.work_s,
            "cold_start_s": self._cold_start_s,
        }
        window_s = max(self._params.window_s, 2 * self._cold_start_s)
        facts = Facts(**given, peak=self._demand.peak(load.now, window_s))  # type: ignore[arg-type]
        assert window_s == scale_in_window_s(facts, self._params)
        decision = decide(facts, self._params)
        self._demand.decided(load.now, decision.up)
        return decision.desired


class KnativeLike:
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

    def arrived(self, now: float) -> None:
        pass

    def served(self, duration_s: float, beside: int) -> None:
        pass

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


class QueueThreshold:
    """Five waiting requests a copy, polled every 15 s; down to the highest of 300 s, to zero after *keep_alive_s*."""

    tick_s = 15.0

    def __init__(self, most: int, keep_alive_s: float) -> None:
        self.name = "queue threshold"
        self._most = most
        self._keep_alive_s = keep_alive_s
        self._seen: deque[tuple[float, int]] = deque()

    def arrived(self, now: float) -> None:
        pass

    def served(self, duration_s: float, beside: int) -> None:
        pass

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


@dataclass(slots=True)
class _Copy:
    ready_at: float
    virtual: float = 0.0
    at: float = 0.0
    running: list[tuple[float, int, float, float, int]] = field(default_factory=list)
    is_retired: bool = False
    version: int = 0

    def advance(self, now: float, kappa: float) -> None:
        if self.running:
            self.virtual += (now - self.at) / (1 + kappa * (len(self.running) - 1))
        self.at = now

    def next_end(self, kappa: float) -> float:
        return self.at + max(0.0, self.running[0][0] - self.virtual) * (1 + kappa * (len(self.running) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """*waited*: share of requests held longer than 5 s before they ran."""

    rule: str
    requests: int
    waited: float
    p95_s: float
    copy_hours: float
    starts: int


def replay(arrivals: Sequence[Arrival], rule: Rule, copy: CopyModel, cold_start_s: float) -> Result:
    """Run *rule* over *arrivals* until every request is answered."""
    run = _Replay(rule, copy, cold_start_s)
    return run.over(arrivals)


class _Replay:
    def __init__(self, rule: Rule, model: CopyModel, cold_start_s: float) -> None:
        self._rule = rule
        self._model = model
        self._cold_start_s = cold_start_s
        self._copies: list[_Copy] = []
        self._queue: deque[Arrival] = deque()
        self._events: list[tuple[float, int, _Copy | None, int]] = []  # time, order, copy (None: tick), its version
        self._order = 0
        self._active_at = -1e9
        self._held_s: list[float] = []
        self._latency_s: list[float] = []
        self._copy_s = 0.0
        self._starts = 0
        self._ticking = False

    def over(self, arrivals: Sequence[Arrival]) -> Result:
        position = 0
        while position < len(arrivals) or self._events:
            if self._events and (position == len(arrivals) or self._events[0][0] <= arrivals[position].at_s):
                now, _, copy, version = heapq.heappop(self._events)
                self._event(now, copy, version, is_over=position == len(arrivals))
            else:
                self._arrival(arrivals[position])
                position += 1
        total = len(self._latency_s)
        ordered = sorted(self._latency_s)
        return Result(
            rule=self._rule.name,
            requests=total,
            waited=sum(held > 5 for held in self._held_s) / max(1, total),
            p95_s=ordered[math.ceil(0.95 * total) - 1] if total else 0.0,
            copy_hours=self._copy_s / 3600,
            starts=self._starts,
        )

    def _arrival(self, arrival: Arrival) -> None:
        now = arrival.at_s
        self._rule.arrived(now)
        self._active_at = now
        self._queue.append(arrival)
        self._serve(now)
        if not self._copies:
            self._scale(now)  # event-driven at zero, for every rule: Knative's activator does the same
        self._tick(now)

    def _event(self, now: float, copy: _Copy | None, version: int, *, is_over: bool) -> None:
        if copy is None:
            self._ticking = False
            self._scale(now)
            if self._copies or self._queue or not is_over:
                self._tick(now)
        elif copy.ready_at == now and version == -1:
            copy.at = now
            self._serve(now)
            self._scale(now)
        elif version == copy.version and copy.running:
            self._complete(now, copy)

    def _complete(self, now: float, copy: _Copy) -> None:
        copy.advance(now, self._model.kappa)
        beside = len(copy.running) - 1
        _, _, at, begun, joined = heapq.heappop(copy.running)
        self._latency_s.append(now - at)
        self._held_s.append(begun - at)
        self._rule.served(now - begun, min(beside, joined))
        self._active_at = now
        self._schedule(copy)
        if copy.is_retired and not copy.running:
            self._bury(now, copy)
        self._serve(now)

    def _serve(self, now: float) -> None:
        while self._queue:
            free = [
                c for c in self._copies if c.ready_at <= now and not c.is_retired and len(c.running) < self._model.slots
            ]
            if not free:
                return
            copy, arrival = min(free, key=lambda c: len(c.running)), self._queue.popleft()
            copy.advance(now, self._model.kappa)
            self._order += 1
            finish = copy.virtual + arrival.work_s
            heapq.heappush(copy.running, (finish, self._order, arrival.at_s, now, len(copy.running)))
            self._schedule(copy)

    def _scale(self, now: float) -> None:
        live = [c for c in self._copies if not c.is_retired]
        ready = [c for c in live if c.ready_at <= now]
        running = sum(len(c.running) for c in self._copies)
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
            copy = _Copy(ready_at=now + self._cold_start_s)
            self._copies.append(copy)
            self._starts += 1
            self._push(copy.ready_at, copy, -1)
        for copy in sorted(ready, key=lambda c: len(c.running))[: max(0, len(live) - desired)]:
            copy.is_retired = True
            if not copy.running:
                self._bury(now, copy)

    def _bury(self, now: float, copy: _Copy) -> None:
        self._copy_s += now - (copy.ready_at - self._cold_start_s)
        self._copies.remove(copy)

    def _schedule(self, copy: _Copy) -> None:
        copy.version += 1
        if copy.running:
            self._push(copy.next_end(self._model.kappa), copy, copy.version)

    def _tick(self, now: float) -> None:
        if not self._ticking and (self._copies or self._queue):
            self._ticking = True
            self._push(now + self._rule.tick_s, None, 0)

    def _push(self, at: float, copy: _Copy | None, version: int) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, self._order, copy, version))


def read_trace(path: Path, model: CopyModel) -> list[Arrival]:
    """Arrivals of a trace with the columns arrival_ms, input_tokens, output_tokens: .csv, .csv.gz or .parquet."""
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    return sorted(
        (Arrival(at_ms / 1000, model.work_s(tokens_in, tokens_out)) for at_ms, tokens_in, tokens_out in rows),
        key=lambda arrival: arrival.at_s,
    )


def _csv_rows(path: Path) -> Iterator[tuple[int, int, int]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for row in csv.DictReader(file):
            yield int(row["arrival_ms"]), int(row["input_tokens"]), int(row["output_tokens"])


def _parquet_rows(path: Path) -> Iterator[tuple[int, int, int]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as exc:
        raise BadSetting(f"{path} needs pyarrow: pip install pyarrow, or give a .csv.gz.") from exc
    table = parquet.read_table(path, columns=["arrival_ms", "input_tokens", "output_tokens"])
    yield from zip(*(column.to_pylist() for column in table.columns), strict=True)
