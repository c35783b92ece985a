"""How a copy comes up: its turn at the gate, its process, its readiness, its log. What becomes of it is the fleet's."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import structs

from outcrop.engines.base import CopySpec, Endpoint, Engine
from outcrop.errors import EngineFault, KeyUnavailable
from outcrop.launchers.local import LocalLauncher, Process
from outcrop.launchers.page_cache import resident_share
from outcrop.serving.copies import Copy
from outcrop.serving.gate import StartGate
from outcrop.serving.starts import ColdStarts, Stage, Tier
from outcrop.serving.unsealed import Unsealer
from outcrop.settings import Settings

READY_POLL_S = 0.01
SLOW_READY_POLL_S = 0.1  # of an engine whose start is known to take longer than SLOW_START_S
SLOW_START_S = 10.0
STAGE_LOG_BYTES = 200_000  # of a copy's log, in which its engine says how its start went
CACHED_SHARE = 0.8  # of an artefact's pages in memory, from which a start reads no disk


class BringUp:
    """Starts engine processes on one launcher, so many at a time. Times are seconds on *clock*.

    *changed*: told of a copy whose process is about to be.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        launcher: LocalLauncher,
        *,
        settings: Settings,
        clock: Callable[[], float],
        changed: Callable[[Copy], None],
        unsealer: Unsealer | None = None,
    ) -> None:
        self._engines = engines
        self._launcher = launcher
        self._settings = settings
        self._clock = clock
        self.bring_back: Callable[[str], Awaitable[None]] | None = None  # the files of an evicted model
        self._changed = changed
        self._unsealer = unsealer
        self._gate = StartGate(settings.starts_in_parallel)

    async def start(self, copy: Copy, known: ColdStarts) -> float:
        """Bring *copy* up until it answers; the seconds that took from its turn on. Raises EngineFault.

        A process that was started is the copy's, whatever happens after: whoever is told of the failure ends it.
        """
        fetch_s = await self._fetched(copy)
        async with self._gate.turn(copy.spec.weight_bytes):
            begun = self._clock()
            copy.stage, copy.begun_at = Stage.LOADING, begun - fetch_s
            copy.start_timings["queued_s"] = round(begun - copy.born_at - fetch_s, 4)
            self._changed(copy)
            if copy.tier is not Tier.BUCKET:
                copy.tier = await asyncio.to_thread(tier_of, copy.spec)
            await asyncio.to_thread(self.forget_logs, copy.spec.model_id, self._settings.copy_logs_kept)
            copy.process, copy.endpoint = await self.launch(copy.spec, copy.copy_id, known)
            copy.start_timings["spawn_s"] = round(self._clock() - begun, 4)
            told = copy.process.announced.get("stages", {})  # what of that the process itself measured
            copy.start_timings |= {f"{stage}_s": seconds for stage, seconds in told.items()}
            await self.until_ready(copy.spec, copy.process, copy.endpoint, known)
            log = await asyncio.to_thread(copy.process.last_log_lines, STAGE_LOG_BYTES)
            engine = self._engines[copy.spec.engine]
            copy.start_timings |= engine.stage_seconds(log)
            copy.cache_slots = engine.slots(copy.spec, log)
        return self._clock() - begun + fetch_s

    async def _fetched(self, copy: Copy) -> float:
        """Have the files of an evicted model here; the seconds that it took. Other starts do not wait for it."""
        if self.bring_back is None or await asyncio.to_thread(tier_of, copy.spec) is not Tier.BUCKET:
            return 0.0
        copy.tier, begun = Tier.BUCKET, self._clock()
        copy.stage, copy.begun_at = Stage.FETCHING, begun
        await self.bring_back(copy.spec.model_id)
        took = self._clock() - begun
        copy.stage = Stage.QUEUED
        copy.start_timings["fetch_s"] = round(took, 4)
        return took

    async def launch(self, spec: CopySpec, name: str, known: ColdStarts) -> tuple[Process, Endpoint]:
        """A process for *spec* that announced where it listens. Raises EngineFault; then none is left.

        Of an encrypted model it maps a file in memory, which is opened for it and goes with its last copy.
        """
        if not spec.is_sealed:
            return await self._launched(spec, name, known)
        if self._unsealer is None:
            raise KeyUnavailable("The model's weights are encrypted, and this server has no keys.")
        async with self._unsealer.opened(spec.artifact, spec.model_id) as memory:
            plain = structs.replace(spec, artifact=memory.path)
            process, endpoint = await self._launched(plain, name, known, pass_fds=(memory.handle,))
            self._unsealer.held_by(process, spec.artifact, memory)
        return process, endpoint

    async def _launched(
        self, spec: CopySpec, name: str, known: ColdStarts, pass_fds: tuple[int, ...] = ()
    ) -> tuple[Process, Endpoint]:
        engine = self._engines[spec.engine]
        secret = secrets.token_urlsafe(24)
        process = await self._launcher.start(
            engine.command(spec),
            engine.child_config(spec, secret),
            self.log_folder / f"{spec.model_id}-{name}.log",
            self._deadline_s(spec, known),
            pass_fds=pass_fds,
        )
        return process, Endpoint(process.url, secret)

    async def until_ready(self, spec: CopySpec, process: Process, endpoint: Endpoint, known: ColdStarts) -> None:
        """Raises EngineFault at the deadline, and at once when the process ends."""
        deadline_s, engine = self._deadline_s(spec, known), self._engines[spec.engine]
        try:
            async with asyncio.timeout(deadline_s):
                while not await engine.is_ready(endpoint):
                    if process.returncode is not None:
                        raise EngineFault(
                            f"the copy ended before it was ready, with status {process.returncode}; the end of its "
                            f"log:\n{process.last_log_lines()}"
                        )
                    await asyncio.sleep(READY_POLL_S if spec.start_s < SLOW_START_S else SLOW_READY_POLL_S)
        except TimeoutError as exc:
            stage = engine.stage(process.last_log_lines(STAGE_LOG_BYTES))
            reached = f" The last stage it reached: {stage}." if stage else ""
            raise EngineFault(f"The copy was not ready after {deadline_s:g} s.{reached}") from exc

    def forget(self, model_id: str) -> None:
        """Remove what is left of a deleted model: its copies' logs, what engines compiled for it. Blocks."""
        self.forget_logs(model_id, 0)
        shutil.rmtree(self._settings.engine_work / model_id, ignore_errors=True)

    def forget_logs(self, model_id: str, kept: int) -> None:
        """Remove all but the newest *kept* logs of the model's copies. Blocks."""
        found = self.logs_of(model_id)
        for path in found[: len(found) - kept]:
            path.unlink(missing_ok=True)

    def logs_of(self, model_id: str) -> list[Path]:
        """Logs of the model's copies, the oldest first. Blocks."""
        found = []
        # No glob: patterns are compiled once each and kept, which costs memory for every model that ever was.
        with suppress(FileNotFoundError), os.scandir(self.log_folder) as entries:
            for entry in entries:
                if entry.name.startswith(f"{model_id}-") and entry.name.endswith(".log"):
                    with suppress(FileNotFoundError):  # it may go meanwhile
                        found.append((entry.stat().st_mtime, Path(entry.path)))
        return [path for _, path in sorted(found)]

    @property
    def log_folder(self) -> Path:
        return Path(self._settings.logs) / "copies"

    def _deadline_s(self, spec: CopySpec, known: ColdStarts) -> float:
        return self._settings.start_deadline_s or known.deadline_s(spec.weight_bytes, spec.start_s)


def tier_of(spec: CopySpec) -> Tier:
    """How warm the artefact is. Reads the page cache; blocks for milliseconds on a large one."""
    if not spec.artifact.parent.exists():
        return Tier.BUCKET
    return Tier.CACHED if resident_share(spec.artifact) >= CACHED_SHARE else Tier.DISK
