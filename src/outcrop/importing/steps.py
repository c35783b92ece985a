"""The steps of one import job, each safe to repeat: a job that a crash interrupted finds its finished ones done.

Digests of fetched files, the artefact under its final name and the published folder say what is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from msgspec import structs

from outcrop.checkpoints.engines import LLAMA_CPP
from outcrop.checkpoints.problems import CheckpointRejected, Problem
from outcrop.engines.base import CopySpec
from outcrop.engines.choice import choose
from outcrop.importing.candidates import Candidates
from outcrop.importing.choices import QUANTISATION_TAG, Choices
from outcrop.importing.conversion import Converted, artifact_key, convert
from outcrop.importing.disk import DiskLedger
from outcrop.importing.fetch import Fetch, artifact_bytes
from outcrop.importing.journal import Journal, Work
from outcrop.importing.outcome import model_of, proof_complaint, proof_request, told_files
from outcrop.importing.preflight import Preflight, preflight
from outcrop.importing.progress import Meter
from outcrop.importing.rates import CONVERT, PHASES, TRANSFER, Rates, import_stages, learn
from outcrop.importing.report import report
from outcrop.importing.scan import merged, scan_notes, scan_problems
from outcrop.importing.sources import Source
from outcrop.importing.sources.folder import FolderSource
from outcrop.importing.states import Phase, advance
from outcrop.importing.tasks import in_thread
from outcrop.importing.transfer import Transfer
from outcrop.importing.vault import Vault
from outcrop.importing.weights import WeightStore
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.registry.store import Registry
from outcrop.serving.fleet import Fleet
from outcrop.serving.unsealed import SUFFIX
from outcrop.settings import Settings

log = structlog.get_logger(__name__)


class Steps:
    """Takes a job from CHECKING to COMPLETED. *on_model* and *on_withdrawn*: see ``jobs.Importer``."""

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Registry,
        store: WeightStore,
        fleet: Fleet,
        journal: Journal,
        open_source: Callable[[ImportJob], Source],
        transfer: Transfer,
        disk: DiskLedger,
        candidates: Candidates,
        vault: Vault,
        spec: Callable[[ImportedModel], CopySpec],
        on_model: Callable[[ImportedModel], None],
        on_withdrawn: Callable[[ImportedModel], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._store = store
        self._fleet = fleet
        self._journal = journal
        self._open = open_source
        self._transfer = transfer
        self._disk = disk
        self._candidates = candidates
        self._vault = vault
        self._spec = spec
        self._on_model = on_model
        self._on_withdrawn = on_withdrawn
        self._learning = asyncio.Lock()

    async def run(self, work: Work) -> None:
        job = work.job
        await self._journal.enter(work, Phase.CHECKING)
        found = await self._check(work)
        checkpoint = found.accepted()
        await self._journal.enter(work, Phase.TRANSFERRING)
        files = await self._fetch(work, found)
        scanned = merged(entry["scan"] for entry in files.values() if entry.get("scan"))
        await self._journal.save(work, detail=work.noted(scan=scanned, files=told_files(files)))
        if problems := scan_problems(scanned):
            raise CheckpointRejected([Problem(file="", message=problem) for problem in problems])
        notes = [*found.warnings, *checkpoint.notes, *scan_notes(scanned)]
        engine = checkpoint.engine
        choices = Choices.of(job.request)
        reasons = work.reasons
        if choices.quantise and engine != LLAMA_CPP:
            raise CheckpointRejected.of(
                f"The job tag {QUANTISATION_TAG} packs weights for {LLAMA_CPP}; this model is for "
                f"{engine or 'no engine'} here. Leave the tag out."
            )
        if work.key_arn is not None and engine != LLAMA_CPP:
            raise CheckpointRejected.of(
                f"Encrypted weights are for {LLAMA_CPP}; this model is for {engine or 'no engine'} here. Import it "
                "without importedModelKmsKeyId, or put it on that engine."
            )
        if engine is None:
            work.is_committing = True
            await self._publish(work, model_of(job, checkpoint, engine, None, notes, scanned, reasons))
            return
        converted = None
        if engine == LLAMA_CPP:
            await self._journal.enter(work, Phase.CONVERTING)
            converted = await self._convert(work, files, choices)
        await self._journal.enter(work, Phase.PROVING)
        model = model_of(job, checkpoint, engine, converted, notes, scanned, reasons)
        folder = await in_thread(self._whereabouts, job)
        spec = structs.replace(self._spec(model), artifact=folder / "model.gguf", is_sealed=False)
        probes = list(converted.probes) if converted else []
        proved = await self._fleet.prove(spec, proof_request(checkpoint), probes)
        found_out = {**model.facts, "proof": proved.measurements()}
        if complaint := proof_complaint(proved, accepts_any=choices.accepts_any_proof):
            raise CheckpointRejected.of(complaint)
        if proved.diagnosis:
            found_out["notes"] = [*model.facts["notes"], f"imported although {proved.diagnosis}"]
        work.is_committing = True  # from here on a cancellation would leave a model without its job, or half of one
        if work.key_arn is not None:
            found_out["weight_key"] = work.key_arn
            model = replace(model, artifact=model.artifact + SUFFIX)
        await self._publish(work, replace(model, facts=found_out))

    async def _publish(self, work: Work, model: ImportedModel) -> None:
        job = work.job
        if work.key_arn is not None:
            await self._vault.publish(job, work.key_arn)
        else:
            await in_thread(self._store.publish, job.job_id, job.model_id)
        work.clock_phase()
        now = time.time()
        model = replace(model, created_at=now)
        advance(work.phase, Phase.COMPLETED)
        complete = partial(
            self._registry.complete_job,
            model,
            job.job_id,
            phase=Phase.COMPLETED,
            progress=1.0,
            timings=work.job.timings,
            modified_at=now,
            ended_at=now,
        )
        self._on_model(model)
        try:
            await in_thread(complete)
        except Exception:
            await self._on_withdrawn(model)
            raise
        await self._learn(work)
        log.info("import job completed", job_id=job.job_id, model_id=job.model_id, timings=work.job.timings)

    async def _learn(self, work: Work) -> None:
        """Keep how fast the job's stages were; what cannot be kept is no failure of the job."""
        timings = work.job.timings
        took = {stage: (count, timings[PHASES.get(stage, TRANSFER)]) for stage, count in work.moved.items()}
        try:
            async with self._learning:
                await in_thread(learn, self._store.root, took)
        except OSError as exc:
            log.warning("the rates of an import could not be kept", job_id=work.job.job_id, reason=str(exc))

    def _whereabouts(self, job: ImportJob) -> Path:
        """The job's folder: published by an earlier run that was killed before it could say so, or in staging."""
        published = self._store.model(job.model_id)
        return published if published.exists() else self._store.staging(job.job_id)

    async def _check(self, work: Work) -> Preflight:
        """The preflight; of the fetched files once everything was fetched, since the source may be gone by then."""
        job = work.job
        work.key_arn = self._vault.key_of(job)
        if work.key_arn is not None:
            await in_thread(self._vault.reopen, job)
        folder = await in_thread(self._whereabouts, job)
        is_fetched = await in_thread(self._store.fetched, folder) is not None
        work.source = FolderSource(job.s3_uri, folder / "checkpoint", confined=False) if is_fetched else self._open(job)
        pooling = Choices.of(job.request).pooling
        named, available = await self._candidates.of(job)
        too_large: dict[str, str] = {}
        while True:
            found = await preflight(work.source, available, pooling=pooling)
            engine = found.checkpoint.engine if found.checkpoint else None
            if engine is None or (obstacle := self._candidates.obstacle(job, found.checkpoint, engine)) is None:
                break
            if named:
                raise CheckpointRejected.of(f"{named} cannot run it here: {obstacle}")
            too_large[engine] = obstacle
            available = available.without(engine)
        if found.checkpoint is not None:
            verdicts = [
                replace(verdict, available=verdict.available or verdict.engine in too_large)
                for verdict in found.checkpoint.engines
            ]
            work.reasons = choose(verdicts, named=named, does_not_fit=too_large.get).reasons
        stages = await in_thread(import_stages, found, self._store.root)
        expected = (await in_thread(Rates, self._store.root)).expected(stages)
        work.moved = stages if job.phase == Phase.QUEUED else {}
        await self._journal.save(work, detail=work.noted(report=report(found, expected)))
        return found

    async def _fetch(self, work: Work, found: Preflight) -> dict[str, Any]:
        """Bring the files; their facts by name. Nothing to do when an earlier run did."""
        job = work.job
        folder = await in_thread(self._whereabouts, job)
        if (files := await in_thread(self._store.fetched, folder)) is not None:
            return files
        assert work.source is not None
        shares = work.key_arn is None
        if not shares:
            needed = found.total_bytes + artifact_bytes(found.accepted())
            await in_thread(self._vault.prepare, job.job_id, needed)
        fetch = Fetch(self._store, self._transfer, self._disk, work.source, job.job_id, shares=shares)
        meter = Meter(found.total_bytes, time.monotonic())

        def heard(count: int) -> None:
            meter.add(count, time.monotonic())
            share = meter.done_bytes / max(1, meter.total_bytes)
            self._journal.report(work, share, transfer=meter.facts(time.monotonic()))

        files = await fetch.run(found, heard)
        if not all(entry["how"] in ("linked", "downloaded") for entry in files.values()):
            work.moved = {stage: count for stage, count in work.moved.items() if stage in PHASES}  # not all was moved
        await self._journal.save(work, detail=work.noted(transfer=meter.facts(time.monotonic())))
        return files

    async def _convert(self, work: Work, files: Mapping[str, Any], choices: Choices) -> Converted:
        """The artefact: the store's own of the same files and converter, or made now and kept."""
        folder = await in_thread(self._whereabouts, work.job)
        digests = {name: entry["sha256"] for name, entry in files.items()}
        key = await in_thread(artifact_key, digests, choices.quantise, choices.pooling)
        shares = work.key_arn is None
        if shares and await in_thread(self._store.reuse_artifact, key, folder):
            work.moved.pop(CONVERT, None)
        converted = await convert(
            folder,
            heard=lambda share: self._journal.report(work, share),
            quantise=choices.quantise,
            pooling=choices.pooling,
        )
        if not shares:
            return converted
        await in_thread(self._store.keep_artifact, key, folder)
        return replace(converted, key=key)
