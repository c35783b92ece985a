"""What a model's own starts have taught: expected cold start by tier, deadline, back-off. Pure."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

KEPT = 20  # starts remembered per tier
FIRST_GUESS_S = 5.0  # before any start of a model was measured
BACKOFF_S = (0.5, 2.0, 10.0, 60.0, 300.0)  # after the first, second, ... failed start in a row
FAILURES_TO_FAIL = 3  # failed starts in a row after which waiting is hopeless and callers are told
SLOWEST_READ_BYTES_PER_S = 50e6  # a disk slower than this is a fault
LEAST_DEADLINE_S = 60.0
MOST_SHARE = 0.99  # of a start that is not over, however long it takes


class Tier(StrEnum):
    """How warm a model without a ready copy is: one asleep, with or without its weights, its artefact in memory, on
    disk, or not even here.
    """

    ASLEEP = "asleep"
    ASLEEP_EMPTY = "asleep-empty"
    CACHED = "cached"
    DISK = "disk"
    BUCKET = "bucket"


SLEEPING = (Tier.ASLEEP, Tier.ASLEEP_EMPTY)  # tiers whose process is there


class Stage(StrEnum):
    """How far a start has come, as the fleet itself sees it; many an engine says more in its log."""

    QUEUED = "queued"  # so many copies start at a time
    FETCHING = "fetching"  # its files come back from their bucket
    LOADING = "loading"
    WAKING = "waking"


class Remaining(NamedTuple):
    """*share*: of a start's expected time that is over, at most 0.99. *seconds*: what is left of it; 0 when overdue."""

    share: float
    seconds: float


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
        others = (other for other in Tier if other is not tier and other not in SLEEPING)
        order = (tier, *others, *SLEEPING)  # the last that say anything of a new process
        return next((seconds for each in order if (seconds := self.known(each))), FIRST_GUESS_S)

    def remaining(self, tier: Tier, elapsed_s: float, start_s: float = 0.0) -> Remaining | None:
        """What is left of a start whose turn came *elapsed_s* ago; None when nothing is known of such starts.

        *start_s*: what the engine's own start is known to take.
        """
        is_known = any(self._seen.values())
        expected_s = self.expected_s(tier) if is_known else start_s
        if expected_s <= 0:
            return None
        return Remaining(min(MOST_SHARE, elapsed_s / expected_s), max(0.0, expected_s - elapsed_s))

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
