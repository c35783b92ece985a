"""botocore's service models, and the route from a raw path to an operation."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel

_REMEMBERED_CHARS = 512
_SPELLED_OTHERWISE = re.compile(r"//|/\.\.?(?:/|$)")


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operation of a service model; the same object every time, so that what is made of it can be kept."""

    service: str
    name: str
    method: str
    uri: str
    model: Any  # botocore.model.OperationModel, untyped upstream


class Service:
    """The operations of one service (``bedrock``, ``bedrock-runtime``), read from the installed botocore.

    *only*: the ones to read, of a service that has hundreds.
    """

    def __init__(self, name: str, only: Collection[str] | None = None) -> None:
        self.name = name
        self.model = ServiceModel(Loader().load_service_model(name, "service-2"), name)
        self.signing_name: str = self.model.signing_name
        self.operations: Mapping[str, Operation] = {
            operation: self._operation(self.model.operation_model(operation))
            for operation in (self.model.operation_names if only is None else only)
        }

    def _operation(self, model: OperationModel) -> Operation:
        return Operation(self.name, model.name, model.http["method"], model.http["requestUri"], model)


class Router:
    """From method and raw path to operation and labels.

    A label is one raw segment, unquoted exactly once, so that an ARN may come fully or half encoded; an ARN whose
    slash came raw is tried last. Literal segments win over labels.
    """

    def __init__(self, services: Sequence[Service]) -> None:
        exact: dict[tuple[str, int], list[tuple[int, re.Pattern[str], Operation]]] = {}
        loose: dict[str, list[tuple[re.Pattern[str], Operation]]] = {}
        for service in services:
            for operation in service.operations.values():
                path = operation.uri.partition("?")[0].rstrip("/")
                names = re.findall(r"\{(\w+)\+?\}", path)
                segment = re.compile(_template(path, "[^/]+"))
                key = (operation.method, path.count("/"))
                exact.setdefault(key, []).append((len(names), segment, operation))
                if len(names) == 1:  # with two, a long path of slashes would be tried at every pair of places
                    loose.setdefault(operation.method, []).append((re.compile(_template(path, ".+?")), operation))
        self._exact = {
            key: [(pattern, operation) for _, pattern, operation in sorted(rows, key=lambda row: row[0])]
            for key, rows in exact.items()
        }
        self._loose = loose
        self._remembered = lru_cache(maxsize=1024)(self._match)

    def match(self, method: str, raw_path: str) -> tuple[Operation, Mapping[str, str]] | None:
        """The operation and its labels; None when nothing is bound there. Short paths are remembered."""
        return (
            self._remembered(method, raw_path) if len(raw_path) <= _REMEMBERED_CHARS else self._match(method, raw_path)
        )

    def _match(self, method: str, raw_path: str) -> tuple[Operation, Mapping[str, str]] | None:
        # A signature holds for every spelling of a path with dot and empty segments; only the plain one is routed.
        if _SPELLED_OTHERWISE.search(raw_path):
            return None
        path = raw_path.rstrip("/")
        for pattern, operation in self._exact.get((method, path.count("/")), ()):
            if found := pattern.fullmatch(path):
                return operation, {name: unquote(value) for name, value in found.groupdict().items()}
        if ":" in path and path.count("/") > 1:
            for pattern, operation in self._loose.get(method, ()):
                if (found := pattern.fullmatch(path)) and any(v.startswith("arn:") for v in found.groupdict().values()):
                    return operation, {name: unquote(value) for name, value in found.groupdict().items()}
        return None


def _template(path: str, label: str) -> str:
    parts = re.split(r"(\{\w+\+?\})", path)
    return "".join(
        f"(?P<{part.strip('{}+')}>{'.+' if part.endswith('+}') else label})"
        if part.startswith("{")
        else re.escape(part)
        for part in parts
    )
