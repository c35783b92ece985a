"""Whether the target may go on: every guard as a comparison of numbers, with the numbers as the evidence. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from outcrop.serving.migration.observe import Facts
from outcrop.serving.migration.plan import Plan


class Breach(Struct, frozen=True, kw_only=True):
    """A guard that does not hold: its name, what was measured, what was allowed, and both in words."""

    guard: str
    value: float
    limit: float
    said: str


class Baseline(Struct, frozen=True, kw_only=True):
    """The source as it was last measured with enough requests, for steps in which it has none."""

    failure_rate: float = 0.0
    p95_s: float | None = None
    first_p95_s: float | None = None
    noise: float | None = None


def learned(baseline: Baseline, facts: Facts, plan: Plan) -> Baseline:
    """*baseline* with what *facts* say of the source, where they rest on enough requests."""
    least, source = plan.guards.min_requests, facts.source
    return Baseline(
        failure_rate=source.failure_rate if source.requests >= least else baseline.failure_rate,
        p95_s=source.p95_s if source.whole >= least else baseline.p95_s,
        first_p95_s=source.first_p95_s if source.streams >= least else baseline.first_p95_s,
        noise=facts.noise if facts.noise_pairs >= LEAST_NOISE else baseline.noise,
    )


GUARDS = (
    "error_rate",
    "not_ready_rate",
    "fallback_budget",
    "p95",
    "first_part_p95",
    "agreement",
    "usd_per_hour",
)
LEAST_NOISE = 5  # pairs that the source's agreement with itself rests on
_NO_VERDICT = 1  # one failure alone happens to the best


def breaches(plan: Plan, facts: Facts, baseline: Baseline) -> list[Breach]:
    """Every guard that does not hold, the gravest first.

    A count is held against as many requests as a verdict needs at least: three failures in the first five requests
    need not wait for the twentieth, when the other fifteen could not make up for them.
    """
    return [*_failures(plan, facts, baseline), *_latency(plan, facts, baseline), *_rest(plan, facts, baseline)]


def _failures(plan: Plan, facts: Facts, baseline: Baseline) -> Iterator[Breach]:
    guards, target = plan.guards, facts.target
    among = max(target.requests, guards.min_requests)
    source_rate = facts.source.failure_rate if facts.source.requests >= guards.min_requests else baseline.failure_rate
    limit = guards.error_rate + source_rate
    if target.failed > max(_NO_VERDICT, limit * among):
        worst = ", ".join(f"{count} {name}" for name, count in target.errors.items())
        said = f"{target.failed} of {target.requests} requests failed ({worst}); the source fails {source_rate:.1%}"
        yield Breach(guard="error_rate", value=target.failed / max(1, target.requests), limit=limit, said=said)
    if target.not_ready > max(_NO_VERDICT, guards.not_ready_rate * among):
        said = f"{target.not_ready} of {target.requests} requests met no ready copy"
        yield Breach(
            guard="not_ready_rate",
            value=target.not_ready / max(1, target.requests),
            limit=guards.not_ready_rate,
            said=said,
        )
    allowed = max(plan.fallback_floor, plan.fallback_budget * target.requests)
    if plan.fallback and target.fell_back > allowed:
        said = f"the source answered {target.fell_back} of {target.requests} requests in the target's place"
        yield Breach(
            guard="fallback_budget",
            value=target.fell_back / max(1, target.requests),
            limit=plan.fallback_budget,
            said=said,
        )


def _latency(plan: Plan, facts: Facts, baseline: Baseline) -> Iterator[Breach]:
    guards, source, target = plan.guards, facts.source, facts.target
    kinds = (
        ("p95", target.whole, target.p95_s, source.p95_s if source.whole >= guards.min_requests else baseline.p95_s),
        (
            "first_part_p95",
            target.streams,
            target.first_p95_s,
            source.first_p95_s if source.streams >= guards.min_requests else baseline.first_p95_s,
        ),
    )
    for name, count, value, before in kinds:
        if value is None or count < guards.min_requests:
            continue
        limits = [guards.p95_s] if guards.p95_s is not None else []
        if before is not None:
            limits.append(before * guards.p95_ratio + guards.p95_slack_s)
        if limits and value > min(limits):
            was = "" if before is None else f"; the source's is {before:.3f} s"
            said = f"P95 is {value:.3f} s over {count} requests, more than {min(limits):.3f} s{was}"
            yield Breach(guard=name, value=value, limit=min(limits), said=said)


def _rest(plan: Plan, facts: Facts, baseline: Baseline) -> Iterator[Breach]:
    guards = plan.guards
    if facts.agreement is not None and facts.pairs >= guards.min_requests:
        floor = facts.noise if facts.noise is not None and facts.noise_pairs >= LEAST_NOISE else baseline.noise
        is_known = floor is not None or not plan.noise_percent
        limit = max(
            (1.0 if floor is None else floor) - guards.agreement_drop if is_known else 0.0, guards.agreement_min or 0.0
        )
        if facts.agreement < limit:
            itself = "was not asked twice" if floor is None else f"agrees {floor:.3f} with itself"
            said = (
                f"answers agree {facts.agreement:.3f} over {facts.pairs} pairs, less than {limit:.3f}; "
                f"the source {itself}"
            )
            yield Breach(guard="agreement", value=facts.agreement, limit=limit, said=said)
    if guards.usd_per_hour is not None and facts.target_usd_per_hour > guards.usd_per_hour:
        is_settled = facts.target.requests >= guards.min_requests
        if is_settled:
            said = f"the target costs {facts.target_usd_per_hour:.4f} USD an hour, more than {guards.usd_per_hour:g}"
            yield Breach(guard="usd_per_hour", value=facts.target_usd_per_hour, limit=guards.usd_per_hour, said=said)
