"""REST-JSON requests to parameters: uri, query string, headers, payload, JSON body; then the model's constraints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

from outcrop.awswire.constraints import Problems
from outcrop.awswire.documents import decode_object
from outcrop.awswire.service import Operation
from outcrop.awswire.shapes import Reader, Readers, blob_check, members_reader, text_reader


@cache
def _readers(service: str) -> Readers:
    """Of one service: two services give one name to different shapes."""
    return Readers()


def request(
    operation: Operation, labels: Mapping[str, str], query: str, headers: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    """Checked parameters by API name. Raises MalformedBody, InvalidRequest in AWS's words."""
    return _reader(operation)(labels, query, headers, body)


@cache
def _reader(operation: Operation) -> RequestReader:
    return RequestReader(operation.model.input_shape, _readers(operation.service))


class RequestReader:
    """Where each member of an operation's input is found on the wire, worked out once."""

    def __init__(self, shape: Any, readers: Readers) -> None:
        self._uri: list[tuple[str, str, Reader]] = []
        self._query: dict[str, tuple[str, bool, Reader]] = {}
        self._headers: list[tuple[str, str, Reader]] = []
        self._prefixes: list[tuple[str, str]] = []
        self._payload: tuple[str, bool, Reader] | None = None
        self._required: tuple[str, ...] = ()
        in_body: dict[str, tuple[str, Reader]] = {}
        for name, member in shape.members.items() if shape is not None else ():
            wire = member.serialization.get("name", name)
            match member.serialization.get("location"):
                case "uri":
                    self._uri.append((name, wire, text_reader(member, readers)))
                case "querystring":
                    is_list = member.type_name == "list"
                    self._query[wire] = (
                        name,
                        is_list,
                        readers.of(member) if is_list else text_reader(member, readers),
                    )
                case "header":
                    self._headers.append((name, wire.lower(), text_reader(member, readers)))
                case "headers":
                    self._prefixes.append((name, wire.lower()))
                case _ if name == shape.serialization.get("payload"):
                    is_blob = member.type_name == "blob"
                    self._payload = (name, is_blob, blob_check(member) if is_blob else readers.of(member))
                case _:
                    in_body[wire] = (name, readers.of(member))
        self._body = members_reader(shape, in_body) if in_body else None
        if shape is not None:
            elsewhere = {name for name, _ in in_body.values()}
            self._required = tuple(name for name in shape.required_members if name not in elsewhere)

    def __call__(
        self, labels: Mapping[str, str], query: str, headers: Mapping[str, str], body: bytes
    ) -> dict[str, Any]:
        problems = Problems()
        params: dict[str, Any] = {}
        for name, wire, read in self._uri:
            if wire in labels:
                params[name] = read(labels[wire], (None, name), problems)
        if query and self._query:
            self._read_query(query, params, problems)
        for name, wire, read in self._headers:
            if wire in headers:
                params[name] = read(headers[wire], (None, name), problems)
        for name, prefix in self._prefixes:
            params[name] = {key[len(prefix) :]: value for key, value in headers.items() if key.startswith(prefix)}
        if self._payload is not None:
            name, is_blob, read = self._payload
            if is_blob:
                params[name] = read(body, (None, name), problems)
            elif body:
                params[name] = read(decode_object(body), (None, name), problems)
        if self._body is not None:
            params.update(self._body(decode_object(body) if body else {}, None, problems))
        for name in self._required:
            if name not in params:
                problems.add((None, name), "Member must not be null")
        problems.raise_any()
        return params

    def _read_query(self, query: str, params: dict[str, Any], problems: Problems) -> None:
        given: dict[str, list[str]] = {}
        for wire, value in parse_qsl(query, keep_blank_values=True):
            given.setdefault(wire, []).append(value)
        for wire, values in given.items():
            if (field := self._query.get(wire)) is not None:
                name, is_list, read = field
                params[name] = read(values if is_list else values[0], (None, name), problems)
