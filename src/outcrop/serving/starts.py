"""What a model's own starts have taught: expected cold start by tier, deadline, back-off. Pure."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable
from enum import StrEnum

KEPT = 20  # starts remembered per tier
FIRST_GUESS_S = 5.0  # before any start of a model was measured
BACKOFF_S = (0.5, 2.0, 10.0, 60.0, 300.0)  # after the first, second, ... failed start in a row
FAILURES_TO_FAIL = 3  # failed starts in a row after which waiting is hopeless and callers are told
SLOWEST_READ_BYTES_PER_S = 50e6  # a disk slower than this is a fault
LEAST_DEADLINE_S = 60.0


class Tier(StrEnum):
    """How warm a model without a ready copy is: one asleep, its artefact in memory, on disk, or not even here."""

    ASLEEP = "asleep"
    CACHED = "cached"
    DISK = "disk"
    BUCKET = "bucket"


class ColdStarts:
    """Seconds from the order to the first ready answer, of the last starts of one model."""

    def __init__(self) -> None:
        self._seen: dict[Tier, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))

    def learn(self, tier: Tier, seconds: float) -> None:
        self._seen[tier].append(seconds)

    def seed(self, starts: Iterable[tuple[Tier, float]]) -> None:
        for tier, seconds in starts:
            self.learn(tier, seconds)

    def known(self, tier: Tier) -> float | None:
        """The 90th percentile of this tier's starts; None before the first."""
        seen = sorted(self._seen[tier])
        return seen[math.ceil(0.9 * len(seen)) - 1] if seen else None

    def expected_s(self, tier: Tier) -> float:
        """What a start now would take: this tier's own, else the nearest other's, else a guess."""
        others = (other for other in Tier if other not in (tier, Tier.ASLEEP))
        order = (tier, *others, Tier.ASLEEP)  # the last that says anything of a new process
        return next((seconds for each in order if (seconds := self.known(each))), FIRST_GUESS_S)

    def deadline_s(self, weight_bytes: int, start_s: float = 0.0) -> float:
        """Longest start that is not a fault: ten times the slowest that was seen, and time to read every byte.

        *start_s*: what the engine's own start is known to take before one was seen.
        """
        slowest = max(
            (max(seen) for tier, seen in self._seen.items() if seen and tier is not Tier.BUCKET),
            default=max(FIRST_GUESS_S, start_s),
        )
        return max(LEAST_DEADLINE_S, 10 * slowest) + weight_bytes / SLOWEST_READ_BYTES_PER_S


def backoff_s(failures: int) -> float:
    """Seconds until the next start after *failures* failed ones in a row."""
    return BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] if failures else 0.0
