"""Which idle copies make room for a start: one pure function, lowest value per byte first.

The value of keeping a copy is the chance that its model is asked within the horizon times what a cold start would
cost then (GreedyDual-Size-Frequency: frequency times cost by size). A copy with running requests is never offered.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

HORIZON_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A copy that may go. *bytes_freed*: what the node gains by it alone. *weights*: the name of what it maps together
    with others, *weights_bytes* in all, which the node gains when the last of the *mapped_by* copies goes.

    *rate*: requests per second of its model in the long run. *cold_start_s*: what bringing it back takes.
    *is_expired*: its keep-alive ended; such copies go before any that is still kept.
    """

    copy_id: str
    bytes_freed: int
    rate: float
    cold_start_s: float
    is_expired: bool = True
    threads: int = 0
    gpus: int = 0
    weights: str = ""
    weights_bytes: int = 0
    mapped_by: int = 1


def value_per_byte(resident: Resident) -> float:
    """Seconds of waiting that a kept byte is expected to save."""
    chance = 1 - math.exp(-resident.rate * HORIZON_S)
    size = resident.bytes_freed + resident.weights_bytes / resident.mapped_by
    return chance * resident.cold_start_s / max(1.0, size)


def choose(
    residents: Sequence[Resident], *, bytes_needed: int, threads_needed: int = 0, gpus_needed: int = 0
) -> tuple[str, ...] | None:
    """Copies to evict so that so many bytes, threads and GPUs come free; None when they cannot.

    Copies that turn out not to be needed, because a larger one came later, stay.
    """
    ordered = sorted(residents, key=lambda resident: (not resident.is_expired, value_per_byte(resident)))
    needed = bytes_needed, threads_needed, gpus_needed
    taken: list[Resident] = []
    for resident in ordered:
        if _covers(taken, *needed):
            break
        taken.append(resident)
    if not _covers(taken, *needed):
        return None
    for resident in reversed(taken[:]):
        rest = [other for other in taken if other is not resident]
        if _covers(rest, *needed):
            taken = rest
    return tuple(resident.copy_id for resident in taken)


def _covers(taken: Sequence[Resident], bytes_needed: int, threads_needed: int, gpus_needed: int) -> bool:
    gained = sum(resident.bytes_freed for resident in taken)
    going = Counter(resident.weights for resident in taken)
    whole = {each.weights: each.weights_bytes for each in taken if going[each.weights] >= each.mapped_by}
    return (
        gained + sum(whole.values()) >= bytes_needed
        and sum(resident.threads for resident in taken) >= threads_needed
        and sum(resident.gpus for resident in taken) >= gpus_needed
    )
