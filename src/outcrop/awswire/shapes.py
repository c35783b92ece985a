"""botocore's shapes compiled to functions, once per shape, so that no request walks the model.

A reader takes a JSON value to the model's type and notes every constraint that it breaks; a value of the wrong type
raises MalformedBody at once, as AWS does. A writer does the way back.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from outcrop.awswire.constraints import Path, Problems, length_rule, matcher, range_rule, shown, spelled
from outcrop.errors import InvalidRequest, MalformedBody

Reader = Callable[[Any, Path, Problems], Any]
Writer = Callable[[Any], Any]

_JSON_NAMES = {
    str: "STRING_VALUE",
    bool: "TRUE_VALUE",
    int: "NUMBER_VALUE",
    float: "DECIMAL_VALUE",
    dict: "Start of structure or map",
    list: "Start of list",
}
_BITS = {"integer": 31, "long": 63}


class Readers:
    """Readers of one service by shape name; a shape that holds itself finds the reader that is being made."""

    def __init__(self) -> None:
        self._made: dict[str, Reader] = {}

    def of(self, shape: Any) -> Reader:
        """The reader of *shape*'s JSON form."""
        if getattr(shape, "is_document_type", False):
            return _as_it_is
        if (found := self._made.get(shape.name)) is not None:
            return found
        self._made[shape.name] = lambda value, path, problems: self._made[shape.name](value, path, problems)
        make = {"structure": self._structure, "list": self._list, "map": self._map}.get(shape.type_name, scalar_reader)
        self._made[shape.name] = make(shape)
        return self._made[shape.name]

    def _structure(self, shape: Any) -> Reader:
        fields = {
            member.serialization.get("name", name): (name, self.of(member)) for name, member in shape.members.items()
        }
        return members_reader(shape, fields)

    def _list(self, shape: Any) -> Reader:
        broken, read_item = length_rule(shape), self.of(shape.member)

        def read(value: Any, path: Path, problems: Problems) -> list[Any]:
            if type(value) is not list:
                raise wrong_type(value, "List", path)
            # A null is no item, and counts for none.
            if (rule := broken(len(value) - value.count(None))) is not None:
                problems.add(path, rule, shown(shape, value))
                return []
            return [
                read_item(item, ((path, str(number)), "member"), problems)
                for number, item in enumerate(value, 1)
                if item is not None
            ]

        return read

    def _map(self, shape: Any) -> Reader:
        broken, read_key, read_item = length_rule(shape), self.of(shape.key), self.of(shape.value)

        def read(value: Any, path: Path, problems: Problems) -> dict[str, Any]:
            if type(value) is not dict:
                raise wrong_type(value, "Map", path)
            if (rule := broken(len(value))) is not None:
                problems.add(path, rule, shown(shape, value))
                return {}
            return {
                read_key(key, (path, "key"), problems): read_item(item, (path, key[:100]), problems)
                for key, item in value.items()
                if item is not None
            }

        return read


def members_reader(shape: Any, fields: Mapping[str, tuple[str, Reader]]) -> Reader:
    """The reader of an object with *fields*, wire name to name and reader. Unknown names and nulls are dropped."""
    names = {name for name, _ in fields.values()}
    required = tuple(name for name in shape.required_members if name in names)
    is_union = getattr(shape, "is_tagged_union", False)

    def read(value: Any, path: Path, problems: Problems) -> dict[str, Any]:
        if type(value) is not dict:
            raise wrong_type(value, "Structure", path)
        found = {}
        for wire, item in value.items():
            if item is not None and (field := fields.get(wire)) is not None:
                found[field[0]] = field[1](item, (path, field[0]), problems)
        for name in required:
            if name not in found:
                problems.add((path, name), "Member must not be null")
        if is_union and len(found) != 1:
            problems.add(path, f"Member must have exactly one of [{', '.join(shape.members)}] set")
        return found

    return read


def scalar_reader(shape: Any) -> Reader:
    kind = shape.type_name
    if kind == "string":
        return _string(shape)
    if kind == "blob":
        return _blob(shape)
    if kind in _BITS:
        return _whole(shape)
    if kind in ("float", "double"):
        return _number(shape)
    return _boolean if kind == "boolean" else _timestamp


def _string(shape: Any) -> Reader:
    broken, enum = length_rule(shape), frozenset(shape.enum)
    pattern: str | None = shape.metadata.get("pattern")
    is_match = matcher(pattern) if pattern else None

    def read(value: Any, path: Path, problems: Problems) -> str:
        if type(value) is not str:
            raise wrong_type(value, "String", path)
        if (rule := broken(len(value))) is None:
            if enum and value not in enum:
                rule = f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"
            elif is_match is not None and not is_match(value):
                rule = f"Member must satisfy regular expression pattern: {pattern}"
        if rule is not None:
            problems.add(path, rule, shown(shape, value))
        return value

    return read


def _blob(shape: Any) -> Reader:
    check = blob_check(shape)

    def read(value: Any, path: Path, problems: Problems) -> bytes:
        if type(value) is not str:
            raise wrong_type(value, "Blob", path)
        try:
            content = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise MalformedBody(f"The value at '{spelled(path)}' is not valid base64.") from exc
        return check(content, path, problems)

    return read


def blob_check(shape: Any) -> Callable[[bytes, Path, Problems], bytes]:
    """The reader of a blob that is there as bytes, for example as the whole body."""
    broken = length_rule(shape)

    def check(content: bytes, path: Path, problems: Problems) -> bytes:
        if (rule := broken(len(content))) is not None:
            problems.add(path, rule, "<blob>")
        return content

    return check


def _whole(shape: Any) -> Reader:
    broken, limit = range_rule(shape), 2 ** _BITS[shape.type_name]

    def read(value: Any, path: Path, problems: Problems) -> int:
        is_whole = type(value) is int or (type(value) is float and value.is_integer())
        if not is_whole or not -limit <= value < limit:
            raise wrong_type(value, shape.type_name.capitalize(), path)
        if (rule := broken(value)) is not None:
            problems.add(path, rule, shown(shape, value))
        return int(value)

    return read


def _number(shape: Any) -> Reader:
    broken = range_rule(shape)

    def read(value: Any, path: Path, problems: Problems) -> float:
        if type(value) is not float and type(value) is not int:
            raise wrong_type(value, "Float", path)
        if (rule := broken(value)) is not None:
            problems.add(path, rule, shown(shape, value))
        return float(value)

    return read


def _boolean(value: Any, path: Path, problems: Problems) -> bool:
    if type(value) is not bool:
        raise wrong_type(value, "Boolean", path)
    return value


def _timestamp(value: Any, path: Path, problems: Problems) -> datetime:
    """Epoch seconds or ISO 8601, in UTC."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
            return datetime.fromtimestamp(float(value), UTC)
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError, OSError) as exc:
        raise InvalidRequest(f"Value '{str(value)[:100]}' at '{spelled(path)}' is not a timestamp.") from exc


def _as_it_is(value: Any, path: Path, problems: Problems) -> Any:
    return value


def text_reader(shape: Any, readers: Readers) -> Reader:
    """The reader of *shape* out of a path, a query string or a header."""
    kind, read = shape.type_name, readers.of(shape)
    if kind in _BITS:

        def number(value: str, path: Path, problems: Problems) -> Any:
            if not re.fullmatch(r"[+-]?[0-9]{1,18}", value):
                raise InvalidRequest(f"Value '{value[:100]}' at '{spelled(path)}' can not be converted to Integer.")
            return read(int(value), path, problems)

        return number
    if kind == "boolean":

        def boolean(value: str, path: Path, problems: Problems) -> Any:
            if value.lower() not in ("true", "false"):
                raise InvalidRequest(f"Value '{value[:100]}' at '{spelled(path)}' can not be converted to Boolean.")
            return value.lower() == "true"

        return boolean
    return read


def wrong_type(value: Any, wanted: str, path: Path) -> MalformedBody:
    found = _JSON_NAMES.get(type(value), "Value")
    return MalformedBody(f"{found} can not be converted to {wanted} at '{spelled(path)}'.")


class Writers:
    """Writers of one service by shape name and timestamp format."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, Any], Writer] = {}

    def of(self, shape: Any) -> Writer:
        """The writer of *shape*'s JSON form. It raises ValueError for members that the model has not."""
        if getattr(shape, "is_document_type", False):
            return _unchanged
        key = (shape.name, shape.serialization.get("timestampFormat"))
        if (found := self._made.get(key)) is None:
            self._made[key] = lambda value: self._made[key](value)
            found = self._made[key] = self._make(shape)
        return found

    def _make(self, shape: Any) -> Writer:
        kind = shape.type_name
        if kind == "structure":
            members = {
                name: (member.serialization.get("name", name), self.of(member))
                for name, member in shape.members.items()
            }
            return lambda value: write_members(shape.name, members, value)
        if kind == "list":
            write_item = self.of(shape.member)
            return lambda value: [write_item(item) for item in value]
        if kind == "map":
            write_value = self.of(shape.value)
            return lambda value: {key: write_value(item) for key, item in value.items()}
        if kind == "timestamp":
            # REST-JSON bodies carry epoch seconds unless the member says otherwise; Bedrock's say iso8601.
            is_iso = shape.serialization.get("timestampFormat") == "iso8601"
            return iso_time if is_iso else lambda value: round(value.timestamp(), 3)
        if kind == "blob":
            return lambda value: base64.b64encode(value).decode()
        return _unchanged


def write_members(holder: str, members: Mapping[str, tuple[str, Writer]], value: Mapping[str, Any]) -> dict[str, Any]:
    """*value* under its wire names; None is left out. Raises ValueError for a member that *holder* has not."""
    written = {}
    for name, item in value.items():
        if (member := members.get(name)) is None:
            raise ValueError(f"{holder} has no members {sorted(set(value) - set(members))}")
        if item is not None:
            written[member[0]] = member[1](item)
    return written


def iso_time(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, as Bedrock writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unchanged(value: Any) -> Any:
    return value
