"""What Prometheus is told of migrations."""

from __future__ import annotations

from typing import get_args

from outcrop.serving.migration import machine
from outcrop.serving.migration.guards import GUARDS, Baseline, breaches
from outcrop.serving.migration.kept import Footing, Kept
from outcrop.serving.migration.machine import Phase
from outcrop.serving.migration.observe import Facts, Observation, SideFacts
from outcrop.serving.migration.plan import Guards, Plan, read_steps
from outcrop.serving.migration.readings import readings, rollbacks
from outcrop.telemetry.metric_table import TABLE
from outcrop.telemetry.metrics import Metrics

PLAN = Plan(name="live", source="bedrock:a", target="bedrock:b", steps=read_steps("1,100", hold_s=10))


def kept() -> Kept:
    found = Kept(plan=PLAN, state=machine.begun(0.0), footing=Footing(keys=["live"], doors=["invoke"]))
    seen = {"at": 0.0, "side": "target", "seconds": 1.0}
    found.count(Observation(**seen, role="primary", outcome="failed", fell_back=True, error="Broken"))  # type: ignore[arg-type]
    found.count(Observation(**seen, role="shadow", outcome="ok"))  # type: ignore[arg-type]
    found.score(1.0, is_noise=False)
    found.score(0.25, is_noise=False)
    found.score(0.9, is_noise=True)
    return found


def test_a_migration_is_told_as_what_is_kept_of_it() -> None:
    told = {
        (row.name.removeprefix("outcrop_migration_"), *labels): value
        for row, labels, value in readings("0", kept(), 0.5)
    }

    assert told["phase", "0", "live", "warming"] == 1
    assert sum(value for (name, *_), value in told.items() if name == "phase") == 1
    assert len([key for key in told if key[0] == "phase"]) == len(get_args(Phase))
    assert told["target_share_ratio", "0", "live"] == 0.5
    assert told["requests", "0", "live", "target", "caller"] == told["requests", "0", "live", "target", "shadow"] == 1
    assert told["failures", "0", "live", "target", "failed"] == told["fallbacks", "0", "live", "Broken"] == 1
    assert (told["pairs", "0", "live", "sides"], told["disagreements", "0", "live"]) == (2, 1)
    assert (told["agreement", "0", "live", "sides"], told["agreement", "0", "live", "source"]) == (1.25, 0.9)


def test_every_metric_of_migrations_is_told() -> None:
    told = {row.name for row, _, _ in [*readings("0", kept(), 0.5), *rollbacks({})]}

    assert told == {row.name for row in TABLE if row.name.startswith("outcrop_migration_")}


def test_the_page_has_every_row_of_migrations() -> None:
    metrics = Metrics()
    metrics.watch(lambda: [*readings("0", kept(), 0.5), *rollbacks({"p95": 2})])
    page = metrics.page()().decode()

    assert 'outcrop_migration_rollbacks_total{guard="p95"} 2.0' in page
    assert 'outcrop_migration_rollbacks_total{guard="error_rate"} 0.0' in page
    assert 'outcrop_migration_phase{account="0",migration="live",phase="running"} 0.0' in page


def test_every_guard_that_can_be_breached_has_its_rollbacks_counted() -> None:
    worst = SideFacts(
        requests=100, failed=90, not_ready=50, fell_back=90, whole=100, streams=100, p95_s=9.0, first_p95_s=9.0
    )
    facts = Facts(
        seconds=10, source=SideFacts(), target=worst, pairs=100, agreement=0.1, noise=1.0, target_usd_per_hour=9.0
    )
    plan = Plan(
        name="live",
        source=PLAN.source,
        target=PLAN.target,
        steps=PLAN.steps,
        guards=Guards(p95_s=1.0, usd_per_hour=1.0, agreement_min=0.9),
    )

    assert {breach.guard for breach in breaches(plan, facts, Baseline())} == set(GUARDS)
