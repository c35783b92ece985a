"""Constraints of the service model, checked the way AWS words them. boto3 checks neither patterns nor maxima.

Patterns run on RE2: some of the model's own (``[a-zA-Z0-9](-*[a-zA-Z0-9\\+\\-\\.])*``) take exponential time in ``re``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import re2

from outcrop.errors import InvalidRequest

_SHOWN_CHARS = 256


def validate(shape: Any, value: Any) -> None:
    """Raise InvalidRequest naming every member of *value* that breaks a constraint of *shape*."""
    problems: list[str] = []
    _check(shape, value, "", problems)
    if problems:
        plural = "s" if len(problems) > 1 else ""
        raise InvalidRequest(f"{len(problems)} validation error{plural} detected: {'; '.join(problems)}")


def _check(shape: Any, value: Any, path: str, problems: list[str]) -> None:
    kind = shape.type_name
    if kind == "structure":
        _check_structure(shape, value, path, problems)
    elif kind == "list":
        _check_size(shape, value, len(value), path, problems)
        for index, item in enumerate(value):
            _check(shape.member, item, f"{path}.{index + 1}.member", problems)
    elif kind == "map":
        _check_size(shape, value, len(value), path, problems)
        for key, item in value.items():
            _check(shape.value, item, f"{path}.{key}", problems)
    elif kind == "string":
        _check_string(shape, value, path, problems)
    elif kind == "blob":
        _check_size(shape, "<blob>", len(value), path, problems)
    elif kind in ("integer", "long", "float", "double"):
        limits = shape.metadata
        if "min" in limits and value < limits["min"]:
            problems.append(
                _says(shape, value, path, f"Member must have value greater than or equal to {limits['min']}")
            )
        if "max" in limits and value > limits["max"]:
            problems.append(_says(shape, value, path, f"Member must have value less than or equal to {limits['max']}"))


def _check_structure(shape: Any, value: Mapping[str, Any], path: str, problems: list[str]) -> None:
    if getattr(shape, "is_document_type", False):
        return
    prefix = f"{path}." if path else ""
    problems.extend(
        f"Value at '{prefix}{name}' failed to satisfy constraint: Member must not be null"
        for name in shape.required_members
        if name not in value
    )
    if getattr(shape, "is_tagged_union", False) and len(value) != 1:
        problems.append(
            f"Value at '{path}' failed to satisfy constraint: Member must have exactly one of "
            f"[{', '.join(shape.members)}] set"
        )
    for name, item in value.items():
        _check(shape.members[name], item, prefix + name, problems)


def _check_size(shape: Any, value: Any, size: int, path: str, problems: list[str]) -> None:
    limits = shape.metadata
    if "min" in limits and size < limits["min"]:
        rule = f"Member must have length greater than or equal to {limits['min']}"
        problems.append(_says(shape, value, path, rule))
    if "max" in limits and size > limits["max"]:
        rule = f"Member must have length less than or equal to {limits['max']}"
        problems.append(_says(shape, value, path, rule))


def _check_string(shape: Any, value: str, path: str, problems: list[str]) -> None:
    before = len(problems)
    _check_size(shape, value, len(value), path, problems)
    if shape.enum and value not in shape.enum:
        problems.append(_says(shape, value, path, f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"))
    pattern = shape.metadata.get("pattern")
    if pattern and len(problems) == before and not _matcher(pattern)(value):
        problems.append(_says(shape, value, path, f"Member must satisfy regular expression pattern: {pattern}"))


@lru_cache(maxsize=4096)
def _matcher(pattern: str) -> Callable[[str], Any]:
    try:
        matcher: Callable[[str], Any] = re2.compile(pattern).fullmatch
    except re2.error:  # look-around, which RE2 has not; the length was checked before
        matcher = re.compile(pattern).fullmatch
    return matcher


def _says(shape: Any, value: Any, path: str, rule: str) -> str:
    shown = "***" if shape.metadata.get("sensitive") else str(value)[:_SHOWN_CHARS]
    return f"Value '{shown}' at '{path}' failed to satisfy constraint: {rule}"
