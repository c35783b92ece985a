"""DeploymentConfig as a value, and the steps and batches that follow from it."""

from __future__ import annotations

from typing import Any

import pytest

from outcrop.errors import InvalidRequest
from outcrop.serving.deployment import deployment_of
from outcrop.serving.traffic import Size, batches, is_shadowed, steps


def blue_green(kind: str, wait_s: int = 0, size: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    routing: dict[str, Any] = {"Type": kind, "WaitIntervalInSeconds": wait_s}
    if size is not None:
        routing["CanarySize" if kind == "CANARY" else "LinearStepSize"] = size
    return {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, **more}}


def percent(value: int) -> dict[str, Any]:
    return {"Type": "CAPACITY_PERCENT", "Value": value}


def instances(value: int) -> dict[str, Any]:
    return {"Type": "INSTANCE_COUNT", "Value": value}


def test_without_a_config_all_traffic_moves_at_once() -> None:
    found = deployment_of(None, [2])

    assert steps(found.kind, 1.0) == [1.0]
    assert found.batch is None


def test_a_canary_of_instances_is_a_share_of_the_fleet() -> None:
    found = deployment_of(blue_green("CANARY", 5, instances(1), TerminationWaitInSeconds=7), [3, 1])

    assert found.size is not None
    assert steps(found.kind, found.size.share_of(4)) == [0.25, 1.0]
    assert (found.wait_s, found.termination_wait_s) == (5, 7)


@pytest.mark.parametrize(
    ("share", "shares"), [(0.5, [0.5, 1.0]), (0.3, [0.3, 0.6, 0.9, 1.0]), (0.1, [n / 10 for n in range(1, 11)])]
)
def test_linear_steps_reach_the_whole_and_no_more(share: float, shares: list[float]) -> None:
    assert steps("LINEAR", share) == pytest.approx(shares)


def test_batches_of_a_rolling_update_end_with_every_instance_new() -> None:
    assert batches([4], Size(2, is_percent=False)) == [[2], [4]]
    assert batches([5, 1], Size(50, is_percent=True)) == [[2, 1], [4, 1], [5, 1]]
    assert batches([1], Size(5, is_percent=True)) == [[1]]
    assert batches([4, 2], Size(1, is_percent=False), [2, 2]) == [[3, 2], [4, 2]]
    assert batches([2], Size(1, is_percent=False), [5]) == [[2]]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (blue_green("CANARY"), "CanarySize must be given"),
        (blue_green("CANARY", 0, percent(51)), "1 to 50"),
        (blue_green("CANARY", 0, instances(3)), "of 4 it must be at most 2"),
        (blue_green("LINEAR", 0, percent(9)), "10 to 50"),
        (blue_green("ALL_AT_ONCE", 500, MaximumExecutionTimeoutInSeconds=600, TerminationWaitInSeconds=100), "larger"),
        ({"RollingUpdatePolicy": {"MaximumBatchSize": percent(4), "WaitIntervalInSeconds": 0}}, "5 to 50"),
        ({"RollingUpdatePolicy": {"MaximumBatchSize": instances(3), "WaitIntervalInSeconds": 0}}, "at most 2"),
        (
            {**blue_green("ALL_AT_ONCE"), "RollingUpdatePolicy": {"MaximumBatchSize": instances(1)}},
            "not both",
        ),
    ],
)
def test_what_the_guide_does_not_allow_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        deployment_of(config, [4])


def test_alarms_go_with_either_policy_or_none() -> None:
    found = deployment_of({"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "a"}, {"AlarmName": "b"}]}}, [1])

    assert found.alarms == ("a", "b")


def test_a_shadow_gets_its_weight_over_the_production_variant_s() -> None:
    assert is_shadowed(1.0, 4.0, 0.24)
    assert not is_shadowed(1.0, 4.0, 0.25)
    assert is_shadowed(9.0, 4.0, 0.99)
    assert not is_shadowed(1.0, 0.0, 0.0)
