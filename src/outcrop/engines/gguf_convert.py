"""safetensors to GGUF without torch, tensor by tensor: what llama.cpp maps into memory.

A child process of the import (``python -m outcrop.engines.gguf_convert``): it says JSON lines on standard output
(``progress``, then ``done``) and ends with 0; with 3 after ``rejected`` when the weights cannot be used, with 4 after
``no_storage`` when the disk cannot. The file gets its name only when it is whole.

Exactness: bf16 and f16 weights keep their bits or are widened to f32, which loses nothing. llama.cpp rounds
activations to the weights' type, so small models are widened (``--dtype auto``): they then answer as float32 does.
Other types only on demand, and then rounded to the nearest; ``--quantize`` packs matrices to eight or four bits.

Memory: the checkpoint is mapped and goes through in blocks of rows, so that no tensor is ever held whole but the few
that are rearranged as one (an expert of GPT-OSS, DeepSeek's latent projection).

What goes into the file: ``gguf_plan`` (tensors), ``gguf_metadata`` (sizes), ``gguf_tokenizer`` (vocabulary).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from outcrop.checkpoints.embedding import POOLINGS
from outcrop.checkpoints.files import IN_FOLDERS, CheckpointFiles, wanted_texts
from outcrop.checkpoints.inspect import Checkpoint, inspect
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.safetensors_header import MAX_HEADER_BYTES, TensorInfo
from outcrop.engines.gguf_arrays import Array, narrow, not_finite, permute, widen
from outcrop.engines.gguf_metadata import describe, extra_tensors
from outcrop.engines.gguf_plan import QUANTISED, TYPES, Part, Target, plan
from outcrop.engines.gguf_tokenizer import describe_tokenizer, probes

SMALL_BYTES = 1_000_000_000  # below this in f32 a model is widened to f32
REJECTED, NO_STORAGE = 3, 4
_NO_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
_BLOCK = 4 << 20  # elements that go through at a time
_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")
_NUMPY: Mapping[str, Any] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with config.json and *.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="GGUF file to write")
    parser.add_argument("--dtype", choices=["auto", "f32", "bf16", "f16"], default="auto")
    parser.add_argument("--quantize", choices=sorted(QUANTISED), help="pack matrices; the default keeps every bit")
    parser.add_argument("--embedding", choices=POOLINGS, help="the model embeds, pooled so, whatever its files say")
    parser.add_argument("--scanned", action="store_true", help="the values are known to be finite: do not look again")
    arguments = parser.parse_args()
    part = arguments.out.with_name(arguments.out.name + ".part")
    try:
        done = convert(
            arguments.checkpoint,
            part,
            arguments.dtype,
            arguments.quantize,
            arguments.embedding,
            is_scanned=arguments.scanned,
        )
        part.replace(arguments.out)
        _sync_folder(arguments.out.parent)
    except CheckpointRejected as exc:
        _remove(part)
        _say(event="rejected", message=str(exc))
        return REJECTED
    except OSError as exc:
        _remove(part)
        if exc.errno not in _NO_STORAGE_ERRORS:
            raise
        _say(
            event="no_storage",
            message=f"Writing the engine's artefact to {arguments.out.parent} failed ({exc.strerror}). "
            "Free space there or permit writing.",
        )
        return NO_STORAGE
    _say(event="done", **done)
    return 0


def convert(
    folder: Path,
    out: Path,
    dtype: str,
    quantise: str | None = None,
    pooling: str | None = None,
    *,
    is_scanned: bool = False,
) -> dict[str, Any]:
    """Write *out*; what the ``done`` event carries. Raises CheckpointRejected.

    *is_scanned*: that all values are finite was seen when the bytes arrived (``importing.scan``); else it is seen now.
    """
    checkpoint = read(folder, pooling)
    if checkpoint.family.gguf is None:
        raise CheckpointRejected.of(f"The CPU engine does not serve {checkpoint.family.label}.", "config.json")
    target = _target(checkpoint, dtype)
    sources = {shard: _map(folder / shard) for shard in sorted(checkpoint.shards)}
    _check_tied_head(checkpoint, sources)
    targets = list(plan(checkpoint, target, keep=dtype == "auto", quantise=quantise))
    extra = extra_tensors(checkpoint)
    writer = gguf.GGUFWriter(out, checkpoint.family.gguf)
    try:
        describe(writer, checkpoint, quantise or target)
        notes = describe_tokenizer(writer, checkpoint)
        for tensor in targets:
            _announce(writer, tensor)
        for name, values in extra.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        total, done = sum(tensor.nbytes for tensor in targets), 0
        for tensor in targets:
            for block in _blocks(checkpoint, sources, tensor, is_scanned):
                file.write(block.data)
            writer.write_padding(file, tensor.nbytes)
            done += tensor.nbytes
            _say(event="progress", done_bytes=done, total_bytes=total)
        for values in extra.values():
            file.write(values.data)
            writer.write_padding(file, values.nbytes)
        file.flush()
        os.fsync(file.fileno())
    finally:
        writer.close()
    return {
        "bytes": out.stat().st_size,
        "dtype": quantise or target,
        "probes": probes(folder, checkpoint),
        "notes": notes,
    }


def read(folder: Path, pooling: str | None = None) -> Checkpoint:
    """The checked description of *folder*."""
    return inspect(read_files(folder, pooling))


def read_files(folder: Path, pooling: str | None = None) -> CheckpointFiles:
    """What the check reads of *folder*. *pooling*: what the importer says of a model that embeds."""
    paths = [*folder.iterdir(), *(folder / name for name in IN_FOLDERS)]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}
    headers: dict[str, bytes] = {}
    for name in sizes:
        if name.endswith(".safetensors"):
            with (folder / name).open("rb") as file:
                head = file.read(8)
                headers[name] = head + file.read(min(int.from_bytes(head, "little"), MAX_HEADER_BYTES))
    texts = {name: (folder / name).read_bytes() for name in wanted_texts(sizes)}
    return CheckpointFiles(sizes, texts, headers, pooling)


def _target(checkpoint: Checkpoint, dtype: str) -> str:
    if dtype != "auto":
        return dtype
    if checkpoint.dtype == "F32" or checkpoint.parameters * 4 <= SMALL_BYTES:
        return "f32"
    return checkpoint.dtype.lower()


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _forget(source: mmap.mmap, start: int, end: int) -> None:
    """Let go of the pages of a part that is done with; otherwise the whole checkpoint would pile up in memory."""
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start and hasattr(source, "madvise"):
        source.madvise(mmap.MADV_DONTNEED, start, end - start)


def _stored(source: mmap.mmap, info: TensorInfo) -> Array:
    """The tensor as it is stored (bf16 as its 16 bits), mapped."""
    flat: Array = np.frombuffer(source, _NUMPY[info.dtype], count=math.prod(info.shape), offset=info.start)
    shaped: Array = flat.reshape(info.shape)
    return shaped


def _announce(writer: Any, tensor: Target) -> None:
    kind = TYPES[tensor.kind]
    if tensor.kind in ("f32", "f16"):
        writer.add_tensor_info(tensor.name, tensor.shape, _NUMPY[tensor.kind.upper()], tensor.nbytes)
        return
    # numpy has no such type: the writer wants rows of bytes, and turns them into elements.
    row_bytes = tensor.nbytes // math.prod(tensor.shape[:-1])
    writer.add_tensor_info(tensor.name, (*tensor.shape[:-1], row_bytes), np.dtype(np.uint8), tensor.nbytes, kind)


def _blocks(
    checkpoint: Checkpoint, sources: Mapping[str, mmap.mmap], tensor: Target, is_scanned: bool
) -> Iterator[Array]:
    """The artefact's form of *tensor*, some rows at a time."""
    for part in tensor.parts:
        places = [checkpoint.tensors[name] for name in part.sources]
        arrays = [_stored(sources[shard], info) for shard, info in places]
        if part.transform is None:
            ((shard, info),) = places
            yield from _rows(sources[shard], shard, info, arrays[0], part, tensor, is_scanned)
            continue
        whole = part.transform(*(array if part.index is None else array[part.index] for array in arrays))
        dtype = places[0][1].dtype
        rows = max(1, _BLOCK // math.prod(whole.shape[1:]))
        for begin in range(0, whole.shape[0], rows):
            block = whole[begin : begin + rows]
            if not is_scanned:
                _check_finite(block, dtype, places[0][0], part.sources[0])
            yield _as(block, dtype, tensor, places[0][0], part.sources[0])


def _rows(
    source: mmap.mmap, shard: str, info: TensorInfo, array: Array, part: Part, tensor: Target, is_scanned: bool
) -> Iterator[Array]:
    """Rows as they are stored, block by block; what has passed is let go of."""
    unit = array.shape[0] // part.heads if part.heads else 1
    rows = unit * max(1, _BLOCK // (unit * math.prod(array.shape[1:])))
    for begin in range(0, array.shape[0], rows):
        block = array[begin : begin + rows]
        if not is_scanned:
            _check_finite(block, info.dtype, shard, part.sources[0])
        if part.heads:
            block = permute(block, block.shape[0] // unit)
        yield _as(block, info.dtype, tensor, shard, part.sources[0])
        passed = begin * array.strides[0]
        _forget(source, info.start + passed, min(info.end, info.start + passed + rows * array.strides[0]))


def _check_finite(block: Array, stored: str, shard: str, name: str) -> None:
    if (count := int(np.count_nonzero(not_finite(block, stored)))) > 0:
        raise CheckpointRejected.of(
            f"{shard}: tensor {name} holds values that are not finite (NaN or infinity), {count} in one block of "
            f"{block.size}. The training run diverged or the file was damaged; convert an earlier checkpoint.",
            shard,
        )


def _as(block: Array, stored: str, tensor: Target, shard: str, name: str) -> Array:
    """*block* in the artefact's type, contiguous."""
    if tensor.kind == "mxfp4" or (stored.lower() == tensor.kind and not tensor.shift):
        return np.ascontiguousarray(block)
    values = widen(np.ascontiguousarray(block)) if stored == "BF16" else block.astype("<f4", copy=False)
    if tensor.shift:
        values = values + np.float32(tensor.shift)
    if tensor.kind == "f32":
        return np.ascontiguousarray(values)
    if tensor.kind in QUANTISED:
        packed: Array = gguf.quants.quantize(np.ascontiguousarray(values), QUANTISED[tensor.kind])
        return np.ascontiguousarray(packed)
    with np.errstate(over="ignore"):
        contiguous = np.ascontiguousarray(values)
        short: Array = narrow(contiguous) if tensor.kind == "bf16" else contiguous.astype("<f2")
    if not_finite(short, tensor.kind.upper()).any():
        raise CheckpointRejected.of(
            f"{shard}: tensor {name} has values too large for {tensor.kind}. Convert to f32.", shard
        )
    return short


def _check_tied_head(checkpoint: Checkpoint, sources: Mapping[str, mmap.mmap]) -> None:
    """A tied model may store its output matrix too, but then it must be the input matrix."""
    embedding_name = next((name for name in _EMBEDDINGS if name in checkpoint.tensors), None)
    if (
        embedding_name is None
        or "lm_head.weight" not in checkpoint.tensors
        or not checkpoint.config.get("tie_word_embeddings", False)
    ):
        return
    (shard, head), (other, embedding) = (checkpoint.tensors[name] for name in ("lm_head.weight", embedding_name))
    same = head.dtype == embedding.dtype
    if same:
        one, two = _stored(sources[shard], head), _stored(sources[other], embedding)
        rows = max(1, _BLOCK // one.shape[1])
        same = all(
            np.array_equal(one[begin : begin + rows], two[begin : begin + rows])
            for begin in range(0, one.shape[0], rows)
        )
    if not same:
        raise CheckpointRejected.of(
            f"{shard}: tensor lm_head.weight differs from {embedding_name}, though config.json says "
            "tie_word_embeddings. Set it to false, or save the model again.",
            shard,
        )


def _remove(part: Path) -> None:
    with contextlib.suppress(OSError):  # on a disk that cannot be written it was never made
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)  # noqa: T201  (standard output is this process's interface)


if __name__ == "__main__":
    sys.exit(main())
