"""The workers of one proxy: started, chosen, watched, cut and replaced. The front asks; nobody else touches them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from outcrop.proxy import link
from outcrop.proxy.settings import ProxySettings

log = structlog.get_logger(__name__)

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_WATCH_S = 0.5
_KILL_AT = 1.5  # of the memory limit
_LONGEST_BACK_OFF_S = 30.0
_HOPELESS = 3  # workers in a row that end before they are ready
_QUICK_S = 10.0  # a worker that ends sooner than this after its start counts as one that keeps ending


class WorkerLost(Exception):
    """The worker ended while it ran this invocation."""


class WorkerTaken(Exception):
    """The worker was killed for another invocation's sake; this one may be run again: nothing of it was sent."""


class Busy(Exception):
    """Too many invocations wait already."""


class Pending:
    """One invocation in a worker. *hear* is given its messages, or the exception that ends it."""

    def __init__(self, worker: WorkerProcess, id: int, hear: Callable[[link.Message | Exception], None]) -> None:  # noqa: A002
        self.worker = worker
        self.id = id
        self.hear = hear

    def taken(self, size: int) -> None:
        self.worker.link.send(link.Credit(self.id, size))

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.worker.cancel(self.id)


class WorkerProcess:
    """One worker as the front sees it."""

    def __init__(self, pool: Pool, number: int) -> None:
        self.number = number
        self.pid = 0
        self.is_ready = False
        self.is_retiring = False
        self.broken = ""
        self.dialect = ""
        self.started = time.monotonic()
        self.in_flight: dict[int, Pending] = {}
        self.lingering: dict[int, asyncio.TimerHandle] = {}
        self.ended = asyncio.Event()
        self.link = link.Link(self._heard, self._lost)
        self.process: asyncio.subprocess.Process | None = None
        self._pool = pool
        self._ids = itertools.count(1)

    @property
    def is_open(self) -> bool:
        return self.is_ready and not self.is_retiring and not self.ended.is_set()

    def begin(self, asked: link.Invoke, hear: Callable[[link.Message | Exception], None]) -> Pending:
        """Run *asked*, whose id is given here."""
        pending = Pending(self, next(self._ids), hear)
        asked.id = pending.id
        self.in_flight[pending.id] = pending
        self.link.send(asked)
        return pending

    def done(self, pending: Pending) -> None:
        self.in_flight.pop(pending.id, None)
        self._pool.freed(self)

    def cancel(self, id: int) -> None:  # noqa: A002
        self.linger(id)
        self.link.send(link.Cancel(id))

    def linger(self, id: int) -> None:  # noqa: A002
        """Expect Gone of this one soon; else the worker hangs."""
        if id not in self.lingering:
            loop = asyncio.get_running_loop()
            self.lingering[id] = loop.call_later(self._pool.settings.hang_s, self._pool.hangs, self, id)

    def memory_bytes(self) -> int:
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError, ValueError):
            return 0

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)

    def _heard(self, message: link.Message) -> None:
        match message:
            case link.Ready():
                self.is_ready = True
                self.dialect = message.dialect
                self._pool.became_ready(self, message.seconds)
            case link.Broken():
                self.broken = message.message
            case link.Gone():
                timer = self.lingering.pop(message.id, None)
                if timer is not None:
                    timer.cancel()
            case link.Whole() | link.Head() | link.Part() | link.End():
                if getattr(message, "is_cut", False):
                    self.linger(message.id)
                if message.id in self.in_flight:
                    self.in_flight[message.id].hear(message)

    def _lost(self) -> None:
        self.ended.set()
        for timer in self.lingering.values():
            timer.cancel()
        self._pool.ended(self)


class Pool:
    """Keeps as many workers as the settings say. *config* is what each is told; *replaced* counts why one was."""

    def __init__(
        self, settings: ProxySettings, config: Callable[[], dict[str, object]], replaced: Callable[[str], None]
    ) -> None:
        self.settings = settings
        self.workers: list[WorkerProcess] = []
        self.failure = ""  # why the script does not load; empty when it does
        self.settled = asyncio.Event()  # the first worker is ready, or the script does not load
        self._config = config
        self._replaced = replaced
        self._waiting: deque[Callable[[WorkerProcess], None]] = deque()
        self._numbers = itertools.count(1)
        self._quick_ends = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    @property
    def is_ready(self) -> bool:
        """Whether an invocation would be run now."""
        return not self._is_closing and any(worker.is_open for worker in self.workers)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        for _ in range(self.settings.worker_count):
            self._spawn()
        self._task(self._watch())

    def broadcast(self, message: link.Message) -> None:
        for worker in self.workers:
            worker.link.send(message)

    def ask(self, run: Callable[[WorkerProcess], None]) -> WorkerProcess | None:
        """The least busy worker with room; None: *run* is called with one later. Raises Busy when the queue is full."""
        worker = self._least_busy()
        if worker is not None and not self._waiting:
            return worker
        if len(self._waiting) >= self.settings.queue:
            raise Busy
        self._waiting.append(run)
        return None

    def leave(self, run: Callable[[WorkerProcess], None]) -> None:
        """*run* waits no more."""
        if run in self._waiting:
            self._waiting.remove(run)

    def _least_busy(self) -> WorkerProcess | None:
        best = None
        for worker in self.workers:
            if (
                worker.is_open
                and len(worker.in_flight) < self.settings.in_flight
                and (best is None or len(worker.in_flight) < len(best.in_flight))
            ):
                best = worker
        return best

    def _hand_out(self) -> None:
        while self._waiting and (worker := self._least_busy()) is not None:
            self._waiting.popleft()(worker)

    def freed(self, worker: WorkerProcess) -> None:
        if self._waiting:
            self._hand_out()
        if worker.is_retiring and not worker.in_flight:
            worker.kill()

    # -- what happens to workers ----------------------------------------------------------------------

    def became_ready(self, worker: WorkerProcess, seconds: float) -> None:
        log.info("worker is ready", worker=worker.pid, dialect=worker.dialect, load_s=round(seconds, 3))
        self.failure = ""
        self.settled.set()
        self._hand_out()

    def ended(self, worker: WorkerProcess) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
        if worker.broken:
            self.failure = worker.broken
            self.settled.set()
        if worker.process is not None:
            self._task(self._reap(worker))

    async def _reap(self, worker: WorkerProcess) -> None:
        assert worker.process is not None
        try:
            async with asyncio.timeout(5):
                await worker.process.wait()
        except TimeoutError:
            worker.kill()
            await worker.process.wait()
        code = worker.process.returncode or 0
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
        others = len(worker.in_flight) - 1
        beside = f" and {others} others" if others > 0 else ""
        for pending in list(worker.in_flight.values()):
            pending.hear(WorkerLost(f"The worker process ended ({how}) while it ran this invocation{beside}."))
        if self._is_closing or worker.is_retiring:
            return
        log.error("worker ended", worker=worker.pid, how=how, in_flight=others + 1, broken=worker.broken or None)
        self._replaced("broken" if worker.broken else "ended")
        self._quick_ends = self._quick_ends + 1 if time.monotonic() - worker.started < _QUICK_S else 0
        if not worker.is_ready and not worker.broken:
            self.failure = f"the worker process ends ({how}) while it loads the script"
            if self._quick_ends >= _HOPELESS:
                self.settled.set()  # it may come up yet, but whoever waits for the first one need not go on
        await asyncio.sleep(min(_LONGEST_BACK_OFF_S, 0.25 * 2**self._quick_ends) if self._quick_ends else 0)
        if sum(not worker.is_retiring for worker in self.workers) < self.settings.worker_count:
            self._spawn()

    def hangs(self, worker: WorkerProcess, id: int) -> None:  # noqa: A002
        """A handler goes on although its time was over: another worker takes over, this one ends with its others."""
        worker.lingering.pop(id, None)
        log.error("a handler hangs; its worker is replaced", worker=worker.pid, in_flight=len(worker.in_flight))
        self.retire(worker, "hang")

    def blocked(self, worker: WorkerProcess, culprit: Pending) -> None:
        """The worker's loop does not even tell that time is over: kill it, let others run elsewhere."""
        log.error("a handler blocks its worker's event loop; the worker is killed", worker=worker.pid)
        self.retire(worker, "blocked")  # first: the others must not be given it again
        worker.kill()
        for pending in list(worker.in_flight.values()):
            if pending is not culprit:
                pending.hear(WorkerTaken())

    def retire(self, worker: WorkerProcess, why: str) -> None:
        """Replace *worker*: it takes no more invocations and ends with the last of those it has."""
        if worker.is_retiring or self._is_closing:
            return
        worker.is_retiring = True
        self._replaced(why)
        self._spawn()
        if not worker.in_flight:
            worker.kill()

    def reload(self) -> None:
        """Load the script anew in every worker; those that run an invocation end with it."""
        self._quick_ends = 0
        self.failure = ""
        if not self.workers:
            self._spawn()
        for worker in list(self.workers):
            self.retire(worker, "reload")

    async def _watch(self) -> None:
        limit = self.settings.worker_memory_bytes
        while True:
            await asyncio.sleep(_WATCH_S)
            for worker in list(self.workers):
                waited_s = time.monotonic() - worker.started
                if not worker.is_ready and not worker.ended.is_set() and waited_s > self.settings.startup_timeout_s:
                    worker.broken = f"the script did not load within {self.settings.startup_timeout_s:g} s"
                    worker.kill()
                size = worker.memory_bytes() if limit else 0
                if size > limit * _KILL_AT:
                    log.error("worker is over its memory limit; killed", worker=worker.pid, bytes=size, limit=limit)
                    worker.kill()
                elif size > limit and not worker.is_retiring:
                    log.warning("worker is over its memory limit; replaced", worker=worker.pid, bytes=size, limit=limit)
                    self.retire(worker, "memory")

    def _spawn(self) -> None:
        worker = WorkerProcess(self, next(self._numbers))
        self.workers.append(worker)
        self._task(self._begin(worker))

    async def _begin(self, worker: WorkerProcess) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            worker.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "outcrop.proxy.worker", str(theirs.fileno()), pass_fds=[theirs.fileno()]
            )
        worker.pid = worker.process.pid
        ours.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: worker.link, sock=ours)
        worker.link.send(link.Begin(self._config()))

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all workers, and every wait of this pool."""
        self._is_closing = True
        self._waiting.clear()
        for worker in list(self.workers):
            worker.kill()
        for worker in list(self.workers):
            if worker.process is not None:
                await worker.process.wait()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
