"""What this machine grants to copies: memory and cores, control groups included."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

MEMORY_SHARE = 0.8  # of what is granted; the rest is the server's, the page cache's and other programs'

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of glibc's malloc.h


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


def share_heaps() -> None:
    """Have all threads take memory from two heaps of the C library, where that is glibc and nobody said otherwise.

    Left alone each thread gets its own: what one import frees the next one, on another thread, does not use again, and
    every import leaves some 20 kB of pages behind. Call it before the first thread.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def give_back_free_memory() -> None:
    """Have what is free within the C library's heaps returned to the system, where that is glibc. Blocks for ms."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
