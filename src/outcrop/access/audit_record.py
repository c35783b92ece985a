"""A call as a record of CloudTrail's shape (record contents, version 1.11). Pure. Never a prompt, an answer, a key."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
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
    is_invocation: bool = False  # what it says is a prompt
    params: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None
    model_arn: str = ""
    error: str = ""
    message: str = ""


def encode(call: Call) -> bytes:
    """The record of *call*, as JSON."""
    is_invocation = call.is_invocation or call.name in INVOCATIONS
    params = _names(call.params) if is_invocation else call.params
    record: dict[str, Any] = {
        "eventVersion": "1.11",
        "userIdentity": _identity(call),
        "eventTime": f"{datetime.fromtimestamp(call.at, UTC):%Y-%m-%dT%H:%M:%SZ}",
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
    record["requestParameters"] = _bounded(params)
    record["responseElements"] = _told(call.answer)
    if call.is_bearer:
        record["additionalEventData"] = {"callWithBearerToken": True}
    record |= {
        "requestID": call.request_id,
        "eventID": str(uuid.uuid4()),
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
    return _encode(record)


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


def _names(params: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if params is None else {key: value for key, value in params.items() if key in _NAMES}


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
