"""What was asked of one model lately: arrivals, work, peaks. Pure: every time comes as an argument."""

from __future__ import annotations

import math
from collections import deque

LONG_RUN_S = 600.0
_WINDOW_S, _RECENT_S = 60, 15
_WORK_WEIGHT = 0.1  # of one more request in the running mean
_FIRST_WORK_S = 1.0


class Demand:
    """Counters of one model, in one-second buckets; the same for the live fleet and the replay of traces."""

    def __init__(self, *, work_s: float = _FIRST_WORK_S) -> None:
        self._buckets: deque[list[int]] = deque()  # [second, arrivals] of the longer window
        self._recent: deque[list[int]] = deque()  # the same lists, as far as they are in the shorter one
        self._total = self._recent_total = 0
        self._peaks: deque[tuple[float, int]] = deque()  # falling, so that the first one is the largest
        self._long_run = 0.0
        self._long_run_at = 0.0
        self._has_work = False
        self.work_s = work_s

    def arrived(self, now: float) -> None:
        second = int(now)
        if self._recent and self._recent[-1][0] == second:
            self._recent[-1][1] += 1
        else:
            bucket = [second, 1]
            self._buckets.append(bucket)
            self._recent.append(bucket)
            self._forget(second)
        self._total += 1
        self._recent_total += 1
        self._long_run = self._decayed(now) + 1
        self._long_run_at = now

    def served(self, duration_s: float, beside: int, interference: float) -> None:
        """A request ran for *duration_s* while *beside* others ran on its copy."""
        alone = duration_s / (1 + interference * beside)
        self.work_s = alone if not self._has_work else self.work_s + _WORK_WEIGHT * (alone - self.work_s)
        self._has_work = True

    def rest(self) -> None:
        """Let what was asked lately ask for no copy any more. The long run is remembered: it says what one is worth."""
        self._buckets.clear()
        self._recent.clear()
        self._peaks.clear()
        self._total = self._recent_total = 0

    def rates(self, now: float) -> tuple[float, float, int]:
        """Arrivals per second over 60 s and over 15 s, and the arrivals in the shorter window."""
        self._forget(int(now))
        return self._total / _WINDOW_S, self._recent_total / _RECENT_S, self._recent_total

    def long_run_rate(self, now: float) -> float:
        """Arrivals per second, forgotten with a time constant of ten minutes."""
        return self._decayed(now) / LONG_RUN_S

    def decided(self, now: float, up: int) -> None:
        """Remember what load alone asked for."""
        while self._peaks and self._peaks[-1][1] <= up:
            self._peaks.pop()
        self._peaks.append((now, up))

    def peak(self, now: float, window_s: float) -> int:
        """The largest of what was asked for within *window_s*."""
        while self._peaks and self._peaks[0][0] < now - window_s:
            self._peaks.popleft()
        return self._peaks[0][1] if self._peaks else 0

    def _decayed(self, now: float) -> float:
        return self._long_run * math.exp(-max(0.0, now - self._long_run_at) / LONG_RUN_S)

    def _forget(self, second: int) -> None:
        while self._buckets and self._buckets[0][0] <= second - _WINDOW_S:
            self._total -= self._buckets.popleft()[1]
        while self._recent and self._recent[0][0] <= second - _RECENT_S:
            self._recent_total -= self._recent.popleft()[1]
