"""What this machine grants to copies: memory and cores, control groups included."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MEMORY_SHARE = 0.8  # of what is granted; the rest is the server's, the page cache's and other programs'


def memory_bytes() -> int:
    """Memory that this process may use: of the machine, or of its control group when that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # absent, or "max"
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return physical


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
