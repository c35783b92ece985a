"""Our own interface, the one that ``outcrop proxy init`` writes: functions of a request and a context.

``preprocess(request, ctx)`` gives what is sent to the target, ``postprocess(response, ctx)`` what the caller gets;
``predict(request, ctx)`` replaces the forwarding and calls the target itself; ``postprocess_stream(chunks, ctx)`` turns
the pieces of a stream into others. All may be plain or ``async``, all but one may be absent; without any, bodies pass
through untouched.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import msgspec

from outcrop.proxy import codecs
from outcrop.proxy.context import Context, current
from outcrop.proxy.dialects.base import (
    Settings,
    forward_body,
    forward_value,
    handed_on,
    reply,
    streamed,
    without_stream,
)
from outcrop.proxy.steps import Steps, is_stream
from outcrop.proxy.values import EVENTS, JSON, Request, Response, Streamed

NAMES = frozenset({"preprocess", "predict", "postprocess", "postprocess_stream"})


class Functions:
    name = "outcrop"

    def __init__(self, module: ModuleType, settings: Settings, steps: Steps) -> None:
        self._steps = steps
        self._found = {
            name: getattr(module, name) for name in (*NAMES, "load") if callable(getattr(module, name, None))
        }

    async def load(self) -> None:
        if "load" in self._found:
            handler = self._found["load"]
            wants = bool(inspect.signature(handler).parameters)
            await self._steps.call("load", handler, *((current(),) if wants else ()))

    async def run(self, ctx: Context) -> Response | Streamed:
        found, call, request = self._found, self._steps.call, ctx.request
        prepared: Any = request
        if "preprocess" in found:
            prepared = await call("preprocess", found["preprocess"], request, ctx, reads_input=True)
        if "predict" in found:
            answer = await call("predict", found["predict"], prepared, ctx)
        elif request.wants_stream and "postprocess_stream" in found:
            answer = _pieces_of(ctx, prepared)
        elif isinstance(prepared, Request):
            answer = await forward_body(ctx, prepared.body, prepared.content_type)
        elif isinstance(prepared, bytes | bytearray):
            answer = await forward_body(ctx, bytes(prepared), JSON)
        else:
            answer = await forward_value(ctx, prepared)
        if is_stream(answer):
            return self._stream(ctx, answer)
        if isinstance(answer, Streamed):
            return answer
        if "postprocess" in found:
            handed = answer if isinstance(answer, Response) else _as_response(answer)
            answer = await call("postprocess", found["postprocess"], handed, ctx)
            if is_stream(answer):
                return handed_on(ctx, self._steps, "postprocess", answer, EVENTS)
        if isinstance(answer, Response):
            if "postprocess" not in found or answer is not handed:
                answer.headers = {**answer.headers, **ctx.response_headers}
            return answer
        return reply(ctx, answer, None)

    def _stream(self, ctx: Context, items: Any) -> Streamed:
        if "postprocess_stream" in self._found:
            changed = self._found["postprocess_stream"](items, ctx)
            return handed_on(ctx, self._steps, "postprocess_stream", changed, EVENTS)
        if "predict" in self._found:
            return handed_on(ctx, self._steps, "predict", items, EVENTS)
        return streamed(ctx, items)


def _pieces_of(ctx: Context, prepared: Any) -> Any:
    """The JSON of each piece that the target streams to what ``preprocess`` gave."""
    if isinstance(prepared, Request):
        prepared = prepared.body
    if isinstance(prepared, bytes | bytearray):
        prepared = msgspec.json.decode(without_stream(bytes(prepared)))
    if isinstance(prepared, dict):
        prepared = {key: value for key, value in prepared.items() if key != "stream"}
    return ctx.stream(prepared)


def _as_response(answer: Any) -> Response:
    body, content_type = codecs.written(answer, JSON)
    return Response(body, content_type)
