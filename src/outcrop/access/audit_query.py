"""Questions to the audit log: by principal, action, time, resource, error."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from msgspec import Struct

from outcrop.access.audit_chain import Entry


class Question(Struct, frozen=True, kw_only=True):
    """What is asked for. Patterns have ``*`` and ``?``; one without them may stand anywhere. Times: since the epoch."""

    principal: str = ""
    action: str = ""
    resource: str = ""
    since: float = 0.0
    until: float = float("inf")
    only_errors: bool = False
    limit: int = 0  # the newest so many; 0: all


def answers(entries: Iterable[Entry], question: Question) -> list[dict[str, Any]]:
    """Records that *question* asks for, the oldest first, each with its number in the log as ``n``."""
    found: deque[dict[str, Any]] = deque(maxlen=question.limit or None)
    for entry in entries:
        record = entry.value()
        if matches(record, question):
            found.append({"n": entry.n, **record})
    return list(found)


def matches(record: dict[str, Any], question: Question) -> bool:
    if question.only_errors and "errorCode" not in record:
        return False
    if not question.since <= when(record) < question.until:
        return False
    if question.action and not _is_like(str(record.get("eventName", "")), question.action):
        return False
    identity = record.get("userIdentity", {})
    if question.principal and not any(
        _is_like(str(identity.get(field, "")), question.principal) for field in ("arn", "accessKeyId", "userName")
    ):
        return False
    return not question.resource or any(_is_like(name, question.resource) for name in named(record))


def named(record: dict[str, Any]) -> list[str]:
    """What *record* is about: ARNs first, then the names in its parameters."""
    arns = [str(resource.get("ARN", "")) for resource in record.get("resources", ())]
    params = record.get("requestParameters") or {}
    return arns + [value for value in params.values() if isinstance(value, str)]


def when(record: dict[str, Any]) -> float:
    """Seconds since the epoch."""
    try:
        return datetime.strptime(record["eventTime"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except (KeyError, ValueError):
        return 0.0


def _is_like(text: str, pattern: str) -> bool:
    text, pattern = text.lower(), pattern.lower()
    return fnmatchcase(text, pattern) if set("*?") & set(pattern) else pattern in text
