"""Which variant of an endpoint answers a request. Pure."""

from __future__ import annotations

from collections.abc import Sequence
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


def steps(kind: str, size_percent: float) -> list[float]:
    """The new fleet's share of the traffic at each step of a blue/green update, the last one 1."""
    match kind:
        case "CANARY":
            return [size_percent / 100, 1.0]
        case "LINEAR":
            count = max(1, int(100 // size_percent))
            return [*(min(1.0, size_percent * step / 100) for step in range(1, count)), 1.0]
    return [1.0]
