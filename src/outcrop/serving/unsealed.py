"""Encrypted artefacts in memory: opened once for all copies that map them, gone with the last of these processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog

from outcrop.access.weight_keys import Envelope, WeightKeys
from outcrop.errors import EngineFault, KeyUnavailable
from outcrop.launchers.local import Process, inherited
from outcrop.launchers.sealed import NotOpened, plain_bytes

log = structlog.get_logger(__name__)

ENVELOPE = "envelope.json"  # beside the sealed files of a model
SUFFIX = ".sealed"


@dataclass(slots=True, eq=False)
class MemoryFile:
    """A file without a name, in memory only. *path*: what a process that inherits *handle* opens."""

    handle: int
    users: int = 0

    @property
    def path(self) -> Path:
        return Path(f"/proc/self/fd/{self.handle}")


class Unsealer:
    """Opens artefacts with *keys*. Its memory files end with the server, however that ends."""

    def __init__(self, keys: WeightKeys) -> None:
        self._keys = keys
        self._open: dict[Path, MemoryFile] = {}
        self._turns: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()
        self._watches: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def opened(self, sealed: Path, model_id: str) -> AsyncIterator[MemoryFile]:
        """The plain content of *sealed* for as long as the block, or a process given to ``held_by``, needs it.

        Raises KeyUnavailable without the key, EngineFault when the file was changed or memory is short.
        """
        turn = self._turns.setdefault(sealed, asyncio.Lock())
        async with turn:
            memory = self._open.get(sealed)
            if memory is None:
                memory = self._open[sealed] = await self._unsealed(sealed, model_id)
            else:
                await self._key(sealed, model_id)  # a key that was taken away starts no further copy
            memory.users += 1
        try:
            yield memory
        finally:
            self._left(sealed, memory)

    def held_by(self, process: Process, sealed: Path, memory: MemoryFile) -> None:
        """Keep *memory* until *process* has ended."""
        memory.users += 1

        async def watch() -> None:
            try:
                await process.wait()
            finally:
                self._left(sealed, memory)

        task = asyncio.create_task(watch(), name="unsealed")
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    def _left(self, sealed: Path, memory: MemoryFile) -> None:
        memory.users -= 1
        if memory.users == 0:
            if self._open.get(sealed) is memory:
                del self._open[sealed]
            os.close(memory.handle)

    async def _unsealed(self, sealed: Path, model_id: str) -> MemoryFile:
        key = await self._key(sealed, model_id)
        try:
            size = await asyncio.to_thread(plain_bytes, sealed)
        except (OSError, NotOpened) as exc:
            raise EngineFault(f"The model's encrypted weights cannot be read: {exc}.") from exc
        handle = os.memfd_create("outcrop-model", os.MFD_CLOEXEC)
        try:
            os.truncate(handle, size)
            await work(key, [[str(sealed), handle]], pass_fds=(handle,))
        except BaseException:
            os.close(handle)
            raise
        return MemoryFile(handle)

    async def _key(self, sealed: Path, model_id: str) -> bytes:
        return await self._keys.unwrap(await asyncio.to_thread(envelope_of, sealed.parent), model_id)


def envelope_of(folder: Path) -> Envelope:
    """The wrapped data key of the model in *folder*. Raises KeyUnavailable."""
    try:
        return msgspec.json.decode((folder / ENVELOPE).read_bytes(), type=Envelope)
    except (OSError, msgspec.MsgspecError) as exc:
        raise KeyUnavailable(f"The data key of the model's encrypted weights cannot be read: {exc}.") from exc


async def work(key: bytes, files: list[list[Any]], pass_fds: tuple[int, ...] = ()) -> None:
    """Seal or open *files* in a process of their own (``launchers.sealed``). Raises EngineFault, OSError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "outcrop.launchers.sealed"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=inherited(),
        pass_fds=pass_fds,
    )
    try:
        line = json.dumps({"key": key.hex(), "files": files}).encode() + b"\n"
        out, err = await process.communicate(line)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return
    try:
        said = json.loads(out)
    except ValueError:
        said = {"error": err.decode(errors="replace").strip()[-500:] or f"status {process.returncode}"}
    if said.get("errno"):
        raise OSError(said["errno"], said["error"])
    raise EngineFault(f"The model's encrypted weights cannot be used: {said['error']}.")
