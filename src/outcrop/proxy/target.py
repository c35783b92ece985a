"""Calls to the target: signed, pooled, asked again while it starts, given up when the caller is gone or out of time.

The Bedrock runtime API and nothing else, so that the target may be this project's server or AWS. What only a server
of ours understands (``x-outcrop-hold``) is a header that others pass over.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from outcrop.awswire.eventstream import BrokenFrame, Decoder, Message
from outcrop.awswire.sigv4 import Keys, Scope, head
from outcrop.engines.http1 import Answer, Client
from outcrop.proxy.failures import TargetRefused, TargetUnreachable
from outcrop.proxy.values import JSON, Response

PASSING = frozenset({429, 502, 503, 504})  # 424 and 500 are answers: asking again changes nothing
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_LEAST_LEFT_S = 0.05  # with less than this left another attempt is not begun
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
# Status of a failure inside an open stream: botocore data, bedrock-runtime/2023-09-30.
_EVENT_STATUS = {
    "validationException": 400,
    "throttlingException": 429,
    "modelStreamErrorException": 424,
    "modelTimeoutException": 408,
    "serviceUnavailableException": 503,
    "internalServerException": 500,
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the target is: base URL, region it signs for, and the model that is meant unless a call names another."""

    url: str
    region: str
    model: str


@dataclass(slots=True)
class Trip:
    """One invocation on its way: what its calls to the target share, and what they took."""

    deadline: float  # on the event loop's clock
    traceparent: str = ""
    tracestate: str = ""
    behalf: str = ""  # the call of an endpoint that pays for tokens, as a server of ours names it
    target_s: float = 0.0
    attempts: int = 0
    calls: int = 0
    invocation_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def trace_lines(self) -> str:
        """Header lines of a new span of the caller's trace, or of a new trace, and of who pays."""
        found = _TRACEPARENT.fullmatch(self.traceparent)
        trace, flags = (found[1], found[3]) if found else (secrets.token_hex(16), "01")
        if not found:
            self.traceparent = f"00-{trace}-{secrets.token_hex(8)}-{flags}"
        state = f"tracestate: {self.tracestate}\r\n" if self.tracestate and self.tracestate.isprintable() else ""
        behalf = f"x-outcrop-on-behalf-of: {self.behalf}\r\n" if self.behalf.isalnum() else ""
        return f"traceparent: 00-{trace}-{secrets.token_hex(8)}-{flags}\r\n{state}{behalf}"


class Target:
    """One target, owned by one event loop. *keys* may be replaced at any time."""

    def __init__(self, endpoint: Endpoint, client: Client, keys: Keys) -> None:
        self.endpoint = endpoint
        self.keys = keys
        self._client = client
        parts = urlsplit(endpoint.url)
        self._host = parts.netloc
        self._prefix = parts.path.rstrip("/")
        self._base = f"{parts.scheme}://{parts.netloc}"

    async def invoke(self, body: bytes, trip: Trip, *, model: str | None = None, content_type: str = JSON) -> Response:
        """InvokeModel. Raises TargetRefused with the target's own answer."""
        return await self._whole("invoke", body, trip, model, content_type)

    async def converse(self, body: Mapping[str, Any], trip: Trip, *, model: str | None = None) -> dict[str, Any]:
        """Converse. Raises TargetRefused."""
        answer = await self._whole("converse", msgspec.json.encode(body), trip, model, JSON)
        found: dict[str, Any] = msgspec.json.decode(answer.body)
        return found

    async def stream(
        self, body: bytes, trip: Trip, *, model: str | None = None, content_type: str = JSON
    ) -> AsyncGenerator[bytes, None]:
        """The JSON pieces of InvokeModelWithResponseStream. Raises TargetRefused, also midway."""
        async with aclosing(self._events("invoke-with-response-stream", body, trip, model, content_type)) as events:
            async for event in events:
                if event.headers.get(":event-type") == "chunk":
                    yield base64.b64decode(msgspec.json.decode(event.payload)["bytes"])

    async def converse_stream(
        self, body: Mapping[str, Any], trip: Trip, *, model: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of ConverseStream, each under its name. Raises TargetRefused, also midway."""
        async with aclosing(self._events("converse-stream", msgspec.json.encode(body), trip, model, JSON)) as events:
            async for event in events:
                yield {event.headers.get(":event-type", ""): msgspec.json.decode(event.payload)}

    async def _whole(self, operation: str, body: bytes, trip: Trip, model: str | None, content_type: str) -> Response:
        begun = time.perf_counter()
        try:
            answer, payload = await self._ask(operation, body, trip, model, content_type)
            try:
                content = await answer.read() if payload is None else payload
                return Response(content, answer.headers().get("content-type", JSON), answer.status)
            finally:
                answer.close()
        except (OSError, TimeoutError) as exc:
            raise TargetUnreachable(f"The target broke its answer off: {exc or type(exc).__name__}.") from exc
        finally:
            trip.target_s += time.perf_counter() - begun

    async def _events(
        self, operation: str, body: bytes, trip: Trip, model: str | None, content_type: str
    ) -> AsyncGenerator[Message, None]:
        waited_since = time.perf_counter()
        answer, _ = await self._ask(operation, body, trip, model, content_type)
        decoder = Decoder()
        try:
            async with aclosing(answer.parts()) as parts:
                async for part in parts:
                    trip.target_s += time.perf_counter() - waited_since
                    for message in decoder.feed(part):
                        if message.headers.get(":message-type") in ("exception", "error"):
                            raise _refused(message)
                        yield message
                    waited_since = time.perf_counter()
        except BrokenFrame as exc:
            raise TargetUnreachable(f"The target's stream cannot be read: {exc}.") from exc
        except (OSError, TimeoutError) as exc:
            raise TargetUnreachable(f"The target broke its stream off: {exc or type(exc).__name__}.") from exc
        finally:
            answer.close()

    async def _ask(
        self, operation: str, body: bytes, trip: Trip, model: str | None, content_type: str
    ) -> tuple[Answer, bytes | None]:
        """An open answer of status 200. What passes is asked again until the deadline; then TargetRefused."""
        loop = asyncio.get_running_loop()
        path = f"{self._prefix}/model/{quote(model or self.endpoint.model, safe='')}/{operation}"
        trip.calls += 1
        # Retries of one call are told by its id; a script's further calls are calls of their own.
        invocation_id = trip.invocation_id if trip.calls == 1 else str(uuid.uuid4())
        attempt = 0
        while True:
            attempt += 1
            trip.attempts += 1
            failure: TargetRefused
            try:
                answer = await self._send(path, body, trip, content_type, invocation_id, attempt)
                if answer.status == 200:
                    return answer, None
                headers = answer.headers()
                try:
                    said = await answer.read()
                finally:
                    answer.close()
                failure = TargetRefused(answer.status, said, headers)
            except (OSError, TimeoutError) as exc:
                failure = TargetUnreachable(
                    f"The target at {self._base} does not answer: {exc or type(exc).__name__}. Attempts: {attempt}."
                )
            if failure.status not in PASSING:
                raise failure
            pause_s = _pause_s(failure.headers, attempt)
            if loop.time() + pause_s + _LEAST_LEFT_S > trip.deadline:
                raise failure
            await asyncio.sleep(pause_s)

    async def _send(
        self, path: str, body: bytes, trip: Trip, content_type: str, invocation_id: str, attempt: int
    ) -> Answer:
        left_s = trip.deadline - asyncio.get_running_loop().time()
        timestamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        signed = head(
            self.keys,
            method="POST",
            host=self._host,
            raw_path=path,
            content_type=content_type,
            body=body,
            timestamp=timestamp,
            scope=Scope(self.keys.access_key_id, timestamp[:8], self.endpoint.region, "bedrock"),
        )
        lines = (
            f"{signed}{trip.trace_lines()}amz-sdk-invocation-id: {invocation_id}\r\namz-sdk-request: attempt={attempt}"
            f"\r\nx-outcrop-hold: {min(3600.0, max(0.0, left_s - 0.5)):.1f}\r\n"
        )
        async with asyncio.timeout(max(0.0, left_s)):
            return await self._client.send("POST", self._base, path, head=lines, body=body)


def _pause_s(headers: Mapping[str, str], attempt: int) -> float:
    """How long to wait: what the target says (AWS's milliseconds, else HTTP's seconds), else a growing random time."""
    for name, unit in (("x-amz-retry-after", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if value.isascii() and value.isdigit():
            return int(value) * unit
    most = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**attempt)
    return random.uniform(most / 2, most)  # noqa: S311  (spreads callers; nothing secret)


def _refused(message: Message) -> TargetRefused:
    kind = message.headers.get(":exception-type") or message.headers.get(":error-code") or "internalServerException"
    name = kind[:1].upper() + kind[1:]
    return TargetRefused(
        _EVENT_STATUS.get(kind, 500), message.payload, {"content-type": JSON, "x-amzn-errortype": name}
    )
