"""The long lists of a ``tokenizer.json``, a few thousand entries at a time.

Decoded at once, the vocabulary and the merges of a large tokenizer take ten times their bytes: a check that is to run
in a pipeline's small container must not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

AT_A_TIME = 4096
_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"(?:[^"\\]|\\.)*+"'
_PAIR = rb"\[" + _SPACE + _STRING + _SPACE + rb"," + _SPACE + _STRING + _SPACE + rb"\]"
_AFTER = _SPACE + rb"," + _SPACE


def _run_of(entry: bytes) -> re.Pattern[bytes]:
    return re.compile(_SPACE + rb"(?:" + entry + _AFTER + rb"){1,%d}+" % AT_A_TIME)


# What ends before a comma is a whole entry; the last one, and whatever has another shape, is left to the decoder.
_NUMBERS_BY_TEXT = _run_of(_STRING + _SPACE + rb":" + _SPACE + rb"\d++")
_TEXTS_OR_PAIRS = _run_of(rb"(?:" + _STRING + rb"|" + _PAIR + rb")")


def object_pieces(raw: memoryview) -> Iterator[dict[str, Any]]:
    """The members of a JSON object, in order, in several dictionaries. Raises msgspec.DecodeError, TypeError."""
    return _pieces(raw, _NUMBERS_BY_TEXT, b"{", b"}")


def array_pieces(raw: memoryview) -> Iterator[list[Any]]:
    """The entries of a JSON array, in order, in several lists. Raises msgspec.DecodeError, TypeError."""
    return _pieces(raw, _TEXTS_OR_PAIRS, b"[", b"]")


def _pieces(raw: memoryview, run: re.Pattern[bytes], opening: bytes, closing: bytes) -> Iterator[Any]:
    begin = next((place for place, byte in enumerate(raw) if byte not in b" \t\r\n"), 0)
    if raw[begin : begin + 1] != opening:
        raise TypeError(f"{opening.decode()} was expected where {bytes(raw[begin : begin + 20])!r} is")
    begin += 1
    while found := run.match(raw, begin):
        yield msgspec.json.decode(opening + bytes(raw[begin : found.end()]).rstrip(b" \t\r\n,") + closing)
        begin = found.end()
    yield msgspec.json.decode(opening + bytes(raw[begin:]))
