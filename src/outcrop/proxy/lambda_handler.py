"""The same ``model.py`` as an AWS Lambda function: set the handler to ``outcrop.proxy.lambda_handler.handler``.

Events of API Gateway (REST v1, HTTP v2), function URLs and load balancers are invocations and get answers of their
kind; a scheduled event keeps the function warm without touching the script; anything else is a payload, and gets the
answer as JSON. Settings are those of the proxy (``OUTCROP_PROXY_TARGET``, ...); the bundle is the function's own folder
unless set otherwise. Lambda has no streaming for Python: what a script streams is collected into one answer.
"""

from __future__ import annotations

import time

_BEGUN = time.perf_counter()

import asyncio  # noqa: E402  (what the imports cost is measured)
import base64  # noqa: E402
import os  # noqa: E402
import threading  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from typing import Any  # noqa: E402

import msgspec  # noqa: E402

from outcrop.engines.http1 import Client  # noqa: E402
from outcrop.proxy import origin, script  # noqa: E402
from outcrop.proxy.answer import answer  # noqa: E402
from outcrop.proxy.context import Context, entered  # noqa: E402
from outcrop.proxy.dialects.base import Dialect, Settings  # noqa: E402
from outcrop.proxy.settings import load  # noqa: E402
from outcrop.proxy.steps import Steps  # noqa: E402
from outcrop.proxy.target import Target, Trip  # noqa: E402
from outcrop.proxy.tls import tls_context  # noqa: E402
from outcrop.proxy.values import JSON, Request, Response, Streamed  # noqa: E402

_IMPORTS_S = time.perf_counter() - _BEGUN
_SPARE_S = 0.5  # of the function's time, kept for its answer
_TEXT = ("text/", JSON, "application/x-ndjson", "application/jsonlines", "application/xml")


class FunctionFailed(Exception):
    """A direct invocation was answered with an error; Lambda tells its caller so (FunctionError)."""


class Function:
    """The script, its client of the target and the loop they run on, made once per sandbox."""

    def __init__(self) -> None:
        begun = time.perf_counter()
        self._settings = load(**self._defaults())
        self._origin = origin.find(self._settings)
        found = time.perf_counter()
        chosen = Settings(
            model_dir=self._settings.model_dir.resolve(),
            program=self._settings.program,
            dialect=self._settings.dialect,
            forward=self._settings.forward,
            default_accept=self._settings.default_accept,
            is_hugging_face=any(name in os.environ for name in ("HF_TASK", "HF_MODEL_ID")),
        )
        self._dialect: Dialect = script.opened(chosen, Steps(chosen.model_dir, self._settings.threads))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True).start()
        self._on_loop(self._begin())
        ready = time.perf_counter()
        print(  # noqa: T201  (the function's log)
            f"outcrop: cold start: imports {_IMPORTS_S:.3f} s, configuration and credentials {found - begun:.3f} s, "
            f"script {ready - found:.3f} s ({self._dialect.name})",
            flush=True,
        )

    def _defaults(self) -> dict[str, Any]:
        root = os.environ.get("LAMBDA_TASK_ROOT")
        is_set = any(name in os.environ for name in ("OUTCROP_PROXY_MODEL_DIR", "SAGEMAKER_BASE_DIR"))
        return {"model_dir": root} if root and not is_set else {}

    async def _begin(self) -> None:
        endpoint = self._origin.endpoint
        tls = tls_context(endpoint.url, self._origin.ca_bundle)
        client = Client(connect_timeout_s=5, read_timeout_s=900, keep_s=60, tls=tls)
        self._target = Target(endpoint, client, self._origin.keys())
        await entered(self._context(Request(b""), 3600), self._dialect.load)

    def _context(self, request: Request, left_s: float) -> Context:
        trip = Trip(asyncio.get_running_loop().time() + left_s, request.headers.get("traceparent", ""))
        return Context(request, self._target, trip, str(self._settings.model_dir))

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def run(self, request: Request, left_s: float) -> Response:
        """Answer one invocation within *left_s* seconds."""
        self._target.keys = self._origin.keys()  # asks the network only when temporary keys are near their end
        found: Response = self._on_loop(self._answered(request, left_s))
        return found

    async def _answered(self, request: Request, left_s: float) -> Response:
        context = self._context(request, left_s)
        try:
            async with asyncio.timeout(left_s):
                found = await entered(
                    context,
                    lambda: answer(self._dialect, context, with_traceback=self._settings.tracebacks),
                )
                if isinstance(found, Streamed):
                    body = b"".join([part async for part in found.parts])
                    found = Response(body, found.content_type, found.status, found.headers)
                return found
        except TimeoutError:
            context.give_up()
            message = f"{context.step or 'the proxy'} did not finish within {left_s:.3g} s."
            return Response(msgspec.json.encode({"message": message}), JSON, 500)


_function: Function | None = None


def handler(event: Any, context: Any) -> Any:
    """Lambda's entry point."""
    global _function
    if isinstance(event, Mapping) and event.get("source") == "aws.events":
        return {"status": "warm"}
    if _function is None:
        _function = Function()
    left_s = max(0.1, context.get_remaining_time_in_millis() / 1000 - _SPARE_S)
    request_id = str(getattr(context, "aws_request_id", ""))
    kind = _kind(event)
    if kind == "direct":
        found = _function.run(Request(msgspec.json.encode(event), id=request_id), left_s)
        return _direct(found)
    method = event.get("httpMethod") or event["requestContext"]["http"]["method"]
    if method == "GET":  # a health check of a load balancer, or a ping
        return _reply(Response(b"", JSON, 200), kind)
    return _reply(_function.run(_request(event, request_id), left_s), kind)


def _kind(event: Any) -> str:
    """``elb``, ``v1``, ``v2`` (HTTP API and function URL alike) or ``direct``."""
    about = event.get("requestContext") if isinstance(event, Mapping) else None
    if not isinstance(about, Mapping):
        return "direct"
    if "elb" in about:
        return "elb"
    if "http" in about:
        return "v2"
    return "v1" if "httpMethod" in event else "direct"


def _request(event: Mapping[str, Any], request_id: str) -> Request:
    many = event.get("multiValueHeaders") or {}
    headers = {name.lower(): ",".join(values) for name, values in many.items()}
    headers |= {name.lower(): value for name, value in (event.get("headers") or {}).items()}
    text = event.get("body") or ""
    body = base64.b64decode(text) if event.get("isBase64Encoded") else text.encode()
    return Request(body, headers.get("content-type", JSON), headers.get("accept", JSON), headers, request_id)


def _reply(found: Response, kind: str) -> dict[str, Any]:
    is_text = found.content_type.startswith(_TEXT)
    body = found.body.decode(errors="replace") if is_text else base64.b64encode(found.body).decode()
    headers = {"content-type": found.content_type, **found.headers}
    reply = {"statusCode": found.status, "headers": headers, "body": body, "isBase64Encoded": not is_text}
    if kind == "elb":
        reply["statusDescription"] = f"{found.status} {'OK' if found.status < 400 else 'Error'}"
    return reply


def _direct(found: Response) -> Any:
    if found.status >= 400:
        raise FunctionFailed(f"{found.status}: {found.body.decode(errors='replace')}")
    try:
        return msgspec.json.decode(found.body)
    except ValueError:
        return found.body.decode(errors="replace")
