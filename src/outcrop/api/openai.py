"""The OpenAI API under ``/v1``: chat completions, completions, models. Bearer key."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from outcrop.access.identities import Principal
from outcrop.api.generation import Generation, Measured, usage_or_zero
from outcrop.api.holding import stream_when_ready
from outcrop.api.http import Response, Stream
from outcrop.api.permissions import owner_of
from outcrop.api.wire_errors import openai_error
from outcrop.awswire.documents import decode_object
from outcrop.errors import InvalidRequest, ServiceError
from outcrop.inference import fields, openai_functions
from outcrop.inference.answer import AnswerContext
from outcrop.inference.canonical import Chunk
from outcrop.inference.embeddings import OPENAI_EMBEDDINGS
from outcrop.inference.openai_chat import OpenAIChat
from outcrop.inference.openai_completion import OpenAICompletion, include_usage
from outcrop.inference.route import refuse_to_generate
from outcrop.serving.catalogue import Catalogue, Served

Permit = Callable[[str, bool], None]  # (model, whether it streams): raises NotAllowed
HEARTBEAT = b": waiting for a copy\n\n"


class OpenAI:
    def __init__(self, catalogue: Catalogue, generation: Generation) -> None:
        self._catalogue = catalogue
        self._generation = generation
        self._chat = OpenAIChat()
        self._completion = OpenAICompletion()

    def models(self, principal: Principal) -> Response:
        """All names that a request may give: those of models, then those of aliases."""
        models = self._catalogue.all(principal.account)
        by_id = {served.facts.model_id: served for served in models}
        aliases = sorted(self._catalogue.aliases(principal.account).items())
        named = [_model(by_id[model_id], alias) for alias, model_id in aliases if model_id in by_id]
        return _json({"object": "list", "data": [*(_model(served) for served in models), *named]})

    def model(self, principal: Principal, name: str) -> Response:
        served = self._catalogue.find(principal.account, name)
        return _json(_model(served, name if name in self._catalogue.aliases(principal.account) else None))

    async def embeddings(self, raw: bytes, principal: Principal, measured: Measured, permit: Permit) -> Response:
        """Raises InvalidRequest for a model that generates text."""
        body = decode_object(raw, "The body is not valid JSON")
        served = named(self._catalogue, body, principal, permit)
        measured.of_engine(served.spec.engine)
        measured.of_model(served.facts.name, served.facts.model_id)
        found = await self._generation.embed(served, OPENAI_EMBEDDINGS.decode(body), measured)
        context = AnswerContext(request_id=measured.request_id, model_label=body["model"], created=measured.created)
        answer = OPENAI_EMBEDDINGS.encode(found, body, context)
        return _json(answer, [("x-outcrop-gateway-ms", f"{measured.gateway_ms():.3f}")])

    async def generate(
        self, kind: str, raw: bytes, principal: Principal, measured: Measured, permit: Permit
    ) -> Response | Stream:
        """Answer ``/v1/chat/completions`` (*kind* ``chat``) or ``/v1/completions``."""
        body = decode_object(raw, "The body is not valid JSON")
        served = named(self._catalogue, body, principal, permit)
        measured.of_engine(served.spec.engine)
        measured.of_model(served.facts.name, served.facts.model_id)
        refuse_to_generate(served.facts)
        dialect = self._chat if kind == "chat" else self._completion
        in_tools = openai_functions.as_tools(body) if kind == "chat" else None
        written = _as_openai if in_tools is None else openai_functions.in_functions
        request = dialect.decode(in_tools or body, served.facts)
        context = AnswerContext(
            request_id=measured.request_id,
            model_label=body["model"],
            created=measured.created,
            include_usage=include_usage(body),
        )
        if not fields.flag(body, "stream"):
            completion = await self._generation.complete(served, request, measured)
            answer = written(dialect.encode(completion, context))
            return _json(answer, [("x-outcrop-gateway-ms", f"{measured.gateway_ms():.3f}")])
        encoder = dialect.stream(context)

        async def parts(chunks: AsyncGenerator[list[Chunk], None]) -> AsyncGenerator[bytes, None]:
            usage = None
            async with aclosing(chunks):
                try:
                    async for batch in chunks:
                        usage = batch[-1].usage or usage
                        payloads = [payload for chunk in batch if (payload := encoder.chunk(chunk)) is not None]
                        if payloads:
                            yield b"".join(_sse(written(payload)) for payload in payloads)
                except ServiceError as exc:
                    yield _failed(exc)
                    return
            last = encoder.last(usage_or_zero(usage), measured.timings())
            for payload in (last, encoder.usage_chunk(usage_or_zero(usage))):
                if payload is not None:
                    yield _sse(written(payload))
            yield b"data: [DONE]\n\n"

        headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
        pending = self._generation.stream(served, request, measured)
        every_s = self._generation.heartbeat_s
        opened = await stream_when_ready(pending, parts, heartbeat=HEARTBEAT, every_s=every_s, failed=_failed)
        return Stream(200, headers, opened)


def named(catalogue: Catalogue, body: dict[str, Any], principal: Principal, permit: Permit) -> Served:
    """The model that *body* names, by name, ARN or id, once *permit* let the caller have it."""
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise InvalidRequest("model is required: the name or ARN of an imported model.", param="model")
    permit(name, body.get("stream") is True)
    return catalogue.find(owner_of(name, principal), name)


def plain_path(path: str) -> str | None:
    """*path* of the OpenAI API as it is documented, whatever slashes a base URL added; None when it is none of its."""
    plain = "/" + path.strip("/")
    plain = plain.removeprefix("/openai") if plain.startswith("/openai/v1") else plain  # where Bedrock offers it
    return plain if plain == "/v1" or plain.startswith("/v1/") else None


def _failed(exc: ServiceError) -> bytes:
    return b"data: " + openai_error(exc).body + b"\n\n"


def _as_openai(answer: dict[str, Any]) -> dict[str, Any]:
    """*answer* less an empty list of calls, which Bedrock's answers have: the older SDK asks again for any list."""
    for choice in answer["choices"]:
        if "tool_calls" in (message := choice.get("message") or {}) and not message["tool_calls"]:
            del message["tool_calls"]
    return answer


def _sse(payload: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def _json(value: Any, headers: list[tuple[str, str]] | None = None) -> Response:
    return Response(200, [("content-type", "application/json"), *(headers or [])], msgspec.json.encode(value))


def _model(served: Served, alias: str | None = None) -> dict[str, Any]:
    return {
        "id": alias or served.record.model_name,
        "object": "model",
        "created": int(served.record.created_at),
        "owned_by": served.record.account,
    }
