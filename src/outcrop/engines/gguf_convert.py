"""safetensors to GGUF without torch, tensor by tensor: what llama.cpp maps into memory.

A child process of the import (``python -m outcrop.engines.gguf_convert``): it says JSON lines on standard output
(``progress``, then ``done``) and ends with 0; with 3 after ``rejected`` when the weights cannot be used, with 4 after
``no_storage`` when the disk cannot. The file gets its name only when it is whole.

Exactness: bf16 and f16 weights keep their bits or are widened to f32, which loses nothing. llama.cpp rounds
activations to the weights' type, so small models are widened (``--dtype auto``): they then answer as float32 does.
Other types only on demand, and then rounded to the nearest.

Memory: the checkpoint is mapped and goes through in blocks of rows, so that no tensor is ever held whole.
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
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from outcrop.checkpoints.config import head_size, kv_head_count
from outcrop.checkpoints.inspect import Checkpoint, CheckpointFiles, inspect, wanted_texts
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.rope import rope, rope_kind
from outcrop.checkpoints.safetensors_header import MAX_HEADER_BYTES, TensorInfo

SMALL_BYTES = 1_000_000_000  # below this in f32 a model is widened to f32
REJECTED, NO_STORAGE = 3, 4
_NO_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
_BLOCK = 4 << 20  # elements that go through at a time
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00}  # all ones: infinity or NaN
_NUMPY: Mapping[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}

# Tokens that llama.cpp ends a text at because of how they are written, whatever the metadata says.
_ENDS_BY_TEXT = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<|eom_id|>"),
        *("<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOS]"),
    }
)

# The marks of fill-in-the-middle end a text too; nothing else here uses them.
_STOP_KEYS = (
    gguf.Keys.Tokenizer.EOS_ID,
    gguf.Keys.Tokenizer.EOT_ID,
    gguf.Keys.Tokenizer.EOM_ID,
    gguf.Keys.Tokenizer.FIM_PAD_ID,
    gguf.Keys.Tokenizer.FIM_REP_ID,
    gguf.Keys.Tokenizer.FIM_SEP_ID,
)

Array = npt.NDArray[Any]

PROBES = (
    "Hello, world! How are you today?",
    "for (Account a : [SELECT Id FROM Account WHERE Name = :n LIMIT 10]) {\n        update a;\n\t}\n\n\n",
    "12|   x += 3.14159 * 1000000; // 7% of $42",
    "Grüße aus Zürich, naïve café — ‘quoted’ … ½",
    "日本語のテキスト 中文字符 한국어 العربية עברית हिन्दी",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200b\ufeff",
    "I'll we're DON'T it's  two  spaces   three\r\n\r\nend ",
    "                    deep\n \n  \n",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """One tensor on its way: *heads* > 0 where its rows are permuted head by head."""

    name: str
    hf_name: str
    shard: str
    info: TensorInfo
    kind: str
    heads: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.info.shape) * _ITEM_BYTES[self.kind]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with config.json and *.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="GGUF file to write")
    parser.add_argument("--dtype", choices=["auto", "f32", "bf16", "f16"], default="auto")
    arguments = parser.parse_args()
    part = arguments.out.with_name(arguments.out.name + ".part")
    try:
        done = convert(arguments.checkpoint, part, arguments.dtype)
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


def convert(folder: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Write *out*; what the ``done`` event carries."""
    checkpoint = read(folder)
    if checkpoint.family.gguf is None:
        raise CheckpointRejected.of(f"The CPU engine does not serve {checkpoint.family.label}.", "config.json")
    target = _target(checkpoint, dtype)
    sources = {shard: _map(folder / shard) for shard in sorted(checkpoint.shards)}
    _check_tied_head(checkpoint, sources)
    plan = list(_plan(checkpoint, target, keep=dtype == "auto"))
    factors = rope_factors(checkpoint)
    writer = gguf.GGUFWriter(out, checkpoint.family.gguf)
    try:
        _describe(writer, checkpoint, target)
        notes = _describe_tokenizer(writer, checkpoint)
        for tensor in plan:
            _announce(writer, tensor)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        total = sum(tensor.info.end - tensor.info.start for tensor in plan)
        done = 0
        for tensor in plan:
            for block in _blocks(sources[tensor.shard], tensor):
                file.write(block.data)
            writer.write_padding(file, tensor.nbytes)
            done += tensor.info.end - tensor.info.start
            _say(event="progress", done_bytes=done, total_bytes=total)
        if factors is not None:
            file.write(factors.data)
            writer.write_padding(file, factors.nbytes)
        file.flush()
        os.fsync(file.fileno())
    finally:
        writer.close()
    return {"bytes": out.stat().st_size, "dtype": target, "probes": probes(folder, checkpoint), "notes": notes}


def read(folder: Path) -> Checkpoint:
    """The checked description of *folder*."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    headers: dict[str, bytes] = {}
    for name in sizes:
        if name.endswith(".safetensors"):
            with (folder / name).open("rb") as file:
                head = file.read(8)
                headers[name] = head + file.read(min(int.from_bytes(head, "little"), MAX_HEADER_BYTES))
    texts = {name: (folder / name).read_bytes() for name in wanted_texts(sizes)}
    return inspect(CheckpointFiles(sizes, texts, headers))


def permute(array: Array, heads: int) -> Array:
    """Rows from Hugging Face's rotary layout (halves) to llama.cpp's (pairs), per head."""
    rows = array.shape[0]
    split = array.reshape(heads, 2, rows // heads // 2, *array.shape[1:])
    joined: Array = np.ascontiguousarray(split.swapaxes(1, 2)).reshape(array.shape)
    return joined


def probes(folder: Path, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Texts and the ids that the checkpoint's own tokenizer gives: the engine must give the same."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokens = checkpoint.tokenizer.tokens
    special, added = checkpoint.tokenizer.special, checkpoint.tokenizer.added
    groups = [[tokens[index] for index in sorted(ids)[:8]] for ids in (special, added - special)]
    marked = [f"{marks[0]}user\nHi {' and '.join(marks[1:])}{''.join(marks)}\n" for marks in groups if marks]
    texts = [*PROBES, *marked]
    if checkpoint.tokenizer.nfc:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    return [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in texts]


def _target(checkpoint: Checkpoint, dtype: str) -> str:
    if dtype != "auto":
        return dtype
    if checkpoint.dtype == "F32" or checkpoint.parameters * 4 <= SMALL_BYTES:
        return "f32"
    return checkpoint.dtype.lower()


def _describe(writer: gguf.GGUFWriter, checkpoint: Checkpoint, dtype: str) -> None:
    config = checkpoint.config
    head = head_size(config)
    writer.add_name("imported")
    writer.add_context_length(checkpoint.context_tokens)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(kv_head_count(config))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope(config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_vocab_size(config["vocab_size"])
    names = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    }
    writer.add_file_type(names[dtype])


def _describe_tokenizer(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> list[str]:
    """Write the vocabulary; what of the checkpoint's stops and text handling the engine cannot follow."""
    tokenizer, size = checkpoint.tokenizer, checkpoint.config["vocab_size"]
    taken = frozenset(tokenizer.tokens.values())
    texts, kinds = [], []
    for index in range(size):
        text, kind = tokenizer.tokens.get(index), gguf.TokenType.NORMAL
        if text is None:
            text, kind = f"[PAD{index}]", gguf.TokenType.UNUSED
            while text in taken:
                text += "_"
        elif index in tokenizer.special:
            kind = gguf.TokenType.CONTROL
        elif index in tokenizer.added:
            kind = gguf.TokenType.USER_DEFINED
        texts.append(text)
        kinds.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(tokenizer.merges))
    writer.add_add_bos_token(tokenizer.bos is not None)
    if checkpoint.bos_token_id is not None:
        writer.add_bos_token_id(checkpoint.bos_token_id)
    if checkpoint.chat_template is not None:
        writer.add_chat_template(_template(checkpoint))
    notes = _describe_stops(writer, checkpoint)
    if tokenizer.nfc:
        notes.append("the tokenizer brings text to NFC first, the engine does not: send NFC text")
    return notes


def _describe_stops(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> list[str]:
    """llama.cpp has places for ids that end a text, and knows some by how they are written: those need none."""
    first, *others = checkpoint.eos_token_ids
    tokens = checkpoint.tokenizer.tokens
    others = [index for index in others if tokens[index] not in _ENDS_BY_TEXT]
    for key, index in zip(_STOP_KEYS, [first, *others], strict=False):
        writer.add_uint32(key, index)
    notes = []
    if left := [tokens[index] for index in others[len(_STOP_KEYS) - 1 :]]:
        notes.append(f"the engine does not end a text at {', '.join(left)}: it holds {len(_STOP_KEYS)} such tokens")
    ends_anyway = {text for index, text in tokens.items() if index not in checkpoint.eos_token_ids} & _ENDS_BY_TEXT
    if ends_anyway:
        notes.append(f"the engine also ends a text at {', '.join(sorted(ends_anyway))}")
    return notes


def _template(checkpoint: Checkpoint) -> str:
    """The chat template; without a bos token its ``bos_token`` is empty, where llama.cpp would put token 11."""
    template = checkpoint.chat_template or ""
    if checkpoint.bos_token_id is None and "bos_token" in template:
        return "{%- set bos_token = '' -%}" + template
    return template


def _plan(checkpoint: Checkpoint, target: str, *, keep: bool) -> Iterator[_Tensor]:
    """Every tensor that the engine needs. *keep*: matrices that are stored in another type than most stay in it."""
    config, family = checkpoint.config, checkpoint.family
    assert family.gguf is not None
    assert family.tensors is not None
    names = gguf.get_tensor_name_map(_ARCHITECTURES[family.gguf], config["num_hidden_layers"])
    for hf_name in family.tensors(config):
        shard, info = checkpoint.tensors[hf_name]
        name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise CheckpointRejected.of(f"Tensor {hf_name} has no place in the engine's format.", shard)
        # Vectors are always f32, as the engine wants them.
        kind = "f32" if target == "f32" or len(info.shape) == 1 else info.dtype.lower() if keep else target
        heads = 0
        if family.permutes and hf_name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = info.shape[0] // head_size(config)
        yield _Tensor(name=name, hf_name=hf_name, shard=shard, info=info, kind=kind, heads=heads)


def _announce(writer: gguf.GGUFWriter, tensor: _Tensor) -> None:
    shape = tensor.info.shape
    if tensor.kind == "bf16":  # numpy has no such type: the writer wants bytes, and turns them into elements
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor_info(tensor.name, (*shape[:-1], shape[-1] * 2), np.dtype(np.uint8), tensor.nbytes, kind)
    else:
        writer.add_tensor_info(tensor.name, shape, _NUMPY[tensor.kind.upper()], tensor.nbytes)


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


def _blocks(source: mmap.mmap, tensor: _Tensor) -> Iterator[Array]:
    """The artefact's form of *tensor*, some rows at a time. Raises CheckpointRejected unless all values are finite."""
    array = _stored(source, tensor.info)
    unit = array.shape[0] // tensor.heads if tensor.heads else 1
    rows = unit * max(1, _BLOCK // (unit * math.prod(array.shape[1:])))
    broken, first = 0, 0
    for begin in range(0, array.shape[0], rows):
        block = array[begin : begin + rows]
        wrong = _not_finite(block, tensor.info.dtype)
        if count := int(np.count_nonzero(wrong)):
            first = first if broken else begin * math.prod(array.shape[1:]) + int(wrong.argmax())
            broken += count
            continue
        if tensor.heads:
            block = permute(block, block.shape[0] // unit)
        yield _as(block, tensor)
        passed = begin * array.strides[0]
        _forget(source, tensor.info.start + passed, tensor.info.start + passed + block.nbytes)
    if broken:
        place = list(map(int, np.unravel_index(first, array.shape)))
        raise CheckpointRejected.of(
            f"{tensor.shard}: tensor {tensor.hf_name} holds values that are not finite (NaN or infinity): {broken} of "
            f"{array.size}, the first at {place}. The training run diverged or the file was damaged; import an earlier "
            "checkpoint.",
            tensor.shard,
        )


def _not_finite(block: Array, dtype: str) -> Array:
    if dtype == "F32":
        found: Array = ~np.isfinite(block)
    else:
        found = (block.view("<u2") & _EXPONENT[dtype]) == _EXPONENT[dtype]
    return found


def _as(block: Array, tensor: _Tensor) -> Array:
    """*block* in the artefact's type, contiguous."""
    stored = tensor.info.dtype
    if stored.lower() == tensor.kind:
        return np.ascontiguousarray(block)
    values = widen(block) if stored == "BF16" else block.astype("<f4", copy=False)
    if tensor.kind == "f32":
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):
        short: Array = narrow(values) if tensor.kind == "bf16" else values.astype("<f2")
    if _not_finite(short, tensor.kind.upper()).any():
        raise CheckpointRejected.of(
            f"{tensor.shard}: tensor {tensor.hf_name} has values too large for {tensor.kind}. Convert to f32.",
            tensor.shard,
        )
    return np.ascontiguousarray(short)


def _check_tied_head(checkpoint: Checkpoint, sources: Mapping[str, mmap.mmap]) -> None:
    """A tied model may store its output matrix too, but then it must be the input matrix."""
    if "lm_head.weight" not in checkpoint.tensors or not checkpoint.config.get("tie_word_embeddings", False):
        return
    (shard, head), (other, embedding) = (
        checkpoint.tensors[name] for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
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
            f"{shard}: tensor lm_head.weight differs from model.embed_tokens.weight, though config.json says "
            "tie_word_embeddings. Set it to false, or save the model again.",
            shard,
        )


def narrow(values: Array) -> Array:
    """float32 as bf16 bits, rounded to the nearest, ties to even; *values* are finite."""
    bits = values.view("<u4")
    rounded: Array = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return rounded


def widen(bits: Array) -> Array:
    """bf16 bits as float32, exactly: bf16 is the upper half of a float32."""
    wide = bits.astype("<u4")
    wide <<= 16
    floats: Array = wide.view("<f4")
    return floats


def rope_factors(checkpoint: Checkpoint) -> Array | None:
    """Llama 3's frequency correction, one factor per pair of dimensions (transformers: modeling_rope_utils)."""
    parameters = rope(checkpoint.config)
    if rope_kind(checkpoint.config) != "llama3":
        return None
    head = head_size(checkpoint.config)
    original = parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    factors = []
    for exponent in range(0, head, 2):
        wavelength = 2 * math.pi * parameters["rope_theta"] ** (exponent / head)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / parameters["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


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
