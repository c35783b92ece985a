"""What happens beside an answer: shadows, captures, records, metering, scaling, forwards, calls that outlast a stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from tests.support.sagemaker import (
    WAIT,
    ask,
    copies,
    create_config,
    create_endpoint,
    create_model,
    delete_endpoint,
    in_service,
    proxies,
    put_bundle,
)
from tests.support.server import Server, wait_for


@pytest.fixture(scope="module")
def shadowed(server: Server, model: str) -> Iterator[str]:
    """An endpoint with a script, a shadow of the same weight, and every request captured."""
    create_model(server, "tr-main", model, put_bundle(server, "tr-main"))
    create_model(server, "tr-shadow", model, put_bundle(server, "tr-shadow"))
    server.client("sagemaker").create_endpoint_config(
        EndpointConfigName="tr-shadowed",
        ProductionVariants=[{"VariantName": "main", "ModelName": "tr-main", "InitialInstanceCount": 1}],
        ShadowProductionVariants=[{"VariantName": "shadow", "ModelName": "tr-shadow", "InitialInstanceCount": 1}],
        DataCaptureConfig={
            "EnableCapture": True,
            "InitialSamplingPercentage": 100,
            "DestinationS3Uri": "s3://captures/of",
            "CaptureOptions": [{"CaptureMode": "InputAndOutput"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
        },
    )
    create_endpoint(server, "shadowed", "tr-shadowed")
    yield "shadowed"
    delete_endpoint(server, "shadowed")


def captured(server: Server, endpoint: str, variant: str) -> list[dict[str, Any]]:
    folder = server.home / "buckets" / "captures" / "of" / endpoint / variant
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines()]


def test_a_shadow_is_asked_the_same_and_answers_nobody(server: Server, shadowed: str) -> None:
    answer, found = ask(server, shadowed, {"question": "Why?"}, InferenceId="capture-me")

    assert (answer["version"], found["InvokedProductionVariant"]) == ("tr-main", "main")
    wait_for(lambda: bool(captured(server, shadowed, "shadow")), 30)
    (main,), (shadow,) = captured(server, shadowed, "main"), captured(server, shadowed, "shadow")
    assert main["eventMetadata"]["inferenceId"] == "capture-me"
    assert json.loads(main["captureData"]["endpointInput"]["data"]) == {"question": "Why?"}
    assert json.loads(main["captureData"]["endpointOutput"]["data"])["version"] == "tr-main"
    assert json.loads(shadow["captureData"]["endpointOutput"]["data"])["version"] == "tr-shadow"
    shown = server.client("sagemaker").describe_endpoint(EndpointName=shadowed)
    assert shown["ShadowProductionVariants"][0]["VariantName"] == "shadow"
    assert shown["DataCaptureConfig"]["CaptureStatus"] == "Started"
    with pytest.raises(ClientError, match="not found in endpoint"):
        ask(server, shadowed, {"question": "Why?"}, TargetVariant="shadow")


def test_an_answer_is_recorded_timed_metered_and_counted_for_its_caller(server: Server, shadowed: str) -> None:
    _, found = ask(server, shadowed, {"question": "Why?"})
    headers = found["ResponseMetadata"]["HTTPHeaders"]
    assert "total;dur=" in headers["x-outcrop-timing"]

    record = server.admin(f"/outcrop/v1/requests/{headers['x-amzn-requestid']}")["request"]
    assert record["operation"] == "InvokeEndpoint"
    assert record["model"] == "endpoint/shadowed"
    assert record["principal"] == server.credentials.user_arn
    assert (record["outcome"], record["attempts"][0]["copy_id"][:3]) == ("ok", "px-")
    with pytest.raises(ClientError):
        ask(server, shadowed, {"fail": "no", "status": 400})
    last = server.admin("/outcrop/v1/requests?limit=5")["requests"]
    assert ("InvokeEndpoint", "ModelError", 424) in [(r["operation"], r["outcome"], r["status"]) for r in last]
    behind = next(row for row in last if row["operation"] == "InvokeModel")
    detail = server.admin(f"/outcrop/v1/requests/{behind['request_id']}")["request"]
    assert detail["principal"] == "arn:aws:sts::000000000000:assumed-role/outcrop-endpoint/shadowed"

    usage = server.admin(f"/outcrop/v1/usage/{(int(time.time()) - 7200) * 1000}/{(int(time.time()) + 7200) * 1000}")
    (id_,) = [key for key, model in usage["models"].items() if model["name"] == "proxies of shadowed"]
    rows = [row for row in usage["rows"] if row["model_id"] == id_]
    assert sum(row["idle_ms"] for row in rows) > 0
    assert sum(row["windows"] + row["window_units"] for row in rows) == 0
    assert sum(row["requests"] for row in rows if row["principal"] == server.credentials.user_arn) > 0


def test_the_key_of_a_proxy_asks_models_and_nothing_else(server: Server, shadowed: str, model: str) -> None:
    environment = Path(f"/proc/{copies(server, shadowed)[0]['pid']}/environ").read_bytes().decode().split("\0")
    found = dict(line.partition("=")[::2] for line in environment if "=" in line)
    text = Path(found["AWS_SHARED_CREDENTIALS_FILE"]).read_text()
    keys = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    assert keys["aws_access_key_id"] != server.credentials.access_key_id

    def client(service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=server.url,
            region_name="us-east-1",
            aws_access_key_id=keys["aws_access_key_id"],
            aws_secret_access_key=keys["aws_secret_access_key"],
        )

    body = json.dumps({"prompt": "x", "max_tokens": 1})
    assert client("bedrock-runtime").invoke_model(modelId=model, body=body)["body"].read()
    for call in (
        lambda: client("bedrock").delete_imported_model(modelIdentifier=model),
        lambda: client("bedrock").list_model_import_jobs(),
        lambda: client("sagemaker").list_models(),
        lambda: client("sagemaker-runtime").invoke_endpoint(EndpointName=shadowed, Body=b"{}"),
    ):
        with pytest.raises(ClientError, match="is not authorized to perform") as caught:
            call()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_copy_that_is_killed_is_started_again_while_another_answers(server: Server, model: str) -> None:
    create_model(server, "tr-pair", model, put_bundle(server, "tr-pair"))
    variants = [{"VariantName": "v", "ModelName": "tr-pair", "InitialInstanceCount": 2}]
    server.client("sagemaker").create_endpoint_config(EndpointConfigName="tr-pair", ProductionVariants=variants)
    create_endpoint(server, "paired", "tr-pair")
    try:
        first, second = copies(server, "paired")
        assert first["pid"] != second["pid"]
        os.kill(first["pid"], signal.SIGKILL)
        for _ in range(5):
            assert ask(server, "paired", {"question": "Why?"})[0]["version"] == "tr-pair"
        wait_for(
            lambda: [c["restarts"] for c in copies(server, "paired") if c["state"] == "ready"] in ([1, 0], [0, 1]), 40
        )
        log = server.admin(f"/outcrop/v1/endpoints/paired/logs/{second['copy_id']}")
        assert second["copy_id"] in log["copies"]
    finally:
        delete_endpoint(server, "paired")


def test_load_brings_copies_up_to_the_most_and_no_further(server: Server, model: str) -> None:
    server.client("sagemaker").create_model(
        ModelName="tr-scaled",
        PrimaryContainer={
            "ModelDataUrl": slow_bundle(server),
            "Environment": {"OUTCROP_PROXY_TARGET": model, "OUTCROP_ENDPOINT_CONCURRENCY": "1"},
        },
    )
    scaling = {"Status": "ENABLED", "MinInstanceCount": 1, "MaxInstanceCount": 2}
    variants = [
        {
            "VariantName": "v",
            "ModelName": "tr-scaled",
            "InitialInstanceCount": 1,
            "ManagedInstanceScaling": scaling,
        }
    ]
    server.client("sagemaker").create_endpoint_config(EndpointConfigName="tr-scaled", ProductionVariants=variants)
    create_endpoint(server, "scaled", "tr-scaled")
    try:
        callers = [threading.Thread(target=ask, args=(server, "scaled", {"sleep_s": 8})) for _ in range(4)]
        for caller in callers:
            caller.start()
        wait_for(lambda: sum(copy["state"] == "ready" for copy in copies(server, "scaled")) == 2, 30)
        for caller in callers:
            caller.join()
        shown = in_service(server, "scaled")["ProductionVariants"][0]
        assert (shown["DesiredInstanceCount"], shown["CurrentInstanceCount"]) == (1, 2)
    finally:
        delete_endpoint(server, "scaled")


def slow_bundle(server: Server) -> str:
    """A bundle whose script takes as long as it is told and asks no model."""
    import io
    import tarfile

    script = (
        b"import asyncio\n\n\nasync def predict(request, ctx):\n"
        b'    await asyncio.sleep(request.json().get("sleep_s", 0))\n    return {"slept": True}\n'
    )
    place = server.home / "buckets" / "bundles" / "slow.tar.gz"
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w:gz") as archive:
        entry = tarfile.TarInfo("model.py")
        entry.size = len(script)
        archive.addfile(entry, io.BytesIO(script))
    return "s3://bundles/slow.tar.gz"


def test_variants_forward_to_another_endpoint_and_to_an_openai_api(server: Server, model: str, shadowed: str) -> None:
    keys = server.credentials
    sagemaker = server.client("sagemaker")
    elsewhere = {
        "OUTCROP_FORWARD_TO": f"sagemaker:{shadowed}",
        "OUTCROP_FORWARD_URL": server.url,
        "AWS_ACCESS_KEY_ID": keys.access_key_id,
        "AWS_SECRET_ACCESS_KEY": keys.secret_access_key,
    }
    name = server.client("bedrock").get_imported_model(modelIdentifier=model)["modelName"]
    openai = {
        "OUTCROP_FORWARD_TO": f"openai:{name}",
        "OUTCROP_FORWARD_URL": f"{server.url}/v1",
        "OUTCROP_FORWARD_KEY": keys.bearer_key,
    }
    sagemaker.create_model(ModelName="tr-elsewhere", PrimaryContainer={"Environment": elsewhere})
    sagemaker.create_model(ModelName="tr-openai", PrimaryContainer={"Environment": openai})
    create_config(server, "tr-forwards", {"tr-elsewhere": 1, "tr-openai": 0})
    create_endpoint(server, "forwards", "tr-forwards")
    try:
        answer, _ = ask(server, "forwards", {"question": "Why?"})
        assert answer["version"] == "tr-main"
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        answer, _ = ask(server, "forwards", chat, TargetVariant="v-tr-openai")
        assert answer["object"] == "chat.completion"
        with pytest.raises(ClientError) as caught:
            ask(server, "forwards", {"fail": "no", "status": 413})
        assert caught.value.response["OriginalStatusCode"] == 413
        stream = server.client("sagemaker-runtime").invoke_endpoint_with_response_stream(
            EndpointName="forwards", Body=json.dumps({"question": "Why?", "stream": True}), Accept="text/event-stream"
        )
        assert set(b"".join(event["PayloadPart"]["Bytes"] for event in stream["Body"])) == {ord("|")}
        assert [copy["state"] for copy in copies(server, "forwards")] == ["forward", "forward"]
    finally:
        delete_endpoint(server, "forwards")
    with pytest.raises(ClientError, match="neither sagemaker:"):
        sagemaker.create_model(
            ModelName="tr-odd", PrimaryContainer={"Environment": {"OUTCROP_FORWARD_TO": "ftp:somewhere"}}
        )
    own = {"OUTCROP_PROXY_TARGET": "m", "OUTCROP_PROXY_KEY": "x"}
    with pytest.raises(ClientError, match="which the server chooses"):
        sagemaker.create_model(ModelName="tr-odd", PrimaryContainer={"Environment": own})


def test_accepted_asynchronous_calls_outlast_a_killed_server(tmp_path: Path, tiny: Path) -> None:
    server = Server(tmp_path / "home", cpu_threads=1).start()
    try:
        arn = server.import_model(tiny, "later")
        container = {"ModelDataUrl": slow_bundle(server), "Environment": {"OUTCROP_PROXY_TARGET": arn}}
        server.client("sagemaker").create_model(ModelName="later", PrimaryContainer=container)
        output = {"OutputConfig": {"S3OutputPath": "s3://later/out"}}
        create_config(server, "later", {"later": 1}, AsyncInferenceConfig=output)
        create_endpoint(server, "later", "later")
        runtime = server.client("sagemaker-runtime")
        places = [
            runtime.invoke_endpoint_async(EndpointName="later", Body=json.dumps({"sleep_s": 3}).encode())[
                "OutputLocation"
            ]
            for _ in range(3)
        ]
        server.kill()
        wait_for(lambda: not proxies(server), 20)
        outputs = [server.home / "buckets" / place.removeprefix("s3://") for place in places]
        assert not any(path.exists() for path in outputs)
        server.start()
        server.client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName="later", WaiterConfig=WAIT)
        wait_for(lambda: all(path.exists() for path in outputs), 60)
        assert [json.loads(path.read_text()) for path in outputs] == [{"slept": True}] * 3
        wait_for(lambda: list((server.home / "async").iterdir()) == [], 10)
    finally:
        server.stop()
