"""Values out of a service model: valid ones, wild ones of the right types, and a second opinion on which is which.

The opinion is written from the model's documentation alone, on Python's ``re``, so that it shares nothing with the code
under test.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
# What a header carries: visible ASCII with no space at its ends.
_HEADER_TEXT = st.from_regex(r"[!-~]([ -~]{0,10}[!-~])?", fullmatch=True)
_MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)).map(lambda m: m.replace(microsecond=0, tzinfo=UTC))  # noqa: DTZ001
_JSON = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_MOST = 3  # items of a list that need no more


def values(shape: Any, *, wild: bool = False, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of *shape*: valid ones, or with *wild* some that break its rules; types are always right."""
    if getattr(shape, "is_document_type", False):
        return st.dictionaries(st.text(max_size=3), _JSON, max_size=3)
    return _BY_KIND.get(shape.type_name, _scalar)(shape, wild, depth)


def _structure(shape: Any, wild: bool, depth: int) -> st.SearchStrategy[Any]:
    members = {name: member for name, member in shape.members.items() if not _is_stream(member)}
    if getattr(shape, "is_tagged_union", False):
        one = st.one_of([_one(name, member, wild, depth) for name, member in _shallow(members, depth).items()])
        return one | st.just({}) if wild else one
    required = {name: member for name, member in members.items() if name in shape.required_members}
    optional = {name: member for name, member in members.items() if name not in shape.required_members}
    if depth > 3:
        optional = {name: member for name, member in optional.items() if not _holds_members(member)}
    made = {name: st.deferred(_made(member, wild, depth)) for name, member in required.items()}
    maybe = {name: st.deferred(_made(member, wild, depth)) for name, member in optional.items()}
    whole = st.fixed_dictionaries(made, optional=maybe)
    if not wild or not required:
        return whole
    # A label of the path cannot be left out.
    spared = [name for name, member in required.items() if member.serialization.get("location") != "uri"]
    holes = st.sets(st.sampled_from(sorted(spared)), max_size=1) if spared else st.just(set())
    return st.tuples(whole, st.booleans(), holes).map(
        lambda t: {name: item for name, item in t[0].items() if not (t[1] and name in t[2])}
    )


def _made(member: Any, wild: bool, depth: int) -> Any:
    return lambda: values(member, wild=wild, depth=depth + 1)


def _one(name: str, member: Any, wild: bool, depth: int) -> st.SearchStrategy[Any]:
    return st.deferred(_made(member, wild, depth)).map(lambda value: {name: value})


def _shallow(members: dict[str, Any], depth: int) -> dict[str, Any]:
    """Members that hold no others once it is deep, if there are any, so that what holds itself comes to an end."""
    leaves = {name: member for name, member in members.items() if not _holds_members(member)}
    return leaves if depth > 3 and leaves else members


def _holds_members(shape: Any) -> bool:
    return shape.type_name in ("structure", "list", "map")


def _is_stream(shape: Any) -> bool:
    return bool(getattr(shape, "is_event_stream", False) or shape.serialization.get("streaming"))


def _list(shape: Any, wild: bool, depth: int) -> st.SearchStrategy[Any]:
    low, high = _limits(shape)
    if wild:
        low, high = 0, high + 1 if high <= 20 else high
    item = st.deferred(_made(shape.member, wild, depth))
    return st.lists(item, min_size=low, max_size=max(low, min(high, high if wild and high < 20 else _MOST)))


def _map(shape: Any, wild: bool, depth: int) -> st.SearchStrategy[Any]:
    low, high = _limits(shape)
    item = st.deferred(_made(shape.value, wild, depth))
    return st.dictionaries(values(shape.key, wild=wild), item, min_size=low, max_size=max(low, min(high, _MOST)))


def _string(shape: Any, wild: bool, depth: int) -> st.SearchStrategy[Any]:
    location = shape.serialization.get("location")
    low, high = _limits(shape)
    good: st.SearchStrategy[str]
    pattern = shape.metadata.get("pattern")
    if shape.enum:
        good = st.sampled_from(shape.enum)
    elif pattern:
        good = st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True).filter(
            lambda text: low <= len(text) <= high
        )
    elif location == "header":
        good = _HEADER_TEXT
    else:
        good = st.text(st.characters(codec="utf-8"), min_size=low, max_size=max(low, min(high, 12)))
    if wild:
        bad = st.just("x" * (high + 1)) if high <= 2048 else st.just("bad value!")
        good = good | bad | st.just("-?") if location else good | bad | _TEXT
    if location == "header":
        good = good.filter(lambda text: text == text.strip() and text.isascii() and text.isprintable() and text != "")
    if location == "uri":
        good = good.filter(bool)
    return good


def _scalar(shape: Any, wild: bool, depth: int) -> st.SearchStrategy[Any]:
    kind, limits = shape.type_name, shape.metadata
    if kind == "boolean":
        return st.booleans()
    if kind == "timestamp":
        return _MOMENTS
    if kind == "blob":
        return st.binary(min_size=limits.get("min", 0), max_size=limits.get("min", 0) + 10)
    if kind in ("integer", "long"):
        edge = 2**31 - 1 if kind == "integer" else 2**53
        return st.integers(-edge, edge) if wild else st.integers(limits.get("min", -edge), limits.get("max", edge))
    if wild:
        return st.floats(-1e9, 1e9)
    return st.floats(limits.get("min", -1e9), limits.get("max", 1e9))


def _limits(shape: Any) -> tuple[int, float]:
    return shape.metadata.get("min", 0), shape.metadata.get("max", float("inf"))


_BY_KIND = {"structure": _structure, "list": _list, "map": _map, "string": _string}


def breaks(shape: Any, value: Any) -> bool:
    """Whether *value*, of the right type, breaks a rule of *shape*."""
    if getattr(shape, "is_document_type", False):
        return False
    kind = shape.type_name
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if kind == "structure":
        is_union = getattr(shape, "is_tagged_union", False)
        return (
            (is_union and len(value) != 1)
            or any(name not in value for name in shape.required_members)
            or any(breaks(shape.members[name], item) for name, item in value.items())
        )
    if kind in ("integer", "long", "float", "double"):
        return (low is not None and value < low) or (high is not None and value > high)
    if kind in ("boolean", "timestamp"):
        return False
    if (low is not None and len(value) < low) or (high is not None and len(value) > high):
        return True
    if kind == "list":
        return any(breaks(shape.member, item) for item in value)
    if kind == "map":
        return any(breaks(shape.key, key) or breaks(shape.value, item) for key, item in value.items())
    if kind == "string":
        pattern = shape.metadata.get("pattern")
        return bool(shape.enum and value not in shape.enum) or bool(
            pattern and not re.fullmatch(pattern, value, re.ASCII)
        )
    return False
