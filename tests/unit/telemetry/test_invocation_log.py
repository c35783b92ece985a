"""Invocation logs: AWS's record and keys, what is left out, and that nothing waits or grows without bound."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from outcrop.awswire.eventstream import encode_chunk, encode_event
from outcrop.errors import SourceUnavailable
from outcrop.telemetry import invocation_log
from outcrop.telemetry.invocation_log import InvocationLog
from outcrop.telemetry.invocation_record import MOST_INLINE_BYTES, Delivery, Invocation, render

ACCOUNT, REGION = "000000000000", "us-east-1"
AT = 1_767_323_045.5  # 2026-01-02T03:04:05Z
CONFIG = {"s3Config": {"bucketName": "logs", "keyPrefix": "team/a"}}
HOUR = "team/a/AWSLogs/000000000000/BedrockModelInvocationLogs/us-east-1/2026/01/02/03/"


class Bucket:
    """Objects in memory; *refuses*: puts that fail from now on; *gate*: what puts wait for."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refuses = False
        self.gate: asyncio.Event | None = None

    async def put(self, bucket: str, key: str, content: bytes) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.refuses:
            raise SourceUnavailable("down")
        self.objects[f"{bucket}/{key}"] = content

    def records(self) -> list[dict[str, Any]]:
        names = [name for name in self.objects if "/data/" not in name and name.endswith(".json.gz")]
        return [json.loads(line) for name in names for line in gzip.decompress(self.objects[name]).splitlines()]


def invocation(**changed: Any) -> Invocation:
    given = {
        "request_id": "r-1",
        "at": AT,
        "account": ACCOUNT,
        "principal": "arn:aws:iam::000000000000:user/admin",
        "operation": "Converse",
        "model_id": "abcdef123456",
        "named": "",
        "asked": b'{"messages":[{"role":"user","content":[{"text":"hi"}]}],"requestMetadata":{"team":"a"}}',
        "asked_type": "application/json",
        "answered": b'{"output":{},"stopReason":"end_turn"}',
        "answered_type": "application/json",
        "input_tokens": 3,
        "output_tokens": 5,
    }
    return Invocation(**{**given, **changed})


def rendered(delivery: dict[str, Any] | None = None, **changed: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    wanted = Delivery.of({**CONFIG, **(delivery or {})})
    assert wanted is not None
    found = render(invocation(**changed), wanted, REGION)
    return json.loads(found.line), found.objects


def add(log: InvocationLog, seen: Invocation) -> None:
    assert log.reserve(seen.size)
    log.add(seen)


def test_a_record_has_the_schema_of_aws() -> None:
    record, objects = rendered()

    assert record == {
        "schemaType": "ModelInvocationLog",
        "schemaVersion": "1.0",
        "timestamp": "2026-01-02T03:04:05Z",
        "accountId": ACCOUNT,
        "region": REGION,
        "requestId": "r-1",
        "operation": "Converse",
        "modelId": "arn:aws:bedrock:us-east-1:000000000000:imported-model/abcdef123456",
        "identity": {"arn": "arn:aws:iam::000000000000:user/admin"},
        "requestMetadata": {"team": "a"},
        "input": {
            "inputContentType": "application/json",
            "inputBodyJson": json.loads(invocation().asked),
            "inputTokenCount": 3,
        },
        "output": {
            "outputContentType": "application/json",
            "outputBodyJson": {"output": {}, "stopReason": "end_turn"},
            "outputTokenCount": 5,
        },
    }
    assert objects == {}


def test_a_body_over_100_kb_is_an_object_of_its_own() -> None:
    text = "x" * MOST_INLINE_BYTES
    record, objects = rendered(asked=json.dumps({"prompt": text}).encode())

    key = f"{HOUR}data/r-1_input.json.gz"
    assert record["input"]["inputBodyS3Path"] == f"s3://logs/{key}"
    assert "inputBodyJson" not in record["input"]
    assert json.loads(gzip.decompress(objects[key])) == {"prompt": text}
    assert "outputBodyJson" in record["output"]


def test_a_body_that_is_no_json_is_an_object_with_its_bytes() -> None:
    record, objects = rendered(asked=b"\x00\x01")

    key = f"{HOUR}data/r-1_input.bin.gz"
    assert record["input"]["inputBodyS3Path"] == f"s3://logs/{key}"
    assert gzip.decompress(objects[key]) == b"\x00\x01"


def test_an_invoke_stream_is_the_list_of_its_chunks() -> None:
    raw = encode_event("heartbeat", b"{}") + encode_chunk(b'{"text":"a"}') + encode_chunk(b'{"text":"b"}')
    record, _ = rendered(answered=raw, answered_type="application/vnd.amazon.eventstream")

    assert record["output"]["outputContentType"] == "application/json"
    assert record["output"]["outputBodyJson"] == [{"text": "a"}, {"text": "b"}]


def test_a_converse_stream_names_its_events() -> None:
    raw = encode_event("messageStart", b'{"role":"assistant"}') + encode_event("messageStop", b"{}")
    record, _ = rendered(answered=raw, answered_type="application/vnd.amazon.eventstream")

    assert record["output"]["outputBodyJson"] == [{"messageStart": {"role": "assistant"}}, {"messageStop": {}}]


def test_a_stream_that_was_cut_off_has_what_was_sent() -> None:
    raw = b'data: {"a":1}\n\n: heartbeat\n\ndata: {"a":2}\n\ndata: {"a'
    record, _ = rendered(answered=raw, answered_type="text/event-stream; charset=utf-8")

    assert record["output"]["outputBodyJson"] == [{"a": 1}, {"a": 2}]


def test_a_refused_invocation_has_its_error_and_no_output() -> None:
    record, _ = rendered(answered=b"", error="ValidationException", model_id="", named="nobody")

    assert (record["errorCode"], record["modelId"]) == ("ValidationException", "nobody")
    assert "output" not in record


@pytest.mark.parametrize(
    ("delivery", "changed", "absent"),
    [
        ({"textDataDeliveryEnabled": False}, {}, "inputBodyJson"),
        ({"textDataDeliveryEnabled": False}, {}, "outputBodyJson"),
        ({"embeddingDataDeliveryEnabled": False}, {"operation": "Embeddings"}, "outputBodyJson"),
        (
            {"embeddingDataDeliveryEnabled": False},
            {"operation": "InvokeModel", "answered": b'{"embedding":[1]}'},
            "[1]",
        ),
        ({"imageDataDeliveryEnabled": False}, {"asked": b'{"content":[{"image":{"bytes":"SECRET"}}]}'}, "SECRET"),
    ],
)
def test_what_is_switched_off_is_left_out(delivery: dict[str, Any], changed: dict[str, Any], absent: str) -> None:
    record, objects = rendered(delivery, **changed)

    assert absent not in json.dumps(record)
    assert objects == {}
    assert record["input"]["inputTokenCount"] == 3


async def test_nothing_is_wanted_until_an_account_configures_it() -> None:
    log = InvocationLog(Bucket(), region=REGION, most_bytes=1000)

    assert not log.wants(ACCOUNT)
    log.configure(ACCOUNT, {"textDataDeliveryEnabled": True})  # without a place
    assert not log.wants(ACCOUNT)
    log.configure(ACCOUNT, CONFIG)
    assert log.wants(ACCOUNT)
    log.configure(ACCOUNT, None)
    assert not log.wants(ACCOUNT)


async def test_records_of_one_hour_share_an_object() -> None:
    bucket = Bucket()
    log = InvocationLog(bucket, region=REGION, most_bytes=10_000)
    log.configure(ACCOUNT, CONFIG)
    for number in range(3):
        add(log, invocation(request_id=f"r-{number}"))
    await log.flush()

    assert [record["requestId"] for record in bucket.records()] == ["r-0", "r-1", "r-2"]
    (name,) = bucket.objects
    assert name.startswith(f"logs/{HOUR}")
    assert (log.delivered, log.failed) == (3, 0)


async def test_what_a_bucket_refuses_is_lost_and_counted_and_later_records_arrive() -> None:
    bucket = Bucket()
    bucket.refuses = True
    log = InvocationLog(bucket, region=REGION, most_bytes=10_000)
    log.configure(ACCOUNT, CONFIG)
    add(log, invocation())
    await log.flush()
    bucket.refuses = False
    add(log, invocation(request_id="r-2"))
    await log.flush()

    assert [record["requestId"] for record in bucket.records()] == ["r-2"]
    assert (log.delivered, log.failed) == (1, 1)


async def test_waiting_bodies_have_a_bound_and_free_it_again() -> None:
    bucket = Bucket()
    bucket.gate = asyncio.Event()
    one = invocation()
    log = InvocationLog(bucket, region=REGION, most_bytes=one.size + 10)
    log.configure(ACCOUNT, CONFIG)
    add(log, one)
    flushed = asyncio.create_task(log.flush())
    await asyncio.sleep(0)

    assert not log.reserve(one.size)  # also while it is on its way
    bucket.gate.set()
    await flushed
    assert log.reserve(one.size)


async def test_a_slow_bucket_delays_no_other_account() -> None:
    class Slow(Bucket):
        async def put(self, bucket: str, key: str, content: bytes) -> None:
            if bucket == "slow":
                await asyncio.Event().wait()
            await super().put(bucket, key, content)

    bucket = Slow()
    log = InvocationLog(bucket, region=REGION, most_bytes=10_000)
    log.configure("111111111111", {"s3Config": {"bucketName": "slow"}})
    log.configure(ACCOUNT, CONFIG)
    add(log, invocation(account="111111111111"))
    add(log, invocation())
    flushed = asyncio.create_task(log.flush())
    async with asyncio.timeout(20):
        while not log.delivered:
            await asyncio.sleep(0.01)
    flushed.cancel()
    await asyncio.gather(flushed, return_exceptions=True)


async def test_a_stop_writes_the_rest_and_counts_what_it_has_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invocation_log, "CLOSE_S", 0.05)
    bucket = Bucket()
    log = InvocationLog(bucket, region=REGION, most_bytes=10_000)
    log.configure(ACCOUNT, CONFIG)
    add(log, invocation())
    await log.close()
    assert len(bucket.records()) == 1

    bucket.gate = asyncio.Event()
    add(log, invocation())
    await log.close()
    assert (log.delivered, log.failed) == (1, 1)
