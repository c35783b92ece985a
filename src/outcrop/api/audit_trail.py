"""Which call a request was, for the audit log: one record each, before the caller has its answer."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from outcrop.access.audit_flood import Strangers
from outcrop.access.audit_log import AuditLog
from outcrop.access.audit_record import Call, encode
from outcrop.api.http import Called, Request
from outcrop.api.wire_errors import AWS, wire_error
from outcrop.awswire.service import Router
from outcrop.ids import imported_model_arn

BEDROCK, SAGEMAKER, OWN = "bedrock.amazonaws.com", "sagemaker.amazonaws.com", "outcrop"
_OPENAI = {
    "/v1/chat/completions": "ChatCompletions",
    "/v1/completions": "Completions",
    "/v1/embeddings": "Embeddings",
    "/v1/responses": "Responses",
    "/v1/models": "ListModels",
}
_KEY_ID = re.compile(r"Credential=([A-Z0-9]{16,128})/")


class AuditTrail:
    """Writes to *log*; None writes nothing. *account*: whose a stranger's calls are.

    *strangers_per_s*: how many of them are recorded one by one (``audit_flood``).
    """

    def __init__(
        self, log: AuditLog | None, *, router: Router, region: str, account: str, strangers_per_s: float = 0
    ) -> None:
        self._log = log
        self._strangers = Strangers(strangers_per_s, time.monotonic())
        self._router = router
        self._region = region
        self._account = account

    def record(self, request: Request, *, unanswered: str = "") -> None:
        """Write the record of *request* as far as it is known; again is nothing.

        *unanswered*: the error code of one that ends without an answer.
        """
        if self._log is None or request.is_audited:
            return
        request.is_audited = True
        self.tell_of_strangers()
        if request.principal is None and not self._strangers.is_recorded(request.source_ip, time.monotonic()):
            return
        facts, who, error = request.facts, request.principal, request.error
        called = request.called or (Called(BEDROCK, facts.operation, {}) if facts else self._meant(request))
        authorization = request.header_map().get("authorization", "")
        key_id = _KEY_ID.search(authorization)
        model_arn = imported_model_arn(self._region, facts.account, facts.model_id) if facts and facts.model_id else ""
        call = Call(
            request_id=request.request_id,
            at=time.time() - (time.perf_counter() - request.started),
            source=called.source,
            name=called.name,
            region=self._region,
            recipient=self._account,
            source_ip=request.source_ip,
            user_agent=request.header_map().get("user-agent", ""),
            account=who.account if who else "",
            principal=who.arn if who else "",
            access_key_id=key_id[1] if key_id else "",
            is_invocation=facts is not None,
            is_bearer=authorization[:7].lower() == "bearer ",
            params=called.params,
            more=request.migrated,
            answer=called.answer,
            model_arn=model_arn,
            error=unanswered if error is None else wire_error(error, AWS)[0],
            message="" if error is None else error.message,
        )
        self._log.append_encoded(encode(call))

    def tell_of_strangers(self, *, is_last: bool = False) -> None:
        """Record how many calls of strangers had no record of their own, when that is due."""
        if self._log is not None and (told := self._strangers.summary(time.monotonic(), is_last=is_last)):
            self._log.note("RefusedCallsSummarised", told)

    def _meant(self, request: Request) -> Called:
        """What the path alone says, of a request that came to no door or whose door says no more."""
        path = request.raw_path.decode("latin-1")
        if path.startswith("/openai/v1/"):
            path = path.removeprefix("/openai")
        if path.startswith("/v1/"):
            return Called(BEDROCK, _OPENAI.get(path, f"{request.method} {_template(path, 2)}"), {})
        if path == "/metrics" or path.startswith("/outcrop/"):
            return Called(OWN, f"{request.method} {_template(path, 3)}", {"path": unquote(path)})
        target = request.header_map().get("x-amz-target", "")
        if path == "/" and target.startswith("SageMaker."):
            return Called(SAGEMAKER, target.removeprefix("SageMaker.")[:100], {})
        if path.startswith("/endpoints/"):
            return Called(SAGEMAKER, f"{request.method} {_template(path, 1)}", {"path": unquote(path)})
        if (match := self._router.match(request.method, path)) is not None:
            operation, labels = match
            return Called(BEDROCK, operation.name, labels)
        return Called(OWN, f"{request.method} (no operation)", {"path": unquote(path)})


def _template(path: str, known: int) -> str:
    """*path* with the names in it left out: behind *known* segments every second one is a name."""
    parts = path.split("/")
    return "/".join("*" if number > known and (number - known) % 2 == 1 else part for number, part in enumerate(parts))


def named(request: Request, source: str, name: str, params: Mapping[str, Any]) -> Called:
    """Say which call *request* is; the door that answers it adds its ``answer``."""
    request.called = Called(source, name, params)
    return request.called
