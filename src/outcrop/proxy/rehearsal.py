"""``outcrop proxy test``: a bundle run against recorded payloads, with inference recorded or live.

A payload is a JSON file: what a caller sends, what the target was asked meanwhile and answered, what the caller got. In
a replay the script meets a target that knows these answers and no others, so a changed prompt is a failure.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from outcrop.awswire.eventstream import encode_chunk
from outcrop.awswire.sigv4 import Keys
from outcrop.engines.http1 import Client
from outcrop.errors import BadSetting
from outcrop.proxy import origin
from outcrop.proxy.failures import TargetRefused
from outcrop.proxy.http1_server import Exchange, Server, listening
from outcrop.proxy.serve import running
from outcrop.proxy.settings import ProxySettings
from outcrop.proxy.target import Endpoint, Target, Trip
from outcrop.proxy.tls import tls_context

_MOST_BYTES = 64 << 20
_STREAMS = frozenset({"invoke-with-response-stream"})


@dataclass(slots=True)
class Payload:
    """One file. *calls*: operation, what was sent, status and answer, in the order in which they were made."""

    path: Path
    body: bytes
    content_type: str = "application/json"
    accept: str = "application/json"
    calls: list[dict[str, Any]] = field(default_factory=list)
    expected: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> Payload:
        """Raises BadSetting naming the file and what is wrong with it."""
        try:
            found = json.loads(path.read_text())
            request = found["request"]
            body = request["text"].encode() if "text" in request else json.dumps(request["json"]).encode()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise BadSetting(f"{path} is no payload: it needs a request with json or text ({exc!r}).") from exc
        return cls(
            path,
            body,
            request.get("content_type", "application/json" if "json" in request else "text/plain"),
            request.get("accept", "application/json"),
            found.get("calls", []),
            found.get("answer"),
        )

    def write(self) -> None:
        """Keep what was recorded, beside the request as it was written."""
        found = json.loads(self.path.read_text())
        kept = {"request": found["request"], "calls": self.calls, "answer": self.expected}
        self.path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one payload went; *problem* is empty when it went well."""

    name: str
    problem: str
    ms: float


class Stage:
    """The target that a rehearsed script meets: answers from the payload, or live ones that are written down."""

    def __init__(self, live: Target | None) -> None:
        self._live = live
        self._known: list[dict[str, Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.seen: list[dict[str, Any]] = []
        self.surprises: list[str] = []

    def set(self, payload: Payload) -> None:
        self._known, self.seen, self.surprises = list(payload.calls), [], []

    def heard(self, exchange: Exchange) -> None:
        """Answer a call to the target; for ``http1_server.Server``."""
        task = asyncio.create_task(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: Exchange) -> None:
        _, _, model, operation = exchange.path.split("/", 3)
        sent = msgspec.json.decode(exchange.body)
        call = await self._asked(unquote(model), operation, sent, exchange.body)
        answer = call["answer"]
        content_type = "application/json"
        if operation in _STREAMS and call["status"] == 200:
            content_type = "application/vnd.amazon.eventstream"
            data = b"".join(encode_chunk(msgspec.json.encode(piece)) for piece in answer)
        else:
            data = msgspec.json.encode(answer)
        exchange.answer(call["status"], [("content-type", content_type)], data)

    async def _asked(self, model: str, operation: str, sent: Any, body: bytes) -> dict[str, Any]:
        if self._live is None:
            for call in self._known:
                if call["operation"] == operation and call["sent"] == sent:
                    self._known.remove(call)
                    return call
            surprise = f"{operation} was sent {json.dumps(sent, ensure_ascii=False)[:2000]}"
            self.surprises.append(surprise)
            return {"status": 400, "answer": {"message": f"This call was not recorded: {surprise}"}}
        trip = Trip(asyncio.get_running_loop().time() + 600)
        status = 200
        answer: Any = None
        try:
            if operation in _STREAMS:
                answer = [msgspec.json.decode(piece) async for piece in self._live.stream(body, trip, model=model)]
            elif operation == "converse":
                answer = await self._live.converse(sent, trip, model=model)
            else:
                answer = (await self._live.invoke(body, trip, model=model)).json()
        except TargetRefused as exc:
            status, answer = exc.status, msgspec.json.decode(exc.body)
        call = {"operation": operation, "sent": sent, "status": status, "answer": answer}
        self.seen.append(call)
        return call

    def left_over(self) -> int:
        """Recorded calls that the script no longer makes."""
        return len(self._known)


async def rehearse(settings: ProxySettings, payloads: list[Payload], *, live: bool, record: bool) -> list[Verdict]:
    """Run every payload through a proxy over the bundle of *settings*. Raises BadSetting for a broken script."""
    async with contextlib.AsyncExitStack() as stack:
        target = None
        if live or record:
            found = await asyncio.to_thread(origin.find, settings)
            keys = await asyncio.to_thread(found.keys)
            client = Client(
                connect_timeout_s=5, read_timeout_s=600, keep_s=60, tls=tls_context(found.endpoint.url, found.ca_bundle)
            )
            stack.push_async_callback(client.aclose)
            target = Target(found.endpoint, client, keys)
        stage = Stage(target)
        url = await stack.enter_async_context(_listening(stage))
        model = target.endpoint.model if target is not None else settings.target
        staged = origin.Origin(Endpoint(url, "us-east-1", model), "", None, Keys(bearer="rehearsal"))
        base, pool = await stack.enter_async_context(running(settings, staged))
        await pool.settled.wait()
        if pool.failure:
            raise BadSetting(pool.failure)
        asker = Client(connect_timeout_s=5, read_timeout_s=settings.stream_timeout_s + 5, keep_s=60)
        stack.push_async_callback(asker.aclose)
        return [await _run(payload, stage, asker, base, live=live, record=record) for payload in payloads]


async def _run(payload: Payload, stage: Stage, asker: Client, base: str, *, live: bool, record: bool) -> Verdict:
    stage.set(payload)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    head = f"Content-Type: {payload.content_type}\r\nAccept: {payload.accept}\r\n"
    answer = await asker.send("POST", base, "/invocations", head=head, body=payload.body)
    try:
        body = await answer.read()
        got = {"status": answer.status, **_shown(body, answer.headers().get("content-type", ""))}
    finally:
        answer.close()
    ms = (loop.time() - begun) * 1000
    if record:
        payload.calls, payload.expected = stage.seen, got
        payload.write()
        return Verdict(payload.path.name, "", ms)
    problems = list(stage.surprises)
    if payload.expected is None:
        problems.append("it holds no answer yet: record it with --record")
    elif not live and got != payload.expected:
        problems.append(f"the answer is {_line(got)}, expected {_line(payload.expected)}")
    elif live and got["status"] != payload.expected["status"]:
        problems.append(f"the answer is {_line(got)}, expected status {payload.expected['status']}")
    if not live and stage.left_over() and not problems:
        problems.append(f"{stage.left_over()} recorded calls were not made")
    return Verdict(payload.path.name, "; ".join(problems), ms)


def _shown(body: bytes, content_type: str) -> dict[str, Any]:
    if content_type.startswith("application/json"):
        with contextlib.suppress(ValueError):
            return {"json": json.loads(body)}
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:2000]


@contextlib.asynccontextmanager
async def _listening(stage: Stage) -> AsyncIterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        async with listening(Server(stage.heard, most_body_bytes=_MOST_BYTES), sock):
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
