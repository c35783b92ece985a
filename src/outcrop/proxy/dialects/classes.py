"""Scripts with a class: KServe's ``Model``, Truss's ``Model``, TorchServe's handlers.

``preprocess`` and ``postprocess`` run as they are; ``load`` and ``predict`` (``inference``) are replaced by forwarding
where the settings say so. A handler with ``initialize`` is TorchServe's: it takes and gives lists of one.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from outcrop.proxy import codecs
from outcrop.proxy.context import Context, Model, current
from outcrop.proxy.dialects.base import Settings, forward_value, handed_on, reply, streamed
from outcrop.proxy.failures import ScriptRefused
from outcrop.proxy.steps import Steps, is_stream, takes
from outcrop.proxy.values import Response, Streamed

_STEPS = ("preprocess", "postprocess", "predict", "inference")


def handler_class(module: ModuleType) -> type[Any] | None:
    """The class of *module* that is a handler: one named Model, else the last that is defined here."""
    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and any(callable(getattr(value, name, None)) for name in _STEPS)
    ]
    named = [found for found in own if found.__name__ == "Model"]
    return named[-1] if named else own[-1] if own else None


class HandlerClass:
    name = "class"

    def __init__(self, module: ModuleType, settings: Settings, steps: Steps) -> None:
        found = handler_class(module)
        if found is None:
            raise ScriptRefused("The script defines no class with preprocess, postprocess, predict or inference.")
        self._settings = settings
        self._steps = steps
        self._handler = _made(found, settings.model_dir)
        self._takes_lists = callable(getattr(found, "initialize", None))
        self._predict = "inference" if self._takes_lists else "predict"
        # What a framework's own base class brings along is not the customer's.
        self._own = {name for cls in found.__mro__ if cls.__module__ == module.__name__ for name in vars(cls)}
        self._runs_own = not settings.always_forwards and self._predict in self._own

    async def load(self) -> None:
        if self._runs_own or (not self._settings.always_forwards and "load" in self._own):
            name = "initialize" if self._takes_lists else "load"
            if name in self._own:
                await self._call(name, *((current(),) if self._takes_lists else ()))
        elif hasattr(self._handler, "model") and self._handler.model is None:
            self._handler.model = Model()

    async def run(self, ctx: Context) -> Response | Streamed:
        request = ctx.request
        data: Any = [{"body": request.body}] if self._takes_lists else codecs.decode(request.body, request.content_type)
        if "preprocess" in self._own:
            data = await self._call("preprocess", data, dict(request.headers), reads_input=True)
        step = self._predict
        if self._runs_own:
            result = await self._call(step, data, dict(request.headers))
        else:
            data = _only(data) if self._takes_lists else data
            result = await forward_value(ctx, data)
            step = "forward"
            if is_stream(result) and "postprocess" not in self._own:
                return streamed(ctx, result)
        if is_stream(result) and "postprocess" not in self._own:
            return handed_on(ctx, self._steps, step, result, request.accept)
        if "postprocess" in self._own:
            if self._takes_lists and not self._runs_own:
                result = [result]
            step, result = "postprocess", await self._call("postprocess", result, dict(request.headers))
        if is_stream(result):
            return handed_on(ctx, self._steps, step, result, request.accept)
        return reply(ctx, _only(result) if self._takes_lists else result, None)

    async def _call(self, name: str, *args: Any, reads_input: bool = False) -> Any:
        handler = getattr(self._handler, name)
        return await self._steps.call(name, handler, *args[: takes(handler, len(args))], reads_input=reads_input)


def _only(values: Any) -> Any:
    value = values[0] if isinstance(values, list) and len(values) == 1 else values
    return value["body"] if isinstance(value, dict) and value.keys() == {"body"} else value


def _made(cls: type[Any], model_dir: Path) -> Any:
    """An object of *cls*: Truss passes its configuration by name, KServe a model name."""
    offered = {
        "config": {},
        "data_dir": model_dir / "data",
        "secrets": {},
        "lazy_data_resolver": None,
        "environment": None,
        "name": "model",
        "model_name": "model",
        "predictor_host": "",
        "model_dir": str(model_dir),
    }
    parameters = inspect.signature(cls).parameters.values()
    given: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD and cls.__name__ == "Model":
            given |= {name: offered[name] for name in ("config", "data_dir", "secrets")}
        elif parameter.name in offered and parameter.kind is not parameter.VAR_POSITIONAL:
            given[parameter.name] = offered[parameter.name]
        elif parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            raise ScriptRefused(
                f"{cls.__name__}.__init__ wants '{parameter.name}', which neither Truss nor KServe passes. "
                "Give it a default."
            )
    return cls(**given)


class _KServeModel:
    """What a KServe transformer derives from, where KServe itself is not installed."""

    def __init__(self, name: str = "model", *_: Any, **__: Any) -> None:
        self.name = name
        self.ready = False
        self.predictor_host = ""
        self.protocol = "v1"

    def load(self) -> bool:
        self.ready = True
        return self.ready


def offer_kserve() -> None:
    """Put a module ``kserve`` with Model in place, unless the real one is installed."""
    if "kserve" in sys.modules or importlib.util.find_spec("kserve") is not None:
        return
    package = ModuleType("kserve")
    package.Model = type("Model", (_KServeModel,), {"__module__": "kserve"})  # type: ignore[attr-defined]
    sys.modules["kserve"] = package
