"""A worker process: loads the script once and runs invocations of it until the front closes the socket pair.

``python -m outcrop.proxy.worker FD``; everything else comes over the descriptor. A plain handler blocks one thread, an
async one runs on the loop. A worker ends at once when the front is gone, whatever the script is doing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from outcrop.awswire.sigv4 import Keys
from outcrop.engines.http1 import Client
from outcrop.errors import OutcropError
from outcrop.proxy import link, script
from outcrop.proxy.answer import answer, failed
from outcrop.proxy.context import Context, entered
from outcrop.proxy.dialects.base import Dialect, Settings
from outcrop.proxy.failures import HandlerFailed, Refuse, TargetRefused
from outcrop.proxy.parent import end_with_parent
from outcrop.proxy.steps import Steps
from outcrop.proxy.target import Endpoint, Target, Trip
from outcrop.proxy.tls import tls_context
from outcrop.proxy.values import JSON, Request, Response, Streamed

_STACK_BYTES = 1 << 20  # of a handler's thread: 64 of them are not to count for half a gigabyte
_CONNECT_S = 5.0
_KEEP_S = 60.0


class Config(msgspec.Struct, kw_only=True):
    """What the front tells a worker. Times in s."""

    model_dir: str
    program: str
    dialect: str
    forward: str
    default_accept: str
    is_hugging_face: bool
    threads: int
    tracebacks: bool
    url: str
    region: str
    model: str
    stream_timeout_s: float
    ca_bundle: str = ""
    keys: list[str] = msgspec.field(default_factory=lambda: ["", "", "", ""])


class Worker:
    """Invocations that run here, and the streams among them that wait for credit."""

    def __init__(self, dialect: Dialect, target: Target, config: Config) -> None:
        self._dialect = dialect
        self._target = target
        self._config = config
        self._running: dict[int, asyncio.Task[None]] = {}
        self._windows: dict[int, _Window] = {}
        self._lost = asyncio.Event()
        self.link = link.Link(self._heard, self._lost.set)

    async def serve(self) -> None:
        """Load the script, then run what the front asks for until it is gone."""
        begun = time.monotonic()
        context = self._context(Request(b""), asyncio.get_running_loop().time() + 3600)
        try:
            await entered(context, self._dialect.load)
        except Exception as exc:
            self.link.send(link.Broken(f"the script was imported, but does not start: {exc}"))
            self.link.close()
        else:
            gc.collect()
            gc.freeze()  # what the script loaded stays: the collector need not walk it while callers wait
            self.link.send(link.Ready(self._dialect.name, time.monotonic() - begun))
        await self._lost.wait()

    def _context(self, request: Request, deadline: float) -> Context:
        trip = Trip(
            deadline,
            request.headers.get("traceparent", ""),
            request.headers.get("tracestate", ""),
            request.headers.get("x-outcrop-on-behalf-of", ""),
        )
        return Context(request, self._target, trip, self._config.model_dir)

    def _heard(self, message: link.Message) -> None:
        match message:
            case link.Invoke():
                task = asyncio.ensure_future(self._run(message))
                self._running[message.id] = task
            case link.Credit():
                if message.id in self._windows:
                    self._windows[message.id].give(message.size)
            case link.Cancel():
                if message.id in self._running:
                    self._running[message.id].cancel()
                else:
                    self.link.send(link.Gone(message.id))
            case link.Sign():
                self._target.keys = Keys(
                    message.access_key_id, message.secret_access_key, message.session_token, message.bearer
                )

    async def _run(self, asked: link.Invoke) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        headers = dict(asked.headers)
        request = Request(
            asked.body,
            headers.get("content-type", JSON),
            headers.get("accept") or self._config.default_accept,
            headers,
            asked.request_id,
        )
        context = self._context(request, begun + asked.left_s)
        is_cut = False
        try:
            async with asyncio.timeout(asked.left_s) as limit:
                found = await entered(context, lambda: self._answered(context))
                if isinstance(found, Streamed):
                    context.trip.deadline = begun + asked.stream_left_s
                    limit.reschedule(context.trip.deadline)
                    await self._send_parts(asked.id, found, context)
                else:
                    self._send_whole(asked.id, found, context)
        except TimeoutError:
            is_cut = True
            self._cut(asked, context)
        except asyncio.CancelledError:
            is_cut = True
        finally:
            del self._running[asked.id]
            self._windows.pop(asked.id, None)
        if is_cut:
            context.give_up()
            while context.threads:
                await asyncio.sleep(0.02)
            self.link.send(link.Gone(asked.id))

    def _answered(self, context: Context) -> Coroutine[Any, Any, Response | Streamed]:
        return answer(self._dialect, context, with_traceback=self._config.tracebacks)

    def _send_whole(self, id: int, answer: Response, context: Context) -> None:  # noqa: A002
        error = answer.headers.get("x-outcrop-error-source", "")
        self.link.send(
            link.Whole(id, answer.status, _pairs(answer), answer.body, context.trip.target_s, error and _brief(answer))
        )

    async def _send_parts(self, id: int, answer: Streamed, context: Context) -> None:  # noqa: A002
        self.link.send(link.Head(id, answer.status, _pairs(answer)))
        window = self._windows[id] = _Window()
        error = ""
        try:
            async with aclosing(answer.parts) as parts:  # type: ignore[type-var]
                async for part in parts:
                    await window.room()
                    window.take(len(part))
                    self.link.send(link.Part(id, part))
        except HandlerFailed as exc:
            error = failed(exc, with_traceback=False).json()["message"]
        except (TargetRefused, Refuse) as exc:
            error = str(exc)
        self.link.send(link.End(id, context.trip.target_s, error))

    def _cut(self, asked: link.Invoke, context: Context) -> None:
        """Tell the front that the deadline has passed, and which handler it found at work."""
        is_open = asked.id in self._windows
        step, limit_s = context.step or "the proxy", asked.stream_left_s if is_open else asked.left_s
        message = f"{step} did not finish within {limit_s:.3g} s."
        if is_open:
            self.link.send(link.End(asked.id, context.trip.target_s, message, is_cut=True))
            return
        body = msgspec.json.encode({"message": message, "handler": step, "type": "Timeout"})
        headers = [("content-type", JSON), ("x-outcrop-error-source", "handler")]
        self.link.send(link.Whole(asked.id, 500, headers, body, context.trip.target_s, message, is_cut=True))


class _Window:
    """Bytes of a stream that may still be sent."""

    def __init__(self) -> None:
        self._left = link.WINDOW_BYTES
        self._more = asyncio.Event()

    def take(self, size: int) -> None:
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size
        if self._left > 0:
            self._more.set()

    async def room(self) -> None:
        while self._left <= 0:
            self._more.clear()
            await self._more.wait()


def _pairs(answer: Response | Streamed) -> list[tuple[str, str]]:
    return [("content-type", answer.content_type), *answer.headers.items()]


def _brief(answer: Response) -> str:
    return answer.body[:500].decode(errors="replace")


def main() -> None:
    end_with_parent(signal.SIGKILL)  # even while a handler blocks the loop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides when its workers end
    threading.stack_size(_STACK_BYTES)
    sock = socket.socket(fileno=int(sys.argv[1]))
    config = msgspec.convert(_first(sock).config, Config)
    settings = Settings(
        model_dir=Path(config.model_dir),
        program=config.program,
        dialect=config.dialect,
        forward=config.forward,
        default_accept=config.default_accept,
        is_hugging_face=config.is_hugging_face,
    )
    steps = Steps(settings.model_dir, config.threads)
    try:
        # Before the loop runs: a script may run one of its own while it is imported.
        dialect = script.opened(settings, steps)
    except OutcropError as exc:
        _say(sock, link.Broken(str(exc)))
        sys.exit(1)
    uvloop.run(_serve(sock, dialect, config))
    os._exit(0)  # handlers that hang must not keep the process


async def _serve(sock: socket.socket, dialect: Dialect, config: Config) -> None:
    tls = tls_context(config.url, config.ca_bundle)
    client = Client(connect_timeout_s=_CONNECT_S, read_timeout_s=config.stream_timeout_s, keep_s=_KEEP_S, tls=tls)
    target = Target(Endpoint(config.url, config.region, config.model), client, Keys(*config.keys))
    worker = Worker(dialect, target, config)
    sock.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: worker.link, sock=sock)
    await worker.serve()


def _first(sock: socket.socket) -> link.Begin:
    message: Any = msgspec.msgpack.decode(_read(sock, struct.unpack(">I", _read(sock, 4))[0]), type=link.Begin)
    assert isinstance(message, link.Begin)
    return message


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            sys.exit(0)  # the front is gone before it said anything
        data += part
    return data


def _say(sock: socket.socket, message: link.Message) -> None:
    data = msgspec.msgpack.encode(message)
    sock.sendall(struct.pack(">I", len(data)) + data)


if __name__ == "__main__":
    main()
