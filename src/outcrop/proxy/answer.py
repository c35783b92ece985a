"""Running one invocation of a script to an answer: what it raises becomes the answer that its caller is owed."""

from __future__ import annotations

import sys

import msgspec

from outcrop.proxy.context import Context
from outcrop.proxy.dialects.base import Dialect
from outcrop.proxy.failures import HandlerFailed, Refuse, TargetRefused
from outcrop.proxy.values import JSON, Response, Streamed


async def answer(dialect: Dialect, context: Context, *, with_traceback: bool) -> Response | Streamed:
    """The script's answer, the target's own refusal, or what a handler's failure is told as."""
    try:
        return await dialect.run(context)
    except HandlerFailed as exc:
        return failed(exc, with_traceback=with_traceback)
    except TargetRefused as exc:
        return exc.response()
    except Refuse as exc:
        body = msgspec.json.encode({"message": str(exc)})
        return Response(body, JSON, exc.status_code, {"x-outcrop-error-source": "handler"})


def failed(exc: HandlerFailed, *, with_traceback: bool) -> Response:
    """The answer to a handler's failure, whose traceback goes to the container's log."""
    print(exc.trace, file=sys.stderr, end="", flush=True)  # noqa: T201
    return exc.response(with_traceback=with_traceback)
