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
from outcrop.serving.background import Background
from outcrop.serving.copies import Copy, Model
from outcrop.serving.lifecycle import SERVING
from outcrop.settings import Settings

log = structlog.get_logger(__name__)

EXAMINE_S = 0.5  # a process that crashed is gone within this time
MISSED_PROBES = 3  # in a row, of a copy that does not answer, before it is replaced


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

    def look_after(self, model: Model) -> None:
        """Once a tick: stalled streams, silent copies, growing logs."""
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
            elif now - copy.probed_at >= self._settings.probe_s:
                copy.probed_at = now
                self._background.spawn(self._probe(copy), f"probe-{copy.copy_id}")

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
