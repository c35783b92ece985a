"""What a service model demands of values, worded as AWS words it. boto3 checks neither patterns nor maxima.

Patterns run on RE2: some of the model's own (``[a-zA-Z0-9](-*[a-zA-Z0-9\\+\\-\\.])*``) take exponential time in ``re``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import re2

from outcrop.errors import InvalidRequest

# Where a value stands: (the path of its holder, its name there); the root is None.
Path = tuple[Any, str] | None

_SHOWN_CHARS = 256
_SHOWN_PROBLEMS = 20
_REMEMBERED_CHARS = 256

# Patterns that mean something else here than where they were written.
_REPAIRED = {
    # botocore 1.44 bedrock/2023-04-20, ResourcePolicyDocument: tab, line feed and carriage return, which IAM's own
    # pattern for policies has here, have become spaces in the published model.
    "[    -\xff]+": "[\t\n\r -\xff]+",
    r"\S*": r"[^\s\x0b]*",
}

_QUIETLY = re2.Options()
_QUIETLY.log_errors = False


def spelled(path: Path) -> str:
    """*path* as AWS writes it: ``tags.2.member.key``."""
    names: list[str] = []
    while path is not None:
        path, name = path
        names.append(name)
    return ".".join(reversed(names))


class Problems:
    """Constraints that a request breaks: all are counted, the first ones are told."""

    __slots__ = ("count", "told")

    def __init__(self) -> None:
        self.count = 0
        self.told: list[str] = []

    def add(self, path: Path, rule: str, shown: str | None = None) -> None:
        """Note that the value at *path*, written as *shown*, breaks *rule*."""
        self.count += 1
        if len(self.told) < _SHOWN_PROBLEMS:
            value = "Value" if shown is None else f"Value '{shown[:_SHOWN_CHARS]}'"
            self.told.append(f"{value} at '{spelled(path)}' failed to satisfy constraint: {rule}")

    def raise_any(self) -> None:
        """Raise InvalidRequest if there are any."""
        if self.count:
            plural = "s" if self.count > 1 else ""
            raise InvalidRequest(f"{self.count} validation error{plural} detected: {'; '.join(self.told)}")


def shown(shape: Any, value: Any) -> str:
    return "***" if shape.metadata.get("sensitive") else str(value)[:_SHOWN_CHARS]


def length_rule(shape: Any) -> Callable[[int], str | None]:
    """Which length rule of *shape* a length breaks; None when it breaks none."""
    low, high = shape.metadata.get("min", 0), shape.metadata.get("max", float("inf"))

    def broken(length: int) -> str | None:
        if length < low:
            return f"Member must have length greater than or equal to {low}"
        if length > high:
            return f"Member must have length less than or equal to {high}"
        return None

    return broken


def range_rule(shape: Any) -> Callable[[float], str | None]:
    """Which range rule of *shape* a number breaks; None when it breaks none."""
    low, high = shape.metadata.get("min", float("-inf")), shape.metadata.get("max", float("inf"))

    def broken(value: float) -> str | None:
        if value < low:
            return f"Member must have value greater than or equal to {low}"
        if value > high:
            return f"Member must have value less than or equal to {high}"
        return None

    return broken


@cache
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a text is wholly of *pattern*. Short texts are remembered: the same model is named again and again."""
    try:
        compiled = re2.compile(_translated(pattern), _QUIETLY)
    except re2.error:  # more than 1,000 repetitions of one character class, which take linear time in re as well
        compiled = re.compile(pattern, re.ASCII)
    remembered = lru_cache(maxsize=256)(lambda text: compiled.fullmatch(text) is not None)

    def matches(text: str) -> bool:
        if len(text) <= _REMEMBERED_CHARS:
            return remembered(text)
        return compiled.fullmatch(text) is not None

    return matches


def _translated(pattern: str) -> str:
    """*pattern* for RE2, whose white space lacks the vertical tab of Java's; the models have it in classes only.

    Two of Java's classes, which RE2 knows by other names, stand alone or as all of a class in ``sagemaker-runtime``.
    """
    repaired = _REPAIRED.get(pattern) or pattern.replace(r"\s", r"\s\x0b")
    return repaired.replace(r"[\p{Print}]", r"[\x20-\x7e]").replace(r"\p{ASCII}", r"[\x00-\x7f]")
