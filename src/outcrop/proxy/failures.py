"""What can go wrong around a customer's code, and what the caller is told of it.

A failure names the handler, the file and the line, so that who reads the endpoint's ModelError knows where to look.
Tracebacks are shown only where the settings ask for them.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from outcrop.errors import OutcropError
from outcrop.proxy.values import JSON, Response


class ScriptRefused(OutcropError):
    """The script cannot be used: it does not load, or its interface is none that a proxy can run."""


class Refuse(Exception):
    """Raised by a handler to answer with *status* and *message*."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status_code = status


class UnsupportedFormat(Refuse):
    """No decoder or encoder for a content type; 415, as the SageMaker inference toolkit has it."""

    def __init__(self, content_type: str | None) -> None:
        super().__init__(
            f"Content type {content_type} is not supported here. Define input_fn or output_fn, or send JSON.", 415
        )


class TargetRefused(Exception):
    """The target answered with an error; left alone, the caller gets this very answer."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(f"the target answered {status}: {body[:500].decode(errors='replace')}")
        self.status = status
        self.body = body
        self.headers = headers

    def response(self) -> Response:
        passed = ("x-amzn-errortype", "x-amz-retry-after", "retry-after", "x-amzn-requestid")
        kept = {name: self.headers[name] for name in passed if name in self.headers}
        content_type = self.headers.get("content-type", JSON)
        return Response(self.body, content_type, self.status, {"x-outcrop-error-source": "target", **kept})


class TargetUnreachable(TargetRefused):
    """The target did not answer before the deadline."""

    def __init__(self, message: str) -> None:
        body = msgspec.json.encode({"message": message})
        super().__init__(503, body, {"content-type": JSON, "x-amzn-errortype": "ServiceUnavailableException"})


class HandlerFailed(Exception):
    """Customer code raised; *status* is what the caller gets."""

    def __init__(self, handler: str, cause: BaseException, root: Path, *, input_is_at_fault: bool) -> None:
        self.handler = handler
        self.file, self.line = _place(cause, root)
        self.kind = type(cause).__name__
        self.status = _status(cause, input_is_at_fault=input_is_at_fault)
        self.trace = "".join(traceback.format_exception(cause))
        self.said = _said(cause)
        where = f" ({self.file}:{self.line})" if self.file else ""
        super().__init__(f"{handler}{where}: {self.kind}: {self.said}")

    def response(self, *, with_traceback: bool) -> Response:
        found: dict[str, Any] = {
            "message": str(self),
            "handler": self.handler,
            "file": self.file,
            "line": self.line,
            "type": self.kind,
        }
        if with_traceback:
            found["traceback"] = self.trace
        return Response(msgspec.json.encode(found), JSON, self.status, {"x-outcrop-error-source": "handler"})


def _said(cause: BaseException) -> str:
    # The toolkits' own errors carry their words in a field of their own.
    message = getattr(cause, "message", None) or getattr(cause, "detail", None)
    return str(message) if isinstance(message, str) else str(cause)


def _place(cause: BaseException, root: Path) -> tuple[str, int]:
    """The last line of the customer's own files that the exception came through, relative to *root*."""
    for frame in reversed(traceback.extract_tb(cause.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(root):
            return str(path.relative_to(root)), frame.lineno or 0
    if isinstance(cause, SyntaxError) and cause.filename:
        return Path(cause.filename).name, cause.lineno or 0
    return "", 0


def _status(cause: BaseException, *, input_is_at_fault: bool) -> int:
    """An exception's own ``status_code``; else 400 for a value that an input handler could not use; else 500."""
    own = getattr(cause, "status_code", None)
    if isinstance(own, int) and 400 <= own <= 599:
        return own
    return 400 if input_is_at_fault and isinstance(cause, ValueError) else 500
