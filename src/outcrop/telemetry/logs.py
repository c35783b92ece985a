"""Structured logs: a message for people, fields for machines.

Lines that are written while a request is handled name it: id, model, copy and principal are added from ``CURRENT``, so
that no caller has to hand them down, and nothing is paid where no line is written.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog

from outcrop.telemetry.requests import RequestFacts

CURRENT: ContextVar[RequestFacts | None] = ContextVar("request", default=None)


def with_request(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the request of the current task in *event*, unless the line names another one."""
    facts = CURRENT.get()
    if facts is None or facts.ended_at is not None or "request_id" in event:
        return event
    copy_id = facts.attempts[-1].copy_id if facts.attempts else ""
    found = {"request_id": facts.request_id, "model": facts.model, "copy_id": copy_id, "principal": facts.principal}
    for name, value in found.items():
        if value:
            event.setdefault(name, value)
    return event


def configure(level: str, *, as_json: bool) -> None:
    """Log to standard error from *level* up."""
    renderer = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            with_request,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([structlog.processors.format_exc_info] if as_json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
