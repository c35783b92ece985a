"""Whether a copy that is up is of any use: stalled answers, silent copies, broken connections.

Health wakes nothing and keeps nothing awake. It only ends processes; who watches them buries the copies, and the
policy orders others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import structlog

from outcrop.engines.base import Engine
from outcrop.errors import EngineFault, EngineTimeout
from outcrop.serving.background import Background
from outcrop.serving.copies import Copy, Model, Progress
from outcrop.serving.lifecycle import SERVING
from outcrop.settings import Settings

log = structlog.get_logger(__name__)

EXAMINE_S = 0.5  # a process that crashed is gone within this time
MISSED_PROBES = 3  # in a row, of a copy that does not answer, before it is replaced
PROGRESS_S = 5.0  # between two looks at whether a busy copy gets on
BUSY_SHARE = 0.2  # of one core, above which a silent engine is taken to compute
BUSY_PATIENCE = 10  # times stall_s that an engine which computes may stay silent: one batch of a long prompt


class Health:
    """*on_recovery*: told that a suspect copy takes requests again."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        settings: Settings,
        clock: Callable[[], float],
        background: Background,
        on_recovery: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._settings = settings
        self._clock = clock
        self._background = background
        self._on_recovery = on_recovery

    @property
    def _progress_s(self) -> float:
        return min(PROGRESS_S, self._settings.stall_s / 3)

    def look_after(self, model: Model) -> None:
        """Once a tick: stalled answers, silent copies, growing logs."""
        now, loop_now = self._clock(), asyncio.get_running_loop().time()
        for copy in model.copies:
            if copy.process is not None:
                copy.process.trim_log(self._settings.copy_log_bytes)
            if copy.state not in SERVING or copy.is_suspect:
                continue
            waits = [
                loop_now - lease.engine.awaiting_since
                for lease in copy.leases
                if lease.engine.awaiting_since is not None
            ]
            if waits and max(waits) > self._settings.stall_s:
                self._replace(copy, f"no token for {max(waits):.0f} s")
                continue
            if now - copy.probed_at >= self._settings.probe_s:
                copy.probed_at = now
                self._background.spawn(self._probe(copy), f"probe-{copy.copy_id}")
            if not any(lease.engine.is_awaited for lease in copy.leases):
                copy.progress = None
            elif copy.progress is None:
                copy.progress = Progress(moved_at=now, checked_at=now)
            elif not copy.progress.is_asking and now - copy.progress.checked_at >= self._progress_s:
                copy.progress.is_asking = True
                self._background.spawn(self._check_progress(copy, copy.progress), f"progress-{copy.copy_id}")

    def suspect(self, copy: Copy) -> None:
        """A request found its connection broken: send the copy no other one before it was examined."""
        if copy.is_ready:
            copy.is_suspect = True
            self._background.spawn(self._examine(copy), f"examine-{copy.copy_id}")

    async def _probe(self, copy: Copy) -> None:
        assert copy.endpoint is not None
        if await self._engines[copy.spec.engine].is_ready(copy.endpoint):
            copy.missed_probes = 0
            return
        copy.missed_probes += 1
        if copy.missed_probes >= MISSED_PROBES and copy.state in SERVING:
            self._replace(copy, f"{copy.missed_probes} health checks without an answer")

    async def _check_progress(self, copy: Copy, progress: Progress) -> None:
        """Replace a busy copy that gets on with none of its requests, although its health page may still answer.

        An answer that is not streamed shows nothing until it is whole, and no stream does before its first token, so
        the engine itself is asked. One that is too busy to say is told from one that hangs by its processor time.
        """
        assert copy.endpoint is not None
        assert copy.process is not None
        is_silent, value = False, progress.value
        try:
            value = await self._engines[copy.spec.engine].progress(copy.endpoint)
        except (EngineFault, EngineTimeout):
            is_silent = True
        finally:
            progress.is_asking = False
        if value is None and not is_silent:
            copy.progress = None  # this engine has nothing to say; its requests have their own deadline
            return
        now, cpu_s = self._clock(), await asyncio.to_thread(copy.process.cpu_s)
        used_s = 0.0 if progress.cpu_s is None else cpu_s - progress.cpu_s
        is_busy = is_silent and used_s > BUSY_SHARE * (now - progress.checked_at)
        progress.cpu_s, progress.checked_at = cpu_s, now
        if value != progress.value and progress.value is not None:
            progress.moved_at = now
        progress.value = value
        limit_s = self._settings.stall_s * (BUSY_PATIENCE if is_busy else 1)
        if copy.progress is progress and copy.state in SERVING and now - progress.moved_at > limit_s:
            self._replace(copy, f"no progress for {now - progress.moved_at:.0f} s")

    def _replace(self, copy: Copy, reason: str) -> None:
        """End a copy that is up but of no use."""
        log.error("replacing a copy", copy_id=copy.copy_id, model_id=copy.spec.model_id, reason=reason)
        copy.is_suspect = True
        if copy.process is not None:
            self._background.spawn(copy.process.stop(0), f"replace-{copy.copy_id}")

    async def _examine(self, copy: Copy) -> None:
        """Give a suspect copy its requests back when it answers, else end it."""
        assert copy.process is not None
        assert copy.endpoint is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXAMINE_S):
                await copy.process.wait()
        if copy.process.returncode is None and await self._engines[copy.spec.engine].is_ready(copy.endpoint):
            copy.is_suspect = False
            self._on_recovery()
        else:
            await copy.process.stop(0)
