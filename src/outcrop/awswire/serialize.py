"""Results to REST-JSON responses, shaped by the service model."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from outcrop.awswire.service import Operation

Wire = tuple[int, list[tuple[str, str]], bytes]


def serialize_response(operation: Operation, result: Mapping[str, Any]) -> Wire:
    """Status, headers and body of *result*; members that are None are left out.

    Raises ValueError for a member that the model has not: a defect of ours, not of the caller.
    """
    shape = operation.model.output_shape
    status = operation.model.http.get("responseCode", 200)
    headers = [("content-type", "application/json")]
    members = shape.members if shape is not None else {}
    if unknown := set(result) - set(members):
        raise ValueError(f"{operation.name} has no output members {sorted(unknown)}")
    body: dict[str, Any] = {}
    for name, value in result.items():
        if value is None:
            continue
        member = members[name]
        wire = member.serialization.get("name", name)
        if member.serialization.get("location") == "header":
            headers.append((wire.lower(), _text(value)))
        else:
            body[wire] = _value(member, value)
    return status, headers, msgspec.json.encode(body)


def _value(shape: Any, value: Any) -> Any:
    kind = shape.type_name
    if kind == "structure" and not getattr(shape, "is_document_type", False):
        if unknown := set(value) - set(shape.members):
            raise ValueError(f"{shape.name} has no members {sorted(unknown)}")
        return {
            shape.members[name].serialization.get("name", name): _value(shape.members[name], item)
            for name, item in value.items()
            if item is not None
        }
    if kind == "list":
        return [_value(shape.member, item) for item in value]
    if kind == "map":
        return {key: _value(shape.value, item) for key, item in value.items()}
    if kind == "timestamp":
        # REST-JSON bodies carry epoch seconds unless the member says otherwise; Bedrock's say iso8601.
        is_iso = shape.serialization.get("timestampFormat") == "iso8601"
        return _iso(value) if is_iso else round(value.timestamp(), 3)
    if kind == "blob":
        return base64.b64encode(value).decode()
    return value


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _iso(value) if isinstance(value, datetime) else str(value)
