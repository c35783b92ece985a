"""What one run of a job has found out, and how the registry hears of it: phases, progress, facts, the end.

The phase in the registry is always behind the deed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from outcrop.importing.sources import Source
from outcrop.importing.states import Phase, advance, overall_progress
from outcrop.importing.tasks import in_thread
from outcrop.registry.records import ImportJob
from outcrop.registry.store import Registry

REPORT_S = 0.25  # at least, between two reports of progress
FAILURE_CHARS = 2048  # botocore bedrock/2023-04-20: ErrorMessage


@dataclass(slots=True)
class Work:
    """What one run of a job has found out so far."""

    job: ImportJob
    phase: Phase = Phase.QUEUED
    phase_since: float = 0.0
    reported: float = 0.0
    source: Source | None = None
    writing: asyncio.Future[None] | None = None
    reasons: Sequence[str] = ()  # why the engine that was chosen
    key_arn: str | None = None  # the weights are encrypted with it
    is_committing: bool = False
    is_over: bool = False  # late progress of a thread is no news
    moved: dict[str, int] = field(default_factory=dict)  # bytes by stage (rates.py) of a job that began in this run

    def noted(self, **facts: Any) -> dict[str, Any]:
        """The job's detail with *facts* added."""
        self.job = replace(self.job, detail={**self.job.detail, **facts})
        return dict(self.job.detail)

    def clock_phase(self) -> None:
        """Add the time since the last call to the phase that it was spent in."""
        now = time.monotonic()
        if self.phase not in (Phase.QUEUED, Phase.COMPLETED, Phase.FAILED):
            spent = {**self.job.timings, self.phase.lower(): round(now - self.phase_since, 4)}
            self.job = replace(self.job, timings=spent)
        self.phase_since = now


class Journal:
    """Writes down how jobs get on."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def enter(self, work: Work, phase: Phase) -> None:
        work.clock_phase()
        work.phase = advance(work.phase, phase)
        await self.save(work, phase=phase, progress=overall_progress(phase, 0.0), timings=work.job.timings)

    def report(self, work: Work, share: float, **detail: Any) -> None:
        """Write progress down at most four times a second."""
        now = time.monotonic()
        if now - work.reported < REPORT_S or (work.writing is not None and not work.writing.done()) or work.is_over:
            return
        work.reported = now
        values: dict[str, Any] = {"progress": overall_progress(work.phase, share), "modified_at": time.time()}
        if detail:
            values["detail"] = work.noted(**detail)
        work.writing = asyncio.get_running_loop().run_in_executor(
            None, lambda: self._registry.update_job(work.job.job_id, **values)
        )

    async def save(self, work: Work, **values: Any) -> None:
        if work.writing is not None:  # an older state must not arrive after this one
            await asyncio.wait([work.writing])
        update = partial(self._registry.update_job, work.job.job_id, modified_at=time.time(), **values)
        await in_thread(update)

    async def failed(self, work: Work, message: str) -> None:
        work.clock_phase()
        await self.save(
            work,
            phase=Phase.FAILED,
            failure=message[:FAILURE_CHARS],
            timings=work.job.timings,
            ended_at=time.time(),
        )
