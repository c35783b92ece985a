"""Asynchronous calls that were accepted: judged by what came of them, which only a side on this server tells."""

from __future__ import annotations

import time

from outcrop.serving.migration.observe import Observation, Outcome
from outcrop.serving.migration.runner import Live, Migrations
from outcrop.serving.migration.split import SideName

# What a container answers with one of these is its own doing; other 4xx are the caller's.
_OF_CONTAINER = (408, 429)


class Receipts:
    """By the place of the output. In memory: what an earlier server accepted counts as nothing."""

    def __init__(self, migrations: Migrations) -> None:
        self._migrations = migrations
        self._waiting: dict[str, tuple[Live, SideName]] = {}

    def accepted(self, place: str, live: Live, side: SideName) -> None:
        self._waiting[place] = live, side

    def processed(self, place: str, status: int) -> None:
        """The output, or the failure, of the call that was to answer at *place* is written."""
        live, side = self._waiting.pop(place, (None, None))
        if live is None or side is None:
            return
        is_refused = 400 <= status < 500 and status not in _OF_CONTAINER
        outcome: Outcome = "ok" if status < 400 else "refused" if is_refused else "failed"
        error = "" if status < 400 else f"AsyncInvocation{status}"
        seen = Observation(
            at=time.monotonic(), side=side, role="primary", outcome=outcome, seconds=0.0, is_timed=False, error=error
        )
        self._migrations.observe(live, seen)
