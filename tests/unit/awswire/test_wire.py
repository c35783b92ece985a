"""Our wire layer against botocore's own serialiser, parser and signer."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import given
from hypothesis import strategies as st

from outcrop.awswire.eventstream import encode_chunk, encode_event, encode_exception
from outcrop.awswire.parse import request
from outcrop.awswire.serialize import serialize_response
from outcrop.awswire.service import Router, Service
from outcrop.errors import InvalidRequest, MalformedBody

SERVICES = {name: Service(name) for name in ("bedrock", "bedrock-runtime")}
ROUTER = Router(list(SERVICES.values()))
ARN = "arn:aws:bedrock:us-east-1:123456789012:imported-model/abcdef123456"


def travelled(service: str, operation: str, params: dict[str, Any]) -> dict[str, Any]:
    """*params* as ours after botocore wrote them to the wire and we read them."""
    from urllib.parse import quote, urlencode

    model = SERVICES[service].model.operation_model(operation)
    wire = create_serializer("rest-json").serialize_to_request(params, model)
    path = quote(wire["url_path"], safe="/%~")
    match = ROUTER.match(wire["method"], path)
    assert match is not None
    assert match[0].name == operation
    headers = {name.lower(): str(value) for name, value in wire["headers"].items()}
    body = wire["body"] if isinstance(wire["body"], bytes) else (wire["body"] or "").encode()
    return request(match[0], match[1], urlencode(wire["query_string"], doseq=True), headers, body)


@pytest.mark.parametrize(
    ("service", "operation", "params"),
    [
        (
            "bedrock",
            "CreateModelImportJob",
            {
                "jobName": "a-job",
                "importedModelName": "a-model",
                "roleArn": "arn:aws:iam::123456789012:role/x",
                "modelDataSource": {"s3DataSource": {"s3Uri": "s3://bucket/key/"}},
                "jobTags": [{"key": "team", "value": "a b"}],
                "vpcConfig": {"subnetIds": ["subnet-1"], "securityGroupIds": ["sg-1"]},
            },
        ),
        ("bedrock", "GetModelImportJob", {"jobIdentifier": "name+with.plus"}),
        (
            "bedrock",
            "ListModelImportJobs",
            {"maxResults": 7, "creationTimeAfter": datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), "statusEquals": "Failed"},
        ),
        ("bedrock", "DeleteImportedModel", {"modelIdentifier": ARN}),
        ("bedrock-runtime", "InvokeModel", {"modelId": ARN, "body": b'{"prompt":"x"}', "accept": "application/json"}),
        (
            "bedrock-runtime",
            "Converse",
            {
                "modelId": ARN,
                "messages": [{"role": "user", "content": [{"text": "é"}]}],
                "system": [],
                "inferenceConfig": {"maxTokens": 5, "temperature": 0.5, "stopSequences": ["x"]},
                "additionalModelRequestFields": {"top_k": 3, "nested": [None, 1.5]},
            },
        ),
    ],
)
def test_what_botocore_writes_is_read_back_unchanged(service: str, operation: str, params: dict[str, Any]) -> None:
    assert travelled(service, operation, params) == params


@pytest.mark.parametrize(
    "path",
    [
        f"/model/{ARN.replace(':', '%3A').replace('/', '%2F')}/invoke",
        f"/model/{ARN.replace('/', '%2F')}/invoke",
        f"/model/{ARN}/invoke",
    ],
)
def test_an_arn_routes_however_much_of_it_is_encoded(path: str) -> None:
    match = ROUTER.match("POST", path)

    assert match is not None
    assert (match[0].name, match[1]) == ("InvokeModel", {"modelId": ARN})


def test_a_long_path_of_slashes_is_decided_at_once() -> None:
    assert ROUTER.match("POST", "/guardrail/arn:" + "/version" * 8_000 + "/apply/no") is None
    assert ROUTER.match("POST", "/model/arn:" + "/invoke" * 9_000 + "/no") is None


@pytest.mark.parametrize("service", SERVICES)
def test_every_operation_of_the_model_routes_to_itself(service: str) -> None:
    for operation in SERVICES[service].operations.values():
        path = re.sub(r"\{\w+\+?\}", "a%2Fb", operation.uri.partition("?")[0])
        match = ROUTER.match(operation.method, path)
        assert match is not None, operation.name
        assert match[0].name == operation.name


def test_a_pattern_that_is_exponential_in_re_is_decided_at_once() -> None:
    operation = SERVICES["bedrock"].operations["CreateModelImportJob"]

    with pytest.raises(InvalidRequest, match="'jobName' failed to satisfy constraint"):
        request(operation, {}, "", {}, b'{"jobName":"a' + b"-" * 61 + b'!"}')


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        (b"{", MalformedBody, "not valid JSON"),
        (b"[]", MalformedBody, "must be a JSON object"),
        (b'{"jobName": 5}', MalformedBody, "NUMBER_VALUE can not be converted to String at 'jobName'"),
        (b"{}", InvalidRequest, "Value at 'roleArn' failed to satisfy constraint: Member must not be null"),
        (b'{"modelDataSource": {}}', InvalidRequest, "exactly one of"),
    ],
)
def test_a_bad_body_is_told_what_is_wrong(body: bytes, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=re.escape(told)):
        request(SERVICES["bedrock"].operations["CreateModelImportJob"], {}, "", {}, body)


def test_the_range_of_a_number_is_checked() -> None:
    operation = SERVICES["bedrock-runtime"].operations["Converse"]

    with pytest.raises(InvalidRequest, match="less than or equal to 1"):
        request(operation, {"modelId": ARN}, "", {}, b'{"inferenceConfig":{"temperature":2.0}}')


def test_botocore_reads_what_we_write() -> None:
    operation = SERVICES["bedrock"].operations["GetModelImportJob"]
    when = datetime(2024, 8, 13, 23, 38, 42, 457000, tzinfo=UTC)
    status, headers, body = serialize_response(operation, {"jobArn": "a", "creationTime": when, "endTime": None})
    response = {"status_code": status, "headers": dict(headers), "body": body}

    parsed = create_parser("rest-json").parse(response, operation.model.output_shape)
    assert parsed["creationTime"] == when
    assert "endTime" not in parsed
    assert b"2024-08-13T23:38:42.457Z" in body


def test_a_member_that_the_model_has_not_is_our_defect() -> None:
    with pytest.raises(ValueError, match="status"):
        serialize_response(SERVICES["bedrock"].operations["GetImportedModel"], {"status": "Active"})


def test_frames_are_read_by_botocore_however_they_are_cut() -> None:
    frames = encode_chunk(b'{"a":1}') + encode_exception("modelStreamErrorException", "broke")
    buffer = EventStreamBuffer()
    events = []
    for index in range(len(frames)):
        buffer.add_data(frames[index : index + 1])
        events += list(buffer)

    assert events[0].headers[":event-type"] == "chunk"
    assert events[0].payload == b'{"bytes":"eyJhIjoxfQ=="}'
    assert events[1].headers[":exception-type"] == "modelStreamErrorException"


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60),
    st.binary(max_size=3000),
    st.data(),
)
def test_any_frame_is_read_by_botocore_as_it_was_meant(event: str, content: bytes, data: st.DataObject) -> None:
    payload = b'{"bytes":"' + base64.b64encode(content) + b'"}'
    frames = (
        encode_event(event, payload) + encode_chunk(content) + encode_exception(event, "é", {"originalStatusCode": 500})
    )
    cut = data.draw(st.integers(0, len(frames)))
    buffer = EventStreamBuffer()
    read = []
    for part in (frames[:cut], frames[cut:]):
        buffer.add_data(part)
        read += list(buffer)

    assert [message.payload for message in read[:2]] == [payload, payload]
    assert [message.headers[":message-type"] for message in read] == ["event", "event", "exception"]
    assert [read[0].headers[":event-type"], read[2].headers[":exception-type"]] == [event, event]
    assert json.loads(read[2].payload) == {"message": "é", "originalStatusCode": 500}
