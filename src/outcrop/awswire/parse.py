"""REST-JSON requests to parameters: uri, query string, headers, payload, JSON body; then the model's constraints."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from outcrop.awswire.service import Operation
from outcrop.awswire.validate import validate
from outcrop.errors import InvalidRequest, MalformedBody

_JSON_NAMES = {str: "STRING_VALUE", bool: "TRUE_VALUE", int: "NUMBER_VALUE", float: "DECIMAL_VALUE"}


def request(
    operation: Operation, labels: Mapping[str, str], query: str, headers: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    """Checked parameters by API name. Raises MalformedBody, InvalidRequest in AWS's words."""
    shape = operation.model.input_shape
    if shape is None:
        return {}
    params: dict[str, Any] = {}
    fields: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        fields.setdefault(name, []).append(value)
    payload = shape.serialization.get("payload")
    in_body: dict[str, Any] = {}
    for name, member in shape.members.items():
        location = member.serialization.get("location")
        wire = member.serialization.get("name", name)
        if location == "uri":
            if wire in labels:
                params[name] = _text_value(member, labels[wire], name)
        elif location == "querystring":
            if wire in fields:
                params[name] = _query_value(member, fields[wire], name)
        elif location == "header":
            if wire.lower() in headers:
                params[name] = _text_value(member, headers[wire.lower()], name)
        elif location == "headers":
            prefix = wire.lower()
            params[name] = {key[len(prefix) :]: value for key, value in headers.items() if key.startswith(prefix)}
        elif name == payload:
            if member.type_name == "blob":
                params[name] = body
            elif body:
                params[name] = _value(member, _decode(body), name)
        else:
            in_body[name] = member
    if in_body and body:
        document = _decode(body)
        for name, member in in_body.items():
            wire = member.serialization.get("name", name)
            if document.get(wire) is not None:
                params[name] = _value(member, document[wire], name)
    validate(shape, params)
    return params


def _decode(body: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedBody(f"The request body is not valid JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise MalformedBody("The request body must be a JSON object.")
    return document


def _value(shape: Any, value: Any, path: str) -> Any:
    """One JSON value as the model's type."""
    kind = shape.type_name
    if kind == "structure":
        if getattr(shape, "is_document_type", False):
            return value
        _expect(value, dict, kind, path)
        found = {}
        for name, member in shape.members.items():
            wire = member.serialization.get("name", name)
            if value.get(wire) is not None:
                found[name] = _value(member, value[wire], f"{path}.{name}")
        return found
    if kind == "list":
        _expect(value, list, kind, path)
        return [_value(shape.member, item, f"{path}.{index}") for index, item in enumerate(value) if item is not None]
    if kind == "map":
        _expect(value, dict, kind, path)
        return {key: _value(shape.value, item, f"{path}.{key}") for key, item in value.items() if item is not None}
    return _scalar(shape, value, path)


def _scalar(shape: Any, value: Any, path: str) -> Any:
    kind = shape.type_name
    if kind == "timestamp":
        return _timestamp(value, path)
    if kind == "blob":
        _expect(value, str, kind, path)
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise MalformedBody(f"{path} is not valid base64.") from exc
    if kind in ("integer", "long"):
        if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
            raise _wrong_type(value, "Integer", path)
        return int(value)
    if kind in ("float", "double"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(value, "Float", path)
        return float(value)
    _expect(value, bool if kind == "boolean" else str, kind, path)
    return value


def _expect(value: Any, kind: type, name: str, path: str) -> None:
    if not isinstance(value, kind):
        raise _wrong_type(value, name.capitalize(), path)


def _wrong_type(value: Any, wanted: str, path: str) -> InvalidRequest:
    found = _JSON_NAMES.get(type(value), "Start of structure or map" if isinstance(value, dict) else "Start of list")
    return MalformedBody(f"{found} can not be converted to {wanted} at '{path}'.")


def _query_value(shape: Any, values: list[str], path: str) -> Any:
    if shape.type_name == "list":
        return [_text_value(shape.member, value, path) for value in values]
    return _text_value(shape, values[0], path)


def _text_value(shape: Any, text: str, path: str) -> Any:
    """A value out of a path, a query string or a header."""
    kind = shape.type_name
    if kind in ("integer", "long"):
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise InvalidRequest(f"Value '{text[:100]}' at '{path}' can not be converted to Integer.")
        return int(text)
    if kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise InvalidRequest(f"Value '{text[:100]}' at '{path}' can not be converted to Boolean.")
        return text.lower() == "true"
    if kind == "timestamp":
        return _timestamp(text, path)
    return text


def _timestamp(value: Any, path: str) -> datetime:
    """Epoch seconds or ISO 8601, in UTC."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
            return datetime.fromtimestamp(float(value), UTC)
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError, OSError) as exc:
        raise InvalidRequest(f"Value '{str(value)[:100]}' at '{path}' is not a timestamp.") from exc
