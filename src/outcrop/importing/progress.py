"""How far a job's transfer is: bytes, rate, time left. Pure; the caller brings the clock."""

from __future__ import annotations

from collections import deque
from typing import Any

WINDOW_S = 5.0


class Meter:
    """Counts bytes; its rate is that of the last five seconds."""

    def __init__(self, total_bytes: int, now: float) -> None:
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self._marks = deque([(now, 0)])

    def add(self, count: int, now: float) -> None:
        self.done_bytes += count
        if now - self._marks[-1][0] > WINDOW_S / 20:
            self._marks.append((now, self.done_bytes))
            while now - self._marks[0][0] > WINDOW_S and len(self._marks) > 2:
                self._marks.popleft()

    def facts(self, now: float) -> dict[str, Any]:
        """``done_bytes``, ``total_bytes``, ``bytes_per_s`` and ``eta_s`` (None before there is a rate)."""
        since, before = self._marks[0]
        rate = (self.done_bytes - before) / (now - since) if now > since else 0.0
        left = self.total_bytes - self.done_bytes
        return {
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "bytes_per_s": round(rate),
            "eta_s": round(left / rate, 1) if rate > 0 else None,
        }
