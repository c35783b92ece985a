"""What is durable of a migration: the row's body, and how observations add up in it. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from outcrop.serving.migration.guards import Baseline
from outcrop.serving.migration.machine import State
from outcrop.serving.migration.observe import Facts, Observation
from outcrop.serving.migration.plan import Plan

MOST_ROWS = 400
MOST_DIFFERENCES = 20
_FIRST_INTERVAL_S = 2.0


class Totals(Struct, kw_only=True):
    """One side since the migration began. *fallbacks*: its requests that the source answered, by what was wrong."""

    requests: int = 0
    shadows: int = 0
    failed: int = 0
    not_ready: int = 0
    refused: int = 0
    fallbacks: dict[str, int] = {}
    tokens_in: int = 0
    tokens_out: int = 0


class Row(Struct, frozen=True, kw_only=True):
    """One point of the time line. *at*: seconds since the epoch; the rest over the time since the row before."""

    at: float
    step: int
    share: float
    source: int = 0
    target: int = 0
    failed: int = 0
    source_p95_s: float | None = None
    target_p95_s: float | None = None
    agreement: float | None = None
    noise: float | None = None
    target_usd_per_hour: float = 0.0


class Difference(Struct, frozen=True, kw_only=True):
    """A compared pair that was not the same. Texts are cut."""

    at: float
    score: float
    method: str
    differences: list[str]
    asked: str
    source: str
    target: str


class Footing(Struct, frozen=True, kw_only=True):
    """What the name was when the migration began: *keys* that callers may use for it, at which *doors*.

    *is_alias*: an alias of this server, which is moved at the end. *is_native*: without the migration the name still
    answers, as the source.
    """

    keys: list[str]
    doors: list[str]
    is_alias: bool = False
    is_native: bool = False


class Kept(Struct, kw_only=True):
    plan: Plan
    state: State
    footing: Footing
    source: Totals = msgspec.field(default_factory=Totals)
    target: Totals = msgspec.field(default_factory=Totals)
    baseline: Baseline = Baseline()
    rows: list[Row] = []
    interval_s: float = _FIRST_INTERVAL_S
    differences: list[Difference] = []
    pairs: int = 0
    score_sum: float = 0.0
    disagreed: int = 0
    noise_pairs: int = 0
    noise_sum: float = 0.0
    shadows_dropped: int = 0
    pairs_dropped: int = 0

    def count(self, seen: Observation) -> None:
        totals = self.source if seen.side == "source" else self.target
        if seen.role == "shadow":
            totals.shadows += 1
        else:
            totals.requests += 1
        totals.failed += seen.outcome == "failed"
        totals.not_ready += seen.outcome == "not_ready"
        totals.refused += seen.outcome == "refused"
        totals.tokens_in += seen.tokens_in
        totals.tokens_out += seen.tokens_out
        if seen.fell_back:
            totals.fallbacks[seen.error] = totals.fallbacks.get(seen.error, 0) + 1

    def score(self, value: float, *, is_noise: bool) -> None:
        if is_noise:
            self.noise_pairs, self.noise_sum = self.noise_pairs + 1, self.noise_sum + value
        else:
            self.pairs, self.score_sum = self.pairs + 1, self.score_sum + value
            self.disagreed += value < 1

    def differ(self, found: Difference) -> None:
        """Keep the last few."""
        self.differences = [*self.differences, found][-MOST_DIFFERENCES:]

    def draw(self, at: float, share: float, facts: Facts) -> None:
        """One more row; when they are many, every second one goes and the next come half as often."""
        source, target = facts.source, facts.target
        self.rows.append(
            Row(
                at=at,
                step=self.state.step,
                share=share,
                source=source.requests,
                target=target.requests,
                failed=target.failed,
                source_p95_s=source.p95_s if source.p95_s is not None else source.first_p95_s,
                target_p95_s=target.p95_s if target.p95_s is not None else target.first_p95_s,
                agreement=facts.agreement,
                noise=facts.noise,
                target_usd_per_hour=facts.target_usd_per_hour,
            )
        )
        if len(self.rows) > MOST_ROWS:
            self.rows = self.rows[::2]
            self.interval_s *= 2
