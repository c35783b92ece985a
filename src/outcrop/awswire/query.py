"""AWS's query protocol, which IAM and STS speak: form fields to parameters, results and errors to XML."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from outcrop.awswire.constraints import Problems
from outcrop.awswire.service import Operation
from outcrop.awswire.shapes import Readers
from outcrop.errors import InvalidRequest, MalformedBody

MAX_FIELDS = 2000
_XML = [("content-type", "text/xml")]

Tree = dict[str, "str | Tree"]


def form_fields(raw: bytes) -> dict[str, str]:
    """The fields of a form or a query string. Raises MalformedBody."""
    try:
        pairs = parse_qsl(raw.decode("utf-8"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except (UnicodeDecodeError, ValueError) as exc:
        raise MalformedBody(f"The request is not a valid form: {exc}.") from exc
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise MalformedBody("The request has a field more than once.")
    return fields


def parameters(operation: Operation, fields: Mapping[str, str]) -> dict[str, Any]:
    """Checked parameters by API name. Raises MalformedBody, InvalidRequest in AWS's words."""
    shape = operation.model.input_shape
    if shape is None:
        return {}
    given = {name: value for name, value in fields.items() if name not in ("Action", "Version")}
    problems = Problems()
    found: dict[str, Any] = _readers(operation.service).of(shape)(_value(shape, _tree(given), ""), None, problems)
    problems.raise_any()
    return found


@cache
def _readers(service: str) -> Readers:
    """Of one service: two services give one name to different shapes."""
    return Readers()


def _tree(fields: Mapping[str, str]) -> Tree:
    """``Tags.member.1.Key`` and its like as nested objects."""
    root: Tree = {}
    for name, value in fields.items():
        *holders, last = name.split(".", 16)
        node = root
        for holder in holders:
            below = node.setdefault(holder, {})
            if not isinstance(below, dict):
                raise MalformedBody(f"The field {name[:100]!r} is a value and holds others too.")
            node = below
        if last in node:
            raise MalformedBody(f"The field {name[:100]!r} is a value and holds others too.")
        node[last] = value
    return root


def _value(shape: Any, node: str | Tree, name: str) -> Any:
    """*node* in the JSON form that the readers of *shape* take."""
    kind = shape.type_name
    if kind == "structure":
        if not isinstance(node, dict):
            raise MalformedBody(f"The field {name[:100]!r} must hold others.")
        found = {}
        for member_name, member in shape.members.items():
            wire = member.serialization.get("name", member_name)
            if wire in node:
                found[wire] = _value(member, node[wire], f"{name}.{wire}".lstrip("."))
        return found
    if kind == "list":
        if node == "":
            return []
        wire = shape.member.serialization.get("name", "member")
        rows = (
            node if shape.serialization.get("flattened") else (node.get(wire, {}) if isinstance(node, dict) else node)
        )
        if rows == "":
            return []
        if not isinstance(rows, dict) or not all(key.isdigit() and len(key) < 6 for key in rows):
            raise MalformedBody(f"The field {name[:100]!r} must be numbered, as in {name[:100]}.{wire}.1.")
        return [_value(shape.member, rows[key], f"{name}.{key}") for key in sorted(rows, key=int)]
    if not isinstance(node, str):
        raise MalformedBody(f"The field {name[:100]!r} must be a value.")
    if kind in ("integer", "long"):
        if not node.lstrip("+-").isdigit() or len(node) > 18:
            raise InvalidRequest(f"Value '{node[:100]}' at '{name}' can not be converted to Integer.")
        return int(node)
    if kind == "boolean":
        if node.lower() not in ("true", "false"):
            raise InvalidRequest(f"Value '{node[:100]}' at '{name}' can not be converted to Boolean.")
        return node.lower() == "true"
    return node


def answer(operation: Operation, result: Mapping[str, Any], request_id: str) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of *result*; members that are None are left out."""
    shape, name = operation.model.output_shape, operation.name
    namespace = operation.model.service_model.metadata["xmlNamespace"]
    inner = ""
    if shape is not None:
        wrapper = shape.serialization.get("resultWrapper", f"{name}Result")
        inner = f"<{wrapper}>{_members(shape, result)}</{wrapper}>"
    meta = f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"
    return _XML, f'<{name}Response xmlns="{namespace}">{inner}{meta}</{name}Response>'.encode()


def error(code: str, message: str, request_id: str, *, is_sender: bool) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of an error."""
    kind = "Sender" if is_sender else "Receiver"
    text = "".join(sign for sign in message if sign.isprintable() or sign in "\n\t")
    body = (
        f"<ErrorResponse><Error><Type>{kind}</Type><Code>{code}</Code><Message>{escape(text)}</Message></Error>"
        f"<RequestId>{request_id}</RequestId></ErrorResponse>"
    )
    return _XML, body.encode()


def _members(shape: Any, value: Mapping[str, Any]) -> str:
    if unknown := value.keys() - shape.members.keys():
        raise ValueError(f"{shape.name} has no members {sorted(unknown)}")
    return "".join(
        f"<{wire}>{_written(shape.members[name], item)}</{wire}>"
        for name, item in value.items()
        if item is not None
        for wire in [shape.members[name].serialization.get("name", name)]
    )


def _written(shape: Any, value: Any) -> str:
    kind = shape.type_name
    if kind == "structure":
        return _members(shape, value)
    if kind == "list":
        wire = shape.member.serialization.get("name", "member")
        return "".join(f"<{wire}>{_written(shape.member, item)}</{wire}>" for item in value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return ("true" if value else "false") if isinstance(value, bool) else escape(str(value))
