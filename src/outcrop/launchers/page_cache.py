"""How much of a file the operating system holds in memory: whether a start will read the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


def resident_share(path: Path) -> float:
    """The share (0..1) of *path*'s pages that are in memory; 0 when it cannot be told."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return 0.0
            # Copy-on-write, because ctypes takes the address of writable memory only; nothing is written.
            with mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as area:
                pages = (ctypes.c_ubyte * ((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE))()
                first = ctypes.c_char.from_buffer(area)
                failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), pages)
                del first  # the map cannot close while it is pointed at
    except (OSError, AttributeError, ValueError):
        return 0.0
    return 0.0 if failed else float((np.frombuffer(bytes(pages), np.uint8) & 1).mean())
