"""Asynchronous invocations that survive a stop: one file each until the answer is in its bucket.

A call is accepted once its file is whole. A server that starts takes up what it finds, so each is processed at least
once; the output appears whole, under its name, before the file goes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from outcrop.ids import random_id
from outcrop.serving.background import Background

log = structlog.get_logger(__name__)

AT_A_TIME = 16  # of one endpoint, unless its AsyncInferenceConfig says otherwise
_RETRY_S = 5.0  # until a full or broken bucket is tried again


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted call. *input*: where its body is; empty: beside this. Times in s, *accepted_at* since the epoch."""

    account: str
    principal: str
    endpoint: str
    input: str
    content_type: str
    accept: str
    passed: Mapping[str, str]
    output: str
    failure: str
    accepted_at: float
    ttl_s: float
    timeout_s: float
    at_a_time: int = AT_A_TIME


class AsyncQueue:
    """The calls of one server. *process* answers one (its status and body); *put* writes an object to a place.

    *done* hears the status of each once its output is there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        process: Callable[[Job, bytes | None], Awaitable[tuple[int, bytes]]],
        put: Callable[[str, bytes], None],
        done: Callable[[Job, int], None],
    ) -> None:
        self._folder = folder
        self._process = process
        self._put = put
        self._done = done
        self._background = Background()
        self._gates: dict[tuple[str, str], asyncio.Semaphore] = {}
        self.waiting = 0

    async def accept(self, job: Job, body: bytes | None) -> None:
        """Keep the call and begin it; once this returns it is not lost. *body*: when it came with the call."""
        name = f"{int(job.accepted_at * 1000):014d}-{random_id(8)}"
        await asyncio.to_thread(self._keep, name, job, body)
        self._begin(name, job)

    async def resume(self) -> None:
        """Take up what an earlier server had accepted, the oldest first."""
        for name, job in await asyncio.to_thread(self._found):
            self._begin(name, job)

    def _keep(self, name: str, job: Job, body: bytes | None) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if body is not None:
            write_durably(self._folder / f"{name}.body", body)
        write_durably(self._folder / f"{name}.json", msgspec.json.encode(job))

    def _found(self) -> list[tuple[str, Job]]:
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append((path.stem, msgspec.json.decode(path.read_bytes(), type=Job)))
            except (OSError, msgspec.MsgspecError) as exc:
                log.error("an asynchronous call cannot be read; it is left where it is", file=str(path), why=str(exc))
        known = {name for name, _ in found}
        for path in self._folder.glob("*.body"):  # of calls that were never accepted
            if path.stem not in known and not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)
        return found

    def _begin(self, name: str, job: Job) -> None:
        self.waiting += 1
        self._background.spawn(self._run(name, job), f"asynchronous call of {job.endpoint}")

    async def _run(self, name: str, job: Job) -> None:
        try:
            gate = self._gates.setdefault((job.account, job.endpoint), asyncio.Semaphore(job.at_a_time))
            async with gate:
                body_file = self._folder / f"{name}.body"
                body = await asyncio.to_thread(body_file.read_bytes) if not job.input else None
                if time.time() > job.accepted_at + job.ttl_s:
                    status, answer = 408, f"The request waited longer than {job.ttl_s:g} s.".encode()
                else:
                    status, answer = await self._process(job, body)
                await self._written(job.output if status < 400 else job.failure, answer)
                self._done(job, status)
            await asyncio.to_thread(self._forget, name)
        except Exception:
            log.exception("an asynchronous call hit a defect; the next start takes it up again", file=name)
        finally:
            self.waiting -= 1

    async def _written(self, place: str, answer: bytes) -> None:
        """Put *answer* where it belongs, however long that takes: processing it again costs more."""
        while True:
            try:
                await asyncio.to_thread(self._put, place, answer)
                return
            except OSError as exc:
                log.error("an asynchronous answer cannot be written; it is tried again", place=place, why=str(exc))
                await asyncio.sleep(_RETRY_S)

    def _forget(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)
        (self._folder / f"{name}.body").unlink(missing_ok=True)

    async def close(self) -> None:
        """Stop processing; what is not done is taken up by the next start."""
        await self._background.close()


def write_durably(path: Path, content: bytes) -> None:
    """The file appears whole and stays over a crash of the machine."""
    part = path.with_name(f".{path.name}.{random_id(6)}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
