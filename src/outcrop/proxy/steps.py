"""Running a customer's functions: plain ones on a bounded pool of threads, never on the event loop."""

from __future__ import annotations

import concurrent.futures
import contextvars
import inspect
from asyncio import wrap_future
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from outcrop.proxy.context import Context, current
from outcrop.proxy.failures import HandlerFailed, TargetRefused

_END = object()


class Steps:
    """Calls handlers; what they raise becomes HandlerFailed with the handler's name and line below *root*."""

    def __init__(self, root: Path, threads: int) -> None:
        self.root = root
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="handler")

    async def call(self, name: str, handler: Callable[..., Any], *args: Any, reads_input: bool = False) -> Any:
        """What *handler* returns. *reads_input*: a ValueError of it is the caller's fault."""
        context = current()
        context.step = name
        try:
            if inspect.iscoroutinefunction(handler):
                return await handler(*args)
            if inspect.isasyncgenfunction(handler):
                return handler(*args)
            result = await self._in_thread(context, handler, *args)
            return await result if inspect.isawaitable(result) else result
        except (TargetRefused, HandlerFailed):
            raise
        except Exception as exc:
            raise HandlerFailed(name, exc, self.root, input_is_at_fault=reads_input) from exc

    async def each(self, name: str, items: AsyncIterator[Any] | Iterator[Any]) -> AsyncGenerator[Any, None]:
        """The items of a generator that a handler returned; it is closed with this one."""
        context = current()
        try:
            context.step = name
            if isinstance(items, AsyncIterator):
                async for item in items:
                    yield item
            else:
                while (item := await self._in_thread(context, next, items, _END)) is not _END:
                    yield item
        except (TargetRefused, HandlerFailed):
            raise
        except Exception as exc:
            raise HandlerFailed(name, exc, self.root, input_is_at_fault=False) from exc
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()

    async def _in_thread(self, context: Context, handler: Callable[..., Any], *args: Any) -> Any:
        future = self._pool.submit(contextvars.copy_context().run, handler, *args)
        context.threads.add(future)
        future.add_done_callback(context.threads.discard)
        return await wrap_future(future)


def is_stream(value: Any) -> bool:
    """Whether a handler returned something to be sent in parts."""
    return isinstance(value, AsyncIterator) or inspect.isgenerator(value)


def takes(handler: Callable[..., Any], count: int) -> int:
    """How many positional arguments *handler* takes, at most *count*; *count* when it takes any number."""
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):
        return count
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return count
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return min(count, len(positional))
