"""SageMaker endpoints over plain boto3: made, invoked, updated under load, kept over a restart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.sagemaker import (
    WAIT,
    ask,
    create_config,
    create_endpoint,
    create_model,
    in_service,
    proxies,
    put_bundle,
)
from tests.support.server import Server, wait_for


@pytest.fixture(scope="module")
def endpoint(server: Server, model: str) -> Iterator[str]:
    """An endpoint of two variants: a script (weight 1), and the model as it is (weight 0)."""
    create_model(server, "sm-one", model, put_bundle(server, "one"))
    create_model(server, "sm-plain", model)
    output = {"S3OutputPath": "s3://sm-out/answers", "S3FailurePath": "s3://sm-out/failures"}
    create_config(server, "sm-config", {"sm-one": 1, "sm-plain": 0}, AsyncInferenceConfig={"OutputConfig": output})
    create_endpoint(server, "reviews", "sm-config")
    yield "reviews"
    sagemaker = server.client("sagemaker")
    sagemaker.delete_endpoint(EndpointName="reviews")
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="reviews", WaiterConfig=WAIT)


def test_an_endpoint_runs_the_script_of_its_bundle_in_front_of_the_model(server: Server, endpoint: str) -> None:
    answer, found = ask(server, endpoint, {"question": "Why?"}, CustomAttributes="c=1")

    assert answer["version"] == "one"
    assert found["InvokedProductionVariant"] == "v-sm-one"
    assert found["CustomAttributes"] == "version=one;c=1"
    assert found["ContentType"] == "application/json"


def test_a_target_variant_goes_over_the_weights_and_the_model_as_it_is_takes_any_shape(
    server: Server, endpoint: str
) -> None:
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}
    answer, found = ask(server, endpoint, body, TargetVariant="v-sm-plain")

    assert found["InvokedProductionVariant"] == "v-sm-plain"
    assert list(answer[0]) == ["generated_text"]
    with pytest.raises(ClientError, match="not found in endpoint"):
        ask(server, endpoint, body, TargetVariant="v-other")


def test_what_a_container_refuses_is_a_model_error_with_its_status_and_body(server: Server, endpoint: str) -> None:
    runtime = server.client("sagemaker-runtime")
    with pytest.raises(runtime.exceptions.ModelError) as caught:
        runtime.invoke_endpoint(EndpointName=endpoint, Body=json.dumps({"fail": "too long", "status": 413}))

    said = caught.value.response
    assert said["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert said["OriginalStatusCode"] == 413
    assert json.loads(said["OriginalMessage"]) == {
        "message": "preprocess (code/inference.py:10): Refuse: too long",
        "handler": "preprocess",
        "file": "code/inference.py",
        "line": 10,
        "type": "Refuse",
    }
    assert said["Error"]["Message"].startswith("Received client error (413) from primary with message")


def test_a_stream_arrives_as_payload_parts(server: Server, endpoint: str) -> None:
    found = server.client("sagemaker-runtime").invoke_endpoint_with_response_stream(
        EndpointName=endpoint, Body=json.dumps({"question": "Why?", "stream": True}), Accept="text/event-stream"
    )

    parts = b"".join(event["PayloadPart"]["Bytes"] for event in found["Body"])
    assert set(parts) == {ord("|")}
    assert found["InvokedProductionVariant"] == "v-sm-one"


def test_an_asynchronous_invocation_leaves_its_answer_or_its_failure_in_the_bucket(
    server: Server, endpoint: str
) -> None:
    runtime = server.client("sagemaker-runtime")
    source = server.home / "buckets" / "sm-in" / "question.json"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(json.dumps({"question": "Why?"}))

    def place(uri: str) -> Path:
        return server.home / "buckets" / uri.removeprefix("s3://")

    found = runtime.invoke_endpoint_async(EndpointName=endpoint, InputLocation="s3://sm-in/question.json")
    assert found["ResponseMetadata"]["HTTPStatusCode"] == 202
    wait_for(lambda: place(found["OutputLocation"]).exists(), 30)
    assert json.loads(place(found["OutputLocation"]).read_text())["version"] == "one"
    source.write_text(json.dumps({"fail": "no", "status": 400}))
    failed = runtime.invoke_endpoint_async(EndpointName=endpoint, InputLocation="s3://sm-in/question.json")
    wait_for(lambda: place(failed["FailureLocation"]).exists(), 30)
    assert "no" in place(failed["FailureLocation"]).read_text()
    with pytest.raises(ClientError, match="Could not find the input"):
        runtime.invoke_endpoint_async(EndpointName=endpoint, InputLocation="s3://sm-in/nothing.json")


def quota(server: Server, name: str, value: int | None, **scope: str) -> None:
    body = {"account": server.credentials.account, "quota": name, "value": value, **scope}
    server.admin("/outcrop/v1/access/quotas", "PUT", body)


def used(server: Server) -> dict[tuple[str, str], int]:
    rows = server.admin("/outcrop/v1/access/quotas")["quotas"]
    return {(row["quota"], row["principal"] or row["model"]): row["used"] for row in rows}


def test_calls_of_an_endpoint_count_once_and_their_tokens_are_the_caller_s(server: Server, endpoint: str) -> None:
    user = server.credentials.user_arn
    scopes = ({}, {"principal": user}, {"model": f"endpoint/{endpoint}"})
    # Buckets fill while the test runs, so numbers are bounds.
    limits = {"requests-per-minute": 5, "tokens-per-minute": 300, "concurrent-requests": 1}
    try:
        for scope in scopes:
            for name, value in limits.items():
                quota(server, name, value, **scope)
        quota(server, "copies", 1)
        for _ in range(2):  # the account may have one request at a time, and the proxy's own does not take its place
            ask(server, endpoint, {"question": "Why?"})
        runtime = server.client("sagemaker-runtime")
        stream = runtime.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=b'{"question":"Why?"}')
        assert b"".join(event["PayloadPart"]["Bytes"] for event in stream["Body"])
        runtime.invoke_endpoint_async(EndpointName=endpoint, Body=b'{"question":"Why?"}')
        wait_for(lambda: used(server)["concurrent-requests", ""] == 0)
        found = used(server)
        assert found["copies", ""] >= 1
        for whose in ("", user, f"endpoint/{endpoint}"):
            assert 2 <= found["requests-per-minute", whose] <= 4
            assert found["concurrent-requests", whose] == 0
            assert found["tokens-per-minute", whose] > 12

        def ask_often() -> None:
            for _ in range(5):
                ask(server, endpoint, {"question": "Why?"})

        with pytest.raises(ClientError) as refused:
            ask_often()
        assert refused.value.response["Error"]["Code"] == "ThrottlingException"
        assert "requests-per-minute" in str(refused.value)
        assert int(refused.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) > 0
        quota(server, "requests-per-minute", 0)
        with pytest.raises(ClientError, match="requests-per-minute"):
            runtime.invoke_endpoint_async(EndpointName=endpoint, Body=b'{"question":"Why?"}')
    finally:
        quota(server, "copies", None)
        for scope in scopes:
            for name in limits:
                quota(server, name, None, **scope)
    assert used(server) == {}


def test_an_asynchronous_call_of_a_migrated_name_is_judged_by_what_came_of_it(
    server: Server, model: str, endpoint: str
) -> None:
    step = {"kind": "live", "percent": 100, "hold_s": 3600, "min_requests": 1}
    plan = {"name": "async-name", "source": f"bedrock:{model}", "target": f"sagemaker:{endpoint}", "steps": [step]}
    server.admin("/outcrop/v1/migrations", "POST", plan)
    path = "/outcrop/v1/migrations/async-name"
    wait_for(lambda: server.admin(path)["phase"] == "running", 20)
    runtime = server.client("sagemaker-runtime")

    for body in ({"question": "Why?"}, {"fail": "broken", "status": 500}):
        runtime.invoke_endpoint_async(EndpointName="async-name", Body=json.dumps(body))
    wait_for(lambda: server.admin(path)["totals"]["target"]["requests"] == 2, 30)

    told = server.admin(path)
    assert told["totals"]["target"]["failed"] == 1
    assert told["window"]["target"]["errors"] == {"AsyncInvocation500": 1}
    server.admin(f"{path}/abort", "POST", {})
    server.admin(path, method="DELETE")


def test_an_endpoint_that_is_not_there_is_a_validation_error(server: Server) -> None:
    with pytest.raises(ClientError) as caught:
        ask(server, "nobody", {})

    assert caught.value.response["Error"]["Code"] == "ValidationError"
    assert "Endpoint nobody of account 000000000000 not found" in str(caught.value)
    with pytest.raises(
        ClientError, match='Could not find endpoint "arn:aws:sagemaker:us-east-1:000000000000:endpoint/'
    ):
        server.client("sagemaker").describe_endpoint(EndpointName="nobody")


def test_weights_are_changed_at_once(server: Server, endpoint: str) -> None:
    sagemaker = server.client("sagemaker")
    try:
        sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=endpoint,
            DesiredWeightsAndCapacities=[
                {"VariantName": "v-sm-one", "DesiredWeight": 0},
                {"VariantName": "v-sm-plain", "DesiredWeight": 3},
            ],
        )
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=WAIT)
        _, found = ask(server, endpoint, {"prompt": "x", "max_tokens": 2})
        assert found["InvokedProductionVariant"] == "v-sm-plain"
        shown = sagemaker.describe_endpoint(EndpointName=endpoint)["ProductionVariants"]
        assert [(v["VariantName"], v["CurrentWeight"]) for v in shown] == [("v-sm-one", 0), ("v-sm-plain", 3)]
    finally:
        sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=endpoint,
            DesiredWeightsAndCapacities=[
                {"VariantName": "v-sm-one", "DesiredWeight": 1},
                {"VariantName": "v-sm-plain", "DesiredWeight": 0},
            ],
        )
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=WAIT)


def test_an_update_fails_no_request_and_one_that_does_not_start_leaves_the_old_version(
    server: Server, model: str, endpoint: str
) -> None:
    sagemaker = server.client("sagemaker")
    create_model(server, "sm-two", model, put_bundle(server, "two"))
    create_config(server, "sm-config-two", {"sm-two": 1})
    versions: list[str] = []
    failures: list[str] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            try:
                versions.append(ask(server, endpoint, {"question": "Why?"})[0]["version"])
            except Exception as exc:
                failures.append(str(exc))

    callers = [threading.Thread(target=load) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        canary = {"Type": "CAPACITY_PERCENT", "Value": 50}
        routing = {"Type": "CANARY", "WaitIntervalInSeconds": 2, "CanarySize": canary}
        sagemaker.update_endpoint(
            EndpointName=endpoint,
            EndpointConfigName="sm-config-two",
            DeploymentConfig={"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}},
        )
        assert sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"] == "Updating"
        with pytest.raises(ClientError, match="in-progress"):
            sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="sm-config")
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=WAIT)
        time.sleep(0.5)
    finally:
        is_over.set()
        for caller in callers:
            caller.join()
    assert failures == []
    first_two = versions.index("two")
    assert "one" in versions[first_two:]  # both answered while the canary had half of the traffic
    assert versions[-1] == "two"

    create_model(server, "sm-broken", model, "s3://bundles/nowhere/model.tar.gz")
    create_config(server, "sm-config-broken", {"sm-broken": 1})
    sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="sm-config-broken")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=WAIT)
    shown = sagemaker.describe_endpoint(EndpointName=endpoint)
    assert shown["EndpointConfigName"] == "sm-config-two"
    assert "Could not find model data at s3://bundles/nowhere/model.tar.gz" in shown["FailureReason"]
    sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="sm-config")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=WAIT)


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ({"Image": "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl:1"}, "is not run: this server runs no containers"),
        ({"Environment": {}}, "OUTCROP_PROXY_TARGET"),
        ({"Environment": {"OUTCROP_PROXY_TARGET": "m"}, "ModelDataUrl": "https://example/x"}, "is not s3://"),
        ({"Environment": {"OUTCROP_PROXY_TARGET": "m"}, "ModelDataUrl": "s3://b/../../etc/x"}, "is not s3://"),
    ],
)
def test_a_model_that_cannot_run_here_is_refused_by_name(server: Server, container: dict[str, Any], said: str) -> None:
    with pytest.raises(ClientError) as caught:
        server.client("sagemaker").create_model(ModelName="sm-refused", PrimaryContainer=container)

    assert caught.value.response["Error"]["Code"] == "ValidationException"
    assert said in str(caught.value)


def test_models_and_configurations_are_listed_described_tagged_and_deleted(server: Server) -> None:
    sagemaker = server.client("sagemaker")
    container = {"Environment": {"OUTCROP_PROXY_TARGET": "tiny"}}
    arns = [
        sagemaker.create_model(
            ModelName=f"sm-Listed-{number}", PrimaryContainer=container, Tags=[{"Key": "k", "Value": str(number)}]
        )["ModelArn"]
        for number in range(3)
    ]
    with pytest.raises(ClientError, match="already existing"):
        sagemaker.create_model(ModelName="sm-Listed-0", PrimaryContainer=container)
    pages = sagemaker.get_paginator("list_models").paginate(
        NameContains="sm-listed", SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 2}
    )
    assert [model["ModelName"] for page in pages for model in page["Models"]] == [f"sm-Listed-{n}" for n in range(3)]
    assert (
        sagemaker.describe_model(ModelName="sm-Listed-1")["PrimaryContainer"]["Environment"] == container["Environment"]
    )
    sagemaker.add_tags(ResourceArn=arns[1], Tags=[{"Key": "a", "Value": "b"}])
    sagemaker.delete_tags(ResourceArn=arns[1], TagKeys=["k"])
    assert sagemaker.list_tags(ResourceArn=arns[1])["Tags"] == [{"Key": "a", "Value": "b"}]
    for number in range(3):
        sagemaker.delete_model(ModelName=f"sm-Listed-{number}")
    with pytest.raises(ClientError, match="Could not find model"):
        sagemaker.describe_model(ModelName="sm-Listed-1")
    with pytest.raises(ClientError, match="not implemented"):
        sagemaker.list_notebook_instances()


def test_an_endpoint_is_there_again_after_a_restart(tmp_path: Path, tiny: Path) -> None:
    server = Server(tmp_path / "home", cpu_threads=1).start()
    try:
        arn = server.import_model(tiny, "kept")
        create_model(server, "kept-model", arn, put_bundle(server, "kept"))
        sagemaker = server.client("sagemaker")
        scaling = {"Status": "ENABLED", "MinInstanceCount": 1, "MaxInstanceCount": 3}
        variant = {"VariantName": "v", "ModelName": "kept-model", "ManagedInstanceScaling": scaling}
        sagemaker.create_endpoint_config(EndpointConfigName="kept-config", ProductionVariants=[variant])
        create_endpoint(server, "kept", "kept-config")
        sagemaker.update_endpoint_weights_and_capacities(
            EndpointName="kept", DesiredWeightsAndCapacities=[{"VariantName": "v", "DesiredInstanceCount": 2}]
        )
        in_service(server, "kept")
        assert len(proxies(server)) > 0
        server.kill()
        wait_for(lambda: not proxies(server), 20)  # a killed server leaves no proxy behind
        server.start()
        server.client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName="kept", WaiterConfig=WAIT)
        assert ask(server, "kept", {"question": "Still?"})[0]["version"] == "kept"
        (found,) = in_service(server, "kept")["ProductionVariants"]
        assert (found["DesiredInstanceCount"], found["CurrentInstanceCount"]) == (2, 2)
    finally:
        server.stop()
