"""The driver of import jobs: one task per job, each step repeatable, the phase in the registry always behind the deed.

A job that a crash interrupted begins again at CHECKING and finds its finished steps done: digests of fetched files,
the artefact under its final name, the published folder.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from msgspec import structs

from outcrop.checkpoints.inspect import Checkpoint, inspect
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.units import model_units
from outcrop.engines.base import CopySpec
from outcrop.errors import OutcropError, QuotaExceeded
from outcrop.ids import JobId
from outcrop.importing.conversion import Converted, convert
from outcrop.importing.source import Prefix
from outcrop.importing.states import Phase, advance, overall_progress
from outcrop.importing.weights import WeightStore
from outcrop.inference.canonical import GenerateRequest
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.registry.store import Registry
from outcrop.serving.fleet import Fleet
from outcrop.settings import Settings

log = structlog.get_logger(__name__)

FAILURE_CHARS = 2048  # botocore bedrock/2023-04-20: ErrorMessage


@dataclass(slots=True)
class _Work:
    """What one run of a job has found out so far."""

    job: ImportJob
    phase: Phase = Phase.QUEUED
    phase_since: float = 0.0
    reported: float = 0.0


class Importer:
    """Runs import jobs of one server. *on_model* is told of each model once it is registered."""

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Registry,
        store: WeightStore,
        fleet: Fleet,
        spec: Callable[[ImportedModel], CopySpec],
        on_model: Callable[[ImportedModel], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._store = store
        self._fleet = fleet
        self._spec = spec
        self._on_model = on_model
        self._tasks: dict[JobId, asyncio.Task[None]] = {}
        self._admission = asyncio.Lock()

    async def resume(self) -> None:
        """Sweep the leavings of a crash and take up every unfinished job."""
        jobs = await asyncio.to_thread(self._registry.unfinished_jobs)
        models = await asyncio.to_thread(self._registry.all_models)
        published = [model.model_id for model in models] + [job.model_id for job in jobs]
        await asyncio.to_thread(self._store.sweep, [job.job_id for job in jobs], published)
        for job in jobs:
            log.info("taking up an unfinished import job", job_id=job.job_id, phase=job.phase)
            self._start(job)

    async def submit(self, job: ImportJob) -> ImportJob:
        """Store *job* and start it, or give the earlier job of its token. Raises NameTaken, QuotaExceeded."""
        async with self._admission:
            if len(self._tasks) >= self._settings.imports_in_parallel and job.client_token is None:
                raise self._quota()
            stored, is_new = await asyncio.to_thread(self._registry.create_job, job)
            if is_new and len(self._tasks) >= self._settings.imports_in_parallel:
                await asyncio.to_thread(self._registry.forget_job, job.job_id)
                raise self._quota()
            if is_new:
                self._start(stored)
            return stored

    async def close(self) -> None:
        """Stop; unfinished jobs keep their phase and go on at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _quota(self) -> QuotaExceeded:
        return QuotaExceeded(
            "The number of concurrent model import jobs exceeds the quota of "
            f"{self._settings.imports_in_parallel} (Concurrent model import jobs). Wait for a running job to end."
        )

    def _start(self, job: ImportJob) -> None:
        task = asyncio.create_task(self._run(job), name=f"import-{job.job_id}")
        self._tasks[job.job_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.job_id, None))

    async def _run(self, job: ImportJob) -> None:
        work = _Work(job, Phase(job.phase), time.monotonic())
        try:
            await self._steps(work)
        except asyncio.CancelledError:
            raise
        except CheckpointRejected as exc:
            await self._fail(work, str(exc))
        except OSError as exc:
            await self._fail(work, _storage_message(exc, self._settings.home))
        except OutcropError as exc:
            await self._fail(work, str(exc))
        except Exception:
            log.exception("import job hit a defect", job_id=job.job_id)
            await self._fail(work, f"Internal error while {work.phase.lower()}; the server log has the details.")

    async def _steps(self, work: _Work) -> None:
        job = work.job
        await self._enter(work, Phase.CHECKING)
        checkpoint, names = await asyncio.to_thread(self._check, job)
        await self._enter(work, Phase.TRANSFERRING)
        await self._transfer(work, names)
        await self._enter(work, Phase.CONVERTING)
        converted = await self._convert(work)
        await self._enter(work, Phase.PROVING)
        model = _model(job, checkpoint, converted, work.job.timings)
        folder = await asyncio.to_thread(self._whereabouts, job)
        spec = structs.replace(self._spec(model), artifact=folder / "model.gguf")
        report = await self._fleet.prove(spec, _proof_request(checkpoint), list(converted.probes))
        if report.mismatches:
            raise CheckpointRejected.of(
                "The engine tokenises differently from the checkpoint's tokenizer: " + "; ".join(report.mismatches)
            )
        await asyncio.to_thread(self._store.publish, job.job_id, job.model_id)
        self._clock_phase(work)
        model = replace(
            model,
            created_at=time.time(),
            facts={
                **model.facts,
                "proof": {
                    "spawn_s": report.spawn_s,
                    "load_s": report.load_s,
                    "first_token_s": report.first_token_s,
                },
            },
        )
        advance(work.phase, Phase.COMPLETED)
        now = time.time()
        await asyncio.to_thread(
            self._registry.complete_job,
            model,
            job.job_id,
            phase=Phase.COMPLETED,
            progress=1.0,
            timings=work.job.timings,
            modified_at=now,
            ended_at=now,
        )
        await self._on_model(model)
        log.info("import job completed", job_id=job.job_id, model_id=job.model_id, timings=work.job.timings)

    def _whereabouts(self, job: ImportJob) -> Path:
        """The job's folder: published by an earlier run that was killed before it could say so, or in staging."""
        published = self._store.model(job.model_id)
        return published if published.exists() else self._store.staging(job.job_id)

    def _check(self, job: ImportJob) -> tuple[Checkpoint, list[str]]:
        folder = self._whereabouts(job)
        # The source may be gone once everything was fetched; the fetched files then speak for it.
        fetched = (folder / "fetched").exists()
        prefix = (
            Prefix(job.s3_uri, folder / "checkpoint") if fetched else Prefix.resolve(job.s3_uri, self._settings.buckets)
        )
        facts = prefix.read_facts()
        checkpoint = inspect(facts)
        return checkpoint, sorted({*facts.texts, *checkpoint.shards})

    async def _transfer(self, work: _Work, names: list[str]) -> None:
        job = work.job
        folder = await asyncio.to_thread(self._whereabouts, job)
        if (folder / "fetched").exists():
            return
        prefix = Prefix.resolve(job.s3_uri, self._settings.buckets)
        total = sum(prefix.sizes()[name] for name in names) or 1
        loop = asyncio.get_running_loop()

        def heard(done_bytes: int) -> None:
            loop.call_soon_threadsafe(self._report, work, done_bytes / total)

        digests = await asyncio.to_thread(self._store.fetch, prefix.folder, names, job.job_id, heard)
        await asyncio.to_thread(self._store.mark_fetched, job.job_id, digests)

    async def _convert(self, work: _Work) -> Converted:
        folder = await asyncio.to_thread(self._whereabouts, work.job)
        return await convert(folder, heard=lambda share: self._report(work, share))

    async def _enter(self, work: _Work, phase: Phase) -> None:
        self._clock_phase(work)
        work.phase = advance(work.phase, phase)
        await self._save(work, phase=phase, progress=overall_progress(phase, 0.0), timings=work.job.timings)

    def _clock_phase(self, work: _Work) -> None:
        now = time.monotonic()
        if work.phase not in (Phase.QUEUED, Phase.COMPLETED, Phase.FAILED):
            spent = {**work.job.timings, work.phase.lower(): round(now - work.phase_since, 4)}
            work.job = replace(work.job, timings=spent)
        work.phase_since = now

    def _report(self, work: _Work, share: float) -> None:
        """Write progress down at most four times a second."""
        now = time.monotonic()
        if now - work.reported < 0.25 or work.job.job_id not in self._tasks:
            return
        work.reported = now
        progress = overall_progress(work.phase, share)
        asyncio.get_running_loop().run_in_executor(
            None, lambda: self._registry.update_job(work.job.job_id, progress=progress, modified_at=time.time())
        )

    async def _save(self, work: _Work, **values: Any) -> None:
        await asyncio.to_thread(self._registry.update_job, work.job.job_id, modified_at=time.time(), **values)

    async def _fail(self, work: _Work, message: str) -> None:
        advance(work.phase, Phase.FAILED)
        self._clock_phase(work)
        log.warning("import job failed", job_id=work.job.job_id, phase=work.phase, reason=message)
        await asyncio.to_thread(self._store.discard_job, work.job.job_id)
        await asyncio.to_thread(self._store.remove_model, work.job.model_id)
        await self._save(
            work,
            phase=Phase.FAILED,
            failure=message[:FAILURE_CHARS],
            timings=work.job.timings,
            ended_at=time.time(),
        )


def _model(job: ImportJob, checkpoint: Checkpoint, converted: Converted, timings: Any) -> ImportedModel:
    return ImportedModel(
        model_id=job.model_id,
        account=job.account,
        model_name=job.model_name,
        job_id=job.job_id,
        job_name=job.job_name,
        s3_uri=job.s3_uri,
        architecture=checkpoint.model_type,
        instruct_supported=checkpoint.chat_template is not None,
        model_units=model_units(checkpoint.weight_bytes, checkpoint.kv_bytes_per_token, checkpoint.context_tokens),
        artifact=f"models/{job.model_id}/model.gguf",
        facts={
            "engine": "llama.cpp",
            "context_tokens": checkpoint.context_tokens,
            "kv_bytes_per_token": checkpoint.kv_bytes_per_token,
            "parameters": checkpoint.parameters,
            "weight_bytes": checkpoint.weight_bytes,
            "artifact_bytes": converted.artifact_bytes,
            "artifact_dtype": converted.dtype,
            "notes": list(converted.notes),
        },
        created_at=0.0,
    )


def _proof_request(checkpoint: Checkpoint) -> GenerateRequest:
    body: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    if checkpoint.chat_template is not None:
        return GenerateRequest("chat", {**body, "messages": [{"role": "user", "content": "Hello"}]})
    return GenerateRequest("completion", {**body, "prompt": "Hello"})


def _storage_message(exc: OSError, home: Path) -> str:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The weight store has no space left: {exc}. Free space under {home} and import again."
    if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"The weight store or the source cannot be used: {exc}. Check permissions and mount options of {home}."
    return f"Reading the source or writing the weight store failed: {exc}. Check the disk of {home}."
