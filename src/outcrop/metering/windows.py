"""The five-minute windows that Custom Model Import bills, of one copy. Pure.

Source: Amazon Bedrock pricing page, Custom Model Import: a copy is billed in windows of five minutes that begin with
its first successful invocation; a window in which it served is billed whole, each times the model's units. Cost is
windows x units x price per unit-minute x 5. The user guide's formula divides the windows by 60 where it must multiply
by 5; the pricing page's own example does not.
"""

from __future__ import annotations

WINDOW_MINUTES = 5
WINDOW_MS = WINDOW_MINUTES * 60_000


class CopyWindows:
    """Windows of one copy that are billed so far. Times in ms, on one clock."""

    def __init__(self) -> None:
        self._begun_at: int | None = None
        self._billed: set[int] = set()

    def served(self, begun_ms: int, ended_ms: int) -> list[int]:
        """A successful invocation ran from *begun_ms* to *ended_ms*; the beginnings of the windows it newly opens.

        Every window is billed in which it ran. One that ran before the first success was known counts from there.
        """
        if self._begun_at is None:
            self._begun_at = begun_ms
        first = max(0, (begun_ms - self._begun_at) // WINDOW_MS)
        last = max(first, (ended_ms - self._begun_at) // WINDOW_MS)
        fresh = [number for number in range(first, last + 1) if number not in self._billed]
        self._billed.update(fresh)
        return [self._begun_at + number * WINDOW_MS for number in fresh]
