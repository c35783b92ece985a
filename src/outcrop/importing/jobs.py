"""The driver of import jobs: one task per job, each step repeatable, the phase in the registry always behind the deed.

A job that a crash interrupted begins again at CHECKING and finds its finished steps done: digests of fetched files,
the artefact under its final name, the published folder.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from msgspec import structs

from outcrop.checkpoints.config import kv_head_count
from outcrop.checkpoints.engines import LLAMA_CPP, Available
from outcrop.checkpoints.inspect import Checkpoint
from outcrop.checkpoints.problems import CheckpointRejected, Problem
from outcrop.engines.base import CopySpec
from outcrop.engines.choice import choose
from outcrop.engines.custom import NAME as CUSTOM
from outcrop.engines.installed import Installed
from outcrop.engines.model_shape import thought_style, tool_style
from outcrop.engines.supported import vllm_architectures
from outcrop.errors import EngineMissing, InvalidRequest, JobEnded, OutcropError, QuotaExceeded
from outcrop.ids import JobId
from outcrop.importing.bucket_tier import BucketTier
from outcrop.importing.choices import ENGINE_TAG, PROOF_TAG, QUANTISATION_TAG, Choices
from outcrop.importing.conversion import Converted, artifact_key, convert
from outcrop.importing.disk import DiskLedger
from outcrop.importing.fetch import Fetch
from outcrop.importing.inventory import inventory
from outcrop.importing.preflight import Preflight, preflight
from outcrop.importing.progress import Meter
from outcrop.importing.rates import CONVERT, PHASES, TRANSFER, Rates, import_stages, learn
from outcrop.importing.report import report
from outcrop.importing.scan import merged, scan_notes, scan_problems
from outcrop.importing.sources import Source, open_source
from outcrop.importing.sources.folder import FolderSource
from outcrop.importing.states import Phase, advance, overall_progress
from outcrop.importing.tasks import in_thread
from outcrop.importing.transfer import Transfer
from outcrop.importing.weights import WeightStore
from outcrop.inference.canonical import GenerateRequest
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.registry.store import Registry
from outcrop.serving.fleet import Fleet
from outcrop.serving.proof import ProofReport
from outcrop.settings import Settings

log = structlog.get_logger(__name__)

LET_GO_S = 0.1
FAILURE_CHARS = 2048  # botocore bedrock/2023-04-20: ErrorMessage


@dataclass(slots=True)
class _Work:
    """What one run of a job has found out so far."""

    job: ImportJob
    phase: Phase = Phase.QUEUED
    phase_since: float = 0.0
    reported: float = 0.0
    source: Source | None = None
    writing: asyncio.Future[None] | None = None
    reasons: Sequence[str] = ()  # why the engine that was chosen
    is_committing: bool = False
    moved: dict[str, int] = field(default_factory=dict)  # bytes by stage (rates.py) of a job that began in this run

    def noted(self, **facts: Any) -> dict[str, Any]:
        """The job's detail with *facts* added."""
        self.job = replace(self.job, detail={**self.job.detail, **facts})
        return dict(self.job.detail)


class Importer:
    """Runs import jobs of one server.

    *on_model* is told of each model just before the registry says that it is there, so that who reads "Completed" may
    ask it; *on_withdrawn* when the registry then did not take it.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Registry,
        store: WeightStore,
        fleet: Fleet,
        engines: Sequence[Installed],
        spec: Callable[[ImportedModel], CopySpec],
        on_model: Callable[[ImportedModel], None],
        on_withdrawn: Callable[[ImportedModel], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._store = store
        self._fleet = fleet
        self._engines = tuple(engine for engine in engines if engine.is_usable)
        self._spec = spec
        self._on_model = on_model
        self._on_withdrawn = on_withdrawn
        self._transfer = Transfer(settings.transfer_buffer_bytes)
        self._disk = DiskLedger(settings.store, settings.store_spare_bytes)
        self.bucket = BucketTier(
            settings=settings,
            registry=registry,
            store=store,
            transfer=self._transfer,
            disk=self._disk,
            engines_for=self._available_for,
        )
        self._cancelled: dict[JobId, str] = {}
        self._tasks: dict[JobId, asyncio.Task[None]] = {}
        self._works: dict[JobId, _Work] = {}
        self._admission = asyncio.Lock()
        self._learning = asyncio.Lock()
        self._architectures: frozenset[str] | None = None

    async def resume(self) -> None:
        """Sweep the leavings of a crash and take up every unfinished job."""
        jobs = await in_thread(self._registry.unfinished_jobs)
        models = await in_thread(self._registry.all_models)
        published = [model.model_id for model in models] + [job.model_id for job in jobs]
        await in_thread(self._store.sweep, [job.job_id for job in jobs], published)
        for job in jobs:
            log.info("taking up an unfinished import job", job_id=job.job_id, phase=job.phase)
            self._start(job)

    async def submit(self, job: ImportJob) -> ImportJob:
        """Store *job* and start it, or give the earlier job of its token.

        Raises InvalidRequest for a choice in its tags that is none, NameTaken, QuotaExceeded.
        """
        choices = Choices.of(job.request)
        if choices.engine and choices.engine not in (usable := [engine.engine for engine in self._engines]):
            raise InvalidRequest(
                f"The job tag {ENGINE_TAG} is {choices.engine!r}; the engines here are {', '.join(usable)}."
            )
        async with self._admission:
            if len(self._tasks) >= self._settings.imports_in_parallel and job.client_token is None:
                raise self._quota()
            stored, is_new = await in_thread(self._registry.create_job, job)
            if is_new and len(self._tasks) >= self._settings.imports_in_parallel:
                await in_thread(self._registry.forget_job, job.job_id)
                raise self._quota()
            if is_new:
                self._start(stored)
            return stored

    async def cancel(self, account: str, identifier: str, who: str) -> ImportJob:
        """End the job of this ARN or name as Failed and free what it held. Raises JobNotFound, JobEnded."""
        job = await in_thread(self._registry.job, account, identifier)
        task, work = self._tasks.get(job.job_id), self._works.get(job.job_id)
        if task is None or (work is not None and work.is_committing):
            state = "is just being completed" if task else f"has ended ({job.phase.lower()})"
            raise JobEnded(f"The import job {job.job_name} {state}; there is nothing to cancel.")
        self._cancelled[job.job_id] = who
        task.cancel()
        await asyncio.wait([task])
        return await in_thread(self._registry.job, account, identifier)

    async def inventory(self) -> dict[str, Any]:
        """What the weight store holds, with the names of the models that use it."""
        models = await in_thread(self._registry.all_models)
        jobs = await in_thread(self._registry.unfinished_jobs)
        names = {str(model.model_id): model.model_name for model in models}
        return await in_thread(inventory, self._store, names, [job.job_id for job in jobs])

    async def collect(self) -> int:
        """Remove what no model and no running job uses; the bytes that came free."""
        async with self._admission:  # no job begins or ends between the question and the deed
            jobs = await in_thread(self._registry.unfinished_jobs)
            models = await in_thread(self._registry.all_models)
            published = [model.model_id for model in models] + [job.model_id for job in jobs]
            return await in_thread(self._store.sweep, [job.job_id for job in jobs], published)

    async def close(self) -> None:
        """Stop; unfinished jobs keep their phase and go on at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            # The object store's threads let go of what was cancelled; while the interpreter goes they could not.
            await asyncio.sleep(LET_GO_S)
        self._transfer.close()

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
        work = self._works[job.job_id] = _Work(job, Phase(job.phase), time.monotonic())
        try:
            await self._steps(work)
        except asyncio.CancelledError:
            who = self._cancelled.pop(job.job_id, None)
            if who is None:
                raise  # the server stops; the next start goes on
            await self._fail(work, f"The import job was cancelled by {who} while {work.phase.lower()}.")
        except CheckpointRejected as exc:
            await self._fail(work, str(exc))
        except OSError as exc:
            await self._fail(work, _storage_message(exc, self._settings.home))
        except OutcropError as exc:
            await self._fail(work, str(exc))
        except Exception:
            log.exception("import job hit a defect", job_id=job.job_id)
            await self._fail(work, f"Internal error while {work.phase.lower()}; the server log has the details.")
        finally:
            self._disk.release(job.job_id)
            self._works.pop(job.job_id, None)
            if work.source is not None:
                await work.source.aclose()

    async def _steps(self, work: _Work) -> None:
        job = work.job
        await self._enter(work, Phase.CHECKING)
        found = await self._check(work)
        checkpoint = found.accepted()
        await self._enter(work, Phase.TRANSFERRING)
        files = await self._fetch(work, found)
        scanned = merged(entry["scan"] for entry in files.values() if entry.get("scan"))
        await self._save(work, detail=work.noted(scan=scanned, files=_told_files(files)))
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
        if engine is None:
            work.is_committing = True
            await self._publish(work, _model(job, checkpoint, engine, None, notes, scanned, reasons))
            return
        converted = None
        if engine == LLAMA_CPP:
            await self._enter(work, Phase.CONVERTING)
            converted = await self._convert(work, files, choices)
        await self._enter(work, Phase.PROVING)
        model = _model(job, checkpoint, engine, converted, notes, scanned, reasons)
        folder = await in_thread(self._whereabouts, job)
        spec = structs.replace(self._spec(model), artifact=folder / "model.gguf")
        probes = list(converted.probes) if converted else []
        proved = await self._fleet.prove(spec, _proof_request(checkpoint), probes)
        found_out = {**model.facts, "proof": proved.measurements()}
        if complaint := proof_complaint(proved, accepts_any=choices.accepts_any_proof):
            raise CheckpointRejected.of(complaint)
        if proved.diagnosis:
            found_out["notes"] = [*model.facts["notes"], f"imported although {proved.diagnosis}"]
        work.is_committing = True  # from here on a cancellation would leave a model without its job, or half of one
        await self._publish(work, replace(model, facts=found_out))

    async def _publish(self, work: _Work, model: ImportedModel) -> None:
        job = work.job
        await in_thread(self._store.publish, job.job_id, job.model_id)
        self._clock_phase(work)
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

    async def _learn(self, work: _Work) -> None:
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

    async def _check(self, work: _Work) -> Preflight:
        """The preflight; of the fetched files once everything was fetched, since the source may be gone by then."""
        job = work.job
        folder = await in_thread(self._whereabouts, job)
        is_fetched = await in_thread(self._store.fetched, folder) is not None
        work.source = (
            FolderSource(job.s3_uri, folder / "checkpoint", confined=False)
            if is_fetched
            else open_source(job.s3_uri, self._settings, role_arn=job.role_arn, session=job.job_id)
        )
        pooling = Choices.of(job.request).pooling
        named, available = await self._engines_for(job)
        too_large: dict[str, str] = {}
        while True:
            found = await preflight(work.source, available, pooling=pooling)
            engine = found.checkpoint.engine if found.checkpoint else None
            if engine is None or (obstacle := self._no_room(job, found.checkpoint, engine)) is None:
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
        await self._save(work, detail=work.noted(report=report(found, expected)))
        return found

    async def _engines_for(self, job: ImportJob) -> tuple[str | None, Available]:
        """The engine that the model is put on, if any, and those that may serve it, in order of preference.

        What the custom one's vLLM serves is asked once.
        """
        named = Choices.of(job.request).engine or self._settings.engine_of(job.model_name)
        order = (named,) if named else tuple(engine.engine for engine in self._engines if engine.is_choosable)
        if named != CUSTOM:
            return named, Available(names=frozenset(order), order=order)
        if self._settings.vllm_python and self._architectures is None:
            self._architectures = await vllm_architectures(self._settings.vllm_python)
        asked = {CUSTOM: self._architectures} if self._architectures is not None else {}
        return named, Available(names=frozenset({CUSTOM}), architectures=asked, order=order)

    async def _available_for(self, job: ImportJob) -> Available:
        return (await self._engines_for(job))[1]

    def _no_room(self, job: ImportJob, checkpoint: Checkpoint | None, engine: str) -> str | None:
        """Why *engine* has no room for the checkpoint on this machine. llama.cpp maps what it reads and always has."""
        if checkpoint is None or engine == LLAMA_CPP:
            return None
        try:
            self._spec(_model(job, checkpoint, engine, None, [], {}, ()))
        except EngineMissing as exc:
            return exc.message
        return None

    async def _fetch(self, work: _Work, found: Preflight) -> dict[str, Any]:
        """Bring the files; their facts by name. Nothing to do when an earlier run did."""
        job = work.job
        folder = await in_thread(self._whereabouts, job)
        if (files := await in_thread(self._store.fetched, folder)) is not None:
            return files
        assert work.source is not None
        fetch = Fetch(self._store, self._transfer, self._disk, work.source, job.job_id)
        meter = Meter(found.total_bytes, time.monotonic())

        def heard(count: int) -> None:
            meter.add(count, time.monotonic())
            share = meter.done_bytes / max(1, meter.total_bytes)
            self._report(work, share, transfer=meter.facts(time.monotonic()))

        files = await fetch.run(found, heard)
        if not all(entry["how"] in ("linked", "downloaded") for entry in files.values()):
            work.moved = {stage: count for stage, count in work.moved.items() if stage in PHASES}  # not all was moved
        await self._save(work, detail=work.noted(transfer=meter.facts(time.monotonic())))
        return files

    async def _convert(self, work: _Work, files: Mapping[str, Any], choices: Choices) -> Converted:
        """The artefact: the store's own of the same files and converter, or made now and kept."""
        folder = await in_thread(self._whereabouts, work.job)
        digests = {name: entry["sha256"] for name, entry in files.items()}
        key = await in_thread(artifact_key, digests, choices.quantise, choices.pooling)
        if await in_thread(self._store.reuse_artifact, key, folder):
            work.moved.pop(CONVERT, None)
        converted = await convert(
            folder,
            heard=lambda share: self._report(work, share),
            quantise=choices.quantise,
            pooling=choices.pooling,
        )
        await in_thread(self._store.keep_artifact, key, folder)
        return replace(converted, key=key)

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

    def _report(self, work: _Work, share: float, **detail: Any) -> None:
        """Write progress down at most four times a second."""
        now = time.monotonic()
        if (
            now - work.reported < 0.25
            or (work.writing is not None and not work.writing.done())
            or work.job.job_id not in self._tasks
        ):
            return
        work.reported = now
        values: dict[str, Any] = {"progress": overall_progress(work.phase, share), "modified_at": time.time()}
        if detail:
            values["detail"] = work.noted(**detail)
        work.writing = asyncio.get_running_loop().run_in_executor(
            None, lambda: self._registry.update_job(work.job.job_id, **values)
        )

    async def _save(self, work: _Work, **values: Any) -> None:
        if work.writing is not None:  # an older state must not arrive after this one
            await asyncio.wait([work.writing])
        update = partial(self._registry.update_job, work.job.job_id, modified_at=time.time(), **values)
        await in_thread(update)

    async def _fail(self, work: _Work, message: str) -> None:
        advance(work.phase, Phase.FAILED)
        self._clock_phase(work)
        log.warning("import job failed", job_id=work.job.job_id, phase=work.phase, reason=message)
        await in_thread(self._store.discard_job, work.job.job_id)
        await in_thread(self._store.remove_model, work.job.model_id)
        await self._save(
            work,
            phase=Phase.FAILED,
            failure=message[:FAILURE_CHARS],
            timings=work.job.timings,
            ended_at=time.time(),
        )


def _told_files(files: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the job's record keeps of its files; the scan is kept once for all."""
    return [{"name": name, **{k: v for k, v in entry.items() if k != "scan"}} for name, entry in files.items()]


def _model(
    job: ImportJob,
    checkpoint: Checkpoint,
    engine: str | None,
    converted: Converted | None,
    notes: list[str],
    scanned: Mapping[str, Any],
    reasons: Sequence[str],
) -> ImportedModel:
    """The record to be. *engine*: None for a checkpoint that is kept for one that is not here; *reasons*: why that one.

    *converted*: None where the engine reads the checkpoint as it is.
    """
    made: dict[str, Any] = {}
    if converted is not None:
        made = {
            "artifact_bytes": converted.artifact_bytes,
            "artifact_dtype": converted.dtype,
            "artifact_key": converted.key,
        }
        notes = list(dict.fromkeys([*notes, *converted.notes]))
    return ImportedModel(
        model_id=job.model_id,
        account=job.account,
        model_name=job.model_name,
        job_id=job.job_id,
        job_name=job.job_name,
        s3_uri=job.s3_uri,
        architecture=checkpoint.model_type,
        instruct_supported=checkpoint.chat_template is not None and checkpoint.embedding is None,
        model_units=checkpoint.model_units,
        artifact=f"models/{job.model_id}/model.gguf",
        facts={
            "engine": engine,
            "engine_reasons": list(reasons),
            "engines": [asdict(verdict) for verdict in checkpoint.engines],
            "modality": checkpoint.modality,
            "quantisation": checkpoint.quantisation.method if checkpoint.quantisation else None,
            "context_tokens": checkpoint.context_tokens,
            "kv_bytes_per_token": checkpoint.kv_bytes_per_token,
            "parameters": checkpoint.parameters,
            "weight_bytes": checkpoint.weight_bytes,
            **({"embedding": asdict(checkpoint.embedding)} if checkpoint.embedding else {}),
            "shape": _shape(checkpoint),
            **made,
            "notes": notes,
            "scan": dict(scanned),
        },
        created_at=0.0,
        engine=Choices.of(job.request).engine,
    )


def _shape(checkpoint: Checkpoint) -> dict[str, Any]:
    """What engines must know of the model beyond its sizes: ``engines.model_shape``."""
    config, template = checkpoint.config, checkpoint.chat_template
    return {
        "architecture": checkpoint.family.architecture,
        "model_type": checkpoint.model_type,
        "dtype": checkpoint.dtype,
        "attention_heads": config["num_attention_heads"],
        "kv_heads": kv_head_count(config),
        "tool_style": tool_style(checkpoint.model_type, template),
        "thought_style": thought_style(checkpoint.model_type, template),
    }


def _proof_request(checkpoint: Checkpoint) -> GenerateRequest:
    body: dict[str, Any] = {"max_tokens": 1, "temperature": 0}  # the time to its first token is measured
    if checkpoint.chat_template is not None and checkpoint.embedding is None:
        return GenerateRequest("chat", {**body, "messages": [{"role": "user", "content": "Hello"}]})
    return GenerateRequest("completion", {**body, "prompt": "Hello"})


def proof_complaint(proved: ProofReport, *, accepts_any: bool) -> str | None:
    """Why the proof run fails the job; None when it does not."""
    if proved.mismatches:
        return "The engine tokenises differently from the checkpoint's tokenizer: " + "; ".join(proved.mismatches)
    if proved.diagnosis and not accepts_any:
        return (
            f"The model starts but does not work: {proved.diagnosis}. Check the training run, or import an earlier "
            f"checkpoint; the job tag {PROOF_TAG}=accept imports it as it is."
        )
    return None


def _storage_message(exc: OSError, home: Path) -> str:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The weight store has no space left: {exc}. Free space under {home} and import again."
    if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"The weight store or the source cannot be used: {exc}. Check permissions and mount options of {home}."
    return f"Reading the source or writing the weight store failed: {exc}. Check the disk of {home}."
