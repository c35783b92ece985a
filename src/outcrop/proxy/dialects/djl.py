"""Scripts of DJL Serving (``handle(inputs)``) and of Multi Model Server (``handle(data, context)``).

Such a handler is one piece, so its own call for inference cannot be replaced from outside: it asks
``outcrop.proxy.current()`` instead. ``djl_python`` is not on PyPI; what its handlers use of it is offered here.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgspec

from outcrop.proxy import codecs
from outcrop.proxy.context import Context, current
from outcrop.proxy.dialects.base import Settings, handed_on, reply
from outcrop.proxy.failures import ScriptRefused
from outcrop.proxy.steps import Steps
from outcrop.proxy.values import JSON, Response, Streamed


class Input:
    """What ``handle`` is given: one invocation, or an empty one to initialise with."""

    def __init__(self, ctx: Context | None, model_dir: str) -> None:
        request = ctx.request if ctx is not None else None
        self._body = request.body if request is not None else b""
        self.properties: dict[str, str] = {"model_dir": model_dir, "device_id": "-1"}
        if request is not None:
            self.properties |= {"Content-Type": request.content_type, "Accept": request.accept, **request.headers}
        self.function_name = "handle"

    def is_empty(self) -> bool:
        return not self._body

    def get_function_name(self) -> str:
        return self.function_name

    def get_properties(self) -> dict[str, str]:
        return self.properties

    def get_property(self, key: str) -> str | None:
        wanted = key.lower()
        return next((value for name, value in self.properties.items() if name.lower() == wanted), None)

    def contains_key(self, key: str) -> bool:
        return self.get_property(key) is not None

    def get_as_bytes(self, key: Any = None) -> bytes:
        return self._body

    def get_as_string(self, key: Any = None) -> str:
        return self._body.decode()

    def get_as_json(self, key: Any = None) -> Any:
        return msgspec.json.decode(self._body)

    def get_as_numpy(self, key: Any = None) -> Any:
        return codecs.decode_array(self._body, self.get_property("Content-Type") or codecs.NPY)

    def get_batches(self) -> list[Input]:
        return [self]


class Output:
    """What ``handle`` returns."""

    def __init__(self, code: int = 200, message: str = "OK") -> None:
        self.code = code
        self.message = message
        self.properties: dict[str, str] = {}
        self.content: list[Any] = []
        self.stream: Iterator[Any] | None = None

    def add(self, value: Any, key: str | None = None, batch_index: int | None = None) -> Output:
        self.content.append(value)
        return self

    def add_as_json(self, value: Any, key: str | None = None, batch_index: int | None = None) -> Output:
        return self.add(msgspec.json.encode(value, enc_hook=lambda found: found.tolist()))

    def add_as_numpy(self, value: Any, key: str | None = None, batch_index: int | None = None) -> Output:
        return self.add(codecs.encode(value, codecs.NPY)[0])

    def add_property(self, key: str, value: str) -> Output:
        self.properties[key] = value
        return self

    def add_stream_content(self, stream: Any, output_formatter: Any = None) -> Output:
        self.stream = iter(stream) if output_formatter is None else (output_formatter(part) for part in stream)
        return self

    def error(self, message: str, code: int = 424, *_: Any, **__: Any) -> Output:
        self.code, self.message = code, message
        return self.add_as_json({"error": message, "code": code})

    def finalize(self) -> Output:
        self.code, self.message = 200, "OK"
        return self


class Djl:
    name = "djl"

    def __init__(self, module: ModuleType, settings: Settings, steps: Steps) -> None:
        self._handle = _function(module, "handle")
        self._model_dir = str(settings.model_dir)
        self._steps = steps

    async def load(self) -> None:
        await self._steps.call("handle", self._handle, Input(None, self._model_dir))

    async def run(self, ctx: Context) -> Response | Streamed:
        found = await self._steps.call("handle", self._handle, Input(ctx, self._model_dir))
        if not isinstance(found, Output):
            return reply(ctx, found, None)
        properties = {name.lower(): str(value) for name, value in found.properties.items()}
        content_type = properties.pop("content-type", JSON)
        ctx.response_headers |= properties
        ctx.response_status = found.code if found.code != 200 else None
        if found.stream is not None:
            return handed_on(ctx, self._steps, "handle", _generator(found.stream), content_type)
        if len(found.content) == 1 and not isinstance(found.content[0], str | bytes | bytearray):
            return reply(ctx, found.content[0], content_type)
        return reply(ctx, b"".join(codecs.piece(part) for part in found.content), content_type)


class MultiModelServer:
    """``handle(data, context)``: a list of one request in, a list of one answer out."""

    name = "mms"

    def __init__(self, module: ModuleType, settings: Settings, steps: Steps) -> None:
        self._handle = _function(module, "handle")
        self._steps = steps

    async def load(self) -> None:
        await self._steps.call("handle", self._handle, None, current())

    async def run(self, ctx: Context) -> Response | Streamed:
        found = await self._steps.call("handle", self._handle, [{"body": ctx.request.body}], ctx)
        return reply(ctx, found[0] if isinstance(found, list) and len(found) == 1 else found, None)


def _function(module: ModuleType, name: str) -> Any:
    found = getattr(module, name, None)
    if not inspect.isroutine(found):
        raise ScriptRefused(f"The script is said to be one of {name}, but defines no function of that name.")
    return found


def _generator(items: Iterator[Any]) -> Iterator[Any]:
    yield from items


def offer_djl_python() -> None:
    """Put a module ``djl_python`` with Input and Output in place, unless the real one is installed."""
    if "djl_python" in sys.modules or importlib.util.find_spec("djl_python") is not None:
        return
    package = ModuleType("djl_python")
    package.__path__ = []
    for name, value in (("inputs", Input), ("outputs", Output)):
        module = ModuleType(f"djl_python.{name}")
        setattr(module, value.__name__, value)
        setattr(package, name, module)
        setattr(package, value.__name__, value)
        sys.modules[module.__name__] = module
    sys.modules["djl_python"] = package
