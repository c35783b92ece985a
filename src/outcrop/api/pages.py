"""Pages of List calls: the filters as the registry wants them, and tokens that only we can read.

A token names the last row that was given, so rows that are added or removed meanwhile shift nothing. It holds a digest
over that row and the call's filters: one that was altered, or that comes with other filters, is refused.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from outcrop.errors import InvalidRequest
from outcrop.registry.store import Page

DEFAULT_ROWS = 100
_FILTERS = ("creationTimeAfter", "creationTimeBefore", "nameContains", "sortBy", "sortOrder", "statusEquals")

Row = TypeVar("Row")


class _Token(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    created_at: float
    row_id: str
    digest: str


def page(operation: str, params: Mapping[str, Any], phases: Mapping[str, Collection[str]]) -> Page:
    """What the call asks for; *phases* are those behind each ``statusEquals``. A bad token raises InvalidRequest."""
    status = params.get("statusEquals")
    after, before = params.get("creationTimeAfter"), params.get("creationTimeBefore")
    return Page(
        limit=params.get("maxResults", DEFAULT_ROWS),
        ascending=params.get("sortOrder") == "Ascending",
        created_after=after.timestamp() if after else None,
        created_before=before.timestamp() if before else None,
        name_contains=params.get("nameContains"),
        phases=phases[status] if status else None,
        after=_position(operation, params) if "nextToken" in params else None,
    )


def with_one_more(wanted: Page) -> Page:
    """*wanted* with the row after it, which says whether a next page exists."""
    return replace(wanted, limit=wanted.limit + 1)


def listing(
    operation: str,
    params: Mapping[str, Any],
    key: str,
    rows: Sequence[Row],
    summary: Callable[[Row], dict[str, Any]],
    position: Callable[[Row], tuple[float, str]],
) -> dict[str, Any]:
    """The answer of a List call from the rows of its page and, if there is one, the row after it."""
    limit = params.get("maxResults", DEFAULT_ROWS)
    shown = rows[:limit]
    token = _token(operation, params, *position(shown[-1])) if len(rows) > limit else None
    return {key: [summary(row) for row in shown], "nextToken": token}


def _token(operation: str, params: Mapping[str, Any], created_at: float, row_id: str) -> str:
    token = _Token(created_at, row_id, _digest(operation, params, created_at, row_id))
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode()


def _position(operation: str, params: Mapping[str, Any]) -> tuple[float, str]:
    try:
        token = msgspec.json.decode(base64.b64decode(params["nextToken"], altchars=b"-_", validate=True), type=_Token)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as exc:
        raise _bad_token() from exc
    if token.digest != _digest(operation, params, token.created_at, token.row_id):
        raise _bad_token()
    return token.created_at, token.row_id


def _digest(operation: str, params: Mapping[str, Any], created_at: float, row_id: str) -> str:
    filters = [str(params.get(name, "")) for name in _FILTERS]
    return sha256(msgspec.json.encode([operation, created_at, row_id, filters])).hexdigest()[:24]


def _bad_token() -> InvalidRequest:
    return InvalidRequest(
        "The provided nextToken is invalid. Use the token of the previous page, with the same filters."
    )


def when(seconds: float) -> datetime:
    """*seconds* since the epoch as the API's timestamp."""
    return datetime.fromtimestamp(seconds, UTC)
