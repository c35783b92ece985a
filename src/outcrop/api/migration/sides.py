"""Asking one side: this server's own doors, or another service over HTTP with a signature of ours.

A local side is asked through the very handlers that callers reach without a migration, as the caller's own principal:
holding, metering and records are the same. Nothing is sent twice here; who may fall back is the splitter's business.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from outcrop.access.identities import Principal
from outcrop.access.quotas import Ticket
from outcrop.api.audit_trail import BEDROCK, SAGEMAKER
from outcrop.api.holding import HEADER as HOLD
from outcrop.api.http import Called, Request, Response, Stream
from outcrop.api.listener.exchange import LEFT
from outcrop.api.migration import framing
from outcrop.api.migration.calls import BEDROCK_DOORS, ENDPOINT_DOORS, OPENAI_DOORS, Bound, Call, Door
from outcrop.api.migration.keys import Keyring, tls_context
from outcrop.api.migration.reading import Heard, Pieces, StreamFailed
from outcrop.awswire.eventstream import BrokenFrame
from outcrop.awswire.sigv4 import Keys, Scope, head
from outcrop.engines.http1 import Answer, Client
from outcrop.errors import EngineFault, EngineTimeout, ServiceError
from outcrop.inference.canonical import Usage
from outcrop.serving.migration.plan import Side
from outcrop.serving.migration.runner import label_of
from outcrop.serving.migration.split import SideName
from outcrop.telemetry.requests import RequestFacts, traceparent

Handler = Callable[[Request, str, bytes, Principal], Awaitable[Response | Stream]]
_JSON = "application/json"
_CONNECT_S, _KEEP_S = 10.0, 30.0
# The SDK's own numbers are for one attempt at one place: a copy of a request must not pass for a retry of it.
_OF_ONE_ATTEMPT = (b"amz-sdk-invocation-id", b"amz-sdk-request")
_PASSED = (
    "accept",
    "x-amzn-sagemaker-accept",
    "x-amzn-sagemaker-custom-attributes",
    "x-amzn-sagemaker-inference-id",
    "x-amzn-sagemaker-session-id",
    "x-amzn-sagemaker-target-model",
    "x-amzn-sagemaker-target-variant",
    "x-amzn-sagemaker-content-type",
    "x-amzn-sagemaker-inputlocation",
    "x-amzn-sagemaker-filename",
    "x-amzn-sagemaker-s3outputpathextension",
    "x-amzn-sagemaker-requestttlseconds",
    "x-amzn-sagemaker-invocationtimeoutseconds",
    "x-amzn-bedrock-accept",
    "x-amzn-bedrock-trace",
    "traceparent",
    "tracestate",
)


@dataclass(slots=True)
class Asked:
    """What came of asking a side. *error*: the fact behind an answer that is none; *response* may still tell it.

    *begun*: ``time.perf_counter``; *took_s* until the answer was there, *first_s* until the first part of a stream was.
    *facts*: of a request that this server records; *ticket*: of one that its quotas count.
    """

    side: SideName
    door: Door
    begun: float
    response: Response | Stream | None = None
    error: ServiceError | None = None
    facts: RequestFacts | None = None
    ticket: Ticket | None = None
    said: Mapping[str, str] = field(default_factory=dict)
    took_s: float = 0.0
    first_s: float | None = None
    is_elsewhere: bool = False

    def heard(self, found: Heard) -> None:
        """The whole answer is there. A side on this server has written down what it said; of others it is done here."""
        if self.is_elsewhere and self.facts is not None:
            if found.error:
                self.facts.failed(EngineFault(found.error))
            else:
                self.facts.answered(Usage(found.tokens_in, found.tokens_out))

    @property
    def error_name(self) -> str:
        """What the failure is called in counts: as the side itself calls it, else by AWS's code."""
        if self.error is None:
            return ""
        return self.said.get("x-amzn-errortype", "").partition(":")[0] or framing.name_of(self.error)


@dataclass(frozen=True, slots=True)
class Question:
    """A call on its way to a side. *hold_s*: how long it may wait for a copy; None leaves that to the side.

    *is_copy*: not the caller's own request but one more like it.
    """

    request: Request
    principal: Principal
    call: Call
    hold_s: float | None = None
    is_copy: bool = False
    migration: str = ""

    def told(self, name: SideName, side: Side) -> dict[str, str]:
        """What the audit log says of it besides; *side*: who was asked."""
        found = {"migration": self.migration, "side": str(name)}
        return found if side.is_local else {**found, "sentTo": side.place}


class Sides:
    """Asks local and remote sides. *timeout_s*: longest wait for a remote side's next bytes.

    *begin*: told of the record of a request that goes elsewhere. *audit*: told of every copy of a request, once asked.
    """

    def __init__(self, *, timeout_s: float, begin: Callable[[RequestFacts], None] = lambda _: None) -> None:
        self.keyring = Keyring()
        self.audit: Callable[[Request], None] = lambda _: None
        self._begin = begin
        self._handlers: Mapping[str, Handler] = {}
        self._timeout_s = timeout_s
        self._client: Client | None = None

    def bind(self, *, bedrock: Handler, openai: Handler, sagemaker: Handler) -> None:
        """Where this server's own doors are."""
        doors = ((BEDROCK_DOORS, bedrock), (OPENAI_DOORS, openai), (ENDPOINT_DOORS, sagemaker))
        self._handlers = {door: handler for names, handler in doors for door in names}

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def ask(self, name: SideName, side: Side, bound: Bound, question: Question) -> Asked:
        """Never raises for what the side does; a stream that is handed out has its first part."""
        asked = Asked(name, bound.door, time.perf_counter())
        inner = _derived(question, bound)
        try:
            if side.is_local:
                await self._local(asked, bound, question, inner)
            else:
                await self._remote(asked, side, bound, question, inner)
        except ServiceError as exc:
            asked.error = exc
        finally:
            if question.is_copy:
                inner.migrated, inner.error = {**question.told(name, side), "copy": "true"}, asked.error
                inner.called = called(question.call, side.name)
                inner.facts = asked.facts
                self.audit(inner)
        asked.took_s = time.perf_counter() - asked.begun
        return asked

    async def _local(self, asked: Asked, bound: Bound, question: Question, inner: Request) -> None:
        try:
            response = await self._handlers[bound.door](inner, bound.path, bound.body, question.principal)
        finally:
            asked.facts, asked.ticket = inner.facts, inner.ticket
        asked.response = response
        asked.said = dict(response.headers)
        if isinstance(response, Response) and response.status >= 400:
            asked.error = framing.error_of(response.status, asked.said, response.body)

    async def _remote(self, asked: Asked, side: Side, bound: Bound, question: Question, inner: Request) -> None:
        asked.is_elsewhere = True
        asked.facts = facts = _facts(inner, question, side)
        self._begin(facts)
        try:
            await self._sent(asked, side, bound, question)
        except ServiceError as exc:
            facts.failed(exc)
            raise
        finally:
            if not isinstance(asked.response, Stream):
                facts.left()
        if asked.error is not None and isinstance(asked.response, Response):
            facts.failed(asked.error, asked.response.status)

    async def _sent(self, asked: Asked, side: Side, bound: Bound, question: Question) -> None:
        keys = await self.keyring.keys(side)
        if self._client is None:
            context: ssl.SSLContext = await asyncio.to_thread(tls_context)
            self._client = Client(
                connect_timeout_s=_CONNECT_S, read_timeout_s=self._timeout_s, keep_s=_KEEP_S, tls=context
            )
        parts = urlsplit(side.url)
        path = parts.path + bound.path
        lines = _signed(side, keys, parts.netloc, path, bound, question) + _passed(question)
        try:
            answer = await self._client.send(
                "POST", f"{parts.scheme}://{parts.netloc}", path, head=lines, body=bound.body
            )
        except TimeoutError as exc:
            raise EngineTimeout(f"{side.url} did not answer within {self._timeout_s:g} s.") from exc
        except OSError as exc:
            raise EngineFault(f"{side.url} cannot be reached: {exc or type(exc).__name__}.") from exc
        asked.said = answer.headers()
        if bound.is_stream and answer.status == 200:
            asked.response = await self._stream(answer, bound.door, asked)
            return
        try:
            body = await answer.read()
        except (OSError, TimeoutError) as exc:
            raise EngineFault(f"{side.url} broke its answer off: {exc or type(exc).__name__}.") from exc
        finally:
            answer.close()
        asked.response = Response(answer.status, list(asked.said.items()), body)
        if answer.status >= 400:
            asked.error = framing.error_of(answer.status, asked.said, body)

    async def _stream(self, answer: Answer, door: Door, asked: Asked) -> Stream:
        """Raises EngineFault for a stream that is over, or broken, before its first part."""
        parts = answer.parts()
        try:
            first = await anext(parts)
            Pieces(door).feed(first)
        except BaseException as exc:
            await parts.aclose()
            answer.close()
            if isinstance(exc, StreamFailed):
                raise EngineFault(f"{exc.name}: {exc}") from exc
            if isinstance(exc, OSError | TimeoutError | StopAsyncIteration | BrokenFrame | ValueError):
                raise EngineFault(f"the stream ended before its first part: {exc or type(exc).__name__}") from exc
            raise
        if asked.facts is not None:
            asked.facts.first_byte_at = time.perf_counter()
        return Stream(200, list(asked.said.items()), _rest(first, parts, answer, asked))


async def _rest(
    first: bytes, parts: AsyncGenerator[bytes, None], answer: Answer, asked: Asked
) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(parts):
            yield first
            async for part in parts:
                yield part
    except (OSError, TimeoutError) as exc:
        yield framing.broken(asked.door, EngineFault(f"the stream broke off: {exc or type(exc).__name__}"))
    finally:
        answer.close()
        if asked.facts is not None:
            asked.facts.left()


def called(call: Call, name: str) -> Called:
    """The call as the audit log names it, of *name*."""
    if call.is_of_endpoint:
        return Called(SAGEMAKER, call.event, {"EndpointName": name})
    return Called(BEDROCK, call.event, {"modelId": name})


def _facts(inner: Request, question: Question, side: Side) -> RequestFacts:
    """The record of a request that another service is to answer: it stands where the copy of a model would."""
    headers, call, principal = inner.header_map(), question.call, question.principal
    facts = RequestFacts(
        started=inner.started,
        request_id=inner.request_id,
        at=time.time() - (time.perf_counter() - inner.started),
        operation=call.event,
        account=principal.account,
        principal=principal.arn,
        size_bytes=len(call.body),
        invocation_id=headers.get("amz-sdk-invocation-id"),
        sdk_attempt=headers.get("amz-sdk-request"),
        traceparent=traceparent(headers.get("traceparent")),
        is_stream=call.is_stream,
    )
    facts.of_model(label_of(question.migration), "")
    facts.asks(is_cold=False)
    facts.placed(side.place, 0.0, None)
    return facts


def _derived(question: Question, bound: Bound) -> Request:
    """The request as the bound door would have received it; what is measured of it goes on from the caller's."""
    outer = question.request
    dropped = _OF_ONE_ATTEMPT if question.is_copy else ()
    headers = [(name, value) for name, value in outer.headers if name.lower() not in dropped]
    if question.hold_s is not None and HOLD not in outer.header_map():
        headers.append((HOLD.encode(), f"{question.hold_s:.3f}".encode()))
    scope: dict[str, Any] = {
        "method": "POST",
        "raw_path": bound.path.encode("latin-1"),
        "query_string": b"",
        "headers": headers,
        "extensions": {LEFT: _never_left},  # the caller's own request is watched; this one ends with it
    }
    inner = Request(scope, _silent)
    inner.principal, inner.source_ip, inner.is_secure = outer.principal, outer.source_ip, outer.is_secure
    inner.signed_for, inner.is_copy = outer.signed_for, question.is_copy
    if not question.is_copy:
        inner.started, inner.request_id, inner.notes = outer.started, outer.request_id, outer.notes
    return inner


def _never_left(call: Callable[[], None] | None) -> None:
    """A request without a connection is never left."""


async def _silent() -> dict[str, Any]:
    """The connection of a request that has none: nothing ever comes."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def _signed(side: Side, keys: Keys, host: str, path: str, bound: Bound, question: Question) -> str:
    content_type = question.request.header_map().get("content-type", _JSON) if bound.door in ENDPOINT_DOORS else _JSON
    timestamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    service = "sagemaker" if side.kind == "sagemaker" else "bedrock"
    return head(
        keys,
        method="POST",
        host=host,
        raw_path=path,
        content_type=content_type if content_type.isprintable() else _JSON,
        body=bound.body,
        timestamp=timestamp,
        scope=Scope(keys.access_key_id, timestamp[:8], side.region, service),
    )


def _passed(question: Question) -> str:
    """The caller's headers that mean something to any service, and for a server of ours how long it may hold."""
    found = question.request.header_map()
    lines = "".join(f"{name}: {found[name]}\r\n" for name in _PASSED if name in found and found[name].isprintable())
    hold = found.get(HOLD) if question.hold_s is None else found.get(HOLD, f"{question.hold_s:.3f}")
    return lines + (f"{HOLD}: {hold}\r\n" if hold and hold.isprintable() else "")
