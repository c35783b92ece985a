"""InvokeModel, Converse and their streams, in the shapes of ``bedrock-runtime/2023-09-30``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from outcrop.access.identities import Principal
from outcrop.api.generation import Generation, Measured, usage_or_zero
from outcrop.api.holding import stream_when_ready
from outcrop.api.http import Response, Stream
from outcrop.api.permissions import owner_of
from outcrop.api.wire_errors import AWS, wire_error
from outcrop.awswire.documents import decode_object
from outcrop.awswire.eventstream import encode_chunk, encode_event, encode_exception
from outcrop.errors import EngineFault, InvalidRequest, ResourceNotFound, ServiceError, ServiceFault
from outcrop.inference import converse, guardrails
from outcrop.inference.answer import AnswerContext, invocation_metrics
from outcrop.inference.canonical import Chunk, GenerateRequest, ModelFacts, Usage
from outcrop.inference.converse import ConverseContext
from outcrop.inference.embeddings import asks_for_embeddings, format_of
from outcrop.inference.route import dialect_for
from outcrop.serving.catalogue import Catalogue, Served

Handler = Callable[[Mapping[str, Any], Principal, Measured], Awaitable[Response | Stream | dict[str, Any]]]
EVENT_STREAM = "application/vnd.amazon.eventstream"
HEARTBEAT = encode_event("heartbeat", b"{}")  # no type of the service model, so SDKs skip it
INVOKE_METRICS = "amazon-bedrock-invocationMetrics"

# Operation -> method of BedrockRuntime. The compatibility page is made from this.
OPERATIONS = {
    "ApplyGuardrail": "apply_guardrail",
    "InvokeModel": "invoke",
    "InvokeModelWithResponseStream": "invoke_stream",
    "Converse": "converse",
    "ConverseStream": "converse_stream",
    "CountTokens": "count_tokens",
}

# What an error becomes once a stream is open; anything else is an internalServerException.
IN_CONVERSE_STREAM = {
    "ValidationException": "validationException",
    "ThrottlingException": "throttlingException",
    "ServiceUnavailableException": "serviceUnavailableException",
    "ModelNotReadyException": "serviceUnavailableException",  # the event streams have no member of its name
    "ModelErrorException": "modelStreamErrorException",
    "ModelTimeoutException": "modelStreamErrorException",
}
IN_INVOKE_STREAM = {**IN_CONVERSE_STREAM, "ModelTimeoutException": "modelTimeoutException"}


class BedrockRuntime:
    """The inference operations; parameters are already parsed and validated against the service model."""

    def __init__(self, catalogue: Catalogue, generation: Generation) -> None:
        self._catalogue = catalogue
        self._generation = generation
        self.handlers: dict[str, Handler] = {name: getattr(self, method) for name, method in OPERATIONS.items()}

    async def invoke(self, params: Mapping[str, Any], principal: Principal, measured: Measured) -> Response:
        served = self._find(params, principal, measured)
        body = _json_body(params.get("body", b""))
        guardrails.refuse_unknown(params.get("guardrailIdentifier"), params.get("guardrailVersion"), body)
        if asks_for_embeddings(body):
            return await self._embed(served, body, measured)
        dialect = dialect_for(body, served.facts)
        request = dialect.decode(body, served.facts)
        completion = await self._generation.complete(served, request, measured)
        return _invoked(dialect.encode(completion, _context(served.facts, measured)), completion.usage, measured)

    async def _embed(self, served: Served, body: Mapping[str, Any], measured: Measured) -> Response:
        chosen = format_of(body)
        found = await self._generation.embed(served, chosen.decode(body), measured)
        answer = chosen.encode(found, body, _context(served.facts, measured))
        return _invoked(answer, Usage(found.prompt_tokens, 0), measured)

    async def invoke_stream(self, params: Mapping[str, Any], principal: Principal, measured: Measured) -> Stream:
        served = self._find(params, principal, measured)
        body = _json_body(params.get("body", b""))
        guardrails.refuse_unknown(params.get("guardrailIdentifier"), params.get("guardrailVersion"), body)
        dialect = dialect_for(body, served.facts)
        pending = self._generation.stream(served, dialect.decode(body, served.facts), measured)
        encoder = dialect.stream(_context(served.facts, measured))

        async def parts(chunks: AsyncGenerator[list[Chunk], None]) -> AsyncGenerator[bytes, None]:
            usage: Usage | None = None
            async with aclosing(chunks):
                try:
                    async for batch in chunks:
                        usage = batch[-1].usage or usage
                        payloads = [payload for chunk in batch if (payload := encoder.chunk(chunk)) is not None]
                        if payloads:
                            yield b"".join(encode_chunk(msgspec.json.encode(payload)) for payload in payloads)
                except ServiceError as exc:
                    yield _stream_error(exc, IN_INVOKE_STREAM)
                    return
            timings = measured.timings()
            last = encoder.last(usage_or_zero(usage), timings) or {}
            last[INVOKE_METRICS] = invocation_metrics(usage_or_zero(usage), timings)
            yield encode_chunk(msgspec.json.encode(last))

        headers = [("content-type", EVENT_STREAM), ("x-amzn-bedrock-content-type", "application/json")]
        return Stream(200, headers, await self._when_ready(pending, parts, IN_INVOKE_STREAM))

    async def converse(self, params: Mapping[str, Any], principal: Principal, measured: Measured) -> dict[str, Any]:
        served, request, context = self._converse(params, principal, measured)
        completion = await self._generation.complete(served, request, measured)
        return converse.encode(completion, measured.timings(), context)

    async def converse_stream(self, params: Mapping[str, Any], principal: Principal, measured: Measured) -> Stream:
        served, request, context = self._converse(params, principal, measured)
        pending = self._generation.stream(served, request, measured)
        parts = await self._when_ready(
            pending, lambda chunks: _converse_parts(chunks, measured, context), IN_CONVERSE_STREAM
        )
        return Stream(200, [("content-type", EVENT_STREAM)], parts)

    def _converse(
        self, params: Mapping[str, Any], principal: Principal, measured: Measured
    ) -> tuple[Served, GenerateRequest, ConverseContext]:
        served = self._find(params, principal, measured)
        config = params.get("guardrailConfig") or {}
        guardrails.refuse_unknown(config.get("guardrailIdentifier"), config.get("guardrailVersion"), {})
        request = converse.decode(params, served.facts)
        return served, request, converse.context(params, _context(served.facts, measured))

    async def apply_guardrail(
        self, params: Mapping[str, Any], principal: Principal, measured: Measured
    ) -> dict[str, Any]:
        """Raises ResourceNotFound: no guardrail can be made here, so whichever is named does not exist."""
        raise ResourceNotFound(guardrails.UNKNOWN)

    async def count_tokens(self, params: Mapping[str, Any], principal: Principal, measured: Measured) -> dict[str, Any]:
        """Counts as the engine does: it renders the chat template and tokenizes, and generates nothing."""
        served = self._find(params, principal, measured)
        wanted = params["input"]
        if "invokeModel" in wanted:
            body = _json_body(wanted["invokeModel"]["body"])
            request = dialect_for(body, served.facts).decode(body, served.facts)
        elif "converse" in wanted:
            request = converse.decode(wanted["converse"], served.facts)
        else:
            raise InvalidRequest('input must hold "invokeModel" or "converse"', param="input")
        return {"inputTokens": await self._generation.count_tokens(served, request, measured)}

    def _find(self, params: Mapping[str, Any], principal: Principal, measured: Measured) -> Served:
        served = self._catalogue.find(owner_of(params["modelId"], principal), params["modelId"])
        measured.of_engine(served.spec.engine)
        measured.of_model(served.facts.name, served.facts.model_id)
        return served

    async def _when_ready(
        self,
        pending: Awaitable[AsyncGenerator[list[Chunk], None]],
        parts: Callable[[AsyncGenerator[list[Chunk], None]], AsyncGenerator[bytes, None]],
        names: Mapping[str, str],
    ) -> AsyncGenerator[bytes, None]:
        every_s = self._generation.heartbeat_s
        return await stream_when_ready(
            pending, parts, heartbeat=HEARTBEAT, every_s=every_s, failed=lambda exc: _stream_error(exc, names)
        )


async def _converse_parts(
    chunks: AsyncGenerator[list[Chunk], None], measured: Measured, context: ConverseContext
) -> AsyncGenerator[bytes, None]:
    encoder = converse.stream(context)
    usage: Usage | None = None
    async with aclosing(chunks):
        yield _events(encoder.start())
        try:
            async for batch in chunks:
                usage = batch[-1].usage or usage
                if events := [event for chunk in batch for event in encoder.chunk(chunk)]:
                    yield _events(events)
        except ServiceError as exc:
            yield _stream_error(exc, IN_CONVERSE_STREAM)
            return
    yield _events(encoder.end(usage_or_zero(usage), measured.timings()))


def _events(events: list[tuple[str, dict[str, Any]]]) -> bytes:
    return b"".join(encode_event(kind, msgspec.json.encode(payload)) for kind, payload in events)


def _stream_error(exc: ServiceError, names: Mapping[str, str]) -> bytes:
    kind = names.get(wire_error(exc, AWS)[0], "internalServerException")
    message = exc.message if not isinstance(exc, ServiceFault) else "The server failed while streaming."
    extra = {"originalStatusCode": exc.engine_status} if isinstance(exc, EngineFault) and exc.engine_status else None
    return encode_exception(kind, message, extra)


def _invoked(answer: dict[str, Any], usage: Usage, measured: Measured) -> Response:
    headers = [
        ("content-type", "application/json"),
        ("x-amzn-bedrock-input-token-count", str(usage.prompt_tokens)),
        ("x-amzn-bedrock-output-token-count", str(usage.completion_tokens)),
        ("x-amzn-bedrock-invocation-latency", str(measured.timings().latency_ms)),
        ("x-outcrop-gateway-ms", f"{measured.gateway_ms():.3f}"),
    ]
    return Response(200, headers, msgspec.json.encode(answer))


def _json_body(raw: bytes) -> dict[str, Any]:
    return decode_object(raw, "Malformed input request, please reformat your input and try again")


def _context(facts: ModelFacts, measured: Measured) -> AnswerContext:
    label = f"{facts.account}-{facts.model_id}"  # AWS's own form, "Advanced API features for imported models"
    return AnswerContext(request_id=measured.request_id, model_label=label, created=measured.created)
