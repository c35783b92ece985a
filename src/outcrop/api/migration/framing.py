"""An answer of one kind of service as a caller of another expects it: headers, and the frames of streams. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from outcrop.api.bedrock_runtime import EVENT_STREAM
from outcrop.api.migration.calls import OPENAI_DOORS, Door
from outcrop.api.wire_errors import AWS, OPENAI, openai_error, wire_error
from outcrop.awswire.eventstream import encode_chunk, encode_exception, encode_message
from outcrop.errors import (
    EngineFault,
    EngineTimeout,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    ServiceError,
    ShuttingDown,
    Throttled,
)

_JSON = "application/json"
_PART = ((":event-type", "PayloadPart"), (":content-type", "application/octet-stream"), (":message-type", "event"))
_KEPT = {
    "invoke": (
        "x-amzn-bedrock-input-token-count",
        "x-amzn-bedrock-output-token-count",
        "x-amzn-bedrock-invocation-latency",
        "x-amzn-bedrock-content-type",
    ),
    "sagemaker": (
        "x-amzn-sagemaker-custom-attributes",
        "x-amzn-sagemaker-new-session-id",
        "x-amzn-sagemaker-closed-session-id",
        "x-amzn-sagemaker-content-type",
    ),
    "async": ("x-amzn-sagemaker-outputlocation", "x-amzn-sagemaker-failurelocation"),
}
_ALWAYS = ("x-amz-retry-after", "retry-after", "x-amzn-errortype")
_OPENAI_ERRORS: Mapping[str, type[ServiceError]] = {"model_not_ready": ModelNotReady}


def headers(
    door: Door, said: Mapping[str, str], *, variant: str, is_native: bool, is_stream: bool
) -> list[tuple[str, str]]:
    """Headers of an answer at *door*; *said*: what the side that answered has sent, by lower-case name."""
    content_type = said.get("content-type", _JSON) if is_native else _JSON
    if is_stream and not is_native:
        content_type = "text/event-stream; charset=utf-8" if door in OPENAI_DOORS else EVENT_STREAM
    found = [("content-type", content_type)]
    if is_native:
        found += [(name, said[name]) for name in (*_KEPT.get(door, ()), *_ALWAYS) if name in said]
    elif is_stream and door == "invoke":
        found.append(("x-amzn-bedrock-content-type", _JSON))
    elif is_stream and door == "sagemaker":
        found.append(("x-amzn-sagemaker-content-type", "text/event-stream"))
    if door == "sagemaker":
        found.append(("x-amzn-invoked-production-variant", variant))
    return found


def piece(door: Door, document: bytes) -> bytes:
    """One JSON document of a stream in the frames of *door*."""
    if door == "invoke":
        return encode_chunk(document)
    event = b"data: " + document + b"\n\n"
    return encode_message(_PART, event) if door == "sagemaker" else event


def last(door: Door) -> bytes:
    """What ends a translated stream."""
    end = b"data: [DONE]\n\n"
    return b"" if door == "invoke" else encode_message(_PART, end) if door == "sagemaker" else end


def broken(door: Door, exc: ServiceError) -> bytes:
    """The last words of an open stream that breaks off."""
    if door == "responses":
        event = {"type": "error", "code": wire_error(exc, OPENAI)[0], "message": exc.message, "param": None}
        return b"event: error\ndata: " + msgspec.json.encode({**event, "sequence_number": 0}) + b"\n\n"
    if door in OPENAI_DOORS:
        return b"data: " + openai_error(exc).body + b"\n\n"
    if door == "sagemaker":
        more = {"Message": exc.message, "ErrorCode": "StreamBroken"}
        return encode_exception("ModelStreamError", exc.message, more)
    return encode_exception("modelStreamErrorException", exc.message)


def error_of(status: int, said: Mapping[str, str], body: bytes) -> ServiceError:
    """The fact behind an answer of status 400 or more."""
    found = _object(body)
    inner = found.get("error")
    error = inner if isinstance(inner, dict) else {}
    message = str(error.get("message") or found.get("message") or found.get("Message") or f"HTTP {status}")
    name = said.get("x-amzn-errortype", "").partition(":")[0] or str(error.get("code") or "")
    if name == "ModelNotReadyException" or name in _OPENAI_ERRORS:
        return ModelNotReady(message)
    if name == "ModelError":  # a container's own 4xx is the caller's doing
        own = found.get("OriginalStatusCode")
        if isinstance(own, int) and 400 <= own < 500 and own not in (408, 429):
            return InvalidRequest(message)
        return EngineFault(message, engine_status=own if isinstance(own, int) else None)
    match status:
        case 429:
            return Throttled(message)
        case 503:
            return ShuttingDown(message)
        case 404:
            return ModelNotFound(message)
        case 408 | 504:
            return EngineTimeout(message)
    return InvalidRequest(message) if status < 500 and status != 424 else EngineFault(message, engine_status=status)


def name_of(exc: ServiceError) -> str:
    """What an error is called in counts: AWS's code, whichever door it came through."""
    return wire_error(exc, AWS)[0]


def _object(body: bytes) -> dict[str, object]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
