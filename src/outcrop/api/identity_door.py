"""Where requests for IAM and STS come in: forms at ``/``, answered in XML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from outcrop import errors
from outcrop.access.identities import Principal
from outcrop.api import iam as iam_service
from outcrop.api import sts as sts_service
from outcrop.api.audit_trail import named
from outcrop.api.http import Request, Response
from outcrop.api.iam import IAM
from outcrop.api.permissions import origin_of
from outcrop.api.sts import STS
from outcrop.api.wire_errors import WireTable, wire_error
from outcrop.awswire import query
from outcrop.awswire.service import Operation, Service
from outcrop.errors import BadSignature, Faulty, MissingCredentials, ServiceError, UnknownOperation

MOST_BYTES = 100_000  # of a form; IAM's longest documents are a tenth of it
_SECRETS = frozenset({"WebIdentityToken", "TokenCode"})  # members that no record repeats
_FORM = "application/x-www-form-urlencoded"

# IAM API reference, "Common errors", and the error shapes of iam/2010-05-08 and sts/2011-06-15.
QUERY: WireTable = {
    errors.MalformedPolicy: ("MalformedPolicyDocument", 400),
    errors.InvalidRequest: ("ValidationError", 400),
    errors.MissingCredentials: ("MissingAuthenticationToken", 403),
    errors.IncompleteSignature: ("IncompleteSignature", 400),
    errors.UnknownCredentials: ("InvalidClientTokenId", 403),
    errors.BadSignature: ("SignatureDoesNotMatch", 403),
    errors.ExpiredCredentials: ("ExpiredToken", 403),
    errors.ExpiredIdentityToken: ("ExpiredTokenException", 400),
    errors.IdentityTokenRefused: ("InvalidIdentityToken", 400),
    errors.NotAllowed: ("AccessDenied", 403),
    errors.NotFound: ("NoSuchEntity", 404),
    errors.NameTaken: ("EntityAlreadyExists", 409),
    errors.DeleteConflict: ("DeleteConflict", 409),
    errors.QuotaExceeded: ("LimitExceeded", 409),
    errors.UnknownOperation: ("InvalidAction", 400),
    errors.Refused: ("ValidationError", 400),
    errors.Passing: ("Throttling", 400),
    errors.Faulty: ("InternalFailure", 500),
    ServiceError: ("InternalFailure", 500),
}


class IdentityDoor:
    """Routes, parses, authorises and answers requests of both services."""

    def __init__(self, iam: IAM, sts: STS) -> None:
        self._iam = iam
        self._sts = sts

    @staticmethod
    def is_meant(request: Request) -> bool:
        if request.raw_path != b"/":
            return False
        if request.method == "GET":
            return b"Action=" in request.query
        headers = request.header_map()
        return "x-amz-target" not in headers and headers.get("content-type", "").startswith(_FORM)

    @staticmethod
    def to_wire(request: Request) -> Callable[[ServiceError], Response]:
        def wire(exc: ServiceError) -> Response:
            code, status = wire_error(exc, QUERY)
            headers, body = query.error(code, exc.message, request.request_id, is_sender=not isinstance(exc, Faulty))
            return Response(status, headers, body)

        return wire

    async def handle(self, request: Request, path: str, body: bytes, principal: Principal) -> Response:
        return await self._answered(request, query.form_fields(body or request.query), principal)

    async def unsigned(self, request: Request) -> Response | None:
        """The answer to a request that needs no signature; None when it is none of those."""
        if request.method != "POST" or "authorization" in request.header_map():
            return None
        fields = query.form_fields(await request.body(MOST_BYTES))
        if fields.get("Action") not in sts_service.UNSIGNED:
            raise MissingCredentials("Request is missing Authentication Token")
        return await self._answered(request, fields, None)

    async def _answered(self, request: Request, fields: Mapping[str, str], principal: Principal | None) -> Response:
        name, origin = fields.get("Action", ""), origin_of(request)
        operation = _operations().get(name)
        if operation is None:
            version = fields.get("Version", "NO_VERSION_SPECIFIED")
            raise UnknownOperation(f"Could not find operation {name[:100]} for version {version[:40]}")
        if principal is not None and request.signed_for != operation.service:
            raise BadSignature(f"Credential should be scoped to correct service: '{operation.service}'.")
        params = query.parameters(operation, fields)
        told = {member: value for member, value in params.items() if member not in _SECRETS}
        named(request, f"{operation.service}.amazonaws.com", name, told)
        if operation.service == "sts":
            result = await self._sts.handlers[name](params, principal, origin)
        else:
            assert principal is not None
            self._iam.permit(name, params, principal, origin)
            request.is_change = True
            result = await self._iam.handlers[name](params, principal)
        headers, answer = query.answer(operation, result, request.request_id)
        return Response(200, headers, answer)


@cache
def _operations() -> dict[str, Operation]:
    return {
        **Service("iam", iam_service.OPERATIONS).operations,
        **Service("sts", sts_service.OPERATIONS).operations,
    }
