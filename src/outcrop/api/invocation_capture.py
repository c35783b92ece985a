"""What the invocation log sees of a request: its bodies as they are on the wire, through whichever door it came."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import unquote

from outcrop.api.http import Request, Response, Stream
from outcrop.api.wire_errors import AWS, wire_error
from outcrop.awswire.documents import decode_object
from outcrop.errors import ServiceError
from outcrop.telemetry.invocation_log import InvocationLog
from outcrop.telemetry.invocation_record import Invocation
from outcrop.telemetry.requests import RequestFacts

# Operations that invoke no model.
_NO_INVOCATIONS = frozenset({"CountTokens", "ApplyGuardrail"})


def captured(log: InvocationLog, request: Request, asked: bytes, response: Response | Stream) -> Response | Stream:
    """*response*, to be logged once it was sent where its account wants that. *asked*: the body of the request."""
    facts = request.facts
    if facts is None or facts.operation in _NO_INVOCATIONS or not log.wants(facts.account):
        return response
    if isinstance(response, Response):
        _add(log, request, facts, asked, response, response.body, reserved=0)
    else:
        response.parts = _watched(log, request, facts, asked, response, response.parts)
    return response


async def _watched(
    log: InvocationLog,
    request: Request,
    facts: RequestFacts,
    asked: bytes,
    response: Stream,
    parts: AsyncGenerator[bytes, None],
) -> AsyncGenerator[bytes, None]:
    """*parts* as they come; what was sent of them is logged, also when the client leaves."""
    kept: list[bytes] = []
    is_kept = log.reserve(len(asked))
    reserved = len(asked) if is_kept else 0
    try:
        async with aclosing(parts):
            async for part in parts:
                if is_kept and (is_kept := log.reserve(len(part))):
                    reserved += len(part)
                    kept.append(part)
                yield part
    finally:
        if is_kept:
            _add(log, request, facts, asked, response, b"".join(kept), reserved=reserved)
        else:
            log.give_up(reserved)


def _add(
    log: InvocationLog,
    request: Request,
    facts: RequestFacts,
    asked: bytes,
    response: Response | Stream,
    answered: bytes,
    *,
    reserved: int,
) -> None:
    if not log.reserve(len(asked) + len(answered) - reserved):
        log.give_up(reserved)
        return
    headers = request.header_map()
    seen = Invocation(
        request_id=request.request_id,
        at=facts.at,
        account=facts.account,
        principal=facts.principal,
        operation=facts.operation,
        model_id=facts.model_id,
        named=_named(request, asked) if not facts.model_id else "",
        asked=asked,
        asked_type=headers.get("content-type", "application/json"),
        answered=answered,
        answered_type=dict(response.headers).get("content-type", ""),
        input_tokens=None if facts.usage is None else facts.usage.prompt_tokens,
        output_tokens=None if facts.usage is None else facts.usage.completion_tokens,
        error="" if request.error is None else wire_error(request.error, AWS)[0],
    )
    log.add(seen)


def _named(request: Request, asked: bytes) -> str:
    """What the caller named of a model that there is not."""
    parts = request.raw_path.decode("latin-1").split("/")
    if len(parts) > 2 and parts[1] == "model":
        return unquote(parts[2])
    try:
        return str(decode_object(asked, "").get("model", ""))
    except ServiceError:
        return ""
