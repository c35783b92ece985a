"""What this machine grants to copies: memory and cores, control groups included."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

MEMORY_SHARE = 0.8  # of what is granted; the rest is the server's, the page cache's and other programs'

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def memory_bytes() -> int:
    """Memory that this process may use: of the machine, or of its control group when that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # absent, or "max"
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return physical


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def give_back_large_blocks() -> None:
    """Have every freed block of 256 kB or more returned to the system at once, where the C library is glibc.

    Left alone it keeps blocks up to the largest that was ever freed, per thread: what was read in parts stays taken.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 256 << 10)


def give_back_free_memory() -> None:
    """Have what is free inside of the C library's heaps returned to the system, where that is glibc. Blocks for ms.

    An import leaves its blocks freed but scattered, some 20 kB of pages more each time that stay taken.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
