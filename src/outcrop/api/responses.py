"""OpenAI's Responses under ``/v1/responses``, kept in this server's memory so that one may follow another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from outcrop.access.identities import Principal
from outcrop.api.generation import Generation, Measured, usage_or_zero
from outcrop.api.holding import stream_when_ready
from outcrop.api.http import Response, Stream
from outcrop.api.openai import Permit, named
from outcrop.api.wire_errors import OPENAI, wire_error
from outcrop.awswire.documents import decode_object
from outcrop.errors import NotFound, ServiceError
from outcrop.inference import fields, openai_responses
from outcrop.inference.answer import AnswerContext
from outcrop.inference.canonical import Chunk, GenerateRequest
from outcrop.inference.openai_responses import ResponseStream
from outcrop.inference.route import refuse_to_generate
from outcrop.serving.catalogue import Catalogue, Served

KEPT_BYTES = 32 << 20
HEARTBEAT = b": waiting for a copy\n\n"
_JSON = [("content-type", "application/json")]

Messages = list[dict[str, Any]]


class Responses:
    def __init__(self, catalogue: Catalogue, generation: Generation) -> None:
        self._catalogue = catalogue
        self._generation = generation
        self._kept = _Kept(KEPT_BYTES)

    async def create(self, raw: bytes, principal: Principal, measured: Measured, permit: Permit) -> Response | Stream:
        """Raises InvalidRequest, NotFound for a response to follow that is not kept, and what generation raises."""
        body, served, before, request = self._read(raw, principal, measured, permit)
        label = body["model"]
        context = AnswerContext(request_id=measured.request_id, model_label=label, created=measured.created)

        def keep(response: dict[str, Any]) -> None:
            if fields.flag(body, "store") is not False:
                said = [*before, *openai_responses.messages(body), *openai_responses.spoken(response["output"])]
                self._kept.keep(principal.account, response, said)

        if not fields.flag(body, "stream"):
            completion = await self._generation.complete(served, request, measured)
            response = openai_responses.encode(completion, body, context)
            keep(response)
            extra = [("x-outcrop-gateway-ms", f"{measured.gateway_ms():.3f}")]
            return Response(200, [*_JSON, *extra], msgspec.json.encode(response))
        encoder = ResponseStream(body, context)

        async def parts(chunks: AsyncGenerator[list[Chunk], None]) -> AsyncGenerator[bytes, None]:
            usage = None
            async with aclosing(chunks):
                yield _sse(encoder.begin())
                try:
                    async for batch in chunks:
                        usage = batch[-1].usage or usage
                        if events := [event for chunk in batch for event in encoder.chunk(chunk)]:
                            yield _sse(events)
                except ServiceError as exc:
                    yield failed(exc)
                    return
            events = encoder.end(usage_or_zero(usage))
            keep(events[-1]["response"])
            yield _sse(events)

        def failed(exc: ServiceError) -> bytes:
            return _sse([encoder.failed(exc, wire_error(exc, OPENAI)[0])])

        headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
        pending = self._generation.stream(served, request, measured)
        every_s = self._generation.heartbeat_s
        opened = await stream_when_ready(pending, parts, heartbeat=HEARTBEAT, every_s=every_s, failed=failed)
        return Stream(200, headers, opened)

    async def count_input(self, raw: bytes, principal: Principal, measured: Measured, permit: Permit) -> Response:
        """How many tokens the same body's input has, as the engine counts them. Raises as ``create`` does."""
        _, served, _, request = self._read(raw, principal, measured, permit)
        tokens = await self._generation.count_tokens(served, request, measured)
        counted = {"object": "response.input_tokens", "input_tokens": tokens}
        return Response(200, _JSON, msgspec.json.encode(counted))

    def _read(
        self, raw: bytes, principal: Principal, measured: Measured, permit: Permit
    ) -> tuple[dict[str, Any], Served, Messages, GenerateRequest]:
        """The body, its model, what was said before it, and what it asks for with that."""
        body = decode_object(raw, "The body is not valid JSON")
        served = named(self._catalogue, body, principal, permit)
        measured.of_engine(served.spec.engine)
        measured.of_model(served.facts.name, served.facts.model_id)
        refuse_to_generate(served.facts)
        followed = body.get("previous_response_id")
        before = [] if followed is None else self._kept.find(principal.account, followed)[1]
        return body, served, before, openai_responses.decode(body, served.facts, before)

    def get(self, principal: Principal, response_id: str) -> Response:
        return Response(200, _JSON, msgspec.json.encode(self._kept.find(principal.account, response_id)[0]))

    def delete(self, principal: Principal, response_id: str) -> Response:
        self._kept.drop(principal.account, response_id)
        deleted = {"id": response_id, "object": "response", "deleted": True}
        return Response(200, _JSON, msgspec.json.encode(deleted))


class _Kept:
    """Responses with all that was said up to them, within *limit_bytes*; the oldest go first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._found: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0

    def keep(self, account: str, response: Mapping[str, Any], said: Messages) -> None:
        data = msgspec.json.encode((response, said))
        self._found[account, response["id"]] = data
        self._bytes += len(data)
        while self._bytes > self._limit_bytes:
            self._bytes -= len(self._found.popitem(last=False)[1])

    def find(self, account: str, response_id: Any) -> tuple[dict[str, Any], Messages]:
        found = self._found.get((account, response_id)) if isinstance(response_id, str) else None
        if found is None:
            raise NotFound(f"Response with id '{response_id}' not found.")
        response, said = msgspec.json.decode(found)
        return response, said

    def drop(self, account: str, response_id: str) -> None:
        self.find(account, response_id)
        self._bytes -= len(self._found.pop((account, response_id)))


def _sse(events: list[dict[str, Any]]) -> bytes:
    return b"".join(
        b"event: " + event["type"].encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n" for event in events
    )
