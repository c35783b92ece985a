"""Whatever is sent as JSON is an object or a refusal, quickly."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.awswire.documents import MAX_DEPTH, decode_object
from outcrop.errors import MalformedBody


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "Input data was truncated"),
        (b"[1]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b'{"a":' * 100_000, "levels deep"),
        (b"[" * 100_000 + b"]" * 100_000, "levels deep"),
        (b'{"a":' * MAX_DEPTH + b"[]" + b"}" * MAX_DEPTH, "levels deep"),
        (b'{"a":1e400}', "out of range"),
        (b'{"a":-1e400}', "out of range"),
        (b'{"a":1' + b"0" * 5000 + b"}", "out of range"),
        (b'{"a":[{"b":123456789012345678901234567890}]}', "out of range"),
        (b'{"a":NaN}', "invalid character"),
        (b'{"a":-Infinity}', "invalid"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        (b'{"a":"\\udc00x"}', "not valid JSON"),
        (b'{"a":"\xed\xa0\x80"}', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b'{"a":"\x00"}', "invalid character"),
        (b'{"a":1} {"b":2}', "trailing characters"),
        (b'{"a":[' + b"[]," * 8_000_000 + b"1]}", "holds more than 250000 values"),
        (b"{" + b",".join(b'"%d":1' % n for n in range(300_000)) + b"}", "holds more than 250000 values"),
        (b'{"a":1,"a":2}', "the name 'a' occurs twice"),
        (b'{"a" :1,"b":":","a"\t:2}', "the name 'a' occurs twice"),
        (b'{"x":[{"b" : {}, "\\u0062":[]}]}', "the name 'b' occurs twice"),
    ],
)
def test_a_body_that_is_no_clean_object_is_refused_and_told_why(body: bytes, told: str) -> None:
    with pytest.raises(MalformedBody, match=told):
        decode_object(body)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":{"b":1},"b":1}',
        '{"prompt":"say {\\"a\\":1, \\"a\\": 2} \\": ok"}',
        '{"a\\":":1,"a":2}',
        '{"a":"\\u0000😀"}',
    ],
)
def test_text_that_looks_like_names_and_names_in_different_objects_are_no_repetition(text: str) -> None:
    assert decode_object(text.encode()) == json.loads(text)


def test_the_deepest_nesting_that_is_allowed_is_read() -> None:
    body = b'{"a":' * (MAX_DEPTH - 1) + b"{}" + b"}" * (MAX_DEPTH - 1)

    assert decode_object(body) == json.loads(body)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5), st.booleans())
def test_every_object_that_json_writes_is_read_back(document: dict[str, Any], is_ascii: bool) -> None:
    assert decode_object(json.dumps(document, ensure_ascii=is_ascii).encode()) == document


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0123456789eE+-.ntfdD8 ', max_size=60).map(str.encode))
def test_any_bytes_give_an_object_or_a_refusal(raw: bytes) -> None:
    with contextlib.suppress(MalformedBody):
        assert isinstance(decode_object(raw), dict)


def test_the_mark_that_some_editors_begin_a_file_with_is_skipped() -> None:
    assert decode_object(b"\xef\xbb\xbf" + b'{"a": 1}') == {"a": 1}
    with pytest.raises(MalformedBody):
        decode_object(b"\xef\xbb\xbf\xef\xbb\xbf{}")
