"""What the server asks of the C library's memory, seen in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

HEAPS = """
import ctypes, sys, threading
from outcrop.launchers import machine
if sys.argv[1] == "shared":
    machine.share_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(6)
def take():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""
SCATTERED = """
import ctypes, os
from pathlib import Path
from outcrop.launchers import machine
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def taken():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
blocks = [libc.malloc(64 << 10) for _ in range(400)]
for block in blocks:
    ctypes.memset(block, 1, 64 << 10)
for block in blocks[:-1]:
    libc.free(block)
before = taken()
machine.give_back_free_memory()
print(before - taken())
"""


def run(script: str, *arguments: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    argv = [sys.executable, "-c", script, *arguments]
    return subprocess.run(argv, env={**environment, **variables}, check=True, capture_output=True, text=True).stdout


def heaps(how: str, **variables: str) -> int:
    return run(HEAPS, how, **variables).count("<heap nr=")


def test_threads_share_two_heaps_unless_somebody_said_otherwise() -> None:
    assert heaps("apart") > 2
    assert heaps("shared") == 2
    assert heaps("shared", MALLOC_ARENA_MAX="4") == 4


def test_what_is_free_between_blocks_in_use_goes_back_to_the_system() -> None:
    assert int(run(SCATTERED)) > 20_000_000
