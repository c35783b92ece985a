"""Updates of an endpoint step by step, with copies that need no process: variants that forward elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from outcrop.errors import InvalidRequest
from outcrop.serving.alarms import Alarm
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.rollout import Endpoint, Plan, Retained
from outcrop.serving.watch import Watch

ME = "000000000000"
AT_ONCE = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}


def plan(config: str, *, count: int = 1, weight: float = 1.0, broken: bool = False, **spec: Any) -> Plan:
    environment = {"OUTCROP_FORWARD_TO": "openai:m", "OUTCROP_FORWARD_URL": "http://127.0.0.1:9/v1"}
    model: dict[str, Any] = {"PrimaryContainer": {"Environment": {} if broken else environment}}
    if broken:
        model["PrimaryContainer"]["ModelDataUrl"] = "s3://nowhere/model.tar.gz"
    variant = {"VariantName": "v", "InitialInstanceCount": count, "InitialVariantWeight": weight, **spec}
    return Plan(config_name=config, variants=[(variant, model)])


class Bench:
    def __init__(self, folder: Path) -> None:
        self.kept: list[str] = []  # configurations, as they were kept
        self.watch = Watch()
        self.endpoints = Endpoints(
            folder=folder / "proxies",
            logs=folder / "logs",
            buckets=folder / "buckets",
            region="us-east-1",
            settings_of=self._settings,
            changed=self._changed,
            watch=self.watch,
        )

    async def _settings(self, account: str, endpoint: str) -> dict[str, str]:
        return {}

    async def _changed(self, endpoint: Endpoint) -> None:
        self.kept.append("deleted" if endpoint.status == "Deleted" else endpoint.fleet.config_name)

    async def made(self, first: Plan) -> Endpoint:
        endpoint = self.endpoints.create(ME, "e", first)
        await self.at_rest(endpoint)
        return endpoint

    async def at_rest(self, endpoint: Endpoint) -> None:
        await until(lambda: endpoint.task is None)


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    yield found
    await found.endpoints.close(0)


def blue_green(routing: dict[str, Any], alarms: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, **more}}
    if alarms:
        found["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": name} for name in alarms]}
    return found


async def test_an_update_ends_with_the_new_configuration_kept_and_the_old_copies_gone(bench: Bench) -> None:
    endpoint = await bench.made(plan("one"))
    old = endpoint.fleet.variants[0]

    bench.endpoints.update(endpoint, plan("two"), None)
    assert endpoint.status == "Updating"
    await bench.at_rest(endpoint)

    assert bench.kept == ["one", "two"]
    assert (endpoint.coming, old.copies, len(endpoint.fleet.variants[0].copies)) == (None, [], 1)


async def test_a_canary_gets_its_share_and_the_rest_after_the_wait(bench: Bench) -> None:
    endpoint = await bench.made(plan("one"))
    size = {"Type": "CAPACITY_PERCENT", "Value": 20}
    routing = {"Type": "CANARY", "WaitIntervalInSeconds": 1, "CanarySize": size}
    bench.endpoints.update(endpoint, plan("two"), blue_green(routing))
    await until(lambda: endpoint.share > 0)

    assert endpoint.coming is not None
    fresh = endpoint.coming.variants[0]
    share = sum(bench.endpoints.chosen(endpoint, None, None) is fresh for _ in range(2000)) / 2000
    assert 0.15 < share < 0.25
    assert bench.endpoints.chosen(endpoint, None, "me") is bench.endpoints.chosen(endpoint, None, "me")
    await until(lambda: endpoint.share == 1.0)
    assert bench.endpoints.chosen(endpoint, None, None) is fresh
    await bench.at_rest(endpoint)


async def test_an_alarm_in_the_termination_wait_still_brings_the_old_fleet_back(bench: Bench) -> None:
    endpoint = await bench.made(plan("one"))
    old = endpoint.fleet
    bench.watch.put(ME, "errors", Alarm("e", "Invocation5XXErrors", 0))
    update = blue_green(AT_ONCE, ("errors",), TerminationWaitInSeconds=60)
    bench.endpoints.update(endpoint, plan("two"), update)
    await until(lambda: endpoint.share == 1.0)
    fresh = endpoint.coming
    assert fresh is not None
    bench.watch.note(ME, "e", "v", 500, model_s=0.1, overhead_s=0)
    await bench.at_rest(endpoint)

    assert endpoint.fleet is old
    assert endpoint.status == "InService"
    assert "to two was rolled back: alarm errors: Invocation5XXErrors (Sum, 60 s) was 1" in endpoint.failure
    assert fresh.variants[0].copies == []
    assert bench.kept[-1] == "one"


async def test_a_version_that_does_not_start_moves_nothing(bench: Bench) -> None:
    endpoint = await bench.made(plan("one"))
    bench.endpoints.update(endpoint, plan("two", broken=True), None)
    await bench.at_rest(endpoint)

    assert endpoint.fleet.config_name == "one"
    assert "Could not find model data at s3://nowhere/model.tar.gz" in endpoint.failure


async def test_a_rolling_update_goes_in_batches_and_back_to_every_old_copy(bench: Bench) -> None:
    endpoint = await bench.made(plan("one", count=4))
    old = endpoint.fleet.variants[0]
    bench.watch.put(ME, "errors", Alarm("e", "Invocation5XXErrors", 0))
    rolling = {
        "RollingUpdatePolicy": {
            "MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1},
            "WaitIntervalInSeconds": 1,
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "errors"}]},
    }
    bench.endpoints.update(endpoint, plan("two", count=4), rolling)
    await until(lambda: endpoint.share == 0.5 and len(old.copies) == 2)
    assert endpoint.coming is not None
    assert len(endpoint.coming.variants[0].copies) == 2
    bench.watch.note(ME, "e", "v", 503, model_s=0.1, overhead_s=0)
    await bench.at_rest(endpoint)

    assert endpoint.fleet.variants == [old]
    assert len(old.copies) == 4


async def test_a_rollback_in_batches_takes_the_traffic_back_as_old_copies_come(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await bench.made(plan("one", count=4))
    old = endpoint.fleet.variants[0]
    bench.watch.put(ME, "errors", Alarm("e", "Invocation5XXErrors", 0))
    one = {"Type": "INSTANCE_COUNT", "Value": 1}
    rolling = {
        "RollingUpdatePolicy": {
            "MaximumBatchSize": one,
            "RollbackMaximumBatchSize": one,
            "WaitIntervalInSeconds": 1,
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "errors"}]},
    }
    bench.endpoints.update(endpoint, plan("two", count=4), rolling)
    await until(lambda: endpoint.share == 0.5 and len(old.copies) == 2)
    fresh = endpoint.coming
    assert fresh is not None
    seen: list[tuple[int, float, int]] = []
    grow = bench.endpoints.copies.grow

    async def growing(account: str, name: str, variant: Any, count: int) -> None:
        seen.append((count, endpoint.share, len(fresh.variants[0].copies)))
        await grow(account, name, variant, count)

    monkeypatch.setattr(bench.endpoints.copies, "grow", growing)
    bench.watch.note(ME, "e", "v", 503, model_s=0.1, overhead_s=0)
    await bench.at_rest(endpoint)

    # (old copies wanted, share of the new version, its copies) before each start
    assert seen == [(3, 0.5, 2), (4, 0.25, 1), (4, 0.0, 1)]
    assert (endpoint.share, endpoint.coming, len(old.copies)) == (0.0, None, 4)


async def test_an_endpoint_of_a_killed_server_comes_back_with_the_copies_that_were_asked_for(bench: Bench) -> None:
    scaling = {"Status": "ENABLED", "MinInstanceCount": 1, "MaxInstanceCount": 3}
    endpoint = await bench.made(plan("one", ManagedInstanceScaling=scaling, DesiredInstanceCount=2))

    variant = endpoint.fleet.variants[0]
    assert (variant.wanted, variant.most, len(variant.copies)) == (2, 3, 2)


async def test_what_is_retained_and_what_is_not(bench: Bench) -> None:
    endpoint = await bench.made(plan("one", count=3, weight=5))
    bench.endpoints.update(endpoint, plan("two"), None, Retained(weights=True))
    await bench.at_rest(endpoint)
    variant = endpoint.fleet.variants[0]
    assert (variant.weight, variant.wanted) == (5, 1)

    bench.endpoints.update(endpoint, plan("three", weight=2, count=2), None, Retained(instances=True))
    await bench.at_rest(endpoint)
    variant = endpoint.fleet.variants[0]
    assert (variant.weight, variant.wanted, len(variant.copies)) == (2, 1, 1)


async def test_counts_are_changed_and_weights_at_once(bench: Bench) -> None:
    endpoint = await bench.made(plan("one"))
    bench.endpoints.reweigh(endpoint, {"v": (3.0, 4)})
    with pytest.raises(InvalidRequest, match="in-progress"):
        bench.endpoints.reweigh(endpoint, {"v": (1.0, None)})
    await bench.at_rest(endpoint)
    variant = endpoint.fleet.variants[0]
    assert (variant.weight, variant.wanted, len(variant.copies)) == (3.0, 4, 4)
    bench.endpoints.reweigh(endpoint, {"v": (None, 1)})
    await bench.at_rest(endpoint)
    assert len(variant.copies) == 1
    with pytest.raises(InvalidRequest, match="does not exist"):
        bench.endpoints.reweigh(endpoint, {"w": (1.0, None)})


async def test_load_scales_between_the_limits_and_back(bench: Bench) -> None:
    scaling = {"Status": "ENABLED", "MinInstanceCount": 1, "MaxInstanceCount": 3}
    endpoint = await bench.made(plan("one", ManagedInstanceScaling=scaling))
    variant = endpoint.fleet.variants[0]
    variant.slots = 2
    now = variant.active_at
    variant.copies[0].in_flight = 5
    bench.endpoints.copies.scale(ME, "e", variant, now)
    await until(lambda: len(variant.copies) == 3)
    variant.copies[0].in_flight = 100
    bench.endpoints.copies.scale(ME, "e", variant, now + 1)
    await asyncio.sleep(0.05)
    assert len(variant.copies) == 3
    variant.copies[0].in_flight = 0
    bench.endpoints.copies.scale(ME, "e", variant, now + 30)  # the peak still holds
    assert len(variant.copies) == 3
    bench.endpoints.copies.scale(ME, "e", variant, now + 1000)
    assert len(variant.copies) == 1


async def test_a_deleted_endpoint_is_forgotten(bench: Bench) -> None:
    endpoint = await bench.made(plan("one"))
    bench.endpoints.delete(endpoint)
    await until(lambda: bench.endpoints.find(ME, "e") is None)

    assert bench.kept[-1] == "deleted"
