"""InvokeEndpoint, its stream and its asynchronous form, in the shapes of ``sagemaker-runtime/2017-05-13``.

What a container answers with 4xx or 5xx is a ModelError (424) that carries the container's own status and body, in
SageMaker's words. Bytes of a stream are handed on as PayloadPart events as they come.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import structlog

from outcrop.access.identities import Principal
from outcrop.api.http import Response, Stream
from outcrop.awswire.eventstream import encode_exception, encode_message
from outcrop.engines.http1 import Answer
from outcrop.errors import InvalidRequest, ServiceError
from outcrop.importing.weights import write_atomically
from outcrop.registry.sagemaker_records import CONFIG, SageMakerRecords
from outcrop.serving.endpoints import Endpoint, Endpoints, Variant

log = structlog.get_logger(__name__)

Handler = Callable[[Mapping[str, Any], Principal, Mapping[str, str]], Awaitable[Response | Stream]]
EVENT_STREAM = "application/vnd.amazon.eventstream"
_JSON = "application/json"
_DEFAULT_TIMEOUT_S = 60.0
_ASYNC_TIMEOUT_S = 900.0
_ASYNC_AT_A_TIME = 16
_MESSAGE_BYTES = 8_192  # of a container's answer that a ModelError repeats
# The headers of InvokeEndpoint that reach a container; the platform strips all others.
_PASSED = (
    "x-amzn-sagemaker-custom-attributes",
    "x-amzn-sagemaker-inference-id",
    "x-amzn-sagemaker-session-id",
    "x-amzn-sagemaker-target-model",
    "traceparent",
    "tracestate",
)
_RETURNED = (
    "x-amzn-sagemaker-custom-attributes",
    "x-amzn-sagemaker-new-session-id",
    "x-amzn-sagemaker-closed-session-id",
)

# Operation -> method of SageMakerRuntime. The compatibility page is made from this.
OPERATIONS = {
    "InvokeEndpoint": "invoke",
    "InvokeEndpointWithResponseStream": "invoke_stream",
    "InvokeEndpointAsync": "invoke_async",
}


class SageMakerRuntime:
    """Handlers by operation name; parameters are already parsed and validated against the service model."""

    def __init__(self, endpoints: Endpoints, records: SageMakerRecords) -> None:
        self._endpoints = endpoints
        self._records = records
        self._gate = asyncio.Semaphore(_ASYNC_AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()
        self.handlers: dict[str, Handler] = {name: getattr(self, method) for name, method in OPERATIONS.items()}

    async def invoke(
        self, params: Mapping[str, Any], principal: Principal, headers: Mapping[str, str]
    ) -> Response | Stream:
        endpoint = self._found(params, principal)
        async with self._endpoints.lent(endpoint, params.get("TargetVariant"), params.get("SessionId")) as variant:
            try:
                async with asyncio.timeout(_timeout_s(variant)):
                    answer = await self._ask(variant, params, headers)
                    try:
                        body, said = await answer.read(), answer.headers()
                    finally:
                        answer.close()
            except TimeoutError:
                return _timed_out()
            except OSError as exc:
                return _unreachable(exc)
            if answer.status >= 400:
                return _model_error(answer.status, body, endpoint)
            found = [
                ("content-type", said.get("content-type", _JSON)),
                ("x-amzn-invoked-production-variant", variant.name),
                *((name, said[name]) for name in _RETURNED if name in said),
            ]
            return Response(200, found, body)

    async def invoke_stream(
        self, params: Mapping[str, Any], principal: Principal, headers: Mapping[str, str]
    ) -> Response | Stream:
        endpoint = self._found(params, principal)
        async with AsyncExitStack() as stack:
            lent = self._endpoints.lent(endpoint, params.get("TargetVariant"), params.get("SessionId"))
            variant = await stack.enter_async_context(lent)
            try:
                async with asyncio.timeout(_timeout_s(variant)):
                    answer = await self._ask(variant, params, headers)
                    stack.callback(answer.close)
                    if answer.status >= 400:
                        return _model_error(answer.status, await answer.read(), endpoint)
            except TimeoutError:
                return _timed_out()
            except OSError as exc:
                return _unreachable(exc)
            said = answer.headers()
            found = [
                ("content-type", EVENT_STREAM),
                ("x-amzn-sagemaker-content-type", said.get("content-type", _JSON)),
                ("x-amzn-invoked-production-variant", variant.name),
                *((name, said[name]) for name in _RETURNED if name in said),
            ]
            return Stream(200, found, _parts(answer, stack.pop_all()))

    async def invoke_async(
        self, params: Mapping[str, Any], principal: Principal, headers: Mapping[str, str]
    ) -> Response | Stream:
        endpoint = self._found(params, principal)
        config = await asyncio.to_thread(self._records.get, principal.account, CONFIG, endpoint.config_name)
        wanted = (config.body if config else {}).get("AsyncInferenceConfig")
        if wanted is None:
            raise InvalidRequest(f"Endpoint {endpoint.name} has no AsyncInferenceConfig. Use InvokeEndpoint.")
        if (params.get("InputLocation") is None) == (not params.get("Body")):
            raise InvalidRequest("Give either InputLocation or a Body.")
        inference_id = params.get("InferenceId") or str(uuid.uuid4())
        output = wanted["OutputConfig"]
        place = output.get("S3OutputPath", "").rstrip("/")
        if not place:
            raise InvalidRequest(f"The AsyncInferenceConfig of {endpoint.config_name} names no S3OutputPath.")
        name = params.get("Filename") or f"{uuid.uuid4()}.out"
        target = f"{place}/{name}"
        failure = f"{output.get('S3FailurePath', place).rstrip('/')}/{name.removesuffix('.out')}-error.out"
        for path in (target, failure):
            self._endpoints.object_path(path)
        body = params.get("Body") or await asyncio.to_thread(self._input, params["InputLocation"])
        task = asyncio.create_task(self._later(endpoint, {**params, "Body": body}, dict(headers), target, failure))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        found = [
            ("content-type", _JSON),
            ("x-amzn-sagemaker-outputlocation", target),
            ("x-amzn-sagemaker-failurelocation", failure),
        ]
        return Response(202, found, msgspec.json.encode({"InferenceId": inference_id}))

    def _input(self, location: str) -> bytes:
        path = self._endpoints.object_path(location)
        if not path.is_file():
            raise InvalidRequest(f"Could not find the input at {location}.")
        return path.read_bytes()

    async def _later(
        self, endpoint: Endpoint, params: Mapping[str, Any], headers: Mapping[str, str], target: str, failure: str
    ) -> None:
        """Run one asynchronous invocation and put its answer, or what went wrong, where it belongs."""
        status, body = 500, b"the endpoint is gone"
        try:
            async with self._gate, self._endpoints.lent(endpoint, None, None) as variant:
                async with asyncio.timeout(params.get("InvocationTimeoutSeconds") or _ASYNC_TIMEOUT_S):
                    answer = await self._ask(variant, params, headers)
                    try:
                        status, body = answer.status, await answer.read()
                    finally:
                        answer.close()
        except (ServiceError, OSError, TimeoutError) as exc:
            body = str(exc).encode() or b"the invocation timed out"
        path = self._endpoints.object_path(target if status < 400 else failure)

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, body)

        await asyncio.to_thread(write)

    async def close(self) -> None:
        """End asynchronous invocations; their callers find no output."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _found(self, params: Mapping[str, Any], principal: Principal) -> Endpoint:
        endpoint = self._endpoints.find(principal.account, params["EndpointName"])
        if endpoint is None or endpoint.status == "Failed":
            raise InvalidRequest(f"Endpoint {params['EndpointName']} of account {principal.account} not found.")
        return endpoint

    async def _ask(self, variant: Variant, params: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        lines = f"Authorization: Bearer {variant.proxy.key}\r\nContent-Type: {params.get('ContentType') or _JSON}\r\n"
        if accept := params.get("Accept"):
            lines += f"Accept: {accept}\r\n"
        for name in _PASSED:
            if name in headers:
                lines += f"{name}: {headers[name]}\r\n"
        body = params.get("Body", b"")
        return await self._endpoints.client.send("POST", variant.proxy.url, "/invocations", head=lines, body=body)


async def _parts(answer: Answer, stack: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    headers = (
        (":event-type", "PayloadPart"),
        (":content-type", "application/octet-stream"),
        (":message-type", "event"),
    )
    async with stack:
        try:
            async for part in answer.parts():
                yield encode_message(headers, part)
        except TimeoutError as exc:
            yield _broken("ModelInvocationTimeExceeded", str(exc))
        except OSError:
            yield _broken("StreamBroken", "The container ended the stream before it was complete.")


def _broken(code: str, message: str) -> bytes:
    return encode_exception("ModelStreamError", message, {"Message": message, "ErrorCode": code})


def _timeout_s(variant: Variant) -> float:
    seconds = variant.model["PrimaryContainer"].get("Environment", {}).get("SAGEMAKER_MODEL_SERVER_TIMEOUT", "")
    return float(seconds) + 1 if seconds.isdecimal() else _DEFAULT_TIMEOUT_S + 1


def _model_error(status: int, body: bytes, endpoint: Endpoint) -> Response:
    said = body[:_MESSAGE_BYTES].decode(errors="replace")
    whose = "client" if status < 500 else "server"
    message = (
        f'Received {whose} error ({status}) from primary with message "{said}". See the log of endpoint '
        f"{endpoint.name} in account {endpoint.account} for more information."
    )
    return _error("ModelError", 424, message, OriginalStatusCode=status, OriginalMessage=said)


def _timed_out() -> Response:
    message = (
        'Received server error (0) from primary with message "Your invocation timed out while waiting for a response '
        'from container primary. Review the latency metrics for each container, resolve the issue, and try again."'
    )
    return _error("ModelError", 424, message, OriginalStatusCode=0, OriginalMessage="timed out")


def _unreachable(exc: OSError) -> Response:
    message = f"The container is not reachable: {exc}. It is started again; try again later."
    return _error("ServiceUnavailable", 503, message)


def _error(code: str, status: int, message: str, **more: Any) -> Response:
    headers = [("content-type", _JSON), ("x-amzn-errortype", code)]
    return Response(status, headers, msgspec.json.encode({"Message": message, **more}))
