"""What a DeploymentConfig of sagemaker/2017-07-24 asks for, as a value. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outcrop.errors import InvalidRequest
from outcrop.serving.traffic import Size

_SIZES = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}
_DEFAULT_LIMIT_S = 28_800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """*batch* of a rolling update, None of a blue/green one. Times in s; *limit_s*: for all of it, or it goes back.

    *rollback*: batch of a rolling update's way back; None goes back at once.
    """

    kind: str = "ALL_AT_ONCE"
    size: Size | None = None
    batch: Size | None = None
    rollback: Size | None = None
    wait_s: float = 0.0
    termination_wait_s: float = 0.0
    limit_s: float = _DEFAULT_LIMIT_S
    alarms: tuple[str, ...] = ()


ALL_AT_ONCE = Deployment()


def deployment_of(config: Mapping[str, Any] | None, instances: Sequence[int]) -> Deployment:
    """The deployment that *config* asks for of variants with so many *instances*. Raises InvalidRequest."""
    config = config or {}
    blue_green, rolling = config.get("BlueGreenUpdatePolicy"), config.get("RollingUpdatePolicy")
    if blue_green and rolling:
        raise InvalidRequest("DeploymentConfig: give BlueGreenUpdatePolicy or RollingUpdatePolicy, not both.")
    told = config.get("AutoRollbackConfiguration", {}).get("Alarms", ())
    alarms = tuple(alarm["AlarmName"] for alarm in told)
    total = sum(instances)
    if rolling:
        found = Deployment(
            kind="ROLLING",
            batch=_size(rolling, "MaximumBatchSize", total, least=5),
            rollback=_size(rolling, "RollbackMaximumBatchSize", total, least=5, most=100)
            if "RollbackMaximumBatchSize" in rolling
            else None,
            wait_s=rolling["WaitIntervalInSeconds"],
            limit_s=rolling.get("MaximumExecutionTimeoutInSeconds", _DEFAULT_LIMIT_S),
            alarms=alarms,
        )
    elif blue_green:
        routing = blue_green["TrafficRoutingConfiguration"]
        size = _SIZES.get(routing["Type"])
        for other in _SIZES.values():
            if other != size and other in routing:
                raise InvalidRequest(f"TrafficRoutingConfiguration of type {routing['Type']} takes no {other}.")
        found = Deployment(
            kind=routing["Type"],
            size=_size(routing, size, total, least=10 if size == "LinearStepSize" else 1) if size else None,
            wait_s=routing["WaitIntervalInSeconds"],
            termination_wait_s=blue_green.get("TerminationWaitInSeconds", 0),
            limit_s=blue_green.get("MaximumExecutionTimeoutInSeconds", _DEFAULT_LIMIT_S),
            alarms=alarms,
        )
    else:
        found = Deployment(alarms=alarms)
    if found.wait_s + found.termination_wait_s >= found.limit_s:
        raise InvalidRequest(
            f"MaximumExecutionTimeoutInSeconds is {found.limit_s:g}; it must be larger than WaitIntervalInSeconds and "
            f"TerminationWaitInSeconds together ({found.wait_s + found.termination_wait_s:g})."
        )
    return found


def _size(policy: Mapping[str, Any], name: str, total: int, *, least: int = 1, most: int = 50) -> Size:
    """Raises InvalidRequest for one that is absent or outside of *least* to *most* per cent of the fleet."""
    told = policy.get(name)
    if told is None:
        raise InvalidRequest(f"{name} must be given for TrafficRoutingConfiguration of type {policy['Type']}.")
    value, is_percent = told["Value"], told["Type"] == "CAPACITY_PERCENT"
    if is_percent and not least <= value <= most:
        raise InvalidRequest(f"{name} is {value} per cent of the capacity; it must be {least} to {most}.")
    limit = max(1, total * most // 100)
    if not is_percent and value > limit:
        raise InvalidRequest(f"{name} is {value} instances; of {total} it must be at most {limit}.")
    return Size(value, is_percent)
