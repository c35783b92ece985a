"""All files of one job into its staging folder: what is there already is kept, what the store knows is linked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from outcrop.checkpoints.inspect import Checkpoint
from outcrop.checkpoints.safetensors_header import TensorInfo
from outcrop.errors import SourceChanged
from outcrop.importing.disk import DiskLedger
from outcrop.importing.preflight import Preflight
from outcrop.importing.sources.base import Source, SourceFile
from outcrop.importing.tasks import in_thread, tasks
from outcrop.importing.transfer import FILES_AT_A_TIME, Brought, Transfer, allocated_bytes, part_of
from outcrop.importing.weights import WeightStore

WIDENED_UP_TO_BYTES = 1_000_000_000  # the converter widens models that are smaller than this in float32


class Fetch:
    """One run of one job's transfer; safe to repeat. *disk* promises the space.

    *shares*: its files become one with those of other models that have the same content.
    """

    def __init__(
        self,
        store: WeightStore,
        transfer: Transfer,
        disk: DiskLedger,
        source: Source,
        job_id: str,
        *,
        shares: bool = True,
    ) -> None:
        self._store = store
        self._shares = shares
        self._transfer = transfer
        self._disk = disk
        self._source = source
        self._job_id = job_id
        self._notes: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._noting = asyncio.Lock()

    async def run(self, found: Preflight, heard: Callable[[int], None]) -> dict[str, Any]:
        """Facts of every file by name (``sha256``, ``size_bytes``, ``etag``, ``how``, ``verified``, ``scan``)."""
        checkpoint = found.accepted()
        folder = await in_thread(self._store.prepare, self._job_id)
        self._notes = await in_thread(self._store.noted, self._job_id)
        self._sizes = {name: found.sources[name].size_bytes for name in found.names}
        wanted = await self._source.vouched(found.sources[name] for name in found.names)
        for below in {parent for file in wanted if (parent := (folder / file.name).parent) != folder}:
            await in_thread(partial(below.mkdir, parents=True, exist_ok=True))
        await self._reuse(wanted, heard)
        missing = [file for file in wanted if file.name not in self._notes]
        await self._reserve(checkpoint, missing)
        tensors = _by_file(checkpoint)
        gate = asyncio.Semaphore(FILES_AT_A_TIME)

        async def one(file: SourceFile) -> None:
            async with gate:
                target = folder / file.name
                brought = await self._transfer.bring(
                    self._source, file, target, tensors.get(file.name), heard, self._took
                )
                if self._shares:
                    await in_thread(self._store.keep, target, brought.sha256)
                await self._note(brought)

        async with tasks() as group:
            for file in missing:
                group.create_task(one(file))
        await in_thread(self._store.mark_fetched, self._job_id, self._source.uri, self._notes)
        return self._notes

    async def _reuse(self, wanted: list[SourceFile], heard: Callable[[int], None]) -> None:
        """Take files that an earlier try, or an earlier import of the same objects, has brought."""
        known = await in_thread(self._store.known, self._source.uri) if self._shares else {}
        folder = await in_thread(self._store.prepare, self._job_id)
        for file in wanted:
            entry = self._notes.get(file.name)
            if entry is not None:
                if (entry["etag"], entry["size_bytes"]) != (file.etag, file.size_bytes):
                    raise SourceChanged(
                        f"{file.name} was replaced in the source while it was being imported. Import the checkpoint "
                        "again."
                    )
                heard(file.size_bytes)
                continue
            entry = known.get(file.name)
            if entry is None or not file.etag or (entry["etag"], entry["size_bytes"]) != (file.etag, file.size_bytes):
                continue
            if await in_thread(self._store.reuse, entry["sha256"], folder / file.name):
                await self._note(Brought(**{**entry, "how": "known"}))
                heard(file.size_bytes)

    async def _reserve(self, checkpoint: Checkpoint, missing: list[SourceFile]) -> None:
        """Have the disk's space promised. Raises StorageFull with the numbers."""
        copied = 0
        folder = self._store.staging(self._job_id) / "checkpoint"
        for file in missing:
            is_linkable = file.path is not None and self._store.is_same_file_system(file.path)
            # What an earlier try of the job took is no longer counted as free.
            copied += 0 if is_linkable else max(0, file.size_bytes - allocated_bytes(part_of(folder / file.name)))
        free = await in_thread(self._store.free_bytes)
        # The artefact holds the vocabulary too, in fewer bytes than the files that are not weights.
        texts = sum(self._sizes.values()) - checkpoint.weight_bytes
        artifact = artifact_bytes(checkpoint)
        self._disk.reserve(self._job_id, copied + artifact + (max(0, texts) if artifact else 0), free)

    def _took(self, count: int) -> None:
        self._disk.written(self._job_id, count)

    async def _note(self, brought: Brought) -> None:
        async with self._noting:
            self._notes[brought.name] = asdict(brought)
            await in_thread(self._store.note, self._job_id, self._notes)


def artifact_bytes(checkpoint: Checkpoint) -> int:
    """Most bytes that the weights in the engine's artefact of *checkpoint* take."""
    if checkpoint.engine is None:
        return 0
    widened = checkpoint.parameters * 4
    return max(checkpoint.weight_bytes, widened if widened <= WIDENED_UP_TO_BYTES else 0)


def _by_file(checkpoint: Checkpoint) -> Mapping[str, Mapping[str, TensorInfo]]:
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, (shard, info) in checkpoint.tensors.items():
        found.setdefault(shard, {})[name] = info
    return found
