"""Counts what the running server uses. Called at every change of a copy and once per request; writes nothing itself.

What is counted since the last batch is a set of differences. A batch is kept under its number until the database has
it, and the database takes each number once: written again after a failure or a lost answer it changes nothing. A
killed server loses what no batch had taken: events of the last ``FLUSH_S`` seconds, and of copies at rest the time
of the last ``REST_S``.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from msgspec import Struct

from outcrop.metering.usage import RESERVED_STATES, Key, Usage, hours_between
from outcrop.metering.windows import CopyWindows

log = structlog.get_logger(__name__)

FLUSH_S = 1.0
REST_S = 5.0


class About(Struct, frozen=True):
    """What the meter must know of a model. *stored_bytes*: its own share of the weight store."""

    account: str
    model_units: int = 1
    stored_bytes: int = 0


class Ledger(Protocol):
    """Where batches go. Blocks."""

    def apply(self, writer: str, number: int, rows: Mapping[Key, Usage]) -> None:
        """Add *rows*, once per *writer* and *number*."""


@dataclass(slots=True)
class _Metered:
    model_id: str
    state: str
    since_ms: int
    has_served: bool = False
    windows: CopyWindows = field(default_factory=CopyWindows)


class Meter:
    """Owned by the event loop. *about* tells of a model by its id, also of one that is not registered yet."""

    def __init__(
        self,
        about: Callable[[str], About],
        *,
        stored: Callable[[], Mapping[str, About]] = dict,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._about = about
        self._stored = stored
        self._clock = clock
        self._wall = wall
        self._copies: dict[str, _Metered] = {}
        self._rows: dict[Key, Usage] = {}
        self._writer = secrets.token_hex(8)
        self._number = 0
        self._batch: dict[Key, Usage] | None = None  # has number self._number and is not known to be written
        self._writing = asyncio.Lock()
        self._has_news = False
        self._offset_ms = 0
        self._read_wall()
        self._stored_until_ms = self._now_ms()

    # -- what happens ---------------------------------------------------------------------------------

    def copy(self, copy_id: str, model_id: str, state: str | None) -> None:
        """The copy is in *state* from now on (``usage.COPY_STATES``); None: it has ended. The same again is nothing."""
        now = self._now_ms()
        self._has_news = True
        metered = self._copies.get(copy_id)
        if metered is None:
            if state is not None:
                self._copies[copy_id] = _Metered(model_id, state, now)
                self._note_peak(model_id, now)
            return
        if state == metered.state:
            return
        self._accrue(metered, now)
        if state is None:
            del self._copies[copy_id]
            return
        if state == "busy":
            if metered.has_served and not self._is_running(model_id):
                self._row(now, model_id).warm_hits += 1
            metered.has_served = True
        metered.state = state
        self._note_peak(model_id, now)

    def started(self, model_id: str, stages: Mapping[str, float]) -> None:
        """A copy became ready; *stages* in s: queued, spawn, load."""
        row = self._row(self._now_ms(), model_id)
        row.cold_starts += 1
        row.start_queued_ms += round(stages["queued"] * 1000)
        row.start_spawn_ms += round(stages["spawn"] * 1000)
        row.start_load_ms += round(stages["load"] * 1000)

    def start_failed(self, model_id: str) -> None:
        self._row(self._now_ms(), model_id).failed_starts += 1

    def request(
        self,
        *,
        model_id: str,
        principal: str,
        outcome: str,
        copy_id: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        held_s: float = 0.0,
        run_s: float = 0.0,
    ) -> None:
        """A request ended now; *outcome* is ``ok``, ``cancelled`` or the name of an error."""
        now = self._now_ms()
        self._has_news = True
        row = self._row(now, model_id, principal)
        row.requests += outcome == "ok"
        row.cancelled += outcome == "cancelled"
        row.failed += outcome not in ("ok", "cancelled")
        row.tokens_in += tokens_in
        row.tokens_out += tokens_out
        row.held_ms += round(held_s * 1000)
        row.run_ms += round(run_s * 1000)
        metered = self._copies.get(copy_id) if copy_id is not None else None
        if outcome == "ok" and metered is not None:
            units = self._about(model_id).model_units
            for begun in metered.windows.served(now - round(run_s * 1000), now):
                opened = self._row(begun, model_id)
                opened.windows += 1
                opened.window_units += units

    # -- what becomes of it ---------------------------------------------------------------------------

    def tick(self) -> None:
        """Bring the time of running copies and of stored models up to now."""
        self._read_wall()
        now = self._now_ms()
        for metered in self._copies.values():
            self._accrue(metered, now)
        for model_id in {metered.model_id for metered in self._copies.values()}:
            self._note_peak(model_id, now)
        elapsed_s = max(0, (now - self._stored_until_ms) // 1000)
        if elapsed_s >= 60:  # often enough for a price per month, and a database at rest stays at rest
            self._stored_until_ms += elapsed_s * 1000
            for model_id, about in self._stored().items():
                row = self._row(now, model_id)
                row.stored_byte_s += about.stored_bytes * elapsed_s
                row.stored_unit_s += about.model_units * elapsed_s

    async def flush(self, ledger: Ledger) -> None:
        """Write everything counted so far. Raises what the ledger raises; then nothing is lost or counted twice."""
        async with self._writing:
            self.tick()
            for _ in range(2):  # an earlier batch that failed goes first, under its own number
                if self._batch is None:
                    if not self._rows:
                        return
                    self._number += 1
                    self._batch, self._rows = self._rows, {}
                await asyncio.to_thread(ledger.apply, self._writer, self._number, self._batch)
                self._batch = None

    async def run(self, ledger: Ledger) -> None:
        """Flush every ``FLUSH_S`` seconds while something happens, every ``REST_S`` at rest, until cancelled."""
        rested_s = 0.0
        while True:
            await asyncio.sleep(FLUSH_S)
            rested_s += FLUSH_S
            if not self._has_news and rested_s < REST_S:
                continue
            self._has_news, rested_s = False, 0.0
            try:
                await self.flush(ledger)
            except Exception:
                log.exception("usage could not be written; it is kept and tried again")

    # -- inside ---------------------------------------------------------------------------------------

    def _accrue(self, metered: _Metered, now_ms: int) -> None:
        for hour_ms, passed_ms in hours_between(metered.since_ms + self._offset_ms, now_ms + self._offset_ms):
            row = self._row_of_hour(hour_ms, metered.model_id)
            name = f"{metered.state}_ms"
            setattr(row, name, getattr(row, name) + passed_ms)
        metered.since_ms = now_ms

    def _note_peak(self, model_id: str, now_ms: int) -> None:
        count = sum(m.model_id == model_id and m.state in RESERVED_STATES for m in self._copies.values())
        row = self._row(now_ms, model_id)
        row.peak_copies = max(row.peak_copies, count)

    def _is_running(self, model_id: str) -> bool:
        return any(metered.model_id == model_id and metered.state == "busy" for metered in self._copies.values())

    def _row(self, now_ms: int, model_id: str, principal: str = "") -> Usage:
        wall_ms = now_ms + self._offset_ms
        return self._row_of_hour(wall_ms - wall_ms % 3_600_000, model_id, principal)

    def _row_of_hour(self, hour_ms: int, model_id: str, principal: str = "") -> Usage:
        key = Key(hour_ms, self._about(model_id).account, model_id, principal)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = Usage()
        return row

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _read_wall(self) -> None:
        self._offset_ms = int(self._wall() * 1000) - self._now_ms()
