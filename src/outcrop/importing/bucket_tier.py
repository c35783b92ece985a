"""The coldest tier: a model whose files are only in the bucket that it came from, and the way back.

Evicting gives up the local files of a model that stays registered. Nobody gives them up unless the source still serves
exactly what was imported, and they come back, when the model is asked, only with the digests that they had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import structlog

from outcrop.checkpoints.engines import LLAMA_CPP, Available
from outcrop.errors import EngineFault, InvalidRequest, SourceChanged
from outcrop.importing.choices import Choices
from outcrop.importing.conversion import convert
from outcrop.importing.disk import DiskLedger
from outcrop.importing.fetch import Fetch
from outcrop.importing.preflight import preflight
from outcrop.importing.sources import Source
from outcrop.importing.tasks import in_thread
from outcrop.importing.transfer import Transfer
from outcrop.importing.weights import WeightStore
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.registry.store import Registry
from outcrop.settings import Settings

log = structlog.get_logger(__name__)


class BucketTier:
    """Gives up and brings back the files of imported models."""

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Registry,
        store: WeightStore,
        transfer: Transfer,
        disk: DiskLedger,
        engines_for: Callable[[ImportJob], Awaitable[Available]],
        open_source: Callable[[ImportJob], Source],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._store = store
        self._transfer = transfer
        self._disk = disk
        self._engines_for = engines_for
        self._open = open_source
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def check(self, model: ImportedModel) -> None:
        """Raise SourceChanged, or what the source raises, unless it still serves what was imported."""
        if model.facts.get("weight_key"):
            raise InvalidRequest(
                f"{model.model_name} cannot be evicted: its weights are encrypted, and would come back in the clear."
            )
        files = await in_thread(self._store.fetched, self._store.model(model.model_id))
        if files is None:
            return  # given up already
        source = self._open(await self._job(model))
        try:
            there = await source.files()
        finally:
            await source.aclose()
        for name, entry in files.items():
            found = there.get(name)
            if found is None or (found.etag, found.size_bytes) != (entry["etag"], entry["size_bytes"]):
                raise SourceChanged(
                    f"{model.model_name} cannot be evicted: {name} in {model.s3_uri} is no longer what was imported, "
                    "so the local files are the only ones. Put it back, or delete the model."
                )

    async def give_up(self, model: ImportedModel) -> int:
        """Remove the model's local files; the bytes that came free. Call ``check`` first, and end its copies."""
        freed = await in_thread(self._store.remove_model, model.model_id)
        log.info("a model is in its bucket only", model_id=model.model_id, freed_bytes=freed)
        return freed

    async def bring_back(self, model_id: str) -> None:
        """Fetch and convert the model's files as its import did; nothing to do when they are here.

        Raises SourceChanged when the source gives other bytes, and what source, disk and converter raise.
        """
        turn = self._turns.setdefault(model_id, asyncio.Lock())
        async with turn:
            if await in_thread(self._store.model(model_id).exists):
                return
            if not self._settings.fetch_evicted:
                raise EngineFault(
                    "The model was evicted to its bucket, and OUTCROP_FETCH_EVICTED is off. Turn it on, or import the "
                    "model again."
                )
            models = await in_thread(self._registry.all_models)
            model = next((each for each in models if each.model_id == model_id), None)
            if model is None:
                raise EngineFault("The model was deleted.")
            await self._bring(model, await self._job(model))

    async def _bring(self, model: ImportedModel, job: ImportJob) -> None:
        source = self._open(job)
        choices = Choices.of(job.request)
        try:
            found = await preflight(source, await self._engines_for(job), pooling=choices.pooling)
            fetch = Fetch(self._store, self._transfer, self._disk, source, job.job_id)
            files = await fetch.run(found, lambda _: None)
            _compare(model, job.detail.get("files", ()), files)
            if model.facts["engine"] == LLAMA_CPP:
                folder = self._store.staging(job.job_id)
                await convert(folder, heard=lambda _: None, quantise=choices.quantise, pooling=choices.pooling)
            await in_thread(self._store.publish, job.job_id, model.model_id)
        finally:
            self._disk.release(job.job_id)
            await in_thread(self._store.discard_job, job.job_id)  # nothing is left of it once it was published
            await source.aclose()
        log.info("a model came back from its bucket", model_id=model.model_id)

    async def _job(self, model: ImportedModel) -> ImportJob:
        job = await in_thread(self._registry.job_of, model)
        if job is None:
            raise SourceChanged(
                f"{model.model_name} has no record of its import: where its files came from is unknown."
            )
        return job


def _compare(model: ImportedModel, recorded: list[Mapping[str, Any]], files: Mapping[str, Any]) -> None:
    was = {entry["name"]: entry["sha256"] for entry in recorded}
    now = {name: entry["sha256"] for name, entry in files.items()}
    if was != now:
        changed = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
        raise SourceChanged(
            f"{model.s3_uri} no longer serves what {model.model_name} was imported from: {', '.join(changed)} differ. "
            "Put the files back, or import the model again under another name."
        )
