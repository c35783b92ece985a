"""Headers of safetensors files, whole and damaged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.safetensors_header import TensorInfo, parse_header


def head(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def entry(begin: int, end: int, *, dtype: str = "F32", shape: tuple[int, ...] = (2, 3)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def refusal(data: bytes, size: int) -> str:
    with pytest.raises(CheckpointRejected) as refused:
        parse_header("m.safetensors", data, size)
    assert "m.safetensors" in str(refused.value)
    return str(refused.value)


def test_tensors_are_placed_by_offsets_in_the_file() -> None:
    data = head({"__metadata__": {"format": "pt"}, "b": entry(24, 36, dtype="BF16"), "a": entry(0, 24)})

    found = parse_header("m.safetensors", data, len(data) + 36)

    assert found["a"] == TensorInfo("F32", (2, 3), len(data), len(data) + 24)
    assert found["b"] == TensorInfo("BF16", (2, 3), len(data) + 24, len(data) + 36)


@pytest.mark.parametrize("missing", [1, 1000])
def test_a_cut_off_file_is_told_how_much_is_missing(missing: int) -> None:
    data = head({"a": entry(0, 4000, shape=(1000,))})

    assert f"({missing} bytes are missing)" in refusal(data, len(data) + 4000 - missing)


def test_a_file_that_is_too_long_is_told_by_how_much() -> None:
    data = head({"a": entry(0, 24)})

    assert "7 bytes too many" in refusal(data, len(data) + 31)


@pytest.mark.parametrize("data", [b"", b"\x10\0\0", b"\0" * 8, (50).to_bytes(8, "little") + b"{}"])
def test_a_file_without_a_whole_header_is_refused(data: bytes) -> None:
    assert "header is cut off" in refusal(data, len(data))


def test_an_absurd_header_length_is_refused_unread() -> None:
    assert "would take 18446744073709551615 bytes" in refusal(b"\xff" * 8, 8)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"a": entry(0, 24), "b": entry(20, 44)}, "tensor b"),  # overlap
        ({"a": entry(0, 24), "b": entry(28, 52)}, "tensor b"),  # gap
        ({"a": entry(0, 20)}, "needs 24 bytes"),
        ({"a": entry(-24, 0)}, "tensor a"),
        ({"a": entry(0, 24, shape=(-2, -3))}, "tensor a"),
        ({"a": entry(0, 24, dtype="F33")}, "unknown dtype F33"),
        ({"a": {"dtype": "F32"}}, "broken header"),
        ({"a": 1}, "broken header"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(entries: dict[str, Any], told: str) -> None:
    data = head(entries)

    assert told in refusal(data, len(data) + 52)


@pytest.mark.parametrize("text", [b"{ ", b"[]", b'{"a": \xff}', b"[" * 100_000])
def test_a_header_that_is_not_json_is_refused(text: bytes) -> None:
    assert "broken header" in refusal(len(text).to_bytes(8, "little") + text, 8 + len(text))
