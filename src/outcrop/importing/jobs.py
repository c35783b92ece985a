"""Import jobs of one server: admitted, one task each, cancelled, ended; taken up again after a crash.

What a job does is in ``steps``, how the registry hears of it in ``journal``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from outcrop.access.import_roles import ImportRoles
from outcrop.access.weight_keys import WeightKeys
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.engines.base import CopySpec
from outcrop.engines.installed import Installed
from outcrop.errors import InvalidRequest, JobEnded, OutcropError, QuotaExceeded, SourceDenied
from outcrop.ids import JobId
from outcrop.importing.bucket_tier import BucketTier
from outcrop.importing.candidates import Candidates
from outcrop.importing.choices import ENGINE_TAG, Choices
from outcrop.importing.disk import DiskLedger
from outcrop.importing.inventory import inventory
from outcrop.importing.journal import Journal, Work
from outcrop.importing.outcome import storage_message
from outcrop.importing.sources import Source, assumes_itself, open_source
from outcrop.importing.states import Phase, advance
from outcrop.importing.steps import Steps
from outcrop.importing.tasks import in_thread
from outcrop.importing.transfer import Transfer
from outcrop.importing.vault import Vault
from outcrop.importing.weights import WeightStore
from outcrop.launchers.machine import give_back_free_memory
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.registry.store import Registry
from outcrop.serving.fleet import Fleet
from outcrop.settings import Settings

log = structlog.get_logger(__name__)

LET_GO_S = 0.1


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
        roles: ImportRoles,
        spec: Callable[[ImportedModel], CopySpec],
        on_model: Callable[[ImportedModel], None],
        on_withdrawn: Callable[[ImportedModel], Awaitable[None]],
        keys: WeightKeys,
    ) -> None:
        usable = [engine for engine in engines if engine.is_usable]
        self._settings = settings
        self._roles = roles
        self._registry = registry
        self._store = store
        self._candidates = Candidates(settings, usable, spec)
        self._transfer = Transfer(settings.transfer_buffer_bytes)
        self._disk = DiskLedger(settings.store, settings.store_spare_bytes)
        self._journal = Journal(registry)
        self._vault = Vault(store, keys)
        self._steps = Steps(
            settings=settings,
            registry=registry,
            store=store,
            fleet=fleet,
            journal=self._journal,
            open_source=self._open,
            transfer=self._transfer,
            disk=self._disk,
            candidates=self._candidates,
            vault=self._vault,
            spec=spec,
            on_model=on_model,
            on_withdrawn=on_withdrawn,
        )
        self.bucket = BucketTier(
            settings=settings,
            registry=registry,
            store=store,
            transfer=self._transfer,
            disk=self._disk,
            engines_for=self._candidates.available_for,
            open_source=self._open,
        )
        self._cancelled: dict[JobId, str] = {}
        self._tasks: dict[JobId, asyncio.Task[None]] = {}
        self._works: dict[JobId, Work] = {}
        self._admission = asyncio.Lock()

    def _open(self, job: ImportJob) -> Source:
        """Where *job* reads from, as its role. Raises SourceMissing, SourceDenied."""
        return open_source(
            job.s3_uri,
            self._settings,
            role_arn=job.role_arn,
            session=job.job_id,
            reader=lambda: self._roles.reader(job.account, job.job_id, job.role_arn),
        )

    async def resume(self) -> None:
        """Sweep the leavings of a crash and take up every unfinished job."""
        jobs = await in_thread(self._registry.unfinished_jobs)
        models = await in_thread(self._registry.all_models)
        published = [model.model_id for model in models] + [job.model_id for job in jobs]
        await in_thread(self._store.sweep, [job.job_id for job in jobs], published)
        await in_thread(self._vault.sweep, [job.job_id for job in jobs])
        for job in jobs:
            log.info("taking up an unfinished import job", job_id=job.job_id, phase=job.phase)
            self._start(job)

    async def submit(self, job: ImportJob) -> ImportJob:
        """Store *job* and start it, or give the earlier job of its token.

        Raises InvalidRequest for a role that Bedrock cannot assume, for a choice in its tags that is none or an unknown
        key, NameTaken, QuotaExceeded.
        """
        if not assumes_itself(job.s3_uri, self._settings):
            try:
                self._roles.reader(job.account, job.job_id, job.role_arn)
            except SourceDenied as exc:
                raise InvalidRequest(exc.message) from exc
        choices = Choices.of(job.request)
        self._vault.key_of(job)
        if choices.engine and choices.engine not in (usable := self._candidates.names):
            raise InvalidRequest(
                f"The job tag {ENGINE_TAG} is {choices.engine!r}; the engines here are {', '.join(usable)}."
            )
        async with self._admission:
            is_full = await self._running() >= self._settings.imports_in_parallel
            if is_full and job.client_token is None:
                raise self._quota()
            stored, is_new = await in_thread(self._registry.create_job, job)
            if is_new and is_full:
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

    async def _running(self) -> int:
        """Jobs that have not ended. The task of one that has may still be tidying up: who saw its end may go on."""
        unfinished = await in_thread(self._registry.unfinished_jobs)
        return len(self._tasks.keys() & {job.job_id for job in unfinished})

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
        work = self._works[job.job_id] = Work(job, Phase(job.phase), time.monotonic())
        try:
            await self._steps.run(work)
        except asyncio.CancelledError:
            who = self._cancelled.pop(job.job_id, None)
            if who is None:
                raise  # the server stops; the next start goes on
            await self._fail(work, f"The import job was cancelled by {who} while {work.phase.lower()}.")
        except CheckpointRejected as exc:
            await self._fail(work, str(exc))
        except OSError as exc:
            await self._fail(work, storage_message(exc, self._settings.home))
        except OutcropError as exc:
            await self._fail(work, str(exc))
        except Exception:
            log.exception("import job hit a defect", job_id=job.job_id)
            await self._fail(work, f"Internal error while {work.phase.lower()}; the server log has the details.")
        finally:
            work.is_over = True
            self._disk.release(job.job_id)
            self._works.pop(job.job_id, None)
            if work.source is not None:
                await work.source.aclose()
            await asyncio.to_thread(give_back_free_memory)

    async def _fail(self, work: Work, message: str) -> None:
        advance(work.phase, Phase.FAILED)
        log.warning("import job failed", job_id=work.job.job_id, phase=work.phase, reason=message)
        await in_thread(self._store.discard_job, work.job.job_id)
        await in_thread(self._store.remove_model, work.job.model_id)
        await self._journal.failed(work, message)
