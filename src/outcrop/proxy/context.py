"""The client that customer code is given: calls to the target in a few shapes, and what is known of the request.

One object serves both kinds of code: on the event loop (an ``async def`` handler) a call is awaited and a stream is
iterated with ``async for``; on a worker's thread (a plain ``def`` handler) the same call blocks and the same stream is
iterated with ``for``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, TypeVar

import msgspec

from outcrop.proxy import shapes
from outcrop.proxy.failures import Refuse
from outcrop.proxy.target import Target, Trip
from outcrop.proxy.values import CUSTOM_ATTRIBUTES, Request

T = TypeVar("T")
_current: ContextVar[Context] = ContextVar("outcrop_proxy_context")
_END = object()


def current() -> Context:
    """The context of the invocation that runs now. Raises LookupError outside of one."""
    return _current.get()


class Context:
    """One invocation. *model_dir* is the bundle's folder; *step* the handler that runs now."""

    def __init__(self, request: Request, target: Target, trip: Trip, model_dir: str = "") -> None:
        self.request = request
        self.model_dir = model_dir
        self.step = ""
        self.response_headers: dict[str, str] = {}
        self.response_status: int | None = None
        self.response_content_type: str | None = None
        self.threads: set[concurrent.futures.Future[Any]] = set()
        self.trip = trip
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._waited_for: set[concurrent.futures.Future[Any]] = set()
        self._is_over = False

    # -- what is known of the request -----------------------------------------------------------------

    @property
    def request_id(self) -> str:
        return self.request.id

    @property
    def model(self) -> str:
        """ARN or name of the target."""
        return self._target.endpoint.model

    @property
    def custom_attributes(self) -> str:
        """The caller's ``X-Amzn-SageMaker-Custom-Attributes``; what is assigned goes into the answer."""
        return self.request.custom_attributes

    @custom_attributes.setter
    def custom_attributes(self, value: str) -> None:
        self.response_headers[CUSTOM_ATTRIBUTES] = value

    def remaining_s(self) -> float:
        """Seconds until the caller gives up."""
        return max(0.0, self.trip.deadline - self._loop.time())

    # -- calls to the target --------------------------------------------------------------------------

    def invoke(self, body: Any, *, model: str | None = None) -> Any:
        """InvokeModel. *body*: a mapping, a prompt, a list of messages; the answer's JSON. Bytes give bytes."""
        return self._here(self._invoke(body, model))

    def stream(self, body: Any, *, model: str | None = None) -> Any:
        """InvokeModelWithResponseStream: the JSON of each piece; of bytes, the bytes."""
        return self._here_each(self._stream(body, model))

    def converse(self, messages: Any = None, *, model: str | None = None, **fields: Any) -> Any:
        """Converse; fields are those of the operation. The answer's JSON."""
        body = {"messages": _conversation(messages), **fields}
        return self._here(self._target.converse(body, self.trip, model=model))

    def converse_stream(self, messages: Any = None, *, model: str | None = None, **fields: Any) -> Any:
        """ConverseStream: its events, each as ``{name: content}``."""
        body = {"messages": _conversation(messages), **fields}
        return self._here_each(self._target.converse_stream(body, self.trip, model=model))

    def generate(self, inputs: Any, **parameters: Any) -> Any:
        """As a Hugging Face pipeline: ``[{"generated_text": ...}]``, one list per text of a list of texts."""
        return self._here(self._generate(inputs, parameters))

    def chat(self, messages: Any, **parameters: Any) -> Any:
        """The text that the model answers to *messages*."""
        return self._here(self._chat(messages, parameters))

    __call__ = generate

    async def _invoke(self, body: Any, model: str | None) -> Any:
        answer = await self._target.invoke(_encoded(body), self.trip, model=model)
        return answer.body if isinstance(body, bytes) else answer.json()

    async def _stream(self, body: Any, model: str | None) -> AsyncGenerator[Any, None]:
        async with aclosing(self._target.stream(_encoded(body), self.trip, model=model)) as pieces:
            async for piece in pieces:
                yield piece if isinstance(body, bytes) else msgspec.json.decode(piece)

    async def _generate(self, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        texts = shapes.batch(inputs)
        if texts is not None:
            return await asyncio.gather(*(self._generate(text, parameters) for text in texts))
        answer = await self._invoke(shapes.native(inputs, parameters), None)
        return shapes.generated(inputs, answer, parameters)

    async def _chat(self, messages: Any, parameters: Mapping[str, Any]) -> str:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return shapes.text_of(await self._invoke(shapes.native(messages, parameters), None))

    # -- on the loop or on a thread -------------------------------------------------------------------

    def _here(self, work: Coroutine[Any, Any, T]) -> Any:
        if _on_loop():
            return work
        return self._block(work)

    def _here_each(self, items: AsyncGenerator[T, None]) -> AsyncIterator[T] | Iterator[T]:
        return items if _on_loop() else self._each(items)

    def _each(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while (item := self._block(anext(items, _END))) is not _END:
                yield item
        finally:
            if not self._is_over:
                self._block(items.aclose())

    def _block(self, work: Any) -> Any:
        if self._is_over:
            if hasattr(work, "close"):
                work.close()
            raise concurrent.futures.CancelledError("nobody waits for this invocation any more")
        future: concurrent.futures.Future[Any] = asyncio.run_coroutine_threadsafe(_awaited(work), self._loop)
        self._waited_for.add(future)
        try:
            return future.result()
        finally:
            self._waited_for.discard(future)

    def give_up(self) -> None:
        """End what threads of this invocation wait for: nobody wants it any more."""
        self._is_over = True
        for future in list(self._waited_for):
            future.cancel()

    # -- what the SageMaker inference toolkit's handlers know as their context ------------------------

    @property
    def system_properties(self) -> dict[str, Any]:
        return {"model_dir": self.model_dir, "gpu_id": None, "batch_size": 1}

    @property
    def request_processor(self) -> list[Context]:
        return [self]

    def get_request_properties(self) -> dict[str, str]:
        return {"Content-Type": self.request.content_type, "Accept": self.request.accept, **self.request.headers}

    def get_all_request_header(self, _index: int = 0) -> dict[str, str]:
        return self.get_request_properties()

    def get_request_header(self, _index: int, name: str) -> str | None:
        return self.request.headers.get(name.lower())

    def get_request_id(self, _index: int = 0) -> str:
        return self.request.id

    def set_response_content_type(self, _index: int, value: str) -> None:
        self.response_content_type = value

    def set_response_header(self, _index: int, name: str, value: str) -> None:
        self.response_headers[name.lower()] = value

    def set_response_status(self, code: int = 200, phrase: str = "", _index: int = 0) -> None:
        self.response_status = code


class Model:
    """What stands in for the weights: callable in the Hugging Face shape, forwarding to the target."""

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        return current().generate(inputs, **parameters)

    def generate(self, inputs: Any, **parameters: Any) -> Any:
        return current().generate(inputs, **parameters)

    def chat(self, messages: Any, **parameters: Any) -> Any:
        return current().chat(messages, **parameters)

    def stream(self, body: Any) -> Any:
        return current().stream(body)

    def invoke(self, body: Any) -> Any:
        return current().invoke(body)

    def converse(self, messages: Any, **fields: Any) -> Any:
        return current().converse(messages, **fields)


def entered(context: Context, work: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
    """*work* begun with *context* as the current one, for the task that runs it."""

    async def run() -> T:
        _current.set(context)
        return await work()

    return run()


async def _awaited(work: Any) -> Any:
    return await work


def _on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _encoded(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, str | list):
        body = shapes.native(body, {})
    if not isinstance(body, Mapping):
        raise Refuse(f"The body of a call must be a mapping, text, messages or bytes, not {type(body).__name__}.", 500)
    return msgspec.json.encode(body)


def _conversation(messages: Any) -> Any:
    """Messages as Converse takes them; a content that is a text becomes one block."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return [
        {**message, "content": [{"text": message["content"]}]}
        if isinstance(message, Mapping) and isinstance(message.get("content"), str)
        else message
        for message in messages or []
    ]
