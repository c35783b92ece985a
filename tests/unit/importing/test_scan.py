"""The scan finds what is in the values, whatever pieces the bytes come in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.checkpoints.safetensors_header import TensorInfo
from outcrop.importing.scan import FileScanner, merged, scan_notes, scan_problems, verdict


def scanned(arrays: dict[str, tuple[str, np.ndarray]], cuts: list[int], *, offset: int = 8) -> dict[str, object]:
    """The verdict on *arrays* laid out one after the other from *offset*, fed in pieces that end at *cuts*."""
    tensors, body = {}, b"\x00" * offset
    for name, (dtype, array) in arrays.items():
        raw = array.tobytes()
        tensors[name] = TensorInfo(dtype, array.shape, len(body), len(body) + len(raw))
        body += raw
    scanner = FileScanner("model.safetensors", tensors)
    begin = 0
    for end in [*sorted(cut % (len(body) + 1) for cut in cuts), len(body)]:
        scanner.feed(memoryview(body)[begin:end])
        begin = end
    return verdict(scanner.scans)


def bf16(values: list[float]) -> np.ndarray:
    return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2")


@given(st.lists(st.integers(0, 10_000), max_size=12), st.integers(0, 9))
def test_the_verdict_does_not_depend_on_how_the_bytes_were_cut(cuts: list[int], offset: int) -> None:
    arrays = {
        "a": ("F32", np.array([[1.0, np.nan], [np.inf, -np.inf]], "<f4")),
        "b": ("BF16", bf16([0.0] * 50)),
        "c": ("F16", np.array([65504, 1], "<f2")),
        "d": ("F64", np.array([1e300, 1.0], "<f8")),
    }

    found = scanned(arrays, cuts, offset=offset)

    assert found["tensors"] == 4
    assert found["values"] == 58
    assert found["not_finite"] == [{"tensor": "a", "file": "model.safetensors", "count": 3, "of": 4, "first": [0, 1]}]
    assert found["all_zero"] == ["b"]
    assert found["over_fp16"] == [{"tensor": "d", "file": "model.safetensors", "count": 1}]


@pytest.mark.parametrize(
    ("dtype", "array", "over"),
    [
        ("F32", np.array([65519.9], "<f4"), 0),
        ("F32", np.array([65520.0], "<f4"), 1),
        ("F32", np.array([-70000.0], "<f4"), 1),
        ("BF16", bf16([65280.0]), 0),
        ("BF16", bf16([65536.0]), 1),
        ("F64", np.array([65519.9], "<f8"), 0),
        ("F64", np.array([65520.0], "<f8"), 1),
    ],
)
def test_overflow_of_fp16_begins_where_rounding_gives_infinity(dtype: str, array: np.ndarray, over: int) -> None:
    assert scanned({"a": (dtype, array)}, [])["over_fp16_count"] == over
    with np.errstate(over="ignore"):
        wide = array if dtype != "BF16" else (array.astype("<u4") << 16).view("<f4")
        assert int(np.isinf(wide.astype("<f2")).sum()) == over


@pytest.mark.parametrize(
    ("dtype", "broken"), [("F8_E4M3", 0x7F), ("F8_E4M3", 0xFF), ("F8_E5M2", 0x7C), ("F8_E5M2", 0x7E)]
)
def test_eight_bit_floats_are_looked_at_too(dtype: str, broken: int) -> None:
    found = scanned({"a": (dtype, np.array([1, broken], "u1"))}, [])

    assert found["not_finite"][0]["first"] == [1]


def test_integers_are_left_alone() -> None:
    assert scanned({"a": ("I32", np.full(4, -1, "<i4"))}, [])["tensors"] == 0


def test_verdicts_of_files_add_up_and_are_told_in_words() -> None:
    one = scanned({"a": ("F32", np.array([np.nan], "<f4"))}, [])
    two = scanned({"b": ("F32", np.zeros(3, "<f4")), "c": ("F32", np.array([1e6], "<f4"))}, [])

    both = merged([one, two])

    assert (both["tensors"], both["values"]) == (3, 5)
    assert "tensor a holds values that are not finite" in scan_problems(both)[0]
    assert "first at [0]" in scan_problems(both)[0]
    assert any("1 tensor(s) hold zeros only: b" in note for note in scan_notes(both))
    assert any("fp16 cannot: c" in note for note in scan_notes(both))
