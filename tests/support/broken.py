"""Requests of a service model that break one of its rules each, and are right in all else that the model says."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

Path = tuple[Any, ...]

_DEEP = 6  # members below are not broken one by one
_LEFT_OUT = object()
_LONGEST = 20_000  # more than a rule like this would only make the request long


def plain(shape: Any, depth: int = 0) -> Any:
    """A small value of *shape*; texts and blobs only need the right length."""
    limits, kind = shape.metadata, shape.type_name
    if kind == "structure":
        wanted = list(shape.required_members)
        if not wanted and depth:  # an empty one would be lost in the query protocol
            wanted = [name for name, member in shape.members.items() if member.type_name == "string"][:1]
        if getattr(shape, "is_tagged_union", False):
            wanted = sorted(shape.members, key=lambda name: shape.members[name].type_name != "string")[:1]
        return {name: plain(shape.members[name], depth + 1) for name in wanted if depth < _DEEP}
    if kind == "list":
        return [plain(shape.member, depth + 1) for _ in range(max(1, limits.get("min", 1)))]
    if kind == "map":
        return {"k": plain(shape.value, depth + 1)}
    if kind == "string":
        return shape.enum[0] if shape.enum else "a" * max(limits.get("min", 1), min(4, limits.get("max", 4)))
    simple: dict[str, Any] = {"blob": b"x", "boolean": True, "timestamp": 0}
    return simple.get(kind, limits.get("min", 1))


def broken(shape: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Where a rule of the input *shape* is broken, and the parameters that break it there and nowhere else."""
    base = plain(shape)
    for path, member, holder in _members(shape):
        place = member.serialization.get("location") if len(path) == 1 else None
        is_payload = len(path) == 1 and path[0] == shape.serialization.get("payload")
        if place == "uri" or is_payload:
            continue  # the wire itself bounds what can be said there
        for value in _wrong(member, is_needed=path[-1] in getattr(holder, "required_members", ())):
            yield path, _put(copy.deepcopy(base), shape, path, value)


def _members(shape: Any, path: Path = (), above: tuple[str, ...] = ()) -> Iterator[tuple[Path, Any, Any]]:
    if len(path) > _DEEP or shape.name in above:
        return
    inner = shape.members if shape.type_name == "structure" else {0: shape.member} if shape.type_name == "list" else {}
    for name, member in inner.items():
        yield (*path, name), member, shape
        yield from _members(member, (*path, name), (*above, shape.name))


def _wrong(shape: Any, *, is_needed: bool) -> Iterator[Any]:
    limits, kind = shape.metadata, shape.type_name
    low, high = limits.get("min"), limits.get("max")
    if is_needed:
        yield _LEFT_OUT
    if kind == "string":
        if low:
            yield "a" * (low - 1)
        if high and high < _LONGEST:
            yield "a" * (high + 1)
        if shape.enum:
            yield "Bogus"
    elif kind in ("integer", "long", "float", "double"):
        yield from [low - 1] if low is not None else []
        yield from [high + 1] if high is not None and high < 2**31 - 1 else []
    elif kind == "list":
        if low:
            yield []
        if high and high <= 300:
            yield [plain(shape.member, 1)] * (high + 1)


def _put(holder: Any, shape: Any, path: Path, value: Any) -> Any:
    name, *below = path
    if getattr(shape, "is_tagged_union", False):
        holder = {key: item for key, item in holder.items() if key == name}
    if shape.type_name == "list":
        inner = holder[0] if holder else plain(shape.member, 1)
        return [_put(inner, shape.member, tuple(below), value) if below else value, *holder[1:]]
    member = shape.members[name]
    if below:
        value = _put(holder.get(name, plain(member, 1)), member, tuple(below), value)
    changed = {**holder, name: value}
    return {key: item for key, item in changed.items() if item is not _LEFT_OUT}
