"""InvokeEndpoint, its stream and its asynchronous form, in the shapes of ``sagemaker-runtime/2017-05-13``.

What a container answers with 4xx or 5xx is a ModelError (424) that carries the container's own status and body, in
SageMaker's words. Bytes of a stream are handed on as PayloadPart events as they come.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import structlog

from outcrop.access.endpoint_keys import BEHALF
from outcrop.access.identities import Principal
from outcrop.api.generation import Measured
from outcrop.api.http import Response, Stream
from outcrop.api.sagemaker_visit import Callees, Visit, tell
from outcrop.awswire.eventstream import encode_exception, encode_message
from outcrop.errors import InvalidRequest, ServiceError
from outcrop.metering.usage import proxies_id
from outcrop.registry.sagemaker_records import CONFIG, SageMakerRecords
from outcrop.serving.async_queue import AT_A_TIME, AsyncQueue, Job, write_durably
from outcrop.serving.data_capture import DataCapture
from outcrop.serving.endpoints import Endpoints, Lent
from outcrop.serving.invocation import JSON, Invocation, Reply
from outcrop.serving.rollout import Endpoint
from outcrop.serving.shadows import Shadows

log = structlog.get_logger(__name__)

Handler = Callable[[Mapping[str, Any], Principal, Mapping[str, str], Measured], Awaitable[Response | Stream]]
EVENT_STREAM = "application/vnd.amazon.eventstream"
_ASYNC_TIMEOUT_S = 900.0
_ASYNC_TTL_S = 21_600.0
_CAPTURED_BYTES = 6 << 20  # of a streamed answer
# The headers of InvokeEndpoint that reach a container; the platform strips all others.
_PASSED = (
    BEHALF,
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
    """Handlers by operation name; parameters are already parsed and validated against the service model.

    *folder*: where accepted asynchronous calls are kept. *processed* hears where the output of one is to be, and the
    status that came of it.
    """

    def __init__(self, endpoints: Endpoints, records: SageMakerRecords, folder: Path) -> None:
        self._endpoints = endpoints
        self._records = records
        self._callees = Callees(endpoints, DataCapture(endpoints.object_path), Shadows(endpoints))
        self.processed: Callable[[str, int], None] = lambda place, status: None
        self._queue = AsyncQueue(folder, process=self._process, put=self._put, done=self._is_done)
        self.handlers: dict[str, Handler] = {name: getattr(self, method) for name, method in OPERATIONS.items()}

    async def resume(self) -> None:
        """Take up asynchronous calls that an earlier server accepted."""
        await self._queue.resume()

    async def invoke(
        self, params: Mapping[str, Any], principal: Principal, headers: Mapping[str, str], measured: Measured
    ) -> Response | Stream:
        endpoint = self._found(params, principal, measured)
        visit = Visit(self._callees, endpoint, _asked(params, headers), measured)
        async with AsyncExitStack() as stack:
            try:
                lent, reply = await visit.begun(stack, params.get("TargetVariant"), params.get("SessionId"))
                async with asyncio.timeout_at(visit.deadline):
                    body, said = await reply.read(), reply.headers()
            except TimeoutError:
                return visit.timed_out()
            except OSError as exc:
                return visit.unreachable(exc)
            if reply.status >= 400:
                return visit.refused(reply.status, body)
            content_type = said.get("content-type", JSON)
            visit.ended(reply.status, content_type, body)
            found = [("content-type", content_type), *_said(lent, said)]
            found.append(("x-outcrop-gateway-ms", f"{measured.gateway_ms():.3f}"))
            return Response(200, found, body)

    async def invoke_stream(
        self, params: Mapping[str, Any], principal: Principal, headers: Mapping[str, str], measured: Measured
    ) -> Response | Stream:
        endpoint = self._found(params, principal, measured)
        measured.is_stream = True
        visit = Visit(self._callees, endpoint, _asked(params, headers, is_stream=True), measured)
        async with AsyncExitStack() as stack:
            try:
                lent, reply = await visit.begun(stack, params.get("TargetVariant"), params.get("SessionId"))
                if reply.status >= 400:
                    async with asyncio.timeout_at(visit.deadline):
                        return visit.refused(reply.status, await reply.read())
            except TimeoutError:
                return visit.timed_out()
            except OSError as exc:
                return visit.unreachable(exc)
            said = reply.headers()
            content_type = said.get("content-type", JSON)
            found = [
                ("content-type", EVENT_STREAM),
                ("x-amzn-sagemaker-content-type", content_type),
                *_said(lent, said),
            ]
            return Stream(200, found, _parts(visit, reply, content_type, stack.pop_all()))

    async def invoke_async(
        self, params: Mapping[str, Any], principal: Principal, headers: Mapping[str, str], measured: Measured
    ) -> Response | Stream:
        endpoint = self._found(params, principal, measured)
        config = await asyncio.to_thread(self._records.get, principal.account, CONFIG, endpoint.fleet.config_name)
        wanted = (config.body if config else {}).get("AsyncInferenceConfig")
        if wanted is None:
            raise InvalidRequest(f"Endpoint {endpoint.name} has no AsyncInferenceConfig. Use InvokeEndpoint.")
        location, body = params.get("InputLocation"), params.get("Body") or None
        if (location is None) == (body is None):
            raise InvalidRequest("Give either InputLocation or a Body.")
        inference_id = params.get("InferenceId") or str(uuid.uuid4())
        output = wanted["OutputConfig"]
        place = output.get("S3OutputPath", "").rstrip("/")
        if not place:
            raise InvalidRequest(f"The AsyncInferenceConfig of {endpoint.fleet.config_name} names no S3OutputPath.")
        if extension := params.get("S3OutputPathExtension", "").strip("/"):
            place = f"{place}/{extension}"
        name = params.get("Filename") or f"{uuid.uuid4()}.out"
        target = f"{place}/{name}"
        failure = f"{output.get('S3FailurePath', place).rstrip('/')}/{name.removesuffix('.out')}-error.out"
        for path in (target, failure):
            self._endpoints.object_path(path)
        if location is not None:
            await asyncio.to_thread(self._input, location)
        asked = _asked({**params, "InferenceId": inference_id}, headers)
        client = wanted.get("ClientConfig", {})
        per_copy = client.get("MaxConcurrentInvocationsPerInstance")
        copies = sum(variant.wanted for variant in endpoint.fleet.variants)
        job = Job(
            account=principal.account,
            principal=principal.arn,
            endpoint=endpoint.name,
            input=location or "",
            content_type=asked.content_type,
            accept=asked.accept,
            passed=asked.passed,
            output=target,
            failure=failure,
            accepted_at=time.time(),
            ttl_s=params.get("RequestTTLSeconds", _ASYNC_TTL_S),
            timeout_s=params.get("InvocationTimeoutSeconds", _ASYNC_TIMEOUT_S),
            at_a_time=AT_A_TIME if per_copy is None else per_copy * max(1, copies),
        )
        await self._queue.accept(job, body)
        measured.answered(None)
        found = [
            ("content-type", JSON),
            ("x-amzn-sagemaker-outputlocation", target),
            ("x-amzn-sagemaker-failurelocation", failure),
        ]
        return Response(202, found, msgspec.json.encode({"InferenceId": inference_id}))

    # -- asynchronous calls ---------------------------------------------------------------------------

    def _input(self, location: str) -> Path:
        path = self._endpoints.object_path(location)
        if not path.is_file():
            raise InvalidRequest(f"Could not find the input at {location}.")
        return path

    async def _process(self, job: Job, body: bytes | None) -> tuple[int, bytes]:
        """Status and body of what becomes of *job*; waits while its endpoint starts."""
        try:
            endpoint = await self._in_service(job)
            if endpoint is None:
                return 404, f"Endpoint {job.endpoint} is gone.".encode()
            if body is None:
                path = await asyncio.to_thread(self._input, job.input)
                body = await asyncio.to_thread(path.read_bytes)
            asked = Invocation(body=body, content_type=job.content_type, accept=job.accept, passed=job.passed)
            begun = time.monotonic()
            async with asyncio.timeout(job.timeout_s), self._endpoints.lent(endpoint, None, None) as lent:
                reply = await lent.copy.send(self._endpoints.client, asked)
                try:
                    answer = await reply.read()
                    tell(self._endpoints, endpoint, lent.variant, reply.status, time.monotonic() - begun, 0.0)
                    return reply.status, answer
                finally:
                    reply.close()
        except TimeoutError:
            return 504, f"The invocation took longer than {job.timeout_s:g} s.".encode()
        except (ServiceError, OSError) as exc:
            return 500, str(exc).encode() or type(exc).__name__.encode()

    async def _in_service(self, job: Job) -> Endpoint | None:
        until = job.accepted_at + job.ttl_s
        while True:
            endpoint = self._endpoints.find(job.account, job.endpoint)
            if endpoint is None or endpoint.status in ("Failed", "Deleting"):
                return None
            if endpoint.status != "Creating" or time.time() > until:
                return endpoint
            await asyncio.sleep(0.2)

    def _is_done(self, job: Job, status: int) -> None:
        self.processed(job.output, status)

    def _put(self, place: str, content: bytes) -> None:
        path = self._endpoints.object_path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)

    async def close(self) -> None:
        """Stop asynchronous work; accepted calls go on at the next start."""
        await self._queue.close()
        await self._callees.shadows.close()
        await self._callees.capture.close()

    # -- what every kind of invocation shares ---------------------------------------------------------

    def _found(self, params: Mapping[str, Any], principal: Principal, measured: Measured) -> Endpoint:
        endpoint = self._endpoints.find(principal.account, params["EndpointName"])
        if endpoint is None or endpoint.status == "Failed":
            raise InvalidRequest(f"Endpoint {params['EndpointName']} of account {principal.account} not found.")
        measured.of_model(f"endpoint/{endpoint.name}", proxies_id(endpoint.name))
        return endpoint


async def _parts(visit: Visit, reply: Reply, content_type: str, stack: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    headers = (
        (":event-type", "PayloadPart"),
        (":content-type", "application/octet-stream"),
        (":message-type", "event"),
    )
    kept: list[bytes] = []
    size = 0
    async with stack:
        try:
            async for part in reply.parts():
                if visit.measured.first_byte_at is None:
                    visit.measured.first_byte_at = time.perf_counter()
                if visit.is_captured and size < _CAPTURED_BYTES:
                    kept.append(part)
                    size += len(part)
                yield encode_message(headers, part)
        except TimeoutError as exc:
            visit.broke("ModelInvocationTimeExceeded")
            yield _broken("ModelInvocationTimeExceeded", str(exc))
        except OSError:
            visit.broke("StreamBroken")
            yield _broken("StreamBroken", "The container ended the stream before it was complete.")
        else:
            visit.ended(reply.status, content_type, b"".join(kept))


def _broken(code: str, message: str) -> bytes:
    return encode_exception("ModelStreamError", message, {"Message": message, "ErrorCode": code})


def _asked(params: Mapping[str, Any], headers: Mapping[str, str], *, is_stream: bool = False) -> Invocation:
    return Invocation(
        body=params.get("Body", b""),
        content_type=params.get("ContentType") or JSON,
        accept=params.get("Accept") or "",
        passed={name: headers[name] for name in _PASSED if headers.get(name)},
        is_stream=is_stream,
    )


def _said(lent: Lent, said: Mapping[str, str]) -> list[tuple[str, str]]:
    """Headers of the answer: who gave it, and what the container says besides."""
    returned = [(name, said[name]) for name in _RETURNED if name in said]
    return [("x-amzn-invoked-production-variant", lent.variant.name), *returned]
