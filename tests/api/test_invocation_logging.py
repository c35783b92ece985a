"""Invocation logging of a real server: every door, buckets of the home and of an object store, refusals."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from botocore.exceptions import ClientError
from tests.support.s3 import MotoServer
from tests.support.server import Server

PROMPT = "zanzibar hippopotamus"
CONVERSE = [{"role": "user", "content": [{"text": PROMPT}]}]
CHAT = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def logging(tmp_path: Path, tiny: Path) -> Iterator[Server]:
    server = Server(tmp_path / "home", cpu_threads=1).start()
    server.import_model(tiny, "tiny")
    (server.home / "buckets" / "logs").mkdir()
    yield server
    server.stop()


def records(folder: Path) -> list[dict[str, Any]]:
    files = [path for path in folder.rglob("*.json.gz") if path.parent.name != "data"]
    return [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]


def put(server: Server, **config: Any) -> None:
    server.client("bedrock").put_model_invocation_logging_configuration(
        loggingConfig={"s3Config": {"bucketName": "logs", "keyPrefix": "p"}, **config}
    )


def test_every_door_is_logged_once_the_account_wants_it_and_the_rest_arrives_at_the_stop(logging: Server) -> None:
    runtime = logging.client("bedrock-runtime")
    arn = logging.client("bedrock").get_imported_model(modelIdentifier="tiny")["modelArn"]
    config = {"maxTokens": 4}
    runtime.converse(modelId=arn, messages=CONVERSE, inferenceConfig=config)  # before it is switched on
    put(logging)
    below = logging.home / "buckets" / "logs" / "p" / "AWSLogs" / "000000000000" / "BedrockModelInvocationLogs"
    assert (below / "amazon-bedrock-logs-permission-check").read_bytes() == b""

    long = PROMPT * 6000
    body = json.dumps({"prompt": PROMPT, "max_tokens": 4})
    runtime.invoke_model(modelId=arn, body=body)
    list(runtime.invoke_model_with_response_stream(modelId=arn, body=body)["body"])
    runtime.converse(modelId=arn, messages=CONVERSE, inferenceConfig=config, requestMetadata={"team": "a"})
    list(runtime.converse_stream(modelId=arn, messages=CONVERSE, inferenceConfig=config)["stream"])
    runtime.count_tokens(modelId=arn, input={"converse": {"messages": CONVERSE}})
    client = openai.OpenAI(base_url=f"{logging.url}/v1", api_key=logging.credentials.bearer_key)
    client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4)
    list(client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4, stream=True))
    client.completions.create(model="tiny", prompt=PROMPT, max_tokens=4)
    with pytest.raises(ClientError):
        runtime.invoke_model(modelId=arn, body=json.dumps({"prompt": long, "max_tokens": 4}))
    assert logging.stop() == 0

    found = {
        (each["operation"], isinstance(each.get("output", {}).get("outputBodyJson"), list)): each
        for each in records(below)
    }
    assert sorted(found) == [
        ("ChatCompletions", False),
        ("ChatCompletions", True),
        ("Completions", False),
        ("Converse", False),
        ("ConverseStream", True),
        ("InvokeModel", False),
        ("InvokeModelWithResponseStream", True),
    ]
    assert len(records(below)) == 8  # the refused one too
    refused = [each for each in records(below) if "errorCode" in each]
    assert [each["errorCode"] for each in refused] == ["ValidationException"]
    place = logging.home / "buckets" / refused[0]["input"]["inputBodyS3Path"].removeprefix("s3://")
    assert json.loads(gzip.decompress(place.read_bytes()))["prompt"] == long
    for (operation, _), each in found.items():
        assert each["modelId"] == arn
        assert each["identity"]["arn"] == logging.credentials.user_arn
        assert operation == "InvokeModel" or PROMPT in json.dumps(each["input"]["inputBodyJson"])
        assert operation == "InvokeModel" or 0 < each["output"]["outputTokenCount"] <= 4
    assert found["Converse", False]["requestMetadata"] == {"team": "a"}
    stream = found["ConverseStream", True]["output"]["outputBodyJson"]
    assert stream[0] == {"messageStart": {"role": "assistant"}}
    assert "messageStop" in stream[-2]


def test_a_configuration_outlives_a_restart_and_ends_with_its_deletion(logging: Server) -> None:
    put(logging)
    logging.stop()
    logging.start()
    arn = logging.client("bedrock").get_imported_model(modelIdentifier="tiny")["modelArn"]
    ask = lambda: logging.client("bedrock-runtime").converse(  # noqa: E731
        modelId=arn, messages=CONVERSE, inferenceConfig={"maxTokens": 1}
    )
    ask()
    logging.client("bedrock").delete_model_invocation_logging_configuration()
    ask()
    logging.stop()

    assert len(records(logging.home / "buckets" / "logs")) == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"s3Config": {"bucketName": "nowhere"}}, "There is no bucket nowhere here"),
        ({"s3Config": {"bucketName": "logs", "keyPrefix": "../../up"}}, "dot segment"),
        (
            {"cloudWatchConfig": {"logGroupName": "g", "roleArn": "arn:aws:iam::000000000000:role/r"}},
            "no CloudWatch Logs here",
        ),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_when_it_is_put(
    server: Server, config: dict[str, Any], said: str
) -> None:
    (server.home / "buckets" / "logs").mkdir(parents=True, exist_ok=True)
    bedrock = server.client("bedrock")

    with pytest.raises(ClientError, match=said) as caught:
        bedrock.put_model_invocation_logging_configuration(loggingConfig=config)

    assert caught.value.response["Error"]["Code"] == "ValidationException"
    assert "loggingConfig" not in bedrock.get_model_invocation_logging_configuration()


def test_records_reach_an_object_store_and_a_store_that_refuses_is_named(
    tmp_path: Path, tiny: Path, moto: MotoServer
) -> None:
    s3 = moto.client()
    s3.create_bucket(Bucket="invocation-logs")
    stores = [moto.store(buckets=["*-logs"])]
    server = Server(tmp_path / "home", cpu_threads=1, object_stores=json.dumps(stores)).start()
    try:
        server.import_model(tiny, "tiny")
        bedrock = server.client("bedrock")
        with pytest.raises(ClientError, match="missing-logs"):
            bedrock.put_model_invocation_logging_configuration(
                loggingConfig={"s3Config": {"bucketName": "missing-logs"}}
            )
        bedrock.put_model_invocation_logging_configuration(
            loggingConfig={"s3Config": {"bucketName": "invocation-logs"}}
        )
        arn = bedrock.get_imported_model(modelIdentifier="tiny")["modelArn"]
        server.client("bedrock-runtime").converse(modelId=arn, messages=CONVERSE, inferenceConfig={"maxTokens": 1})
    finally:
        server.stop()

    listed = s3.list_objects_v2(Bucket="invocation-logs")["Contents"]
    (key,) = [entry["Key"] for entry in listed if entry["Key"].endswith(".json.gz")]
    record = json.loads(gzip.decompress(s3.get_object(Bucket="invocation-logs", Key=key)["Body"].read()))
    assert record["operation"] == "Converse"
    assert record["input"]["inputBodyJson"]["messages"] == CONVERSE
