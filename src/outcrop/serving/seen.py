"""What the policy sees of a model, what an operator sees of it, and the record of what was decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from outcrop.engines.base import CopySpec, Engine
from outcrop.serving import policy, room, schedule
from outcrop.serving.bring_up import STAGE_LOG_BYTES, tier_of
from outcrop.serving.copies import Copy, CopyStatus, DecisionRecord, Model, ModelStatus
from outcrop.serving.lifecycle import SERVING, State
from outcrop.serving.starts import ColdStarts, Stage, Tier


def facts_of(model: Model, params: policy.Params, now: float) -> policy.Facts:
    """What is true of *model* at *now*, for ``policy.decide``."""
    ready = [copy for copy in model.copies if copy.is_ready]
    rate_60, rate_15, count_15 = model.demand.rates(now)
    facts = policy.Facts(
        ready=len(ready),
        starting=sum(copy.state is State.STARTING for copy in model.copies),
        in_flight=sum(copy.in_flight for copy in ready),
        held=len(model.queue) + model.queue.kept,
        slots=min((copy.slots for copy in ready), default=model.spec.slots),
        idle_s=max(0.0, now - model.active_at),
        rate_60=rate_60,
        rate_15=rate_15,
        count_15=count_15,
        work_s=model.demand.work_s,
        cold_start_s=model.starts.expected_s(Tier.CACHED),
        is_backing_off=now < model.retry_at,
        copies=tuple(
            policy.CopyFacts(
                copy_id=copy.copy_id,
                in_flight=copy.in_flight,
                served_s=None if copy.served_at is None else now - copy.served_at,
            )
            for copy in ready
        ),
    )
    return replace(facts, peak=model.demand.peak(now, policy.scale_in_window_s(facts, params)))


def params_of(scaling: schedule.Scaling, defaults: policy.Params, wall: float) -> policy.Params:
    """A model's limits at *wall* (seconds since the epoch): what an operator set, over *defaults*."""
    if scaling is schedule.DEFAULTS:
        return defaults
    now = datetime.fromtimestamp(wall, UTC)
    active = [floor for floor in scaling.floors if schedule.is_active(floor, now)]
    return schedule.params_at(defaults, scaling, active)


def note(model: Model, facts: policy.Facts, decision: policy.Decision, wall: float) -> bool:
    """Keep the decision with what it saw; the same one again is counted, not repeated. Whether it is a new one."""
    record = DecisionRecord(
        at=wall,
        desired=decision.desired,
        current=facts.ready + facts.starting,
        reason=decision.reason,
        facts={name: value for name, value in _values(facts).items() if name != "copies"},
    )
    last = model.decisions[-1] if model.decisions else None
    if last is not None and (last.desired, last.current) == (record.desired, record.current):
        model.decisions[-1] = structs.replace(record, times=last.times + 1)
        return False
    model.decisions.append(record)
    return True


def copy_status(model: Model, copy: Copy, now: float, engine: Engine) -> CopyStatus:
    """What an operator sees of *copy*. Of one that starts it reads the end of the engine's log."""
    stage, remaining = None, None
    if copy.state is State.STARTING:
        stage = str(copy.stage)
        if copy.stage is Stage.LOADING and copy.process is not None:
            stage = engine.stage(copy.process.last_log_lines(STAGE_LOG_BYTES)) or stage
        elapsed_s = 0.0 if copy.begun_at is None else now - copy.begun_at
        remaining = model.starts.remaining(copy.tier, elapsed_s, copy.spec.start_s)
    return CopyStatus(
        copy_id=copy.copy_id,
        model_id=copy.spec.model_id,
        state=copy.state,
        pid=copy.process.pid if copy.process else None,
        age_s=round(now - copy.born_at, 3),
        in_flight=copy.in_flight,
        slots=copy.slots,
        threads=copy.spec.threads,
        requests=copy.requests,
        idle_s=0.0 if copy.in_flight else round(max(0.0, now - max(model.active_at, copy.born_at)), 3),
        start_timings=copy.start_timings,
        devices=copy.spec.devices,
        stage=stage,
        share=remaining and round(remaining.share, 3),
        remaining_s=remaining and round(remaining.seconds, 3),
        sleep_level=copy.sleep_level if copy.state is State.ASLEEP else None,
    )


def model_status(spec: CopySpec, model: Model | None, known: ColdStarts) -> ModelStatus:
    """How warm a model is. Reads the page cache; blocks for milliseconds on a large artefact. Wakes nothing.

    *model* is None while nobody has asked it; *known*: its starts.
    """
    states = [copy.state for copy in model.copies] if model else []
    best = next((state for state in State if state is not State.STARTING and state in states), None)
    if model and model.failure:
        state = "failed"
    elif model and model.blocked_since is not None:
        state = "waiting for room"
    elif best in SERVING:
        state = str(best)
    else:
        state = "starting" if State.STARTING in states else str(best or tier_of(spec))
    return ModelStatus(
        model_id=spec.model_id,
        state=state,
        held=len(model.queue) if model else 0,
        wake_s={tier: known.known(tier) for tier in Tier},
        failure=model.failure if model else None,
        memory_bytes=room.used_bytes([spec]),
    )


def ready_copies(model: Model) -> list[Copy]:
    return [copy for copy in model.copies if copy.is_ready]


def sleepers(model: Model) -> list[Copy]:
    return [copy for copy in model.copies if copy.state is State.ASLEEP]


def all_copies(models: Iterable[Model]) -> list[Copy]:
    return [copy for model in models for copy in model.copies]


def _values(facts: policy.Facts) -> dict[str, Any]:
    return {each.name: getattr(facts, each.name) for each in fields(facts)}
