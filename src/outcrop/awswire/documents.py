"""JSON from outside, made safe once: whatever a caller sends becomes an object or a MalformedBody, in microseconds.

msgspec refuses NaN, Infinity, numbers beyond a double, control characters, bad UTF-8 and lone surrogates by itself.
What it lets through, and what would fail further in or mean two things to two readers, is refused here: nesting that
exhausts the stack, so many values that reading them would hold up everyone else, integers beyond 64 bits, and a name
that occurs twice in one object.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from outcrop.errors import MalformedBody

MAX_DEPTH = 128
MAX_VALUES = 250_000  # a prompt of the longest context, given as tokens, and room to spare
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1  # what msgspec can write again
_NAMES = re.compile(rb'"[ \t\r\n]*:')
_MARK = b"\xef\xbb\xbf"  # of UTF-8, with which some editors and clients begin; RFC 8259 lets a reader skip it
_decode = msgspec.json.Decoder().decode


def decode_object(raw: bytes, what: str = "The request body is not valid JSON") -> dict[str, Any]:
    """The JSON object in *raw*; *what* begins the message of the MalformedBody that anything else raises."""
    raw = raw.removeprefix(_MARK)
    # A body this short holds no more values, and one fast pass below settles most of them.
    structure = None if len(raw) <= 2 * MAX_VALUES else _outside_of_strings(raw)
    if structure is not None and sum(map(structure.count, b",[{")) > MAX_VALUES:
        raise MalformedBody(f"{what}: it holds more than {MAX_VALUES} values.")
    try:
        document = _decode(raw)
    except RecursionError:
        raise _too_deep(what) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedBody(f"{what}: {exc}") from exc
    if not isinstance(document, dict):
        raise MalformedBody(f"{what}: it must be a JSON object.")
    names = _count_names(document, what)
    if structure is None and names != len(_NAMES.findall(raw)):  # text that merely looks like names counts there too
        structure = _outside_of_strings(raw)
    if structure is not None and names != structure.count(b":"):
        json.loads(raw, object_pairs_hook=lambda pairs: _once(pairs, what))
    return document


def _outside_of_strings(raw: bytes) -> bytes:
    """*raw* less its strings, exact as far as it is valid JSON."""
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(raw.split(b'"')[::2])


def _count_names(document: dict[str, Any], what: str) -> int:
    """How many names all objects of *document* have. Level by level: a walk that cannot exhaust the stack."""
    names = 0
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for holder in level:
            if type(holder) is dict:
                names += len(holder)
                values: Any = holder.values()
            else:
                values = holder
            for value in values:
                kind = type(value)
                if kind is dict or kind is list:
                    below.append(value)
                elif kind is int and not _INT64_MIN <= value <= _UINT64_MAX:
                    raise MalformedBody(f"{what}: a number is out of range.")
        if not below:
            return names
        level = below
    raise _too_deep(what)


def _once(pairs: list[tuple[str, Any]], what: str) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise MalformedBody(f"{what}: the name '{name[:100]}' occurs twice in one object.")
        seen.add(name)


def _too_deep(what: str) -> MalformedBody:
    return MalformedBody(f"{what}: it is nested more than {MAX_DEPTH} levels deep.")
