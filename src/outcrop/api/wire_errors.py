"""From facts to wire, one table per dialect, read along the class tree of ``errors``.

AWS codes and statuses: botocore data, ``bedrock/2023-04-20`` and ``bedrock-runtime/2023-09-30``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from outcrop import errors
from outcrop.api.http import Response
from outcrop.awswire.eventstream import encode_exception
from outcrop.errors import ServiceError

WireTable = Mapping[type[ServiceError], tuple[str, int]]

AWS: WireTable = {
    errors.MalformedBody: ("ValidationException", 400),
    errors.InvalidRequest: ("ValidationException", 400),
    errors.BodyTooLarge: ("ValidationException", 400),
    errors.MissingCredentials: ("MissingAuthenticationTokenException", 403),
    errors.IncompleteSignature: ("IncompleteSignatureException", 403),
    errors.UnknownCredentials: ("UnrecognizedClientException", 403),
    errors.BadSignature: ("InvalidSignatureException", 403),
    errors.ExpiredCredentials: ("ExpiredTokenException", 403),
    errors.NotAuthenticated: ("AccessDeniedException", 403),
    errors.NotAllowed: ("AccessDeniedException", 403),
    errors.NotFound: ("ResourceNotFoundException", 404),
    errors.NameTaken: ("ConflictException", 400),  # 400, not 409
    errors.ModelInUse: ("ConflictException", 400),
    errors.DeleteConflict: ("ConflictException", 400),
    errors.QuotaExceeded: ("ServiceQuotaExceededException", 400),
    errors.TooManyTags: ("TooManyTagsException", 400),
    errors.UnknownOperation: ("UnknownOperationException", 501),
    errors.Refused: ("ValidationException", 400),
    errors.ModelNotReady: ("ModelNotReadyException", 429),  # boto3 retries this by itself
    errors.Throttled: ("ThrottlingException", 429),
    errors.ShuttingDown: ("ServiceUnavailableException", 503),
    errors.Passing: ("ThrottlingException", 429),
    errors.EngineFault: ("ModelErrorException", 424),
    errors.EngineTimeout: ("ModelTimeoutException", 408),
    errors.DependencyFailed: ("DependencyFailedException", 424),
    errors.Faulty: ("InternalServerException", 500),
    ServiceError: ("InternalServerException", 500),
}

# OpenAI API reference, "Error codes"; the value before the status is the error's type.
OPENAI: WireTable = {
    errors.PromptTooLong: ("context_length_exceeded", 400),
    errors.InvalidRequest: ("invalid_request_error", 400),
    errors.BodyTooLarge: ("request_too_large", 413),
    errors.NotAuthenticated: ("invalid_api_key", 401),
    errors.NotAllowed: ("permission_denied", 403),
    errors.NotFound: ("not_found", 404),
    errors.ModelNotFound: ("model_not_found", 404),
    errors.UnknownOperation: ("not_found", 404),
    errors.Refused: ("invalid_request_error", 400),
    errors.ModelNotReady: ("model_not_ready", 503),
    errors.Throttled: ("rate_limit_exceeded", 429),
    errors.ShuttingDown: ("shutting_down", 503),
    errors.Passing: ("overloaded", 503),
    errors.EngineTimeout: ("timeout", 504),
    errors.EngineFault: ("engine_error", 502),
    ServiceError: ("server_error", 500),
}


def wire_error(exc: ServiceError, table: WireTable) -> tuple[str, int]:
    """Code and HTTP status of the nearest ancestor of *exc* in *table*."""
    return next(table[cls] for cls in type(exc).__mro__ if cls in table)


def retry_headers(exc: ServiceError) -> list[tuple[str, str]]:
    """Both headers that SDKs obey: boto3 reads milliseconds, the JavaScript and OpenAI SDKs seconds."""
    if not isinstance(exc, errors.Passing):
        return []
    return [
        ("x-amz-retry-after", str(max(1, round(exc.retry_after_s * 1000)))),
        ("retry-after", str(max(1, math.ceil(exc.retry_after_s)))),
    ]


def aws_error(exc: ServiceError) -> Response:
    code, status = wire_error(exc, AWS)
    body: dict[str, str | int] = {"message": exc.message}
    if isinstance(exc, errors.EngineFault) and exc.engine_status is not None:
        body["originalStatusCode"] = exc.engine_status
    if isinstance(exc, errors.EngineFault | errors.TooManyTags) and exc.resource_name is not None:
        body["resourceName"] = exc.resource_name
    headers = [("content-type", "application/json"), ("x-amzn-errortype", code), *retry_headers(exc)]
    return Response(status, headers, msgspec.json.encode(body))


def openai_error(exc: ServiceError) -> Response:
    code, status = wire_error(exc, OPENAI)
    kind = "invalid_request_error" if status < 500 and status not in (401, 429) else code
    param = exc.param if isinstance(exc, errors.InvalidRequest) else "model" if code == "model_not_found" else None
    body = {"error": {"message": exc.message, "type": kind, "param": param, "code": code}}
    return Response(status, [("content-type", "application/json"), *retry_headers(exc)], msgspec.json.encode(body))


def stream_defect(exc: ServiceError, *, is_event_stream: bool) -> bytes:
    """The last words of an open stream that broke by a defect of ours: an AWS event, or one of OpenAI's."""
    if is_event_stream:
        return encode_exception("internalServerException", exc.message)
    return b"data: " + openai_error(exc).body + b"\n\n"
