"""What a migration does with single requests: every door, both ways of answering, shadows, fallback, what is refused."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from botocore.exceptions import ClientError
from tests.support.server import Server, wait_for
from tests.support.side import OtherService, aws_profiles, other_service

PATIENT = {"error_rate": 1, "agreement_drop": 1, "not_ready_rate": 1, "p95_ratio": 1000, "p95_slack_s": 60}


@pytest.fixture(scope="module")
def other() -> Iterator[OtherService]:
    with other_service() as service:
        yield service


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, tiny: Path, server: Server) -> Iterator[Server]:
    """A server with the model ``old`` and keys for others: ``elsewhere``, and ``far`` for the session's own server."""
    folder = tmp_path_factory.mktemp("near")
    keys = server.credentials
    far = (keys.access_key_id, keys.secret_access_key)
    (folder / "key").write_text("a-bearer-key\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_profiles(folder, elsewhere=("AKIAELSEWHERE", "s" * 40), far=far).items():
            patch.setenv(name, value)
        found = Server(folder / "home", cpu_threads=1).start()
        found.import_model(tiny, "old")
        yield found
        found.stop()


@pytest.fixture(autouse=True)
def calm(other: OtherService) -> None:
    other.__dict__.update(refusal=None, delay_s=0.0, breaks=False, text="hello there", requests=[])


def send(server: Server, method: str, path: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        server.url + path,
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {server.credentials.bearer_key}"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def refused(server: Server, **plan: Any) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        send(server, "POST", "/outcrop/v1/migrations", plan)
    with caught.value as answer:
        return str(json.load(answer)["message"])


def step(kind: str, percent: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "percent": percent, "hold_s": 3600, "min_requests": 1, **more}


def begin(server: Server, name: str, source: str, target: str, *steps: dict[str, Any], **more: Any) -> None:
    guards = {**PATIENT, **more.pop("guards", {})}
    more.setdefault("compare_percent", 0)  # nothing by chance
    last = step("live", 100)
    wanted = list(steps) if steps and steps[-1]["percent"] == 100 and steps[-1]["kind"] == "live" else [*steps, last]
    plan = {"name": name, "source": source, "target": target, "steps": wanted, "guards": guards, **more}
    send(server, "POST", "/outcrop/v1/migrations", plan)


def told(server: Server, name: str) -> Any:
    return send(server, "GET", f"/outcrop/v1/migrations/{name}")


def running(server: Server, name: str) -> None:
    """Ask until the target is warm and the first step began."""

    def is_so() -> bool:
        if told(server, name)["phase"] == "warming":
            server.client("bedrock-runtime").invoke_model(modelId=name, body=json.dumps(BODY))
        return told(server, name)["phase"] == "running"

    wait_for(is_so, 30)


@pytest.fixture
def gone(near: Server) -> Iterator[None]:
    yield
    for row in send(near, "GET", "/outcrop/v1/migrations")["migrations"]:
        if row["phase"] in ("warming", "running", "paused"):
            send(near, "POST", f"/outcrop/v1/migrations/{row['name']}/abort")
        send(near, "DELETE", f"/outcrop/v1/migrations/{row['name']}")


BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}


def bedrock(other: OtherService) -> str:
    return f"bedrock:there@{other.url}?region=us-east-1&profile=elsewhere"


@pytest.mark.usefixtures("gone")
@pytest.mark.parametrize("kind", ["bedrock", "sagemaker", "openai"])
def test_every_door_reaches_every_kind_of_side(near: Server, other: OtherService, kind: str) -> None:
    key_file = near.home.parent / "key"
    target = {
        "bedrock": bedrock(other),
        "sagemaker": f"sagemaker:there@{other.url}?region=us-east-1&profile=elsewhere",
        "openai": f"openai:there@{other.url}/v1?key_file={key_file}",
    }[kind]
    begin(near, "new-name", "bedrock:old", target)
    running(near, "new-name")
    runtime, sagemaker = near.client("bedrock-runtime"), near.client("sagemaker-runtime")

    found = runtime.invoke_model(modelId="new-name", body=json.dumps(BODY))
    assert json.loads(found["body"].read())["choices"][0]["message"]["content"] == "hello there"
    assert (
        found["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-migration"]
        == "new-name; side=target; phase=running; step=1"
    )
    events = runtime.invoke_model_with_response_stream(modelId="new-name", body=json.dumps(BODY))["body"]
    said = [json.loads(event["chunk"]["bytes"]) for event in events]
    assert "".join(_text(piece) for piece in said) == "hellothere"

    found = sagemaker.invoke_endpoint(EndpointName="new-name", Body=json.dumps(BODY), ContentType="application/json")
    assert json.loads(found["Body"].read())["choices"][0]["message"]["content"] == "hello there"
    assert found["InvokedProductionVariant"] == "target"
    events = sagemaker.invoke_endpoint_with_response_stream(EndpointName="new-name", Body=json.dumps(BODY))["Body"]
    raw = b"".join(event["PayloadPart"]["Bytes"] for event in events)
    pieces = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    assert "".join(_text(piece) for piece in pieces) == "hellothere"

    client = openai.OpenAI(base_url=f"{near.url}/v1", api_key=near.credentials.bearer_key, max_retries=0)
    chat: Any = {**BODY, "model": "new-name"}
    assert client.chat.completions.create(**chat).choices[0].message.content == "hello there"
    stream = client.chat.completions.create(**chat, stream=True)
    if kind != "bedrock":  # its pieces are in the model's own dialect, which the stand-in's is not OpenAI's
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "hellothere"
    for path, headers, _ in other.requests:
        assert path.startswith({"bedrock": "/model/there/", "sagemaker": "/endpoints/there/", "openai": "/v1/"}[kind])
        assert headers["authorization"].startswith("Bearer a-bearer-key" if kind == "openai" else "AWS4-HMAC-SHA256")


@pytest.mark.usefixtures("gone")
def test_a_response_is_split_and_followed_where_it_was_given(near: Server, other: OtherService) -> None:
    target = f"openai:there@{other.url}/v1?key_file={near.home.parent / 'key'}"
    begin(near, "answers", "bedrock:old", target)
    running(near, "answers")
    client = openai.OpenAI(base_url=f"{near.url}/v1", api_key=near.credentials.bearer_key, max_retries=0)

    first = client.responses.create(model="answers", input="Hi", max_output_tokens=16)
    assert first.output_text == "hello there"
    events = list(client.responses.create(model="answers", input="Hi", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello there"
    streamed = events[0].response.id  # type: ignore[union-attr]
    send(near, "POST", "/outcrop/v1/migrations/answers/pause")
    # A conversation stays with the side that has it, and no other service is asked about it.
    for before in (first.id, streamed):
        client.responses.create(model="answers", input="And?", previous_response_id=before)
        assert other.requests[-1][2]["previous_response_id"] == before
    send(near, "POST", "/outcrop/v1/migrations/answers/abort")
    ours = client.responses.create(model="answers", input="Hi", max_output_tokens=3)
    assert ours.output_text != "hello there"
    with pytest.raises(openai.NotFoundError, match=first.id):
        client.responses.create(model="answers", input="And?", previous_response_id=first.id)
    totals = told(near, "answers")["totals"]
    assert (totals["target"]["requests"], totals["target"]["failed"]) == (4, 0)


@pytest.mark.usefixtures("gone")
def test_tokens_documents_and_asynchronous_calls_are_split_too(near: Server, other: OtherService) -> None:
    key = "region=us-east-1&profile=elsewhere"
    begin(near, "counted", "bedrock:old", f"bedrock:there@{other.url}?{key}")
    running(near, "counted")
    counting = {"invokeModel": {"body": json.dumps(BODY).encode()}}
    asked = near.client("bedrock-runtime").count_tokens(modelId="counted", input=counting)
    assert asked["inputTokens"] == 77
    assert told(near, "counted")["totals"]["target"]["requests"] == 0

    document = {"contentType": "text/plain", "identifier": "d", "data": b"Apex is a language."}
    found = near.client("bedrock-agent-runtime").retrieve_and_generate(
        input={"text": "What is Apex?"},
        retrieveAndGenerateConfiguration={
            "type": "EXTERNAL_SOURCES",
            "externalSourcesConfiguration": {
                "modelArn": "counted",
                "sources": [{"sourceType": "BYTE_CONTENT", "byteContent": document}],
            },
        },
    )
    assert "fallback=NoSuchOperation" in found["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-migration"]

    begin(near, "later", "bedrock:old", f"sagemaker:there@{other.url}?{key}")
    running(near, "later")
    runtime = near.client("sagemaker-runtime")
    found = runtime.invoke_endpoint_async(
        EndpointName="later", InputLocation="s3://far/in", ContentType="text/csv", InvocationTimeoutSeconds=30
    )
    assert found["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert (found["OutputLocation"], found["FailureLocation"]) == ("s3://far/output", "s3://far/failure")
    path, headers, _ = other.requests[-1]
    assert path == "/endpoints/there/async-invocations"
    assert headers["x-amzn-sagemaker-inputlocation"] == "s3://far/in"
    assert headers["x-amzn-sagemaker-content-type"] == "text/csv"
    assert headers["x-amzn-sagemaker-invocationtimeoutseconds"] == "30"
    assert told(near, "later")["totals"]["target"]["requests"] == 0  # nobody here hears what came of it
    runtime.invoke_endpoint(EndpointName="later", Body=json.dumps(BODY), TargetVariant="blue")
    assert other.requests[-1][1]["x-amzn-sagemaker-target-variant"] == "blue"


def _text(piece: dict[str, Any]) -> str:
    if "choices" in piece:
        return "".join(choice.get("delta", {}).get("content") or "" for choice in piece["choices"])
    return str(piece.get("generation", ""))


@pytest.mark.usefixtures("gone")
def test_another_server_verifies_what_a_migration_signs(near: Server, server: Server, model: str) -> None:
    target = f"bedrock:{model}@{server.url}?region=us-east-1&profile=far"
    begin(near, "far-name", "bedrock:old", target)
    running(near, "far-name")
    runtime = near.client("bedrock-runtime")

    found = runtime.converse(
        modelId="far-name", messages=[{"role": "user", "content": [{"text": "Hi"}]}], inferenceConfig={"maxTokens": 3}
    )
    assert found["output"]["message"]["role"] == "assistant"
    assert "side=target" in found["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-migration"]
    events = list(
        runtime.converse_stream(modelId="far-name", messages=[{"role": "user", "content": [{"text": "Hi"}]}])["stream"]
    )
    assert "messageStop" in [next(iter(event)) for event in events]
    # What both refuse is the caller's doing, in the caller's dialect, and no failure of the target.
    with pytest.raises(ClientError) as caught:
        runtime.invoke_model(modelId="far-name", body=json.dumps({**BODY, "max_tokens": -1}))
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    totals = told(near, "far-name")["totals"]["target"]
    assert (totals["failed"], totals["refused"]) == (0, 1)


@pytest.mark.usefixtures("gone")
def test_shadows_cost_the_caller_nothing_are_compared_and_kept(near: Server, other: OtherService) -> None:
    begin(near, "shadowed", "bedrock:old", bedrock(other), step("shadow", 100), shadows_at_a_time=2)
    running(near, "shadowed")
    runtime = near.client("bedrock-runtime")
    other.go.clear()
    for _ in range(4):
        found = runtime.invoke_model(modelId="shadowed", body=json.dumps(BODY))
        assert "side=source" in found["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-migration"]
    other.go.set()  # not before all callers had their answers
    wait_for(lambda: told(near, "shadowed")["comparison"]["noise_pairs"] >= 2, 20)
    state = told(near, "shadowed")

    assert state["comparison"]["shadows_dropped"] == 2
    assert state["comparison"]["pairs"] == 2
    assert state["comparison"]["agreement"] < 0.5
    assert state["comparison"]["noise"] == 1  # at temperature 0 the source agrees with itself
    assert state["differences"][0]["target"] == "hello there"
    assert json.loads(state["differences"][0]["asked"]) == BODY
    folder = near.home / "migrations" / "shadowed"
    lines = [json.loads(line) for path in folder.rglob("pairs.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == 4
    assert len({line["eventMetadata"]["inferenceId"] for line in lines}) == 2
    assert all((path.stat().st_mode & 0o777) == 0o600 for path in folder.rglob("pairs.jsonl"))
    # A target that fails every shadow is the shadow's trouble alone.
    other.refusal = (500, "InternalServerException")
    for _ in range(3):
        runtime.invoke_model(modelId="shadowed", body=json.dumps(BODY))
    wait_for(lambda: told(near, "shadowed")["totals"]["target"]["failed"] >= 1, 10)
    assert told(near, "shadowed")["totals"]["source"]["failed"] == 0


def audited(server: Server) -> list[dict[str, Any]]:
    """The records of the audit log that name a migration."""
    paths = sorted((server.home / "logs" / "audit").glob("*.jsonl"))
    records = [json.loads(line)["record"] for path in paths for line in path.read_text().splitlines()]
    return [record for record in records if "migration" in record.get("additionalEventData", {})]


@pytest.mark.usefixtures("gone")
def test_what_another_service_is_asked_is_recorded_and_audited_copies_too(near: Server, other: OtherService) -> None:
    begin(near, "noted", "bedrock:old", bedrock(other), step("shadow", 100), noise_percent=0)
    running(near, "noted")
    place = f"bedrock:there@{other.url}"
    runtime = near.client("bedrock-runtime")
    runtime.invoke_model(modelId="noted", body=json.dumps(BODY))
    wait_for(lambda: told(near, "noted")["comparison"]["pairs"] >= 1, 20)

    records = [each for each in audited(near) if each["additionalEventData"]["migration"] == "noted"]
    ours, copied = (
        [each for each in records if ("copy" in each["additionalEventData"]) is is_copy][-1]
        for is_copy in (False, True)
    )
    assert ours["additionalEventData"] == {"migration": "noted", "side": "source"}
    assert ours["requestParameters"] == {"modelId": "noted"}
    assert copied["additionalEventData"] == {"migration": "noted", "side": "target", "sentTo": place, "copy": "true"}
    assert (copied["eventName"], copied["requestParameters"]) == ("InvokeModel", {"modelId": "there"})
    assert copied["userIdentity"]["arn"] == ours["userIdentity"]["arn"]
    assert copied["requestID"] != ours["requestID"]

    other.refusal = (503, "ServiceUnavailableException")
    runtime.invoke_model(modelId="noted", body=json.dumps(BODY))
    wait_for(lambda: audited(near)[-1].get("errorCode") == "ServiceUnavailableException", 20)
    record = near.admin(f"/outcrop/v1/requests/{copied['requestID']}")["request"]
    assert (record["model"], record["operation"], record["outcome"]) == ("migration/noted", "InvokeModel", "ok")
    assert record["attempts"][0]["copy_id"] == place
    assert (record["input_tokens"], record["output_tokens"]) == (3, 1)


@pytest.mark.usefixtures("gone")
def test_an_answer_from_elsewhere_has_its_record_times_and_metrics(near: Server, other: OtherService) -> None:
    begin(near, "far-away", "bedrock:old", bedrock(other), fallback=False)
    running(near, "far-away")
    runtime = near.client("bedrock-runtime")
    found = runtime.invoke_model(modelId="far-away", body=json.dumps(BODY))["ResponseMetadata"]
    assert "total;dur=" in found["HTTPHeaders"]["x-outcrop-timing"]
    for event in runtime.invoke_model_with_response_stream(modelId="far-away", body=json.dumps(BODY))["body"]:
        assert "chunk" in event
    other.refusal = (500, "InternalServerException")
    with pytest.raises(ClientError):
        runtime.invoke_model(modelId="far-away", body=json.dumps(BODY))

    records = [row for row in near.admin("/outcrop/v1/requests")["requests"] if row["model"] == "migration/far-away"]
    assert sorted((row["operation"], row["outcome"]) for row in records) == [
        ("InvokeModel", "EngineFault"),
        ("InvokeModel", "ok"),  # it warmed the other side
        ("InvokeModel", "ok"),
        ("InvokeModelWithResponseStream", "ok"),
    ]
    assert all(row["copy_id"].startswith("bedrock:there@http://") for row in records)
    page = metrics(near)
    assert 'outcrop_invocations_total{model="migration/far-away"} 3.0' in page
    assert (
        'outcrop_migration_requests_total{account="000000000000",migration="far-away",role="caller",side="target"} 3.0'
        in page
    )


def metrics(server: Server) -> str:
    request = urllib.request.Request(
        f"{server.url}/metrics", headers={"Authorization": f"Bearer {server.credentials.bearer_key}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(response.read().decode())


@pytest.mark.usefixtures("gone")
def test_answers_that_agree_too_little_take_the_traffic_back(near: Server, other: OtherService) -> None:
    guards = {"agreement_drop": 0.2, "min_requests": 5}
    begin(near, "disagreeing", "bedrock:old", bedrock(other), step("shadow", 100), guards=guards)
    running(near, "disagreeing")
    runtime = near.client("bedrock-runtime")

    def is_over() -> bool:
        runtime.invoke_model(modelId="disagreeing", body=json.dumps(BODY))
        return str(told(near, "disagreeing")["phase"]) == "rolled-back"

    wait_for(is_over, 30)
    evidence = told(near, "disagreeing")["evidence"][0]
    assert evidence["guard"] == "agreement"
    assert "the source agrees 1.000 with itself" in evidence["said"]


@pytest.mark.usefixtures("gone")
def test_what_the_target_fails_the_source_answers_within_a_budget(near: Server, other: OtherService) -> None:
    begin(near, "failing", "bedrock:old", bedrock(other), fallback_floor=3)
    running(near, "failing")
    runtime = near.client("bedrock-runtime")
    other.refusal = (429, "ModelNotReadyException")
    notes = []
    for _ in range(60):
        found = runtime.invoke_model(modelId="failing", body=json.dumps(BODY))
        notes.append(found["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-migration"])
    fallbacks = ["fallback=ModelNotReadyException" in note for note in notes]
    assert all("side=source" in note for note in notes)
    assert fallbacks == sorted(fallbacks, reverse=True)
    assert 4 <= sum(fallbacks) < 60
    state = told(near, "failing")
    assert state["phase"] == "rolled-back"
    assert state["evidence"][0]["guard"] == "fallback_budget"
    assert 'outcrop_migration_rollbacks_total{guard="fallback_budget"} 1.0' in metrics(near)
    assert 'migration="failing",phase="rolled-back"} 1.0' in metrics(near)
    assert state["totals"]["target"]["not_ready"] == sum(fallbacks)
    assert state["totals"]["target"]["failed"] == 0


@pytest.mark.usefixtures("gone")
def test_while_the_target_is_cold_the_source_answers_if_that_was_asked(near: Server, other: OtherService) -> None:
    begin(near, "cold", "bedrock:old", bedrock(other), cold="source", fallback_floor=0, fallback_budget=0)
    running(near, "cold")
    runtime = near.client("bedrock-runtime")
    other.refusal = (429, "ModelNotReadyException")
    for _ in range(5):
        runtime.invoke_model(modelId="cold", body=json.dumps(BODY))
    assert other.requests[-1][1]["x-outcrop-hold"] == "0.000"
    assert told(near, "cold")["phase"] == "running"
    other.refusal = None
    found = runtime.invoke_model(modelId="cold", body=json.dumps(BODY))
    assert "side=target" in found["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-migration"]


@pytest.mark.usefixtures("gone")
def test_without_fallback_the_targets_answer_is_the_callers(near: Server, other: OtherService) -> None:
    begin(near, "alone", "bedrock:old", bedrock(other), fallback=False, guards={"error_rate": 0.5, "min_requests": 6})
    running(near, "alone")
    runtime = near.client("bedrock-runtime")
    other.refusal = (500, "InternalServerException")
    with pytest.raises(ClientError, match="InternalServerException"):
        runtime.invoke_model(modelId="alone", body=json.dumps(BODY))
    other.refusal, other.breaks = None, True
    with pytest.raises(Exception, match="modelStreamErrorException"):
        list(runtime.invoke_model_with_response_stream(modelId="alone", body=json.dumps(BODY))["body"])
    wait_for(lambda: told(near, "alone")["totals"]["target"]["failed"] == 2, 10)
    assert told(near, "alone")["window"]["target"]["errors"] == {
        "InternalServerException": 1,
        "modelStreamErrorException": 1,
    }


@pytest.mark.usefixtures("gone")
def test_a_request_that_one_side_cannot_take_goes_to_the_other_and_is_counted(
    near: Server, other: OtherService
) -> None:
    target = f"sagemaker:there@{other.url}?region=us-east-1&profile=elsewhere"
    begin(near, "lopsided", "bedrock:old", target)
    running(near, "lopsided")
    found = near.client("bedrock-runtime").converse(
        modelId="lopsided", messages=[{"role": "user", "content": [{"text": "Hi"}]}], inferenceConfig={"maxTokens": 3}
    )
    assert (
        "side=source; phase=running; step=1; fallback=NoSuchOperation"
        in (found["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-migration"])
    )
    assert told(near, "lopsided")["totals"]["target"]["fallbacks"] == {"NoSuchOperation": 1}


@pytest.mark.usefixtures("gone")
def test_listed_callers_go_first(near: Server, other: OtherService) -> None:
    begin(near, "listed", "bedrock:old", bedrock(other), step("listed", 100), listed_headers={"X-App": "batch"})
    running(near, "listed")

    def side(app: str) -> str:
        request = urllib.request.Request(
            f"{near.url}/model/listed/invoke",
            json.dumps(BODY).encode(),
            {
                "Authorization": f"Bearer {near.credentials.bearer_key}",
                "x-app": app,
                "content-type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(response.headers["x-outcrop-migration"])

    assert "side=target" in side("batch")
    assert "side=source" in side("web")


@pytest.mark.usefixtures("gone")
def test_pause_resume_abort_and_what_orders_are_refused(near: Server, other: OtherService) -> None:
    begin(near, "ordered", "bedrock:old", bedrock(other))
    running(near, "ordered")
    path = "/outcrop/v1/migrations/ordered"
    assert "already" in refused(near, name="ordered", source="bedrock:old", target=bedrock(other))
    with pytest.raises(urllib.error.HTTPError):
        send(near, "DELETE", path)
    assert send(near, "POST", f"{path}/pause")["phase"] == "paused"
    with pytest.raises(urllib.error.HTTPError):
        send(near, "POST", f"{path}/pause")
    assert send(near, "POST", f"{path}/resume")["phase"] == "running"
    assert send(near, "POST", f"{path}/abort")["phase"] == "aborted"
    asked = len(other.requests)
    near.client("bedrock-runtime").invoke_model(modelId="ordered", body=json.dumps(BODY))  # the source's for good
    assert len(other.requests) == asked
    send(near, "DELETE", path)
    with pytest.raises(ClientError, match="ResourceNotFound"):
        near.client("bedrock-runtime").invoke_model(modelId="ordered", body=json.dumps(BODY))


def test_what_cannot_be_migrated_is_refused_by_name(near: Server, other: OtherService) -> None:
    there = bedrock(other)
    assert "Could not find imported model nobody" in refused(near, name="n", source="bedrock:nobody", target=there)
    assert "no endpoint 'nobody'" in refused(near, name="n", source="sagemaker:nobody", target=there)
    assert "'old' is the name of an alias or model here" in refused(
        near, name="old", source=there, target="bedrock:old"
    )
    missing = f"bedrock:x@{other.url}?region=us-east-1&profile=nowhere"
    assert "nowhere" in refused(near, name="n", source="bedrock:old", target=missing)
    lost = f"openai:x@{other.url}/v1?key_file={near.home}/no-key"
    assert "no-key cannot be read" in refused(near, name="n", source="bedrock:old", target=lost)
    planned = send(near, "POST", "/outcrop/v1/migration-plans", {"name": "n", "source": "bedrock:old", "target": there})
    assert planned["plan"][0].startswith("requests for n (invoke, converse, count, retrieve, chat")
    assert send(near, "GET", "/outcrop/v1/migrations")["migrations"] == []


@pytest.mark.usefixtures("gone")
def test_a_model_is_split_under_its_arn_and_id_too(near: Server, other: OtherService) -> None:
    begin(near, "old", "bedrock:old", bedrock(other))
    running(near, "old")
    arn = near.client("bedrock").get_imported_model(modelIdentifier="old")["modelArn"]
    for name in ("old", arn):
        found = near.client("bedrock-runtime").invoke_model(modelId=name, body=json.dumps(BODY))
        assert "side=target" in found["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-migration"]
