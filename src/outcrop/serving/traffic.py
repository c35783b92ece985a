"""Which variant of an endpoint answers a request. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256


def choose(weights: Sequence[float], point: float) -> int:
    """The index whose share of the weights holds *point*, in [0, 1). Without any weight the first one."""
    total = sum(weights)
    if total <= 0:
        return 0
    reached = 0.0
    for index, weight in enumerate(weights):
        reached += weight / total
        if point < reached:
            return index
    return max(index for index, weight in enumerate(weights) if weight > 0)


def sticky_point(salt: str, key: str) -> float:
    """The same point for the same key: raising a later variant's weight moves keys to it, never back and forth."""
    return int.from_bytes(sha256(f"{salt}\0{key}".encode()).digest()[:7]) / 2**56


@dataclass(frozen=True, slots=True)
class Size:
    """A part of a fleet, as SageMaker's CapacitySize says it: *value* instances, or per cent of its capacity."""

    value: int
    is_percent: bool

    def share_of(self, instances: int) -> float:
        """The same as a share, at most 1."""
        return min(1.0, self.value / 100 if self.is_percent else self.value / max(1, instances))

    def instances_of(self, instances: int) -> int:
        """The same as whole instances, at least one."""
        return max(1, min(instances, int(self.value * instances // 100) if self.is_percent else self.value))


def steps(kind: str, share: float) -> list[float]:
    """The new fleet's share of the traffic at each step of a blue/green update, the last one 1.

    *kind*: TrafficRoutingConfigType of sagemaker/2017-07-24; *share*: the size of a canary or of a linear step.
    """
    match kind:
        case "CANARY":
            return [share, 1.0]
        case "LINEAR":
            count = math.ceil(round(1 / share, 6))
            return [*(min(1.0, share * step) for step in range(1, count)), 1.0]
    return [1.0]


def batches(wanted: Sequence[int], size: Size, present: Sequence[int] | None = None) -> list[list[int]]:
    """Instances of each variant after each batch of a rolling update, from *present* (none); all after the last."""
    begun = [0] * len(wanted) if present is None else [min(pair) for pair in zip(present, wanted, strict=True)]
    fleets = [(count, have, size.instances_of(count)) for count, have in zip(wanted, begun, strict=True)]
    rounds = max(1, *(math.ceil((count - have) / step) for count, have, step in fleets))
    return [[min(count, have + step * number) for count, have, step in fleets] for number in range(1, rounds + 1)]


def is_shadowed(shadow_weight: float, production_weight: float, point: float) -> bool:
    """Whether a request is copied to a shadow variant: as its weight is to that of the production variant."""
    return production_weight > 0 and point < min(1.0, shadow_weight / production_weight)
