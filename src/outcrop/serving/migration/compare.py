"""How much two answers agree, 0..1: exact, field by field for JSON, word by word for text. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from difflib import SequenceMatcher
from typing import Any, Literal

from msgspec import Struct

# What differs from answer to answer whatever the model said.
VOLATILE = frozenset(
    {"id", "created", "request_id", "system_fingerprint", "usage", "metrics", "model", "service_tier"}
    | {"amazon-bedrock-invocationMetrics", "latencyMs"}
)
MOST_WORDS = 1500  # of each text; the matcher takes quadratic time
MOST_LEAVES = 2000
_SHOWN = 5


class Comparison(Struct, frozen=True, kw_only=True):
    """*score*: 1 is the same. *differences*: the first few, each in words."""

    score: float
    method: Literal["exact", "json", "text"]
    differences: list[str] = []


def compared(one: str, other: str, ignored: Collection[str] = ()) -> Comparison:
    """Compare two generated texts, or two whole documents: as JSON when both are objects or lists, else as words."""
    if one == other:
        return Comparison(score=1.0, method="exact")
    left, right = _parsed(one), _parsed(other)
    if left is not None and right is not None:
        return _fields(left, right, VOLATILE.union(ignored))
    return _words(one, other)


def _parsed(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def _fields(one: Any, other: Any, ignored: Collection[str]) -> Comparison:
    left, right = _leaves(one, ignored), _leaves(other, ignored)
    places = sorted(left.keys() | right.keys())
    if not places:
        return Comparison(score=1.0, method="exact")
    missing = object()
    score, differences = 0.0, []
    for place in places:
        a, b = left.get(place, missing), right.get(place, missing)
        if a == b and type(a) is type(b):
            score += 1
            continue
        if isinstance(a, str) and isinstance(b, str):
            score += _words(a, b).score
        shown = ["nothing" if value is missing else _shown(value) for value in (a, b)]
        differences.append(f"{place}: {shown[0]} | {shown[1]}")
    method: Literal["exact", "json"] = "json" if differences else "exact"
    return Comparison(score=score / len(places), method=method, differences=differences[:_SHOWN])


def _leaves(value: Any, ignored: Collection[str]) -> dict[str, Any]:
    """Every scalar (and empty container) under its path."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("$", value)]
    while waiting and len(found) < MOST_LEAVES:
        path, node = waiting.pop()
        if isinstance(node, Mapping) and node:
            waiting += [(f"{path}.{key}", child) for key, child in node.items() if key not in ignored]
        elif isinstance(node, list) and node:
            waiting += [(f"{path}[{number}]", child) for number, child in enumerate(node)]
        else:
            found[path] = node
    return found


def _words(one: str, other: str) -> Comparison:
    left, right = one.split()[:MOST_WORDS], other.split()[:MOST_WORDS]
    if left == right:
        return Comparison(score=1.0, method="text", differences=[] if one == other else ["only white space differs"])
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    differences = [
        f"{' '.join(left[a:b])[:120] or 'nothing'} | {' '.join(right[c:d])[:120] or 'nothing'}"
        for tag, a, b, c, d in matcher.get_opcodes()
        if tag != "equal"
    ]
    return Comparison(score=matcher.ratio(), method="text", differences=differences[:_SHOWN])


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:120]
