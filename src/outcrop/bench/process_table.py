"""How long processes lived, as the kernel tells it: a second opinion on copy-seconds. Linux.

Knows nothing of the server but its process id; its children are looked up in ``/proc`` every *every_s*. A life begins
at the start time that the kernel keeps and ends halfway between the last look that found it and the first that did not.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

EVERY_S = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")
_START_TIME = 19  # of the fields after the command's name in /proc/PID/stat: proc(5) counts it as the 22nd


class Sampler:
    """Looks at the children of *parent* whose command line has *marker*, while it is entered.

    *parent* may be set anew when the server was started again; 0 looks at nothing.
    """

    def __init__(self, marker: bytes, *, parent: int = 0, every_s: float = EVERY_S) -> None:
        self.parent = parent
        self.lives: dict[tuple[int, float], float] = {}  # (process, when it began) -> seconds
        self.most = 0
        self._marker = marker
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def seconds(self) -> float:
        """Of all lives so far."""
        return sum(self.lives.values())

    def alive(self) -> set[tuple[int, float]]:
        """Who lives now, with the time of the kernel's boot clock at which each began."""
        try:
            tasks = list(Path(f"/proc/{self.parent}/task").iterdir()) if self.parent else []
        except OSError:
            return set()
        found = set()
        for task in tasks:
            try:
                children = (task / "children").read_text().split()
            except OSError:
                continue
            found |= {(int(pid), begun) for pid in children if (begun := self._begun(pid)) is not None}
        return found

    def _begun(self, pid: str) -> float | None:
        try:
            if self._marker not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return None
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == "Z" else int(fields[_START_TIME]) / _TICKS

    def _run(self) -> None:
        before, looked_at = set[tuple[int, float]](), time.clock_gettime(time.CLOCK_BOOTTIME)
        while not self._stop.wait(self._every_s):
            alive, now = self.alive(), time.clock_gettime(time.CLOCK_BOOTTIME)
            self.most = max(self.most, len(alive))
            for life in alive:
                self.lives[life] = now - life[1]
            for life in before - alive:
                self.lives[life] += (now - looked_at) / 2
            before, looked_at = alive, now
