"""Bytes from a source into a job's staging folder: every byte passes memory once and is digested and scanned there.

Parts of 8 MiB are asked for ahead and in parallel, over files and within one, out of one budget that all jobs share
first come first served: that bounds memory at any checkpoint size and gives jobs equal shares. They are used in the
order of the file, so the digest needs no second pass. What is on disk is synchronised behind the stream and noted in
a journal; a download that was killed reads that much back from disk and asks the source for the rest only.

Files of the weight store's own file system are linked instead, and read once for digest and scan.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from outcrop.checkpoints.safetensors_header import TensorInfo
from outcrop.errors import SourceChanged
from outcrop.importing.digests import FileDigest
from outcrop.importing.scan import FileScanner, verdict
from outcrop.importing.sources.base import Source, SourceFile
from outcrop.importing.sources.folder import etag_of
from outcrop.importing.tasks import in_thread, tasks
from outcrop.importing.weights import link, write_atomically

PART_BYTES = 8 << 20
SYNC_BYTES = 64 << 20  # a killed machine loses at most this much of a file, and what was in flight
FILES_AT_A_TIME = 4

Tensors = Mapping[str, TensorInfo]
Heard = Callable[[int], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """One file of a job. *verified*: the store's checksum that was confirmed. *how*: linked, downloaded or known."""

    name: str
    size_bytes: int
    sha256: str
    etag: str
    how: str
    verified: str | None = None
    scan: Mapping[str, Any] = field(default_factory=dict)


class Transfer:
    """The one budget of a server. Make it inside the event loop that uses it."""

    def __init__(self, buffer_bytes: int) -> None:
        self._budget = asyncio.Semaphore(max(2, buffer_bytes // PART_BYTES))
        # Threads of its own: the server's answers must not wait behind digests.
        self._threads = ThreadPoolExecutor(max(4, 2 * len(os.sched_getaffinity(0))), "transfer")

    async def bring(
        self,
        source: Source,
        file: SourceFile,
        target: Path,
        tensors: Tensors | None,
        heard: Heard,
        took: Heard = lambda _: None,
    ) -> Brought:
        """*target* becomes *file*, linked or downloaded; *tensors* of its header are scanned.

        *heard* gets the number of bytes that each step brought, *took* those of the disk that are now taken for the
        file. Raises the source's errors, and OSError of the store.
        """
        scanner = FileScanner(file.name, tensors) if tensors is not None else None
        digest = FileDigest(file.name, file.size_bytes, file.checksums)
        is_linked = file.path is not None and await self._thread(link, file.path, target)
        if is_linked:
            await self._read_linked(file, target, digest, scanner, heard)
        else:
            await self._download(source, file, target, digest, scanner, heard, took)
        return Brought(
            name=file.name,
            size_bytes=file.size_bytes,
            sha256=digest.sha256(),
            etag=file.etag,
            how="linked" if is_linked else "downloaded",
            verified=digest.verify(),
            scan=verdict(scanner.scans) if scanner else {},
        )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _read_linked(
        self, file: SourceFile, target: Path, digest: FileDigest, scanner: FileScanner | None, heard: Heard
    ) -> None:
        handle = os.open(target, os.O_RDONLY)
        try:
            assert file.path is not None
            if etag_of(file.path.stat()) != file.etag:
                raise SourceChanged(f"{file.name} was changed in the source while it was being imported. Import again.")

            async def use(_: int, body: memoryview) -> None:
                await self._pass(body, digest, scanner)
                heard(len(body))

            await self._in_order(self._reader(handle), 0, file.size_bytes, use)
            if etag_of(file.path.stat()) != file.etag:
                raise SourceChanged(f"{file.name} was changed in the source while it was being imported. Import again.")
        finally:
            os.close(handle)

    async def _download(
        self,
        source: Source,
        file: SourceFile,
        target: Path,
        digest: FileDigest,
        scanner: FileScanner | None,
        heard: Heard,
        took: Heard,
    ) -> None:
        part = part_of(target)
        journal = _Journal(target.with_name(target.name + ".journal"), file)
        durable = await self._thread(journal.durable_bytes, part)
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        syncer = _Syncer(handle, journal, durable, self._thread)
        try:
            if file.size_bytes:
                before = allocated_bytes(part)
                await self._thread(os.posix_fallocate, handle, 0, file.size_bytes)  # a full disk shows now
                took(max(0, file.size_bytes - before))

            async def again(_: int, body: memoryview) -> None:
                await self._pass(body, digest, scanner)
                heard(len(body))

            async def use(at: int, body: memoryview) -> None:
                await self._pass(body, digest, scanner, lambda: _write(handle, body, at))
                syncer.written(at + len(body))
                heard(len(body))

            await self._in_order(self._reader(handle), 0, durable, again)
            await self._in_order(lambda start, end: source.read(file, start, end), durable, file.size_bytes, use)
            await syncer.finish()
        finally:
            await syncer.aclose()
            os.close(handle)
        try:
            digest.verify()
        except SourceChanged:
            part.unlink(missing_ok=True)
            journal.path.unlink(missing_ok=True)
            raise
        part.replace(target)
        journal.path.unlink(missing_ok=True)

    async def _in_order(
        self,
        read: Callable[[int, int], Coroutine[Any, Any, memoryview]],
        start: int,
        end: int,
        use: Callable[[int, memoryview], Awaitable[None]],
    ) -> None:
        """Read *start* to *end* in parts, as many ahead as the budget gives, and *use* them in order."""
        offsets = range(start, end, PART_BYTES)
        ready: asyncio.Queue[tuple[int, asyncio.Task[memoryview]]] = asyncio.Queue()
        held = 0

        async def ask(group: asyncio.TaskGroup) -> None:
            nonlocal held
            for at in offsets:
                await self._budget.acquire()
                held += 1
                ready.put_nowait((at, group.create_task(read(at, min(at + PART_BYTES, end)))))

        try:
            async with tasks() as group:
                group.create_task(ask(group))
                for _ in offsets:
                    at, task = await ready.get()
                    await use(at, await task)
                    del task  # with it goes the part's memory, before another may take its place
                    held -= 1
                    self._budget.release()
        finally:
            for _ in range(held):
                self._budget.release()

    def _reader(self, handle: int) -> Callable[[int, int], Coroutine[Any, Any, memoryview]]:
        async def read(start: int, end: int) -> memoryview:
            return memoryview(await self._thread(_read, handle, start, end))

        return read

    async def _pass(
        self,
        body: memoryview,
        digest: FileDigest,
        scanner: FileScanner | None,
        write: Callable[[], None] | None = None,
    ) -> None:
        """Digest, scan and write one part, side by side."""
        work: list[Callable[[], None]] = [lambda: digest.update(body)]
        if scanner is not None:
            work.append(lambda: scanner.feed(body))
        if write is not None:
            work.append(write)
        await asyncio.gather(*(self._thread(one) for one in work))

    async def _thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await in_thread(call, *arguments, threads=self._threads)


def part_of(target: Path) -> Path:
    """Where a file is while it is being downloaded."""
    return target.with_name(target.name + ".part")


def allocated_bytes(path: Path) -> int:
    """Bytes of the disk that a file holds, whether or not they were written; 0 for one that is not there."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


class _Journal:
    """How much of a part file is surely on disk. Written after the data it speaks of."""

    def __init__(self, path: Path, file: SourceFile) -> None:
        self.path = path
        self._file = file

    def durable_bytes(self, part: Path) -> int:
        """What an earlier try left. Raises SourceChanged when that was of another version of the file."""
        try:
            found = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return 0
        if (found["etag"], found["size_bytes"]) != (self._file.etag, self._file.size_bytes):
            raise SourceChanged(
                f"{self._file.name} was replaced in the source while it was being imported. Import the checkpoint "
                "again."
            )
        return int(found["durable_bytes"]) if part.exists() else 0

    def write(self, durable_bytes: int) -> None:
        found = {"etag": self._file.etag, "size_bytes": self._file.size_bytes, "durable_bytes": durable_bytes}
        write_atomically(self.path, json.dumps(found).encode())


class _Syncer:
    """Synchronises a file behind its writer, one run at a time, and journals how far it came."""

    def __init__(
        self, handle: int, journal: _Journal, durable: int, thread: Callable[..., Coroutine[Any, Any, Any]]
    ) -> None:
        self._handle = handle
        self._journal = journal
        self._durable = durable
        self._thread = thread
        self._running: asyncio.Task[None] | None = None

    def written(self, end: int) -> None:
        """The file is whole up to *end*. Raises what an earlier run failed with."""
        if self._running is not None and self._running.done():
            self._running.result()
            self._running = None
        if self._running is None and end - self._durable >= SYNC_BYTES:
            self._running = asyncio.create_task(self._run(end))

    async def finish(self) -> None:
        if self._running is not None:
            await self._running
        await self._thread(os.fsync, self._handle)

    async def aclose(self) -> None:
        """Wait for a run that goes on: it uses the handle."""
        if self._running is not None and not self._running.done():
            with suppress(OSError):
                await asyncio.shield(self._running)

    async def _run(self, end: int) -> None:
        await self._thread(os.fdatasync, self._handle)
        await self._thread(self._journal.write, end)
        self._durable = end


def _read(handle: int, start: int, end: int) -> bytes:
    body = os.pread(handle, end - start, start)
    if len(body) < end - start:
        raise SourceChanged("A file was cut short while it was being imported. Import the checkpoint again.")
    return body


def _write(handle: int, body: memoryview, at: int) -> None:
    while body:
        count = os.pwrite(handle, body, at)
        body, at = body[count:], at + count
