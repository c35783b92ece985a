"""Copies as child processes of this server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from outcrop.errors import EngineFault

# All that a copy inherits; the rest of the environment may hold credentials that are none of its business.
_INHERITED = frozenset(
    {"HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "VIRTUAL_ENV"}
)
_INHERITED_PREFIXES = ("OMP_", "GOMP_", "CUDA_", "NVIDIA_")
_LAST_LOG_BYTES = 2_000
_KILL_WAIT_S = 10.0


class Process:
    """A running copy: one process group, and the pipe whose closing tells it that nobody needs it."""

    def __init__(self, process: asyncio.subprocess.Process, announced: dict[str, Any]) -> None:
        self._process = process
        self.announced = announced

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        """The exit status, once there is one; negative for the signal that killed it."""
        return await self._process.wait()

    async def stop(self, grace_s: float) -> None:
        """Ask the group to end, kill it after *grace_s*. Returns once it is gone; again does nothing."""
        await _stop(self._process, grace_s)


class LocalLauncher:
    async def start(self, argv: Sequence[str], stdin_line: bytes, log_path: Path, deadline_s: float) -> Process:
        """Start *argv*, hand it *stdin_line*, return it once it has announced itself.

        It announces itself with one line of JSON on its standard output. Standard error goes to *log_path*.
        Raises EngineFault, with the end of its log, when it exits, reports an error, or says nothing in *deadline_s*.
        Whatever goes wrong, cancellation included, no process is left.
        """
        log = _open_log(log_path)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if k in _INHERITED or k.startswith(_INHERITED_PREFIXES)},
            )
        except OSError as exc:
            raise EngineFault(f"cannot start {argv[0]}: {exc}") from exc
        finally:
            os.close(log)
        try:
            async with asyncio.timeout(deadline_s):
                announced = await _announcement(process, stdin_line)
        except TimeoutError:
            await _stop(process, 0)
            raise EngineFault(f"the copy was not ready within {deadline_s:g} s{_end_of(log_path)}") from None
        except BaseException:
            await asyncio.shield(_stop(process, 0))
            raise
        if announced is None:
            await _stop(process, 0)
            raise EngineFault(
                f"the copy ended before it was ready, with status {process.returncode}{_end_of(log_path)}"
            )
        if "error" in announced:
            await _stop(process, 0)
            raise EngineFault(f"the copy could not start: {announced['error']}{_end_of(log_path)}")
        return Process(process, announced)


async def _announcement(process: asyncio.subprocess.Process, stdin_line: bytes) -> dict[str, Any] | None:
    """What the process says of itself; None when it ended or spoke something else."""
    if process.stdin is None or process.stdout is None:  # both were asked for above
        return None
    process.stdin.write(stdin_line)
    with suppress(ConnectionError):
        await process.stdin.drain()
    line = await process.stdout.readline()
    if not line:
        await process.wait()
        return None
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {"error": f"unexpected announcement {line[:200]!r}"}


async def _stop(process: asyncio.subprocess.Process, grace_s: float) -> None:
    if process.returncode is None and grace_s > 0:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await process.wait()
    if process.returncode is None:
        _signal_group(process.pid, signal.SIGKILL)
        async with asyncio.timeout(_KILL_WAIT_S):
            await process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _open_log(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _end_of(path: Path) -> str:
    """The end of a log, as a tail of a message."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LAST_LOG_BYTES))
            text = log.read().decode(errors="replace").strip()
    except OSError:
        text = ""
    return f"; the end of its log ({path}):\n{text}" if text else f"; its log is {path}"
