"""Migrations as Prometheus sees them. Pure: what is durable of each is counted, so a restart takes nothing back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from outcrop.serving.migration.guards import GUARDS
from outcrop.serving.migration.kept import Kept, Totals
from outcrop.serving.migration.machine import Phase
from outcrop.telemetry import metric_table as table
from outcrop.telemetry.metrics import Reading

OTHER = "other"  # a rollback without a guard: no data, or a target that does not start


def readings(account: str, kept: Kept, share: float) -> Iterator[Reading]:
    """*share*: the target's, of everybody's requests (0..1)."""
    of = (account, kept.plan.name)
    for phase in get_args(Phase):
        yield table.MIGRATION_PHASE, (*of, phase), float(phase == kept.state.phase)
    yield table.MIGRATION_STEP, of, kept.state.step + 1
    yield table.MIGRATION_SHARE, of, share
    for side, totals in (("source", kept.source), ("target", kept.target)):
        yield from _side((*of, side), totals)
    for reason, count in kept.target.fallbacks.items():
        yield table.MIGRATION_FALLBACKS, (*of, reason), count
    yield table.MIGRATION_PAIRS, (*of, "sides"), kept.pairs
    yield table.MIGRATION_PAIRS, (*of, "source"), kept.noise_pairs
    yield table.MIGRATION_AGREEMENT, (*of, "sides"), kept.score_sum
    yield table.MIGRATION_AGREEMENT, (*of, "source"), kept.noise_sum
    yield table.MIGRATION_DISAGREEMENTS, of, kept.disagreed
    yield table.MIGRATION_DROPPED, (*of, "shadow"), kept.shadows_dropped
    yield table.MIGRATION_DROPPED, (*of, "pair"), kept.pairs_dropped


def _side(of: tuple[str, str, str], totals: Totals) -> Iterator[Reading]:
    yield table.MIGRATION_REQUESTS, (*of, "caller"), totals.requests
    yield table.MIGRATION_REQUESTS, (*of, "shadow"), totals.shadows
    for outcome in ("failed", "not_ready", "refused"):
        yield table.MIGRATION_FAILURES, (*of, outcome), getattr(totals, outcome)


def rollbacks(counted: Mapping[str, int]) -> Iterator[Reading]:
    """Rollbacks since the server's start by guard; those that did not happen are told too, so that growth shows."""
    for guard in (*GUARDS, OTHER):
        yield table.MIGRATION_ROLLBACKS, (guard,), counted.get(guard, 0)
