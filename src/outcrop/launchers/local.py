"""Copies as child processes of this server.

Each process is recorded (pid, its start time, the boot it belongs to) before it may load anything. A process leaves
by itself when its parent's pipe closes; one that cannot, because it was stopped or hangs, is found by its record and
reaped when the server starts again. Adopting it instead would be wrong: what still lives then does not answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from outcrop.errors import EngineFault
from outcrop.launchers import sockets

log = structlog.get_logger(__name__)

# All that a copy inherits; the rest of the environment may hold credentials that are none of its business.
_INHERITED = frozenset(
    {"HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "VIRTUAL_ENV"}
)
_INHERITED_PREFIXES = ("OMP_", "GOMP_", "CUDA_", "NVIDIA_")
# Threads that wait for each other by spinning for long take the cores that the others need; ones that sleep at once
# wake up too slowly for a small model (docs/benchmarks/serving.md).
_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
_LAST_LOG_BYTES = 2_000
_KILL_WAIT_S = 10.0


def inherited() -> dict[str, str]:
    """What a child gets of this process's environment."""
    return {k: v for k, v in os.environ.items() if k in _INHERITED or k.startswith(_INHERITED_PREFIXES)}


class ProcessRecord(msgspec.Struct, frozen=True):
    """Enough to tell later whether a pid is still the process that was started."""

    pid: int
    started: int  # clock ticks since boot, as the kernel says
    boot: str
    command: str


class Process:
    """A running copy: one process group, and the pipe whose closing tells it that nobody needs it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        announced: dict[str, Any],
        log_path: Path,
        *,
        record: Path | None,
        socket: Path,
    ) -> None:
        self._process = process
        self._left_behind = (record, socket)
        self.announced = announced
        self.log_path = log_path

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def peak_memory_bytes(self) -> int | None:
        """The most that the processes of its group ever held resident, each by itself; None without /proc."""
        found = [peak for pid in group_of(self._process.pid) if (peak := _peak_bytes(pid)) is not None]
        return sum(found) if found else None

    def cpu_s(self) -> float:
        """Processor time that the process and its living descendants have used so far; 0 where it cannot be told."""
        return _cpu_s(self._process.pid)

    async def wait(self) -> int:
        """The exit status, once there is one; negative for the signal that killed it."""
        return await self._process.wait()

    async def stop(self, grace_s: float) -> None:
        """Ask the group to end, kill it after *grace_s*. Returns once it is gone; again does nothing."""
        await _stop(self._process, grace_s)
        _forget(self._left_behind)

    @property
    def url(self) -> str:
        """Where it listens, as it says."""
        return str(self.announced["url"])

    def trim_log(self, limit_bytes: int) -> None:
        """Keep the newer half of the log once it is longer than *limit_bytes*."""
        trim(self.log_path, limit_bytes)

    def last_log_lines(self, limit_bytes: int = _LAST_LOG_BYTES) -> str:
        return tail(self.log_path, limit_bytes)


def group_of(leader: int) -> list[int]:
    """The processes of the group that *leader* began: an engine may have several."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(entry.name)) == leader:
                found.append(int(entry.name))
    return found


def _peak_bytes(pid: int) -> int | None:
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


class LocalLauncher:
    """Starts processes. *run*: folder where each is written down and listens; None keeps no record."""

    def __init__(self, run: Path | None = None) -> None:
        self._records = None if run is None else run / "copies"
        self._sockets = sockets.Sockets(None if run is None else run / "sockets")

    async def start(
        self,
        argv: Sequence[str],
        stdin_line: bytes,
        log_path: Path,
        deadline_s: float,
        *,
        pass_fds: tuple[int, ...] = (),
    ) -> Process:
        """Start *argv*, hand it *stdin_line* and *pass_fds*, return it once it has announced itself.

        It announces itself with one line of JSON on its standard output: ``url`` is where it listens, which is on the
        socket that ``sockets.VARIABLE`` names where it can. Standard error goes to *log_path*.
        Raises EngineFault, with the end of its log, when it exits, reports an error, or says nothing in *deadline_s*.
        Whatever goes wrong, cancellation included, no process is left.
        """
        try:
            log_file = _open_log(log_path)
        except OSError as exc:
            raise EngineFault(f"cannot write the copy's log {log_path}: {exc}") from exc
        handles = pass_fds
        try:
            address, socket = await asyncio.to_thread(self._sockets.fresh)
            if self._sockets.handle is not None:
                handles = (*pass_fds, self._sockets.handle)
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
                env={**_DEFAULTS, **inherited(), sockets.VARIABLE: address},
                pass_fds=handles,
            )
        except OSError as exc:
            raise EngineFault(f"cannot start {argv[0]}: {exc}") from exc
        finally:
            os.close(log_file)
        record = self._write_down(process.pid, argv)
        left_behind = (record, socket)
        try:
            async with asyncio.timeout(deadline_s):
                announced = await _announcement(process, stdin_line)
        except BaseException as exc:
            await asyncio.shield(_end(process, left_behind))
            if isinstance(exc, TimeoutError):
                raise EngineFault(f"the copy was not ready within {deadline_s:g} s{_end_of(log_path)}") from None
            raise
        if announced is None or "error" in announced:
            await _end(process, left_behind)
            if announced is None:
                raise EngineFault(
                    f"the copy ended before it was ready, with status {process.returncode}{_end_of(log_path)}"
                )
            raise EngineFault(f"the copy could not start: {announced['error']}{_end_of(log_path)}")
        return Process(process, announced, log_path, record=record, socket=socket)

    def close(self) -> None:
        """Give the folder of sockets back, once no process is left."""
        self._sockets.close()

    def reap(self) -> list[int]:
        """End the recorded processes that an earlier server left behind; their pids. A pid reused since is spared."""
        if self._records is None or not self._records.is_dir():
            return []
        reaped = []
        for path in self._records.glob("*.json"):
            with suppress(OSError, msgspec.MsgspecError):
                record = msgspec.json.decode(path.read_bytes(), type=ProcessRecord)
                if record.boot == _boot() and _started(record.pid) == record.started:
                    _signal_group(record.pid, signal.SIGKILL)
                    reaped.append(record.pid)
                    log.warning("reaped a process of an earlier server", pid=record.pid, command=record.command)
            path.unlink(missing_ok=True)
        return reaped

    def _write_down(self, pid: int, argv: Sequence[str]) -> Path | None:
        if self._records is None:
            return None
        started, path = _started(pid), self._records / f"{pid}.json"
        if started is None:  # already gone, or a system without /proc
            return None
        record = ProcessRecord(pid=pid, started=started, boot=_boot(), command=" ".join(argv)[:200])
        try:
            self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(record))
        except OSError as exc:
            # A full disk must not keep a copy from starting: it only loses the second way of being cleaned up.
            log.warning("a process could not be recorded", pid=pid, reason=str(exc))
            return None
        return path


def trim(path: Path, limit_bytes: int) -> None:
    """Cut *path* to its newer half once it is over *limit_bytes*. The writer appends, so it goes on at the end."""
    with suppress(OSError):
        if path.stat().st_size <= limit_bytes:
            return
        with path.open("r+b") as file:
            file.seek(-limit_bytes // 2, os.SEEK_END)
            rest = file.read()
            file.truncate(0)
        with path.open("ab") as file:
            file.write(b"[earlier lines were cut]\n" + rest[rest.find(b"\n") + 1 :])


def tail(path: Path, limit_bytes: int) -> str:
    """The end of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit_bytes))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


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


async def _end(process: asyncio.subprocess.Process, left_behind: Iterable[Path | None]) -> None:
    await _stop(process, 0)
    _forget(left_behind)


def _forget(left_behind: Iterable[Path | None]) -> None:
    for path in left_behind:
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)


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
    _signal_group(process.pid, signal.SIGKILL)  # what it started and left behind, when it was killed itself
    if process.stdin is not None:
        process.stdin.close()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When the kernel started *pid*, in ticks since boot; None when it is gone or cannot be told."""
    try:
        # The name in parentheses may hold anything, so fields count from behind it: start time is field 22 of proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _cpu_s(session: int) -> float:
    """Processor time, in seconds, of the processes of a session: a copy is started as the leader of its own."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:  # fields 6, 14 and 15 of proc(5)
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _open_log(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _end_of(path: Path) -> str:
    """The end of a log, as a tail of a message."""
    text = tail(path, _LAST_LOG_BYTES)
    return f"; the end of its log ({path}):\n{text}" if text else f"; its log is {path}"
