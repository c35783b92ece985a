"""Scripts of the SageMaker inference toolkit and of its Hugging Face variant.

Rules (aws/sagemaker-inference-toolkit, ``transformer.py``): ``transform_fn`` excludes the three others; each function
may take one argument more, the context; JSON and CSV arrive as text; an absent or ``*/*`` Accept is the default one; a
pair is a body with its type. The Hugging Face toolkit answers every failure of the script with 400.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from outcrop.proxy import codecs
from outcrop.proxy.context import Context, Model, current
from outcrop.proxy.dialects.base import Settings, forward_value, handed_on, reply, streamed
from outcrop.proxy.failures import HandlerFailed, ScriptRefused
from outcrop.proxy.steps import Steps, is_stream
from outcrop.proxy.values import JSON, Response, Streamed

NAMES = frozenset({"model_fn", "input_fn", "predict_fn", "output_fn", "transform_fn"})
_AS_TEXT = frozenset({JSON, codecs.CSV})


class Toolkit:
    name = "sagemaker"

    def __init__(self, module: ModuleType, settings: Settings, steps: Steps) -> None:
        self._settings = settings
        self._steps = steps
        self._model: Any = Model()
        found: dict[str, Callable[..., Any]] = {
            name: getattr(module, name)
            for name in (*NAMES, "pre_model_fn", "model_warmup_fn")
            if callable(getattr(module, name, None))
        }
        if "transform_fn" in found and found.keys() & {"input_fn", "predict_fn", "output_fn"}:
            raise ScriptRefused("transform_fn cannot stand beside input_fn, predict_fn or output_fn. Keep one of both.")
        if settings.always_forwards:
            for name in ("model_fn", "predict_fn", "pre_model_fn", "model_warmup_fn"):
                found.pop(name, None)
        self._found = found

    async def load(self) -> None:
        model_dir = str(self._settings.model_dir)
        if "pre_model_fn" in self._found:
            await self._call("pre_model_fn", model_dir)
        if "model_fn" in self._found:
            self._model = await self._call("model_fn", model_dir)
        if "model_warmup_fn" in self._found:
            await self._call("model_warmup_fn", model_dir, self._model)

    async def run(self, ctx: Context) -> Response | Streamed:
        request = ctx.request
        accept = request.accept if request.accept not in ("", "*/*") else self._settings.default_accept
        body: Any = request.body
        if codecs.media_type(request.content_type) in _AS_TEXT:
            body = codecs.decode(body, codecs.TEXT)
        if "transform_fn" in self._found:
            result = await self._call("transform_fn", self._model, body, request.content_type, accept)
            return self._answer(ctx, "transform_fn", result, accept)
        data = await self._input(body, request.content_type)
        if "predict_fn" in self._found:
            step = "predict_fn"
            prediction = await self._call(step, data, self._model)
        else:
            step = "forward"
            prediction = await self._forward(ctx, data)
        if "output_fn" in self._found:
            result = await self._call("output_fn", prediction, accept)
            return self._answer(ctx, "output_fn", result, accept)
        if step == "forward" and is_stream(prediction):
            return streamed(ctx, prediction)
        return self._answer(ctx, step, prediction, accept)

    async def _input(self, body: Any, content_type: str) -> Any:
        if "input_fn" in self._found:
            return await self._call("input_fn", body, content_type, reads_input=True)
        raw = codecs.as_bytes(body)
        if "predict_fn" in self._found and self.name == "sagemaker":
            return codecs.decode_array(raw, content_type)
        return codecs.decode(raw, content_type)

    async def _forward(self, ctx: Context, data: Any) -> Any:
        return await forward_value(ctx, data)

    def _answer(self, ctx: Context, step: str, result: Any, accept: str) -> Response | Streamed:
        if isinstance(result, tuple) and len(result) == 2 and is_stream(result[0]):
            result, accept = result
        if is_stream(result):
            return handed_on(ctx, self._steps, step, result, accept)
        return reply(ctx, result, accept)

    async def _call(self, name: str, *args: Any, reads_input: bool = False) -> Any:
        handler = self._found[name]
        count = len(inspect.signature(handler).parameters)
        if count == len(args) + 1:
            args = (*args, current())
        elif count != len(args):
            wanted = TypeError(f"{name} takes {count} arguments but {len(args)} were given.")
            raise HandlerFailed(name, wanted, self._steps.root, input_is_at_fault=False)
        return await self._steps.call(name, handler, *args, reads_input=reads_input)


class HuggingFace(Toolkit):
    """The Hugging Face toolkit: plain JSON in and out, failures of the script are 400."""

    name = "huggingface"

    async def _call(self, name: str, *args: Any, reads_input: bool = False) -> Any:
        try:
            return await super()._call(name, *args, reads_input=reads_input)
        except HandlerFailed as exc:
            if exc.status == 500:
                exc.status = 400
            raise
