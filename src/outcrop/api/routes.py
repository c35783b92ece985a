"""The steps a request passes, in one place: authenticate, route, parse, handle, answer in the caller's dialect."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import msgspec
import structlog

from outcrop.access.authenticate import GLOBAL, Authenticator
from outcrop.access.endpoint_keys import BEHALF, endpoint_of
from outcrop.access.identities import Principal
from outcrop.access.quotas import Quotas, Within
from outcrop.api.access_door import AccessDoor
from outcrop.api.admin import Admin
from outcrop.api.audit_trail import BEDROCK, AuditTrail, named
from outcrop.api.bedrock import Bedrock
from outcrop.api.bedrock_agent_runtime import BedrockAgentRuntime
from outcrop.api.bedrock_runtime import EVENT_STREAM, BedrockRuntime
from outcrop.api.browsers import Browsers
from outcrop.api.client_address import ClientAddress
from outcrop.api.generation import Measured
from outcrop.api.holding import patience
from outcrop.api.http import ClientGone, Request, Response, Stream, respond, while_connected
from outcrop.api.identity_door import IdentityDoor
from outcrop.api.invocation_capture import captured
from outcrop.api.listener.exchange import Receive, Scope, Send
from outcrop.api.migration.orders import MigrationOrders
from outcrop.api.migration.splitter import Splitter
from outcrop.api.observability import Observability
from outcrop.api.openai import OpenAI, plain_path
from outcrop.api.operations import Operations
from outcrop.api.permissions import Permissions, origin_of
from outcrop.api.refusals import REFUSED_FOR_IMPORTED_MODELS, refusal
from outcrop.api.responses import Responses
from outcrop.api.sagemaker_door import SageMakerDoor
from outcrop.api.wire_errors import aws_error, openai_error, stream_defect
from outcrop.awswire.parse import request as parse_request
from outcrop.awswire.serialize import serialize_response
from outcrop.awswire.service import Router
from outcrop.errors import (
    BadSignature,
    EngineFault,
    MalformedBody,
    NotFound,
    ServiceError,
    ServiceFault,
    UnknownOperation,
)
from outcrop.ids import imported_model_id
from outcrop.telemetry.invocation_log import InvocationLog
from outcrop.telemetry.recorder import Recorder
from outcrop.telemetry.requests import traceparent

log = structlog.get_logger(__name__)

_JSON = [("content-type", "application/json")]
_DEFECT = ServiceFault("The server failed on this request; its log has the details.")
# Tells whoever would keep a model warm by calls that this server needs none (``outcrop keepwarm``).
_HEALTH = [("content-type", "text/plain; charset=utf-8"), ("x-outcrop-server", "1")]


# Operations that generate; quotas count these, and what the OpenAI API has of them.
_COUNTED = frozenset(
    {"InvokeModel", "InvokeModelWithResponseStream", "Converse", "ConverseStream", "RetrieveAndGenerate"}
)


class Gateway:
    """The ASGI application: every front door behind one port."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        router: Router,
        bedrock: Bedrock,
        runtime: BedrockRuntime,
        agents: BedrockAgentRuntime,
        openai: OpenAI,
        responses: Responses,
        admin: Admin,
        operations: Operations,
        sagemaker: SageMakerDoor,
        identity: IdentityDoor,
        access: AccessDoor,
        observability: Observability,
        recorder: Recorder,
        invocations: InvocationLog,
        audit: AuditTrail,
        addresses: ClientAddress,
        browsers: Browsers,
        permissions: Permissions,
        quotas: Quotas,
        max_body_bytes: int,
        is_ready: Callable[[], bool],
        splitter: Splitter | None = None,
        migrations: MigrationOrders | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._router = router
        self._bedrock = bedrock
        self._inference = {"bedrock-runtime": runtime.handlers, "bedrock-agent-runtime": agents.handlers}
        self._openai = openai
        self._responses = responses
        self._admin = admin
        self._operations = operations
        self._sagemaker = sagemaker
        self._identity = identity
        self._access = access
        self._observability = observability
        self._recorder = recorder
        self._invocations = invocations
        self._audit = audit
        self._addresses = addresses
        self._browsers = browsers
        self._permissions = permissions
        self._quotas = quotas
        self._max_body_bytes = max_body_bytes
        self._is_ready = is_ready
        self._splitter = splitter
        self._migrations = migrations
        if splitter is not None:
            splitter.sides.bind(bedrock=self._aws_route, openai=self._openai_route, sagemaker=self._sagemaker_route)
            splitter.sides.audit = audit.record
            splitter.permit = self._permit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        request.source_ip = self._addresses.of(request.source_ip, request.header_map())
        try:
            await self._serve(request, self._browsers.sender(request, request.sender(send)))
        except ClientGone:
            return
        finally:
            self._audit.record(request, unanswered="ClientDisconnected")  # recorded already where it was answered

    async def _serve(self, request: Request, send: Send) -> None:
        path = request.raw_path.decode("latin-1")
        if path in ("/healthz", "/readyz"):
            request.is_audited = True  # there is nothing to tell
            is_well = path == "/healthz" or self._is_ready()
            await respond(Response(200 if is_well else 503, _HEALTH, b"ok" if is_well else b"starting"), "-", send)
            return
        if (answer := self._browsers.preflight(request)) is not None:  # it never carries a key
            request.is_audited = True
            await respond(answer, request.request_id, send)
            return
        is_openai = (openai_path := plain_path(path)) is not None
        if openai_path is not None:
            path = openai_path
            request.notes.append(("x-request-id", request.request_id))  # where OpenAI's clients look for it
        is_sagemaker = self._sagemaker.is_meant(request)
        to_wire = openai_error if is_openai else self._sagemaker.to_wire(request) if is_sagemaker else aws_error
        is_identity = not is_sagemaker and self._identity.is_meant(request)
        if is_identity:
            to_wire = self._identity.to_wire(request)
        try:
            if is_identity and (answer := await self._identity.unsigned(request)) is not None:
                self._audit.record(request)
                await respond(answer, request.request_id, send)
                return
            try:
                claim = self._authenticator.claim(request.header_map(), request.query)
            except ServiceError:
                await request.discard()  # a stranger's body costs no memory
                raise
            body = await request.body(self._max_body_bytes)
            principal = self._authenticator.verify(claim, request.method, request.raw_path, request.query, body)
            request.signed_for = claim.service
            if not is_sagemaker:  # which hands bodies on as they are
                request.refuse_encoded()
            if (claim.service in GLOBAL) != is_identity:
                raise BadSignature("Credential should be scoped to the service that is asked.")
            if principal.bearer:
                self._permissions.bearer(principal, origin_of(request))
        except ServiceError as exc:
            await self._refuse(exc, to_wire, request, send)
            return
        except ClientGone:  # or it only closed its half, and hears this
            cut_off = MalformedBody("The request body ended before it was complete. Send all of its content-length.")
            await self._refuse(cut_off, to_wire, request, send)
            return
        request.principal = principal
        handle = self._openai_route if is_openai else self._own_route if _is_own(path) else self._aws_route
        if is_sagemaker:
            handle = self._sagemaker_route
        if is_identity:
            handle = self._identity.handle
        split = None if self._splitter is None else self._splitter.split(request, path, body, principal)
        if split is not None:
            handle = split.handle
        handled = handle(request, path, body, principal)
        await while_connected(request, self._answer(handled, to_wire, request, body, send))
        if split is not None:
            split.answered()

    async def _refuse(
        self, exc: ServiceError, to_wire: Callable[[ServiceError], Response], request: Request, send: Send
    ) -> None:
        """Answer a request that got no further than its signature and its body."""
        request.error = exc
        self._audit.record(request)
        response = to_wire(exc)
        response.headers += request.notes
        await respond(response, request.request_id, send)

    async def _answer(
        self,
        handled: Awaitable[Response | Stream],
        to_wire: Callable[[ServiceError], Response],
        request: Request,
        body: bytes,
        send: Send,
    ) -> None:
        response: Response | Stream
        try:
            try:
                response = await handled
            except ServiceError as exc:
                response, request.error = to_wire(exc), exc
                if request.facts is not None:
                    request.facts.failed(exc, response.status)
            except Exception:
                log.exception("a request hit a defect", request_id=request.request_id)
                response, request.error = to_wire(_DEFECT), _DEFECT
                if request.facts is not None:
                    request.facts.failed(_DEFECT, response.status)
            response.headers = [*response.headers, *request.notes]
            if request.facts is not None:
                response.headers += request.facts.headers()
                if isinstance(response, Response):  # before the caller has it, so that it can be asked for at once
                    self._recorder.end(request.facts)
                response = captured(self._invocations, request, body, response)
            self._audit.record(request)
            await self._send(response, request, send)
        finally:
            if request.facts is not None:
                self._recorder.end(request.facts)  # whatever ended it; it was recorded already where all went well
                if request.ticket is not None:
                    usage = request.facts.usage
                    request.ticket.leave(0 if usage is None else usage.prompt_tokens + usage.completion_tokens)

    async def _send(self, response: Response | Stream, request: Request, send: Send) -> None:
        try:
            await respond(response, request.request_id, send)
        except Exception:
            if not isinstance(response, Stream):
                raise
            log.exception("an open stream hit a defect", request_id=request.request_id)
            if request.facts is not None:
                request.facts.failed(_DEFECT)
            is_event_stream = ("content-type", EVENT_STREAM) in response.headers
            last = stream_defect(_DEFECT, is_event_stream=is_event_stream)
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _aws_route(self, request: Request, path: str, body: bytes, principal: Principal) -> Response | Stream:
        match = self._router.match(request.method, path)
        if match is None:
            raise UnknownOperation(f"No operation is bound to {request.method} {path[:200]}.")
        operation, labels = match
        inference = self._inference.get(operation.service)
        is_served = operation.name in (self._bedrock.handlers if inference is None else inference)
        if not is_served and operation.name not in REFUSED_FOR_IMPORTED_MODELS:
            raise refusal(operation.name, {})
        params = parse_request(operation, labels, request.query.decode("latin-1"), request.header_map(), body)
        called = named(request, BEDROCK, operation.name, params)
        if not is_served:
            raise refusal(operation.name, params)
        if inference is not None:
            measured = self._measured(request, principal, len(body), operation.name)
            await self._permissions.aws(operation, "bedrock", params, principal, origin_of(request))
            if operation.name in _COUNTED:
                self._enter(request, self._permissions.model_of(params), principal)
            try:
                answer = await inference[operation.name](params, principal, measured)
            except EngineFault as exc:
                exc.resource_name = params.get("modelId")
                raise
            if not isinstance(answer, dict):
                return answer
            extra = [("x-outcrop-gateway-ms", f"{measured.gateway_ms():.3f}")]
        else:
            await self._permissions.aws(operation, "bedrock", params, principal, origin_of(request))
            request.is_change = request.method != "GET"
            called.answer = answer = await self._bedrock.handlers[operation.name](params, principal)
            extra = []
        status, headers, payload = serialize_response(operation, answer)
        return Response(status, [*headers, *extra], payload)

    def _enter(self, request: Request, model: str, principal: Principal) -> None:
        """Count a request for inference against what limits it. Raises Throttled."""
        if request.is_copy:
            return
        model_id = imported_model_id(self._permissions.model_arn(model, principal)) or ""
        whose = _whose(principal)
        within = Within(request.header_map().get(BEHALF, "")) if endpoint_of(principal) else None
        request.ticket = self._quotas.enter(principal.account, whose, model_id, within)

    def _enter_endpoint(self, request: Request, endpoint: str, principal: Principal) -> str:
        """Count a call of an endpoint; what its proxy has to name in its own calls. Raises Throttled."""
        if request.is_copy:
            return ""
        request.ticket = self._quotas.enter_outer(principal.account, _whose(principal), f"endpoint/{endpoint}")
        return "" if request.ticket is None else request.ticket.name

    async def _sagemaker_route(
        self, request: Request, path: str, body: bytes, principal: Principal
    ) -> Response | Stream:
        def begin(operation: str) -> Measured:
            return self._measured(request, principal, len(body), operation)

        def enter(endpoint: str) -> str:
            return self._enter_endpoint(request, endpoint, principal)

        return await self._sagemaker.handle(request, path, body, principal, begin, enter)

    def _permit(self, request: Request, operation: str, name: str, principal: Principal) -> None:
        """Whether *principal* may call a name that is being migrated, wherever it is answered. Raises NotAllowed."""
        self._permissions.named(operation, name, principal, origin_of(request))

    async def _openai_route(self, request: Request, path: str, body: bytes, principal: Principal) -> Response | Stream:
        origin = origin_of(request)

        def permit(model: str, streams: bool) -> None:
            self._permissions.invoke(model, principal, origin, streams=streams)
            self._enter(request, model, principal)

        method = "GET" if request.method == "HEAD" else request.method
        match method, path:
            case "POST", "/v1/chat/completions":
                measured = self._measured(request, principal, len(body), "ChatCompletions")
                return await self._openai.generate("chat", body, principal, measured, permit)
            case "POST", "/v1/responses":
                measured = self._measured(request, principal, len(body), "Responses")
                return await self._responses.create(body, principal, measured, permit)
            case "POST", "/v1/responses/input_tokens":
                measured = self._measured(request, principal, len(body), "CountTokens")
                return await self._responses.count_input(body, principal, measured, permit)
            case "GET" | "DELETE", _ if path.startswith("/v1/responses/"):
                response_id = unquote(path.removeprefix("/v1/responses/"))
                await self._permissions.own(method, ["responses", response_id], principal, origin)
                act = self._responses.get if method == "GET" else self._responses.delete
                return act(principal, response_id)
            case "POST", "/v1/embeddings":
                measured = self._measured(request, principal, len(body), "Embeddings")
                return await self._openai.embeddings(body, principal, measured, permit)
            case "POST", "/v1/completions":
                measured = self._measured(request, principal, len(body), "Completions")
                return await self._openai.generate("completion", body, principal, measured, permit)
            case "GET", "/v1/models":
                self._permissions.look(None, principal, origin)
                return self._openai.models(principal)
            case "GET", _ if path.startswith("/v1/models/"):
                name = unquote(path.removeprefix("/v1/models/"))
                self._permissions.look(name, principal, origin)
                return self._openai.model(principal, name)
        raise UnknownOperation(f"Invalid URL ({request.method} {path[:200]}).")

    def _measured(self, request: Request, principal: Principal, size_bytes: int, operation: str) -> Measured:
        """The request from here on is one for inference: it is recorded, whatever becomes of it."""
        headers, now = request.header_map(), time.time()
        measured = Measured(
            started=request.started,
            request_id=request.request_id,
            at=now - (time.perf_counter() - request.started),
            operation=operation,
            account=principal.account,
            principal=principal.arn,
            size_bytes=size_bytes,
            invocation_id=headers.get("amz-sdk-invocation-id"),
            sdk_attempt=headers.get("amz-sdk-request"),
            traceparent=traceparent(headers.get("traceparent")),
            created=int(now),
            notes=request.notes,
        )
        request.facts = measured
        self._recorder.begin(measured)
        measured.patience = patience(headers, principal, size_bytes)
        return measured

    async def _own_route(self, request: Request, path: str, body: bytes, principal: Principal) -> Response:
        parts = [unquote(part) for part in path.removeprefix("/outcrop/v1").strip("/").split("/")]
        await self._permissions.own(request.method, parts, principal, origin_of(request))
        request.is_change = request.method != "GET"
        if request.method == "GET" and path == "/metrics":
            page = await self._observability.metrics()
            return Response(200, [("content-type", "text/plain; version=0.0.4; charset=utf-8")], page)
        if request.method == "GET" and path == "/outcrop/v1/status":
            return Response(200, _JSON, msgspec.json.encode(self._admin.status(principal)))
        job = re.fullmatch(r"/outcrop/v1/import-jobs/([^/]+)", path)
        if request.method == "GET" and job:
            found = await self._admin.import_job(principal, unquote(job.group(1)))
            return Response(200, _JSON, msgspec.json.encode(found))
        cancelled = re.fullmatch(r"/outcrop/v1/import-jobs/([^/]+)/cancel", path)
        if request.method == "POST" and cancelled:
            found = await self._admin.cancel_import_job(principal, unquote(cancelled.group(1)))
            return Response(200, _JSON, msgspec.json.encode(found))
        model = re.fullmatch(r"/outcrop/v1/models/([^/]+)", path)
        if model and request.method in ("GET", "PATCH"):
            name = unquote(model.group(1))
            if request.method == "PATCH":
                found = await self._admin.change_model(principal, name, body)
            else:
                found = await self._admin.model(principal, name)
            return Response(200, _JSON, msgspec.json.encode(found))
        evicted = re.fullmatch(r"/outcrop/v1/models/([^/]+)/evict", path)
        if request.method == "POST" and evicted:
            found = await self._admin.evict_model(principal, unquote(evicted.group(1)))
            return Response(200, _JSON, msgspec.json.encode(found))
        if request.method == "GET" and path == "/outcrop/v1/store":
            return Response(200, _JSON, msgspec.json.encode(await self._admin.store()))
        if request.method == "POST" and path == "/outcrop/v1/store/collect":
            return Response(200, _JSON, msgspec.json.encode(await self._admin.collect_store()))
        answer = await self._access.route(request.method, parts, body, principal)
        if answer is None:
            answer = await self._operations.route(request.method, parts, body, principal)
        if answer is None:
            answer = await self._observability.route(request.method, parts, request.query, principal)
        if answer is None and self._migrations is not None:
            answer = await self._migrations.route(request.method, parts, body, principal)
        if answer is not None:
            return Response(200, _JSON, msgspec.json.encode(answer))
        raise NotFound(f"There is nothing at {request.method} {path[:200]}.")


def _whose(principal: Principal) -> str:
    """Whom quotas know *principal* as: a role's sessions are one."""
    return principal.arn if principal.session is None else principal.session.role_arn


def _is_own(path: str) -> bool:
    return path == "/metrics" or path.startswith("/outcrop/")
