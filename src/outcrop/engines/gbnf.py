"""GBNF, the grammars that llama.cpp enforces while it samples: choices and regular expressions written in it.

Everything is translated exactly or refused by name; nothing is approximated. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from re import _constants as sre  # type: ignore[attr-defined]  # the parser of ``re``, which typeshed leaves out
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from outcrop.errors import InvalidRequest

MOST_REPEATS = 1000  # llama.cpp refuses grammars with more
LAST_CHARACTER = 0x10FFFF

Intervals = list[tuple[int, int]]  # code points, both ends included, ascending, apart

_SURROGATES = (0xD800, 0xDFFF)
# What a JSON string may not hold unescaped; DEL is left out as engines print it badly.
_NOT_IN_JSON_STRINGS: Intervals = [(0x01, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F)]
_CATEGORIES: dict[Any, tuple[Intervals, bool]] = {
    sre.CATEGORY_DIGIT: ([(0x30, 0x39)], False),
    sre.CATEGORY_NOT_DIGIT: ([(0x30, 0x39)], True),
    sre.CATEGORY_SPACE: ([(0x09, 0x0D), (0x20, 0x20)], False),
    sre.CATEGORY_NOT_SPACE: ([(0x09, 0x0D), (0x20, 0x20)], True),
    sre.CATEGORY_WORD: ([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)], False),
    sre.CATEGORY_NOT_WORD: ([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)], True),
}
_STARTS = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
_ENDS = (sre.AT_END, sre.AT_END_STRING)


def literal(text: str) -> str:
    """A terminal that matches *text* and nothing else."""
    return '"' + "".join(_escaped(ord(character)) for character in text) + '"'


def choice(options: Iterable[str]) -> str:
    """A whole grammar whose text is one of *options*."""
    return "root ::= " + " | ".join(literal(option) for option in options)


def regex(pattern: str) -> str:
    """A whole grammar of the texts that match *pattern* from end to end; raises InvalidRequest."""
    return "root ::= " + expression(pattern)


def expression(pattern: str, *, in_json_string: bool = False, called: str = "structured_outputs.regex") -> str:
    r"""*pattern*, in Python's syntax, as the right side of a rule; raises InvalidRequest.

    ``\d``, ``\w`` and ``\s`` mean ASCII. *in_json_string*: matches the inside of a JSON string whose value matches.
    """
    try:
        nodes = list(_parser.parse(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"{called} is not a regular expression: {error}") from error
    if nodes and nodes[0][0] is sre.AT and nodes[0][1] in _STARTS:
        nodes = nodes[1:]
    if nodes and nodes[-1][0] is sre.AT and nodes[-1][1] in _ENDS:
        nodes = nodes[:-1]
    return _Regex(called, in_json_string).sequence(nodes)


class _Regex:
    """Walks the tree that ``re`` parses a pattern into."""

    def __init__(self, called: str, in_json_string: bool) -> None:
        self._called = called
        self._in_json_string = in_json_string

    def sequence(self, nodes: Iterable[tuple[Any, Any]]) -> str:
        return " ".join(self._node(kind, value) for kind, value in nodes) or '""'

    def _node(self, kind: Any, value: Any) -> str:
        if kind is sre.LITERAL:
            return self._literal(value)
        if kind is sre.NOT_LITERAL:
            return self._set(complement([(value, value)]))
        if kind is sre.ANY:
            return self._set(complement([(0x0A, 0x0A)]))
        if kind is sre.IN:
            return self._set(_members(value))
        if kind is sre.BRANCH:
            return "(" + " | ".join(self.sequence(branch) for branch in value[1]) + ")"
        if kind is sre.SUBPATTERN:
            _, added, removed, inner = value
            if added or removed:
                raise self._refused("flags")
            return "(" + self.sequence(inner) + ")"
        if kind is sre.MAX_REPEAT or kind is sre.MIN_REPEAT:  # they differ in what is captured, not in what matches
            least, most, inner = value
            return "(" + self.sequence(inner) + ")" + self._times(least, most)
        raise self._refused(_NAMES.get(str(kind), str(kind).lower()))

    def _literal(self, point: int) -> str:
        if self._in_json_string and point in (0x22, 0x5C):
            return literal("\\" + chr(point))
        if self._in_json_string and (point < 0x20 or point == 0x7F):
            raise self._refused("control characters in a JSON string")
        return literal(chr(point))

    def _set(self, members: Intervals) -> str:
        barred = [(0, 0), _SURROGATES, *(_NOT_IN_JSON_STRINGS if self._in_json_string else [])]
        left = complement(union([*complement(members), *barred]))
        if not left:
            raise self._refused("a set without a character that may stand there")
        return "[" + "".join(_escaped(a) if a == b else f"{_escaped(a)}-{_escaped(b)}" for a, b in left) + "]"

    def _times(self, least: int, most: Any) -> str:
        bounded = most is not sre.MAXREPEAT
        if least > MOST_REPEATS or (bounded and most > MOST_REPEATS):
            raise self._refused(f"more than {MOST_REPEATS} repetitions")
        return f"{{{least},{most if bounded else ''}}}"

    def _refused(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"{self._called} uses {what}, which cannot be enforced; write the pattern without")


_NAMES = {
    "GROUPREF": "backreferences",
    "GROUPREF_EXISTS": "conditional groups",
    "ASSERT": "lookaround",
    "ASSERT_NOT": "lookaround",
    "AT": "anchors other than ^ at its start and $ at its end",
    "ATOMIC_GROUP": "atomic groups",
    "POSSESSIVE_REPEAT": "possessive repetition",
}


def _members(items: Sequence[tuple[Any, Any]]) -> Intervals:
    """The characters of a bracketed set."""
    is_negated = bool(items) and items[0][0] is sre.NEGATE
    found: Intervals = []
    for kind, value in items[1:] if is_negated else items:
        if kind is sre.LITERAL:
            found.append((value, value))
        elif kind is sre.RANGE:
            found.append(value)
        else:
            intervals, is_complement = _CATEGORIES[value]
            found += complement(intervals) if is_complement else intervals
    return complement(union(found)) if is_negated else union(found)


def union(intervals: Intervals) -> Intervals:
    """*intervals* in order, those that touch made one."""
    merged: Intervals = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def complement(intervals: Intervals) -> Intervals:
    """Every code point that is in none of *intervals*, which are in order and apart."""
    found: Intervals = []
    start = 0
    for low, high in intervals:
        if start < low:
            found.append((start, low - 1))
        start = high + 1
    if start <= LAST_CHARACTER:
        found.append((start, LAST_CHARACTER))
    return found


def _escaped(point: int) -> str:
    """One character inside quotes or brackets; only letters, digits and the space stand for themselves."""
    if point < 0x80 and (chr(point).isalnum() or point == 0x20):
        return chr(point)
    if point <= 0xFF:
        return f"\\x{point:02X}"
    return f"\\u{point:04X}" if point <= 0xFFFF else f"\\U{point:08X}"
