"""Keeps strangers from filling the audit log: so many of their calls are recorded one by one, the rest added up.

A flood of refused calls would else push the records of everybody else out of what is kept. Pure: times come in.
"""

from __future__ import annotations

from collections import Counter

BURST_S = 10.0  # of the rate, that may come at once
TELL_EVERY_S = 60.0
MOST_ADDRESSES = 1000  # that are counted apart; the others together
TOLD_ADDRESSES = 20


class Strangers:
    """*per_s*: unauthenticated calls recorded one by one, on average; 0: all of them. Times in seconds, any clock."""

    def __init__(self, per_s: float, now: float) -> None:
        self._per_s = per_s
        self._left = per_s * BURST_S
        self._at = now
        self._counts: Counter[str] = Counter()
        self._since = now

    def is_recorded(self, address: str, now: float) -> bool:
        """Whether a call from *address* gets a record of its own; else it is counted."""
        if self._per_s <= 0:
            return True
        self._left = min(self._per_s * BURST_S, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return True
        if not self._counts:
            self._since = now
        key = address if address in self._counts or len(self._counts) < MOST_ADDRESSES else "others"
        self._counts[key] += 1
        return False

    def summary(self, now: float, *, is_last: bool = False) -> dict[str, object] | None:
        """What was counted, once that is TELL_EVERY_S old or *is_last*; None when there is nothing to tell."""
        if not self._counts or (now - self._since < TELL_EVERY_S and not is_last):
            return None
        found: dict[str, object] = {
            "calls": self._counts.total(),
            "seconds": round(now - self._since),
            "addresses": dict(self._counts.most_common(TOLD_ADDRESSES)),
        }
        self._counts.clear()
        return found
