"""One hour's facts of one model and one principal, in integers. Pure.

Copies belong to nobody: their facts are in the row whose principal is empty. Milliseconds come from a monotonic clock
and are cut at the wall clock's hours.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from msgspec import Struct

HOUR_MS = 3_600_000
COPY_STATES = ("starting", "idle", "busy", "evictable", "draining", "asleep", "proving")
RESERVED_STATES = frozenset({"starting", "idle", "busy"})  # what a fleet of fixed size would have to hold
NOBODY = ""
PROXIES = "ep-"  # what the id begins with under which the proxies of an endpoint are metered; no model's id does


def proxies_id(endpoint: str) -> str:
    """What stands in the place of a model's id in rows of the proxies of *endpoint*; as long as one."""
    return PROXIES + sha256(endpoint.encode()).hexdigest()[:9]


def is_proxies(model_id: str) -> bool:
    """Whether rows under *model_id* are of an endpoint's proxies, which hold no model and have no units."""
    return model_id.startswith(PROXIES)


class Key(Struct, frozen=True):
    """*hour_ms*: its beginning, in ms since the epoch."""

    hour_ms: int
    account: str
    model_id: str
    principal: str = NOBODY


class Usage(Struct):
    """All fields are sums but ``peak_copies``, which is the most at a time."""

    requests: int = 0  # answered
    failed: int = 0
    cancelled: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    held_ms: int = 0  # waiting for a copy
    run_ms: int = 0  # on a copy
    starting_ms: int = 0
    idle_ms: int = 0  # ready, kept warm, no request
    busy_ms: int = 0
    evictable_ms: int = 0  # kept only while nobody needs the room
    draining_ms: int = 0
    asleep_ms: int = 0
    proving_ms: int = 0  # the proof run of an import
    cold_starts: int = 0
    failed_starts: int = 0
    start_queued_ms: int = 0  # stages of the cold starts, summed
    start_spawn_ms: int = 0
    start_load_ms: int = 0
    warm_hits: int = 0  # a model at rest was asked and needed no cold start
    windows: int = 0  # billed five-minute windows of its copies
    window_units: int = 0  # the same, each times the model's units
    stored_byte_s: int = 0
    stored_unit_s: int = 0
    peak_copies: int = 0

    def add(self, other: Usage) -> None:
        """Take *other*'s facts in."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.peak_copies = max(self.peak_copies, other.peak_copies)

    @property
    def copy_ms(self) -> int:
        """Wall time of its copies' processes."""
        return sum(getattr(self, f"{state}_ms") for state in COPY_STATES)


FIELDS = tuple(Usage.__struct_fields__)
SUMS = tuple(name for name in FIELDS if name != "peak_copies")


def total(rows: Iterable[Usage]) -> Usage:
    found = Usage()
    for row in rows:
        found.add(row)
    return found


def hours_between(since_ms: int, until_ms: int) -> Iterable[tuple[int, int]]:
    """The time from *since_ms* to *until_ms* cut at full hours: the beginning of each hour and the ms within it."""
    while since_ms < until_ms:
        hour = since_ms - since_ms % HOUR_MS
        end = min(until_ms, hour + HOUR_MS)
        yield hour, end - since_ms
        since_ms = end
