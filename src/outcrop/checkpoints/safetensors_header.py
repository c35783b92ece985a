"""The header of a safetensors file: length u64 little-endian, JSON, then data. (Format: the safetensors README.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import msgspec

from outcrop.checkpoints.problems import CheckpointRejected, Problem

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000
_OPCODES = (b"\x95", b"(", b"}", b"]", b")", b"c", b"\x8c", b"X", b"\x8a")  # that pickles of values begin with


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: *start* and *end* are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def parse_header(file: str, head: bytes, size: int) -> Mapping[str, TensorInfo]:
    """Tensors of *file* from its first bytes *head*, checked against the file's *size*. Raises CheckpointRejected."""
    if disguise := _disguise(head):
        raise _broken(
            file,
            f"{file} is {disguise} under the name of a safetensors file. Such files are never opened: loading one can "
            "run code. Save the weights with safetensors and upload them again.",
        )
    length = int.from_bytes(head[:8], "little") if len(head) >= 8 else -1
    if length > MAX_HEADER_BYTES:
        raise _broken(file, f"{file} is not a safetensors file: its header would take {length} bytes. Upload it again.")
    if length < 2 or len(head) < 8 + length:
        raise _broken(file, f"{file} is truncated or not a safetensors file: its header is cut off. Upload it again.")
    try:
        raw = msgspec.json.decode(head[8 : 8 + length], type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _broken(file, f"{file} has a broken header ({exc}). Write the checkpoint again.") from exc
    base = 8 + length
    position = 0
    tensors: dict[str, TensorInfo] = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in ITEM_BYTES:
            raise _broken(file, f"{file}: tensor {name} has the unknown dtype {entry.dtype}.", name)
        begin, end = entry.data_offsets
        wanted = prod(entry.shape) * ITEM_BYTES[entry.dtype]
        if begin != position or end - begin != wanted or min(entry.shape, default=0) < 0:
            raise _broken(
                file,
                f"{file}: tensor {name} ({entry.dtype} {entry.shape}) needs {wanted} bytes from {position}, its header "
                f"says {begin} to {end}. Write the checkpoint again.",
                name,
            )
        position = end
        tensors[name] = TensorInfo(entry.dtype, tuple(entry.shape), base + begin, base + end)
    if size != base + position:
        surplus = size - base - position
        state = f"{-surplus} bytes are missing" if surplus < 0 else f"{surplus} bytes too many"
        raise _broken(
            file,
            f"{file} is truncated or damaged: its header describes {base + position} bytes, the file has {size} "
            f"({state}). Upload it again.",
        )
    return tensors


# First bytes: PyTorch's format is a zip of pickles; a pickle of protocol 2 to 5 begins with \x80 and its number, and
# then a frame, a mark, an empty dict, list or tuple, or a global. No header of a safetensors file is that long.
_DISGUISES = (
    (b"PK\x03\x04", "a zip archive (PyTorch's own format)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy file"),
    *((b"\x80" + bytes([protocol]) + opcode, "a pickle") for protocol in (2, 3, 4, 5) for opcode in _OPCODES),
)


def _disguise(head: bytes) -> str | None:
    """What *head* begins, when it is a known format that is no safetensors."""
    if head[257:262] == b"ustar":
        return "a tar archive"
    plausible = int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES and head[8:9] == b"{"
    return None if plausible else next((name for magic, name in _DISGUISES if head.startswith(magic)), None)


def _broken(file: str, message: str, tensor: str | None = None) -> CheckpointRejected:
    return CheckpointRejected([Problem(file=file, tensor=tensor, message=message)])
