"""What the values of a checkpoint look like, found while its bytes pass by: NaN and infinity, zeros, fp16 overflow.

Bytes come in order and in pieces of any length; a value that two pieces share is put together. All work is on the
bit patterns: without its sign a float's bits order as its magnitude does, so one maximum tells whether a block needs
a closer look at all. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from outcrop.checkpoints.safetensors_header import TensorInfo

_BLOCK = 1 << 19  # values looked at at a time: stays in the processor's cache
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Format:
    """How to read a dtype's bits: from *not_finite* on it is infinity or NaN, from *over_fp16* on fp16 has no value."""

    unsigned: str
    magnitude: int
    not_finite: int
    over_fp16: int | None  # 65520 is the first that rounds to infinity (IEEE 754 binary16)


_FORMATS: Mapping[str, _Format] = {
    "F64": _Format("<u8", (1 << 63) - 1, 0x7FF0 << 48, 0x40EFFE << 40),
    "F32": _Format("<u4", 0x7FFFFFFF, 0x7F800000, 0x477FF000),
    "BF16": _Format("<u2", 0x7FFF, 0x7F80, 0x4780),
    "F16": _Format("<u2", 0x7FFF, 0x7C00, None),
    "F8_E4M3": _Format("u1", 0x7F, 0x7F, None),
    "F8_E5M2": _Format("u1", 0x7F, 0x7C, None),
}


@dataclass(slots=True)
class TensorScan:
    """Counts of one tensor. *first*: index of the first value that is not finite, counted flat."""

    name: str
    file: str
    shape: Sequence[int]
    values: int = 0
    not_finite: int = 0
    first: int | None = None
    over_fp16: int = 0
    largest: int = 0  # magnitude bits

    @property
    def is_zero(self) -> bool:
        return self.values > 0 and self.largest == 0

    def place(self) -> list[int]:
        """Indices of the first value that is not finite."""
        assert self.first is not None
        return [int(index) for index in np.unravel_index(self.first, self.shape)] if self.shape else []


@dataclass(slots=True)
class FileScanner:
    """Scans one safetensors *file*; ``feed`` gets its bytes from the start, in order."""

    file: str
    tensors: Mapping[str, TensorInfo]
    scans: list[TensorScan] = field(default_factory=list)
    _todo: list[tuple[int, int, _Format, TensorScan]] = field(default_factory=list)
    _at: int = 0
    _rest: bytes = b""

    def __post_init__(self) -> None:
        for name, info in sorted(self.tensors.items(), key=lambda item: -item[1].start):
            form = _FORMATS.get(info.dtype)
            if form is not None and 0 not in info.shape:
                scan = TensorScan(name, self.file, info.shape)
                self._todo.append((info.start, info.end, form, scan))
        self.scans = [scan for *_, scan in reversed(self._todo)]

    def feed(self, body: memoryview) -> None:
        begin, self._at = self._at, self._at + len(body)
        while self._todo and self._todo[-1][0] < self._at:
            start, end, form, scan = self._todo[-1]
            low, high = max(start, begin), min(end, self._at)
            if low < high:
                self._values(form, scan, body[low - begin : high - begin])
            if end > self._at:
                return
            self._todo.pop()
            self._rest = b""

    def _values(self, form: _Format, scan: TensorScan, part: memoryview) -> None:
        item = np.dtype(form.unsigned).itemsize
        if self._rest:
            missing = item - len(self._rest)
            joined = self._rest + bytes(part[:missing])
            part = part[missing:]
            if len(joined) < item:
                self._rest = joined
                return
            _look(form, scan, np.frombuffer(joined, form.unsigned))
        whole = len(part) // item * item
        self._rest = bytes(part[whole:])
        array = np.frombuffer(part[:whole], form.unsigned)
        for begin in range(0, len(array), _BLOCK):
            _look(form, scan, array[begin : begin + _BLOCK])


def _look(form: _Format, scan: TensorScan, block: npt.NDArray[Any]) -> None:
    bits = block & block.dtype.type(form.magnitude)
    largest = int(bits.max(initial=0))
    scan.largest = max(scan.largest, largest)
    if largest >= form.not_finite:
        wrong = bits >= form.not_finite
        if scan.first is None:
            scan.first = scan.values + int(wrong.argmax())
        scan.not_finite += int(np.count_nonzero(wrong))
    if form.over_fp16 is not None and largest >= form.over_fp16:
        scan.over_fp16 += int(np.count_nonzero((bits >= form.over_fp16) & (bits < form.not_finite)))
    scan.values += len(block)


def verdict(scans: Iterable[TensorScan]) -> dict[str, Any]:
    """JSON-shaped: how many tensors and values were seen, and the tensors with something to say (the first few)."""
    seen = list(scans)
    broken = [scan for scan in seen if scan.not_finite]
    zero = [scan.name for scan in seen if scan.is_zero]
    over = [scan for scan in seen if scan.over_fp16]
    return {
        "tensors": len(seen),
        "values": sum(scan.values for scan in seen),
        "not_finite": [
            {"tensor": scan.name, "file": scan.file, "count": scan.not_finite, "of": scan.values, "first": scan.place()}
            for scan in broken[:_SHOWN]
        ],
        "all_zero": zero[:_SHOWN],
        "all_zero_count": len(zero),
        "over_fp16": [{"tensor": scan.name, "file": scan.file, "count": scan.over_fp16} for scan in over[:_SHOWN]],
        "over_fp16_count": len(over),
    }


def merged(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One verdict of several files'."""
    total = verdict(())
    for one in verdicts:
        for key, value in one.items():
            total[key] = total[key] + value
    return {key: value[:_SHOWN] if isinstance(value, list) else value for key, value in total.items()}


def scan_problems(found: Mapping[str, Any]) -> list[str]:
    """A sentence for each tensor that no engine could use."""
    return [
        f"{entry['file']}: tensor {entry['tensor']} holds values that are not finite (NaN or infinity): "
        f"{entry['count']} of {entry['of']}, the first at {entry['first']}. The training run diverged or the file was "
        "damaged; import an earlier checkpoint."
        for entry in found["not_finite"]
    ]


def scan_notes(found: Mapping[str, Any]) -> list[str]:
    """What is odd and does not keep a model from being served."""
    notes = []
    if found["all_zero"]:
        notes.append(f"{found['all_zero_count']} tensor(s) hold zeros only: {', '.join(found['all_zero'][:5])}")
    if found["over_fp16"]:
        names = ", ".join(entry["tensor"] for entry in found["over_fp16"][:5])
        notes.append(
            f"{found['over_fp16_count']} tensor(s) hold values above 65504, which fp16 cannot: {names}; an engine "
            "must run this model in bf16 or f32"
        )
    return notes
