"""Processes that a benchmark starts and measures: nothing but their own work counts towards their time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Linux counts what a process was before its exec towards its peak: a child of ours would begin with our own. This
# small one starts it instead, and says what the kernel counted.
_STARTER = """
import json, os, sys
status, usage = os.wait4(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)[1:]
with open(sys.argv[1], "w") as file:
    json.dump({"code": os.waitstatus_to_exitcode(status), "peak_kib": usage.ru_maxrss}, file)
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished child process: wall seconds, peak resident bytes, what it said."""

    wall_s: float
    peak_bytes: int
    said: Any


def run(argv: list[str], environment: Mapping[str, str] | None = None) -> Ran:
    """Run a command that prints JSON, or lines of JSON of which the last counts; *argv* begins with a path.

    Raises SystemExit with its output when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.json"
        starter = [sys.executable, "-I", "-S", "-c", _STARTER, str(facts), *argv]
        begun = time.perf_counter()
        done = subprocess.run(starter, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}, check=True)
        wall_s = time.perf_counter() - begun
        found = json.loads(facts.read_text())
    if found["code"]:
        raise SystemExit(f"{' '.join(argv[:6])} ended with {found['code']}: {done.stdout[-2000:]!r}")
    said = done.stdout if done.stdout.count(b"\n{") == 0 else done.stdout.splitlines()[-1]
    return Ran(wall_s, found["peak_kib"] * 1024, json.loads(said))


@contextlib.contextmanager
def object_store(folder: Path, latency_ms: float = 0.0, mb_per_s: float | None = None) -> Iterator[str]:
    """A store over *folder* in a process of its own; its URL."""
    options = [f"--folder={folder}", f"--latency-ms={latency_ms}"]
    options += [f"--mb-per-s={mb_per_s}"] if mb_per_s else []
    process = subprocess.Popen(
        [sys.executable, "-m", "outcrop.bench.object_store", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
