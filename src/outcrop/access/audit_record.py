"""A call as a record of CloudTrail's shape (record contents, version 1.11). Pure. Never a prompt, an answer, a key."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

MOST_CHARS = 1024  # of one text; CloudTrail's own limit for user agents and messages
MOST_PARAMETER_BYTES = 16_384
HIDDEN = "HIDDEN_DUE_TO_SECURITY_REASONS"  # CloudTrail's word
INVOCATIONS = frozenset(
    {
        *("InvokeModel", "InvokeModelWithResponseStream", "Converse", "ConverseStream", "CountTokens"),
        *(
            "RetrieveAndGenerate",
            "RetrieveAndGenerateStream",
            "Retrieve",
            "ApplyGuardrail",
            "ChatCompletions",
            "Completions",
            "Embeddings",
            "Responses",
        ),
        *("InvokeEndpoint", "InvokeEndpointAsync", "InvokeEndpointWithResponseStream"),
    }
)
# Of an invocation's parameters: what it names, nothing that it says.
_NAMES = frozenset(
    {
        *("modelId", "guardrailIdentifier", "guardrailVersion", "EndpointName", "TargetVariant", "InferenceId"),
        *("performanceConfigLatency", "serviceTier"),
    }
)
_SECRET = re.compile(r"secret|password|token|environment|credential|apikey", re.IGNORECASE)
_TOLD = re.compile(r"(arn|name|status)$", re.IGNORECASE)  # of an answer: what it made
_READS = re.compile(r"(Get|List|Describe|Head|Count|Lookup|GET )")
_KINDS = {"imported-model": "AWS::Bedrock::ImportedModel", "model-import-job": "AWS::Bedrock::ModelImportJob"}
_ARN = re.compile(r"arn:aws[\w-]*:([\w-]+):[\w-]*:(\d{12})?:([\w-]+)[/:].+")
_encode = msgspec.json.Encoder().encode
_HOLE = secrets.token_hex(16)  # stands for what is filled in; nobody can send it
_DRAWN = 256
_random: list[str] = []
_MOST_KNOWN = 1024
_known: dict[tuple[object, ...], tuple[bytes, bytes, bytes, bytes]] = {}


class Call(Struct, kw_only=True):
    """What is recorded of one call. *account*, *principal*: empty for a stranger. *access_key_id*: as claimed."""

    request_id: str
    at: float
    source: str
    name: str
    region: str
    recipient: str
    source_ip: str
    user_agent: str
    account: str = ""
    principal: str = ""
    access_key_id: str = ""
    is_bearer: bool = False
    more: Mapping[str, str] = {}  # what AWS has no member for
    is_invocation: bool = False  # what it says is a prompt
    params: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None
    model_arn: str = ""
    error: str = ""
    message: str = ""


def encode(call: Call) -> bytes:
    """The record of *call*, as JSON."""
    if not (call.is_invocation or call.name in INVOCATIONS):
        return b"".join(_filled(_parts(call, call.params, is_invocation=False), call))
    names = _names(call.params)
    # All that invocations of one caller and one model have in common is encoded once.
    agent = call.user_agent[:MOST_CHARS]
    same = (call.name, call.source, call.region, call.recipient, call.source_ip, agent, call.account)
    place = (*same, call.principal, call.access_key_id, call.is_bearer, call.model_arn, call.error, *names.items())
    place = (*place, tuple(call.more.items()))
    parts = _known.get(place)
    if parts is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        parts = _known[place] = _parts(call, names or None, is_invocation=True)
    return b"".join(_filled(parts, call))


def _filled(parts: tuple[bytes, bytes, bytes, bytes], call: Call) -> tuple[bytes, ...]:
    at, request_id, event_id = _second(int(call.at)), _encode(call.request_id)[1:-1], _fresh_id().encode()
    return (parts[0], at, parts[1], request_id, parts[2], event_id, parts[3])


def _fresh_id() -> str:
    """A random UUID (version 4). The kernel is asked for many at a time."""
    if not _random:
        drawn = os.urandom(16 * _DRAWN).hex()
        _random.extend(drawn[at : at + 32] for at in range(0, len(drawn), 32))
    text = _random.pop()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[int(text[16], 16) & 3]}{text[17:20]}-{text[20:]}"


def _parts(call: Call, params: Mapping[str, Any] | None, *, is_invocation: bool) -> tuple[bytes, bytes, bytes, bytes]:
    """The record without what is new in each: before the time, the request's id and the event's, and after."""
    record: dict[str, Any] = {
        "eventVersion": "1.11",
        "userIdentity": _identity(call),
        "eventTime": _HOLE,
        "eventSource": call.source,
        "eventName": call.name,
        "awsRegion": call.region,
        "sourceIPAddress": call.source_ip,
        "userAgent": call.user_agent[:MOST_CHARS],
    }
    if call.error:
        record["errorCode"] = call.error
        if call.message and not is_invocation:  # a message may repeat what the caller sent
            record["errorMessage"] = call.message[:MOST_CHARS]
    record["requestParameters"] = params if is_invocation else _bounded(params)
    record["responseElements"] = _told(call.answer)
    more: dict[str, Any] = dict(call.more)
    if call.is_bearer:
        more["callWithBearerToken"] = True
    if more:
        record["additionalEventData"] = more
    record |= {
        "requestID": _HOLE,
        "eventID": _HOLE,
        "readOnly": is_invocation or _READS.match(call.name) is not None,
    }
    if resources := _resources(call, params):
        record["resources"] = resources
    record |= {
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "recipientAccountId": call.account or call.recipient,
        "eventCategory": "Management",
    }
    first, second, third, last = _encode(record).split(_encode(_HOLE)[1:-1])
    return first, second, third, last


@lru_cache(16)
def _second(at: int) -> bytes:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}".encode()


def _identity(call: Call) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "Unknown"}
    if call.principal:
        kind, _, name = call.principal.rpartition(":")[2].partition("/")
        found = {
            "type": {"user": "IAMUser", "assumed-role": "AssumedRole", "root": "Root"}.get(kind, "Unknown"),
            "arn": call.principal,
            "accountId": call.account,
        }
        if kind == "user":
            found["userName"] = name.rpartition("/")[2]
        elif kind == "assumed-role":
            role, _, session = name.rpartition("/")
            issuer = f"arn:aws:iam::{call.account}:role/{role}"
            found["sessionContext"] = {"sessionIssuer": {"type": "Role", "arn": issuer, "userName": role}}
            found["principalId"] = session
    if call.access_key_id:
        found["accessKeyId"] = call.access_key_id
    return found


def _names(params: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: str(value)[:MOST_CHARS] for key, value in (params or {}).items() if key in _NAMES}


def _bounded(params: Mapping[str, Any] | None) -> Any:
    """*params* with secrets hidden and long texts cut; only its keys where it is too much altogether."""
    if not params:
        return None
    shown = _cleaned(params)
    if len(_encode(shown)) > MOST_PARAMETER_BYTES:
        return {"omitted": True, "keys": sorted(map(str, params))[:100]}
    return shown


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): HIDDEN if _SECRET.search(str(key)) and item not in (None, "") else _cleaned(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    if isinstance(value, str):
        return value[:MOST_CHARS]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, datetime):
        return value.isoformat()
    return value if value is None or isinstance(value, bool | int | float) else str(value)[:MOST_CHARS]


def _told(answer: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Names, ARNs and states at the top of an answer."""
    if not answer:
        return None
    found = {
        key: value[:MOST_CHARS]
        for key, value in answer.items()
        if isinstance(value, str) and _TOLD.search(key) and not _SECRET.search(key)
    }
    return found or None


def _resources(call: Call, params: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """What the call is about: ARNs at the top of parameters and answer."""
    arns = [call.model_arn] if call.model_arn else []
    for source in (params, call.answer):
        arns += [value for value in (source or {}).values() if isinstance(value, str) and value.startswith("arn:aws")]
    found = []
    for arn in dict.fromkeys(arns):
        if (parts := _ARN.fullmatch(arn[:MOST_CHARS])) is not None:
            entry = {"ARN": arn[:MOST_CHARS], "accountId": parts[2] or call.account or call.recipient}
            if kind := _KINDS.get(parts[3]):
                entry["type"] = kind
            found.append(entry)
    return found
