"""What a request asks for, and how the same is asked of another kind of service. Pure.

Bodies are handed on as they are wherever both services take the same: InvokeModel, SageMaker containers and OpenAI's
chat completions agree on ``messages``. A request that a side has no way of taking is not bound: the other side gets it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, unquote

import msgspec

from outcrop.serving.migration.plan import Side

Door = Literal[
    "invoke",
    "converse",
    "count",
    "retrieve",
    "chat",
    "completions",
    "embeddings",
    "responses",
    "sagemaker",
    "async",
]
BEDROCK_DOORS: tuple[Door, ...] = ("invoke", "converse", "count", "retrieve")
OPENAI_DOORS: tuple[Door, ...] = ("chat", "completions", "embeddings", "responses")
ENDPOINT_DOORS: tuple[Door, ...] = ("sagemaker", "async")
_MODEL = re.compile(r"/model/([^/]+)/(invoke|invoke-with-response-stream|converse|converse-stream|count-tokens)")
_ENDPOINT = re.compile(r"/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations)")
_RETRIEVE = "/retrieveAndGenerate"
_OPENAI: dict[str, Door] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}
_OPENAI_EVENTS: dict[Door, str] = {
    "chat": "ChatCompletions",
    "completions": "Completions",
    "embeddings": "Embeddings",
    "responses": "Responses",
}
_PATHS = {door: path.removeprefix("/v1") for path, door in _OPENAI.items()}
# What OpenAI's body says that InvokeModel says by its path.
_OF_OPENAI = ("model", "stream", "stream_options")


@dataclass(frozen=True, slots=True)
class Call:
    """One request for inference. *fields*: the body, when it is a JSON object."""

    door: Door
    name: str
    is_stream: bool
    body: bytes
    fields: Mapping[str, Any] | None = field(repr=False)

    @property
    def is_compared(self) -> bool:
        """Whether another answer to the same request says something of this one: a count or a receipt is no answer."""
        return self.door not in ("count", "async")

    @property
    def followed(self) -> str:
        """The response that this one follows; a service knows only those that it gave itself."""
        found = self.fields.get("previous_response_id") if self.door == "responses" and self.fields else None
        return found if isinstance(found, str) else ""

    @property
    def operation(self) -> str:
        """The AWS operation that callers of the name need the permission for."""
        match self.door:
            case "async":
                return "InvokeEndpointAsync"
            case "count":
                return "CountTokens"
        what = "InvokeEndpoint" if self.door == "sagemaker" else "InvokeModel"
        return f"{what}WithResponseStream" if self.is_stream else what

    @property
    def event(self) -> str:
        """What the call is named in records and the audit log."""
        match self.door:
            case "converse":
                return "ConverseStream" if self.is_stream else "Converse"
            case "retrieve":
                return "RetrieveAndGenerate"
            case "chat" | "completions" | "embeddings" | "responses":
                return _OPENAI_EVENTS[self.door]
        return self.operation

    @property
    def is_of_endpoint(self) -> bool:
        return self.door in ENDPOINT_DOORS


@dataclass(frozen=True, slots=True)
class Bound:
    """A call as one side takes it. *path*: below the service's root, percent-encoded."""

    door: Door
    path: str
    body: bytes
    is_stream: bool


def addressed(path: str) -> tuple[Door, str | None] | None:
    """The door of a path, and the name in it (None: it is in the body); None for what is no inference."""
    if found := _MODEL.fullmatch(path):
        at: dict[str, Door] = {"count-tokens": "count", "converse": "converse", "converse-stream": "converse"}
        return at.get(found[2], "invoke"), unquote(found[1])
    if found := _ENDPOINT.fullmatch(path):
        return ("async" if found[2].startswith("async") else "sagemaker"), unquote(found[1])
    door = "retrieve" if path == _RETRIEVE else _OPENAI.get(path)
    return None if door is None else (door, None)


def call_of(door: Door, name: str | None, path: str, body: bytes) -> Call | None:
    """The call; None when a body that should name its model does not."""
    fields = _object(body)
    if name is None:
        name = (_sources(fields).get("modelArn") if door == "retrieve" else fields.get("model")) if fields else None
        if not isinstance(name, str):
            return None
    is_stream = path.endswith("-stream") if door not in OPENAI_DOORS else bool(fields and fields.get("stream") is True)
    return Call(door, name, is_stream, body, fields)


def bound(call: Call, side: Side) -> Bound | None:
    """How *side* is asked for the same; None when it cannot be."""
    match side.kind:
        case "bedrock":
            return _bedrock(call, side)
        case "sagemaker":
            return _sagemaker(call, side)
        case "openai":
            return _openai(call, side)
    return None


def _bedrock(call: Call, side: Side) -> Bound | None:
    place = f"/model/{quote(side.name, safe='')}"
    stream = "invoke-with-response-stream" if call.is_stream else "invoke"
    match call.door:
        case "invoke":
            return Bound("invoke", f"{place}/{stream}", call.body, call.is_stream)
        case "count":
            return Bound("count", f"{place}/count-tokens", call.body, is_stream=False)
        case "retrieve" if side.is_local and call.fields is not None:
            return Bound("retrieve", _RETRIEVE, _of_sources(call.fields, side.name), is_stream=False)
        case "converse":
            return Bound(
                "converse", f"{place}/converse{'-stream' if call.is_stream else ''}", call.body, call.is_stream
            )
        case "sagemaker" if call.fields is not None:
            return Bound("invoke", f"{place}/{stream}", _without(call, "stream"), call.is_stream)
        case "chat" | "completions" | "embeddings" | "responses" if side.is_local and call.fields is not None:
            return Bound(call.door, f"/v1{_PATHS[call.door]}", _with(call, model=side.name), call.is_stream)
        case "chat" if call.fields is not None:
            return Bound("invoke", f"{place}/{stream}", _without(call, *_OF_OPENAI), call.is_stream)
    return None


def _sagemaker(call: Call, side: Side) -> Bound | None:
    place = f"/endpoints/{quote(side.name, safe='')}"
    path = f"{place}/invocations{'-response-stream' if call.is_stream else ''}"
    match call.door:
        case "sagemaker":
            return Bound("sagemaker", path, call.body, call.is_stream)
        case "async":
            return Bound("async", f"{place}/async-invocations", call.body, is_stream=False)
        case "invoke" if call.fields is not None:
            # A container hears only from the body that a stream is wanted.
            body = _with(call, stream=True) if call.is_stream else call.body
            return Bound("sagemaker", path, body, call.is_stream)
        case "chat" if call.fields is not None:
            return Bound("sagemaker", path, _without(call, "model"), call.is_stream)
    return None


def _openai(call: Call, side: Side) -> Bound | None:
    if call.fields is None:
        return None
    if call.door in OPENAI_DOORS:
        return Bound(call.door, _PATHS[call.door], _with(call, model=side.name), call.is_stream)
    if call.door in ("invoke", "sagemaker") and "messages" in call.fields:
        more: dict[str, Any] = {"model": side.name}
        if call.is_stream:
            more |= {"stream": True, "stream_options": {"include_usage": True}}
        return Bound("chat", _PATHS["chat"], _with(call, **more), call.is_stream)
    return None


def _with(call: Call, **more: Any) -> bytes:
    return msgspec.json.encode({**(call.fields or {}), **more})


def _without(call: Call, *names: str) -> bytes:
    """The body as it came where none of *names* is in it."""
    fields = call.fields or {}
    if not any(name in fields for name in names):
        return call.body
    return msgspec.json.encode({key: value for key, value in fields.items() if key not in names})


def _sources(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of RetrieveAndGenerate's body that names the model; empty where there is none."""
    config = fields.get("retrieveAndGenerateConfiguration")
    found = config.get("externalSourcesConfiguration") if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def _of_sources(fields: Mapping[str, Any], model: str) -> bytes:
    """The same body for *model*."""
    sources = {**_sources(fields), "modelArn": model}
    config = {**fields["retrieveAndGenerateConfiguration"], "externalSourcesConfiguration": sources}
    return msgspec.json.encode({**fields, "retrieveAndGenerateConfiguration": config})


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
