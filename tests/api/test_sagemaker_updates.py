"""UpdateEndpoint over plain boto3: alarms that roll back, batches, what is retained, what is pending."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.sagemaker import (
    ask,
    copies,
    create_config,
    create_endpoint,
    create_model,
    delete_endpoint,
    in_service,
    put_bundle,
)
from tests.support.server import Server, wait_for

AT_ONCE = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}


def put_alarm(server: Server, name: str, **fields: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{server.url}/outcrop/v1/alarms/{name}",
        json.dumps(fields).encode(),
        {"Authorization": f"Bearer {server.credentials.bearer_key}"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        found: dict[str, Any] = json.load(response)
    return found


@pytest.fixture(scope="module")
def endpoint(server: Server, model: str) -> Iterator[str]:
    """An endpoint that runs version one, with version two and a broken version beside."""
    for version in ("one", "two"):
        create_model(server, f"up-{version}", model, put_bundle(server, f"up-{version}"))
        create_config(server, f"up-config-{version}", {f"up-{version}": 1})
    create_endpoint(server, "updated", "up-config-one")
    yield "updated"
    delete_endpoint(server, "updated")


def test_an_alarm_that_fires_while_the_new_version_bakes_brings_the_old_one_back(server: Server, endpoint: str) -> None:
    sagemaker = server.client("sagemaker")
    put_alarm(server, "up-errors", EndpointName=endpoint, MetricName="Invocation4XXErrors", Threshold=0, Period=30)
    assert server.admin("/outcrop/v1/alarms/up-errors")["StateValue"] == "INSUFFICIENT_DATA"
    size = {"Type": "CAPACITY_PERCENT", "Value": 50}
    routing = {"Type": "CANARY", "WaitIntervalInSeconds": 120, "CanarySize": size}
    sagemaker.update_endpoint(
        EndpointName=endpoint,
        EndpointConfigName="up-config-two",
        DeploymentConfig={
            "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing},
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "up-errors"}]},
        },
    )

    def pending() -> dict[str, Any]:
        found: dict[str, Any] = sagemaker.describe_endpoint(EndpointName=endpoint)
        return found

    wait_for(lambda: _phase(pending()) == "Baking", 60)
    found = pending()["PendingDeploymentSummary"]
    assert found["EndpointConfigName"] == "up-config-two"
    assert found["ProductionVariants"][0]["CurrentWeight"] == 0.5
    with pytest.raises(ClientError):
        ask(server, endpoint, {"fail": "no", "status": 400})
    found = in_service(server, endpoint)

    assert found["EndpointConfigName"] == "up-config-one"
    assert "rolled back: alarm up-errors: Invocation4XXErrors (Sum, 30 s) was 1" in found["FailureReason"]
    assert "PendingDeploymentSummary" not in found
    assert ask(server, endpoint, {"question": "Why?"})[0]["version"] == "up-one"


def _phase(found: dict[str, Any]) -> str:
    summary = found.get("PendingDeploymentSummary")
    return "" if summary is None else str(summary["ProductionVariants"][0]["VariantStatus"][0]["Status"])


def test_an_update_that_names_an_alarm_which_is_not_there_does_not_begin(server: Server, endpoint: str) -> None:
    with pytest.raises(ClientError, match="alarms that do not exist: nothing"):
        server.client("sagemaker").update_endpoint(
            EndpointName=endpoint,
            EndpointConfigName="up-config-two",
            DeploymentConfig={
                "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": AT_ONCE},
                "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "nothing"}]},
            },
        )
    assert server.client("sagemaker").describe_endpoint(EndpointName=endpoint)["EndpointStatus"] == "InService"


def test_a_rolling_update_replaces_batch_by_batch_and_fails_no_request(server: Server, endpoint: str) -> None:
    sagemaker = server.client("sagemaker")
    for version in ("one", "two"):
        variants = [{"VariantName": "v", "ModelName": f"up-{version}", "InitialInstanceCount": 2}]
        sagemaker.create_endpoint_config(EndpointConfigName=f"up-pair-{version}", ProductionVariants=variants)
    sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="up-pair-one")
    assert in_service(server, endpoint)["ProductionVariants"][0]["DesiredInstanceCount"] == 2
    failures: list[str] = []
    versions: list[str] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            try:
                versions.append(ask(server, endpoint, {"question": "Why?"})[0]["version"])
            except Exception as exc:
                failures.append(str(exc))

    caller = threading.Thread(target=load)
    caller.start()
    try:
        batch = {"Type": "INSTANCE_COUNT", "Value": 1}
        policy = {"MaximumBatchSize": batch, "WaitIntervalInSeconds": 1}
        sagemaker.update_endpoint(
            EndpointName=endpoint,
            EndpointConfigName="up-pair-two",
            DeploymentConfig={"RollingUpdatePolicy": policy},
        )
        wait_for(lambda: _share(server, endpoint) == 0.5, 60)
        found = in_service(server, endpoint)
    finally:
        is_over.set()
        caller.join()

    assert failures == []
    assert found["EndpointConfigName"] == "up-pair-two"
    assert found["LastDeploymentConfig"]["RollingUpdatePolicy"]["MaximumBatchSize"] == batch
    assert versions[-1] == "up-two"
    wait_for(lambda: len(copies(server, endpoint)) == 2, 30)


def _share(server: Server, endpoint: str) -> float | None:
    summary = server.client("sagemaker").describe_endpoint(EndpointName=endpoint).get("PendingDeploymentSummary")
    return None if summary is None else summary["ProductionVariants"][0]["CurrentWeight"]


def test_weights_and_counts_are_retained_but_for_what_is_excluded(server: Server, endpoint: str) -> None:
    sagemaker = server.client("sagemaker")
    for name in ("up-kept-a", "up-kept-b"):
        variants = [{"VariantName": "v", "ModelName": "up-one", "InitialInstanceCount": 1}]
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="up-kept-a")
    in_service(server, endpoint)
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=endpoint,
        DesiredWeightsAndCapacities=[{"VariantName": "v", "DesiredWeight": 7, "DesiredInstanceCount": 2}],
    )
    assert in_service(server, endpoint)["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    with pytest.raises(ClientError, match="goes with RetainAllVariantProperties"):
        sagemaker.update_endpoint(
            EndpointName=endpoint,
            EndpointConfigName="up-kept-b",
            ExcludeRetainedVariantProperties=[{"VariantPropertyType": "DesiredWeight"}],
        )
    sagemaker.update_endpoint(
        EndpointName=endpoint,
        EndpointConfigName="up-kept-b",
        RetainAllVariantProperties=True,
        ExcludeRetainedVariantProperties=[{"VariantPropertyType": "DesiredInstanceCount"}],
    )
    (variant,) = in_service(server, endpoint)["ProductionVariants"]

    assert (variant["CurrentWeight"], variant["DesiredInstanceCount"]) == (7, 1)


def test_alarms_are_refused_by_field_listed_and_removed(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        put_alarm(server, "up-odd", EndpointName="e", MetricName="Nothing", Threshold=1)
    assert b"MetricName" in caught.value.read()
    put_alarm(server, "up-kept", EndpointName="e", MetricName="ModelLatency", Threshold=1, Statistic="p99")
    put_alarm(server, "up-kept", EndpointName="e", MetricName="ModelLatency", Threshold=2, Statistic="p95")
    found = server.admin("/outcrop/v1/alarms")["alarms"]
    assert [(a["Threshold"], a["Statistic"]) for a in found if a["AlarmName"] == "up-kept"] == [(2, "p95")]
    server.admin("/outcrop/v1/alarms/up-kept", method="DELETE")
    with pytest.raises(urllib.error.HTTPError):
        server.admin("/outcrop/v1/alarms/up-kept")
