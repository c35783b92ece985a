"""Whether a copy may start on this node now, with how many threads, and which idle copies go for it.

Reads the fleet's records and answers; it changes nothing. Memory is a hard limit, except that a copy may always try
when it would be alone. Cores are a limit for a model's further copies; a model that has none yet and finds all cores
busy starts with one thread, because the alternative is that it never starts. A copy with running requests stays; only
when a model has waited for room longer than PATIENCE_S is the least valuable busy copy drained, so that one busy model
does not keep another out for ever. Draining ends no request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from outcrop.engines.base import CopySpec
from outcrop.serving import eviction, room
from outcrop.serving.copies import Copy, Model
from outcrop.serving.lifecycle import ENDED, SERVING, State
from outcrop.serving.starts import Tier

PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """*evicted*: copies to drain, with their models; the start waits until they are gone.

    *is_refused*: a quota does not let it start, whatever room there is.
    """

    may_start: bool
    is_refused: bool = False
    threads: int = 1
    devices: tuple[int, ...] = ()  # the GPUs that it gets
    evicted: tuple[tuple[Model, Copy], ...] = ()


class Shortage(NamedTuple):
    """What a start lacks; nothing lacks when it is false."""

    bytes: int
    threads: int
    gpus: int

    def __bool__(self) -> bool:
        return any(self)


class Allowance(NamedTuple):
    """How many copies may be there, of all models of an account and of one; None: as many as there is room for."""

    account: str
    of_account: int | None
    of_model: int | None


class Landlord:
    """The room of one node. *threads*: of every copy, when it is fixed; 0 shares the cores. *allowance*: by model id.

    A copy on GPUs has them for itself: their memory is taken whole by the engine that starts on them.
    """

    def __init__(
        self,
        *,
        memory_bytes: int,
        cores: int,
        threads: int,
        model_count: Callable[[], int],
        gpus: int = 0,
        allowance: Callable[[str], Allowance | None] = lambda _: None,
    ) -> None:
        self._gpus = gpus
        self._allowance = allowance
        self._memory_bytes = memory_bytes
        self._cores = cores
        self._threads = threads
        self._model_count = model_count

    @property
    def memory_bytes(self) -> int:
        """What copies may take of this node."""
        return self._memory_bytes

    def fits(self, model: Model, models: Sequence[Model]) -> bool:
        live = [copy for other in models for copy in other.copies if copy.state not in ENDED]
        specs = [copy.spec for copy in live]
        return self._missing_bytes(model.spec, specs) <= 0 and self._missing_gpus(model.spec, specs) <= 0

    def can_keep(self, copy: Copy, spec: CopySpec, models: Sequence[Model]) -> bool:
        """Whether the node has the memory for *copy* when it takes what *spec* says."""
        others = [
            each.spec for other in models for each in other.copies if each is not copy and each.state not in ENDED
        ]
        return self._missing_bytes(spec, others) <= 0

    def are_free(self, devices: Sequence[int], models: Sequence[Model]) -> bool:
        live = [copy.spec for other in models for copy in other.copies if copy.state not in ENDED]
        return not any(device in spec.devices for spec in live for device in devices)

    def plan(self, model: Model, models: Sequence[Model], now: float) -> Plan:
        live = [(other, copy) for other in models for copy in other.copies if copy.state not in ENDED]
        staying = [(other, copy) for other, copy in live if copy.state is not State.DRAINING]
        is_first = not any(other is model for other, _ in staying)
        if (refused := self._over_allowance(model, live, now, is_first=is_first)) is not None:
            return refused
        least = (self._threads or 1) if model.spec.threads else 0  # an engine that computes elsewhere takes no core
        # Room that a model has waited for longer is its own: it counts as taken, and not as this one's to fill.
        ahead = [other.spec for other in models if other is not model and _waits_longer(other, model)]
        if ahead and self._missing(model, live, least, ahead):
            return Plan(may_start=False)
        devices = self._devices(model.spec, [copy.spec for _, copy in live])
        if not self._missing(model, live, least) or not live:
            threads = least and (self._threads or self._share(live))
            return Plan(may_start=True, threads=threads, devices=devices)
        missing = self._missing(model, staying, least)
        if not missing:
            return Plan(may_start=False)  # what drains now will be enough
        idle = self._idle(model, staying, now, is_first=is_first)
        for threads in (missing.threads, 0) if is_first else (missing.threads,):
            if missing.bytes or missing.gpus or threads:
                chosen = eviction.choose(
                    [resident for _, _, resident in idle],
                    bytes_needed=missing.bytes,
                    threads_needed=threads,
                    gpus_needed=missing.gpus,
                )
                if chosen:
                    return Plan(
                        may_start=False,
                        evicted=tuple((other, copy) for other, copy, _ in idle if copy.copy_id in chosen),
                    )
        now_missing = self._missing(model, live, least)
        if is_first and not now_missing.bytes and not now_missing.gpus:
            return Plan(may_start=True, threads=least, devices=devices)
        is_out_of_room = missing.bytes or missing.gpus
        if is_first and is_out_of_room and model.blocked_since is not None and now - model.blocked_since > PATIENCE_S:
            return Plan(may_start=False, evicted=self._least_valuable(model, live, now))
        return Plan(may_start=False)

    def _over_allowance(
        self, model: Model, live: Sequence[tuple[Model, Copy]], now: float, *, is_first: bool
    ) -> Plan | None:
        """What to do instead where one more copy would be more than its account may have; None where it is not.

        An idle copy of the account's other models goes for a first one. Where all are busy it waits: whose copies they
        are is for the account to say.
        """
        allowed = self._allowance(model.spec.model_id)
        if allowed is None:
            return None
        awake = [(other, copy) for other, copy in live if copy.state is not State.ASLEEP]
        if allowed.of_model is not None and sum(other is model for other, _ in awake) >= allowed.of_model:
            return Plan(may_start=False, is_refused=True)
        if allowed.of_account is None:
            return None
        own = [(other, copy) for other, copy in awake if self._account(other) == allowed.account]
        if len(own) < allowed.of_account:
            return None
        staying = [(other, copy) for other, copy in own if copy.state is not State.DRAINING]
        evicted: tuple[tuple[Model, Copy], ...] = ()
        if is_first and len(staying) >= allowed.of_account:
            idle = self._idle(model, staying, now, is_first=True)
            idle.sort(key=lambda found: (not found[2].is_expired, eviction.value_per_byte(found[2])))
            evicted = tuple((other, copy) for other, copy, _ in idle[:1])
        return Plan(may_start=False, is_refused=True, evicted=evicted)

    def _account(self, model: Model) -> str | None:
        allowed = self._allowance(model.spec.model_id)
        return None if allowed is None else allowed.account

    def _missing_bytes(self, spec: CopySpec, beside: list[CopySpec]) -> int:
        return room.needed_bytes(spec, beside) - (self._memory_bytes - room.used_bytes(beside))

    def _missing(
        self, model: Model, beside: Sequence[tuple[Model, Copy]], least: int, ahead: Sequence[CopySpec] = ()
    ) -> Shortage:
        specs = [*(copy.spec for _, copy in beside), *ahead]
        threads = least - (self._cores - sum(spec.threads for spec in specs)) if least else 0
        missing_bytes, gpus = self._missing_bytes(model.spec, specs), self._missing_gpus(model.spec, specs)
        return Shortage(max(0, missing_bytes), max(0, threads), max(0, gpus))

    def _missing_gpus(self, spec: CopySpec, beside: Sequence[CopySpec]) -> int:
        return spec.gpus - (self._gpus - sum(other.gpus for other in beside)) if spec.gpus else 0

    def _devices(self, spec: CopySpec, beside: Sequence[CopySpec]) -> tuple[int, ...]:
        taken = {device for other in beside for device in other.devices}
        return tuple(device for device in range(self._gpus) if device not in taken)[: spec.gpus]

    def _share(self, live: Sequence[tuple[Model, Copy]]) -> int:
        """All free cores for an only model; half of them where other models may come."""
        free = self._cores - sum(copy.spec.threads for _, copy in live)
        return max(1, free if self._model_count() <= 1 else math.ceil(free / 2))

    def _idle(
        self, model: Model, staying: Sequence[tuple[Model, Copy]], now: float, *, is_first: bool
    ) -> list[tuple[Model, Copy, eviction.Resident]]:
        """Copies that may go for *model*; for one of its further copies only those whose keep-alive has ended.

        A copy that nobody has asked yet goes as well once *model* has waited long: its callers may have left before it
        was ready, and then nobody would ever come.
        """
        is_patient = model.blocked_since is None or now - model.blocked_since <= PATIENCE_S
        found = []
        for other, copy in staying:
            is_expired = copy.state in (State.EVICTABLE, State.ASLEEP)
            is_rested = is_expired or (
                is_first
                and copy.state is State.READY
                and (copy.requests > 0 or not is_patient)
                and now - copy.ready_at >= other.starts.expected_s(Tier.CACHED)
            )
            is_idle = not copy.in_flight and not copy.is_suspect and not len(other.queue)
            if other is not model and is_idle and is_rested and not _is_scheduled(other):
                found.append((other, copy, self._resident(other, copy, staying, now)))
        return found

    def _least_valuable(
        self, model: Model, live: Sequence[tuple[Model, Copy]], now: float
    ) -> tuple[tuple[Model, Copy], ...]:
        """The busy copy to drain for one that has waited too long; none while another one drains."""
        if any(copy.state is State.DRAINING for _, copy in live):
            return ()
        busy = [
            (other, copy)
            for other, copy in live
            if other is not model and copy.state in SERVING and copy.answered and not _is_scheduled(other)
        ]
        ranked = sorted(busy, key=lambda pair: eviction.value_per_byte(self._resident(pair[0], pair[1], live, now)))
        return tuple(ranked[:1])

    def _resident(
        self, other: Model, copy: Copy, beside: Sequence[tuple[Model, Copy]], now: float
    ) -> eviction.Resident:
        twins = sum(each.spec.mapped == copy.spec.mapped for _, each in beside)
        return eviction.Resident(
            copy_id=copy.copy_id,
            bytes_freed=room.own_bytes(copy.spec),
            weights=copy.spec.mapped,
            weights_bytes=copy.spec.weight_bytes,
            mapped_by=twins,
            rate=other.demand.long_run_rate(now),
            cold_start_s=other.starts.expected_s(Tier.CACHED),
            is_expired=copy.state in (State.EVICTABLE, State.ASLEEP),
            threads=copy.spec.threads,
            gpus=copy.spec.gpus,
        )


def _waits_longer(other: Model, model: Model) -> bool:
    is_wanted = other.placed is not None or len(other.queue) or other.queue.kept
    if other.blocked_since is None or other.is_removed or not is_wanted:
        return False
    return model.blocked_since is None or other.blocked_since < model.blocked_since


def _is_scheduled(model: Model) -> bool:
    """Copies that an operator wants to be there do not go for others."""
    return bool(model.scaling.min_copies) or any(floor.min_copies for floor in model.scaling.floors)
