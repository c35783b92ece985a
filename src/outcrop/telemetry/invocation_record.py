"""One invocation as AWS's ``ModelInvocationLog`` record, version 1.0, and where it goes in a bucket. Pure.

Schema and keys are those of Amazon Bedrock ("Monitor model invocation using CloudWatch Logs and Amazon S3"): gzipped
JSON lines under ``{prefix}/AWSLogs/{account}/BedrockModelInvocationLogs/{region}/YYYY/MM/DD/HH/``, bodies over 100 kB
and bodies that are no JSON as objects of their own under ``data/`` beside them. The body of a stream is the list of its
chunks; an event of a Converse stream stands under its name.
"""

from __future__ import annotations

import base64
import binascii
import gzip
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from outcrop.awswire.eventstream import BrokenFrame, Decoder
from outcrop.ids import imported_model_arn

MOST_INLINE_BYTES = 100_000
EVENT_STREAM, SSE = "application/vnd.amazon.eventstream", "text/event-stream"
PERMISSION_CHECK = "amazon-bedrock-logs-permission-check"
_IMAGES = frozenset({"image", "image_url", "video", "input_audio", "audio", "document"})
_encode = msgspec.json.Encoder().encode


class Delivery(Struct, frozen=True, kw_only=True):
    """Where an account's records go, and which content: ``LoggingConfig`` of bedrock/2023-04-20.

    A kind of content that is not named is delivered. *media*: images, video and audio, each as it is named.
    """

    bucket: str
    prefix: str = ""
    text: bool = True
    embeddings: bool = True
    images: bool = True
    video: bool = True
    audio: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Delivery | None:
        """What *config* asks for; None when it names no bucket."""
        place = config.get("s3Config")
        if not place:
            return None
        wanted = {
            field: config.get(f"{name}DataDeliveryEnabled", True)
            for field, name in (
                ("text", "text"),
                ("embeddings", "embedding"),
                ("images", "image"),
                ("video", "video"),
                ("audio", "audio"),
            )
        }
        return cls(bucket=place["bucketName"], prefix=(place.get("keyPrefix") or "").strip("/"), **wanted)

    def below(self, account: str) -> str:
        """The key that everything of *account* is under, with its slash."""
        return f"{self.prefix}/"[not self.prefix :] + f"AWSLogs/{account}/BedrockModelInvocationLogs/"

    def folder(self, account: str, region: str, at: float) -> str:
        """The key of the hour of *at* (seconds since the epoch), with its slash."""
        return f"{self.below(account)}{region}/{datetime.fromtimestamp(at, UTC):%Y/%m/%d/%H}/"


class Invocation(Struct, kw_only=True):
    """What was seen of one invocation. *asked*, *answered*: bodies as they were on the wire."""

    request_id: str
    at: float
    account: str
    principal: str
    operation: str
    model_id: str
    named: str
    asked: bytes
    asked_type: str
    answered: bytes = b""
    answered_type: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str = ""

    @property
    def size(self) -> int:
        return len(self.asked) + len(self.answered)


class Rendered(Struct, frozen=True):
    """A record's line and, by key, the objects that it points to."""

    line: bytes
    objects: dict[str, bytes]


def render(seen: Invocation, delivery: Delivery, region: str) -> Rendered:
    """The record of *seen* for *delivery*."""
    folder = delivery.folder(seen.account, region, seen.at)
    objects: dict[str, bytes] = {}
    asked = _json(seen.asked)
    is_embedding = seen.operation == "Embeddings" or _has_vectors(seen)
    record: dict[str, Any] = {
        "schemaType": "ModelInvocationLog",
        "schemaVersion": "1.0",
        "timestamp": f"{datetime.fromtimestamp(seen.at, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "accountId": seen.account,
        "region": region,
        "requestId": seen.request_id,
        "operation": seen.operation,
        "modelId": imported_model_arn(region, seen.account, seen.model_id) if seen.model_id else seen.named,
        "identity": {"arn": seen.principal},
    }
    if isinstance(asked, dict) and isinstance(asked.get("requestMetadata"), dict):
        record["requestMetadata"] = asked["requestMetadata"]
    if seen.error:
        record["errorCode"] = seen.error

    def part(name: str, kind: str, value: Any, raw: bytes, tokens: int | None, *, is_wanted: bool) -> None:
        found: dict[str, Any] = {f"{name}ContentType": kind}
        if is_wanted and raw:
            shown = _encode(value) if value is not None else b""
            if value is not None and len(shown) <= MOST_INLINE_BYTES:
                found[f"{name}BodyJson"] = msgspec.Raw(shown)
            else:
                key = f"{folder}data/{seen.request_id}_{name}.{'json' if value is not None else 'bin'}.gz"
                objects[key] = gzip.compress(shown or raw, 6)
                found[f"{name}BodyS3Path"] = f"s3://{delivery.bucket}/{key}"
        if tokens is not None:
            found[f"{name}TokenCount"] = tokens
        record[name] = found

    shown = _without_media(asked, delivery)
    part("input", seen.asked_type, shown, seen.asked, seen.input_tokens, is_wanted=delivery.text)
    if seen.answered or not seen.error:
        kind = "application/json" if seen.answered_type.startswith((EVENT_STREAM, SSE)) else seen.answered_type
        is_wanted = delivery.embeddings if is_embedding else delivery.text
        part("output", kind, _answer(seen), seen.answered, seen.output_tokens, is_wanted=is_wanted)
    return Rendered(_encode(record), objects)


def _answer(seen: Invocation) -> Any:
    if seen.answered_type.startswith(EVENT_STREAM):
        return list(_events(seen.answered))
    if seen.answered_type.startswith(SSE):
        lines = (line[6:] for line in seen.answered.splitlines() if line.startswith(b"data: {"))
        return [chunk for chunk in map(_json, lines) if chunk is not None]
    return _json(seen.answered)


def _events(raw: bytes) -> Iterator[Any]:
    """Chunks of an invoke stream as the model's JSON, other events under their names; heartbeats are none of them."""
    try:
        frames = Decoder().feed(raw)
    except BrokenFrame:
        return
    for frame in frames:
        kind = frame.headers.get(":event-type") or frame.headers.get(":exception-type", "")
        content = _json(frame.payload)
        if kind == "heartbeat" or not isinstance(content, dict):
            continue
        if kind != "chunk":
            yield {kind: content}
            continue
        try:
            yield _json(base64.b64decode(content["bytes"]))
        except (KeyError, binascii.Error):
            continue


def _json(raw: bytes) -> Any:
    """The value that *raw* is as JSON; None when it is none."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def _has_vectors(seen: Invocation) -> bool:
    return seen.operation == "InvokeModel" and b'"embedding' in seen.answered[:2000]


def _without_media(value: Any, delivery: Delivery) -> Any:
    """*value* without the media that *delivery* leaves out; what stays says that something was there."""
    if delivery.images and delivery.video and delivery.audio:
        return value
    if isinstance(value, list):
        return [_without_media(item, delivery) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: "[not delivered]" if key in _IMAGES and not _wanted(key, delivery) else _without_media(item, delivery)
        for key, item in value.items()
    }


def _wanted(key: str, delivery: Delivery) -> bool:
    if "audio" in key:
        return delivery.audio
    return delivery.video if key == "video" else delivery.images
