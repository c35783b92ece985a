"""What every dialect owes, and what they share: forwarding a decoded value, answering in parts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from outcrop.proxy import codecs, shapes
from outcrop.proxy.context import Context
from outcrop.proxy.failures import Refuse
from outcrop.proxy.steps import Steps
from outcrop.proxy.values import EVENTS, JSON, Response, Streamed


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a dialect needs to know. *forward*: ``always`` replaces the script's own load and predict by forwarding,
    ``when-absent`` only where it has none.
    """

    model_dir: Path
    program: str = ""
    dialect: str = "auto"
    forward: str = "always"
    default_accept: str = JSON
    is_hugging_face: bool = False

    @property
    def always_forwards(self) -> bool:
        return self.forward == "always"


class Dialect(Protocol):
    name: str

    async def load(self) -> None:
        """Whatever the script does once, before the first invocation. Raises whatever it raises."""

    async def run(self, ctx: Context) -> Response | Streamed:
        """Answer the invocation of *ctx*. Raises HandlerFailed, TargetRefused, Refuse."""


class _Shape(msgspec.Struct):
    inputs: msgspec.Raw = msgspec.Raw(b"")


_SHAPE = msgspec.json.Decoder(_Shape)


async def forward_body(ctx: Context, body: bytes, content_type: str) -> Response | Streamed:
    """What the target answers to *body* as it is; Hugging Face's ``inputs`` are answered in its shape."""
    if codecs.media_type(content_type) == JSON and b'"inputs"' in body and _has_inputs(body):
        return reply(ctx, await forward_value(ctx, msgspec.json.decode(body)), None)
    if ctx.request.wants_stream:
        return streamed(ctx, ctx.stream(without_stream(body)))
    return await ctx._target.invoke(body, ctx.trip, content_type=content_type)


def _has_inputs(body: bytes) -> bool:
    try:
        return bool(_SHAPE.decode(body).inputs)
    except msgspec.DecodeError:
        return False


def without_stream(body: bytes) -> bytes:
    """*body* without its ``stream`` key: the operation says it."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body
    if isinstance(found, dict) and found.pop("stream", None) is not None:
        return msgspec.json.encode(found)
    return body


async def forward_value(ctx: Context, data: Any) -> Any:
    """What the target makes of a decoded input, in the shape that the input has: Hugging Face's, its own, or text.

    Raises Refuse for a value that none of them covers.
    """
    if hasattr(data, "tolist"):
        data = data.tolist()
    if isinstance(data, dict) and "inputs" in data:
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise Refuse(f"'parameters' must be an object, not {type(parameters).__name__}.")
        if ctx.request.wants_stream:
            return ctx.stream(shapes.native(data["inputs"], parameters))
        return await ctx.generate(data["inputs"], **parameters)
    if isinstance(data, bytes | bytearray):
        return await ctx.invoke(bytes(data))
    if isinstance(data, dict) and ctx.request.wants_stream:
        return ctx.stream({key: value for key, value in data.items() if key != "stream"})
    if shapes.is_native(data):
        return await ctx.invoke(data)
    if isinstance(data, str):
        return shapes.text_of(await ctx.invoke(data))
    if isinstance(data, list) and data and isinstance(data[0], dict) and "role" in data[0]:
        return await ctx.invoke({"messages": data})
    if isinstance(data, list) and shapes.batch(data) is not None:
        return await ctx.generate(data)
    raise Refuse(
        f"What the input handler gives ({type(data).__name__}) cannot be forwarded: give text, messages, a body with "
        "'messages', 'prompt' or 'inputs', or call the target yourself in predict."
    )


def reply(ctx: Context, result: Any, accept: str | None) -> Response:
    """A handler's result as a whole answer in *accept*, or in what the caller accepts."""
    body, content_type = codecs.written(result, accept or ctx.request.accept)
    return Response(body, ctx.response_content_type or content_type, ctx.response_status or 200, ctx.response_headers)


def streamed(ctx: Context, items: AsyncIterator[Any] | Iterator[Any]) -> Streamed:
    """The target's own pieces in parts: server-sent events, or a JSON line each where the caller wants lines."""
    accept = codecs.media_type(ctx.request.accept)
    is_lines = accept in codecs.LINES
    return Streamed(
        _pieces(items, is_lines=is_lines),
        accept if is_lines else EVENTS,
        ctx.response_status or 200,
        ctx.response_headers,
    )


async def _pieces(items: Any, *, is_lines: bool) -> AsyncGenerator[bytes, None]:
    try:
        async for item in items:
            text = item if isinstance(item, bytes) else msgspec.json.encode(item)
            yield text + b"\n" if is_lines else b"data: " + text + b"\n\n"
        if not is_lines:
            yield b"data: [DONE]\n\n"
    finally:
        await items.aclose()


def handed_on(ctx: Context, steps: Steps, name: str, items: Any, accept: str) -> Streamed:
    """What a handler yields, in parts as it yields them."""
    content_type = ctx.response_content_type or accept

    async def parts() -> AsyncGenerator[bytes, None]:
        async for item in steps.each(name, items):
            yield codecs.piece(item)

    return Streamed(parts(), content_type, ctx.response_status or 200, ctx.response_headers)
