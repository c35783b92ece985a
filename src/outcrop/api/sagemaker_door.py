"""Where requests for SageMaker come in: the control plane by ``X-Amz-Target``, the runtime by its paths."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache

import msgspec

from outcrop.access.endpoint_keys import BEHALF
from outcrop.access.identities import Principal
from outcrop.api import sagemaker, sagemaker_runtime
from outcrop.api.audit_trail import SAGEMAKER, named
from outcrop.api.generation import Measured
from outcrop.api.http import Request, Response, Stream
from outcrop.api.permissions import Permissions, origin_of
from outcrop.api.sagemaker import SageMaker
from outcrop.api.sagemaker_runtime import SageMakerRuntime
from outcrop.api.wire_errors import AWS, retry_headers, wire_error
from outcrop.awswire.parse import request as parse_request
from outcrop.awswire.serialize import serialize_response
from outcrop.awswire.service import Operation, Router, Service
from outcrop.errors import ServiceError, UnknownOperation

_PREFIX = "SageMaker."
_JSON_11 = [("content-type", "application/x-amz-json-1.1")]
# sagemaker-runtime names two errors in a way of its own.
_RUNTIME_CODES = {"ValidationException": "ValidationError", "InternalServerException": "InternalFailure"}


class SageMakerDoor:
    """Routes, parses and answers requests of both services."""

    def __init__(self, control: SageMaker, runtime: SageMakerRuntime, permissions: Permissions) -> None:
        self._control = control
        self._runtime = runtime
        self._permissions = permissions
        self._router = Router([Service("sagemaker-runtime", sagemaker_runtime.OPERATIONS)])

    def is_meant(self, request: Request) -> bool:
        if request.raw_path.startswith(b"/endpoints/"):
            return True
        return request.raw_path == b"/" and _target(request).startswith(_PREFIX)

    def to_wire(self, request: Request) -> Callable[[ServiceError], Response]:
        return _control_error if request.raw_path == b"/" else _runtime_error

    async def handle(
        self,
        request: Request,
        path: str,
        body: bytes,
        principal: Principal,
        begin: Callable[[str], Measured],
        enter: Callable[[str], str],
    ) -> Response | Stream:
        """*begin* opens the record of an inference request, by its operation; *enter* counts it, by its endpoint."""
        if request.raw_path != b"/":
            match = self._router.match(request.method, path)
            if match is None:
                raise UnknownOperation(f"No operation is bound to {request.method} {path[:200]}.")
            operation, labels = match
            params = parse_request(operation, labels, request.query.decode("latin-1"), request.header_map(), body)
            named(request, SAGEMAKER, operation.name, params)
            measured = begin(operation.name)
            await self._permissions.aws(operation, "sagemaker", params, principal, origin_of(request))
            headers = {**request.header_map(), BEHALF: enter(params["EndpointName"])}
            return await self._runtime.handlers[operation.name](params, principal, headers, measured)
        name = _target(request).removeprefix(_PREFIX)
        if name not in self._control.handlers:
            raise UnknownOperation(f"SageMaker's {name[:100]} is not implemented; see docs/reference/compatibility.md.")
        operation = (await asyncio.to_thread(_operations))[name]
        params = parse_request(operation, {}, "", {}, body)
        called = named(request, SAGEMAKER, name, params)
        await self._permissions.aws(operation, "sagemaker", params, principal, origin_of(request))
        request.is_change = True
        called.answer = answer = await self._control.handlers[name](params, principal)
        status, _, payload = serialize_response(operation, answer)
        return Response(status, _JSON_11, payload)


def _target(request: Request) -> str:
    return request.header_map().get("x-amz-target", "")


@cache
def _operations() -> dict[str, Operation]:
    """Read at the first call of the control plane: the service model is the largest but two of botocore's."""
    return dict(Service("sagemaker", sagemaker.OPERATIONS).operations)


def _control_error(exc: ServiceError) -> Response:
    code, status = wire_error(exc, AWS)
    body = {"__type": code, "message": exc.message}
    return Response(status, [*_JSON_11, ("x-amzn-errortype", code), *retry_headers(exc)], msgspec.json.encode(body))


def _runtime_error(exc: ServiceError) -> Response:
    code, status = wire_error(exc, AWS)
    code = _RUNTIME_CODES.get(code, code)
    headers = [("content-type", "application/json"), ("x-amzn-errortype", code), *retry_headers(exc)]
    return Response(status, headers, msgspec.json.encode({"Message": exc.message}))
