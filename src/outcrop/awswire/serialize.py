"""Results to REST-JSON responses, shaped by the service model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

import msgspec

from outcrop.awswire.service import Operation
from outcrop.awswire.shapes import Writer, Writers, iso_time, write_members

Wire = tuple[int, list[tuple[str, str]], bytes]

_encode = msgspec.json.Encoder().encode


def serialize_response(operation: Operation, result: Mapping[str, Any]) -> Wire:
    """Status, headers and body of *result*; members that are None are left out.

    Raises ValueError for a member that the model has not: a defect of ours, not of the caller.
    """
    return _writer(operation)(result)


@cache
def _writers(service: str) -> Writers:
    """Of one service: two services give one name to different shapes."""
    return Writers()


@cache
def _writer(operation: Operation) -> ResponseWriter:
    return ResponseWriter(operation)


class ResponseWriter:
    """Where each member of an operation's output goes on the wire, worked out once."""

    def __init__(self, operation: Operation) -> None:
        shape = operation.model.output_shape
        self._name = operation.name
        self._status: int = operation.model.http.get("responseCode", 200)
        self._headers: dict[str, str] = {}
        self._members: dict[str, tuple[str, Writer]] = {}
        for name, member in shape.members.items() if shape is not None else ():
            wire = member.serialization.get("name", name)
            if member.serialization.get("location") == "header":
                self._headers[name] = wire.lower()
            else:
                self._members[name] = (wire, _writers(operation.service).of(member))

    def __call__(self, result: Mapping[str, Any]) -> Wire:
        headers = [("content-type", "application/json")]
        if self._headers:
            headers += [
                (self._headers[name], _text(value))
                for name, value in result.items()
                if name in self._headers and value is not None
            ]
            result = {name: value for name, value in result.items() if name not in self._headers}
        return self._status, headers, _encode(write_members(self._name, self._members, result))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return iso_time(value) if isinstance(value, datetime) else str(value)
