"""Which tensors the artefact holds, in which type, and from which of the checkpoint's tensors each is made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import gguf
import numpy as np

from outcrop.checkpoints.config import kv_head_count
from outcrop.checkpoints.inspect import Checkpoint
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.engines.gguf_arrays import Array, every_second, mxfp4, separate_heads

QUANTISED = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
TYPES: Mapping[str, gguf.GGMLQuantizationType] = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "mxfp4": gguf.GGMLQuantizationType.MXFP4,
    **QUANTISED,
}
_ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
_EXPERT = re.compile(r"(?P<at>model\.layers\.(?P<layer>\d+)\..+\.experts)\.(?P<number>\d+)\.(?P<name>\w+)\.weight")
_EXPERT_NAMES = {
    "w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps",
    "gate_proj": "ffn_gate_exps", "down_proj": "ffn_down_exps", "up_proj": "ffn_up_exps",
}  # fmt: skip
# What llama.cpp computes in f32 whatever the rest is: routers, positions.
_ALWAYS_F32 = ("ffn_gate_inp.weight", "position_embd.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of one tensor of the artefact: *sources*, of each only the slice *index* of its first axis when given.

    *transform* is given the sources' arrays as stored (bf16 as its bits) and returns the rows; None takes the one
    source as it is, some rows at a time. *heads* > 0: its rows are permuted head by head.
    """

    sources: tuple[str, ...]
    index: int | None = None
    transform: Callable[..., Array] | None = None
    heads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One tensor of the artefact. *shift* is added to each value (Gemma stores norms less one)."""

    name: str
    shape: tuple[int, ...]
    kind: str
    parts: tuple[Part, ...]
    shift: float = 0.0

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[TYPES[self.kind]]
        return math.prod(self.shape) // block * size


def plan(checkpoint: Checkpoint, dtype: str, *, keep: bool, quantise: str | None) -> Iterator[Target]:
    """Every tensor that the engine needs, weights only. *dtype*: of matrices. *keep*: a matrix that is stored in
    another type than most stays in it. *quantise*: type of the matrices that can be packed."""
    shift = 1.0 if checkpoint.family.gguf in ("gemma", "gemma2", "gemma3") else 0.0
    for name, shape, parts in _tensors(checkpoint):
        stored = {checkpoint.tensors[source][1].dtype for part in parts for source in part.sources}
        kind = dtype
        if stored == {"U8"}:
            kind = "mxfp4"
        elif len(shape) == 1 or name.endswith(_ALWAYS_F32) or name.endswith(".bias") or dtype == "f32":
            kind = "f32"
        elif keep:
            (only, *others) = stored
            kind = "f32" if others else only.lower()
        if quantise and len(shape) > 1 and kind != "mxfp4" and not name.endswith((*_ALWAYS_F32, ".bias")):
            # The embedding and the output matrix decide between near words: never below eight bits.
            wanted = "q8_0" if name in ("token_embd.weight", "output.weight") else quantise
            kind = wanted if shape[-1] % 32 == 0 else kind
        yield Target(
            name=name, shape=shape, kind=kind, parts=parts, shift=shift if name.endswith("norm.weight") else 0.0
        )


_Planned = tuple[str, tuple[int, ...], tuple[Part, ...]]


def _tensors(checkpoint: Checkpoint) -> Iterator[_Planned]:
    config, family = checkpoint.config, checkpoint.family
    assert family.gguf is not None
    assert family.tensors is not None
    names = gguf.get_tensor_name_map(_ARCHITECTURES[family.gguf], config["num_hidden_layers"])
    special = _SPECIAL.get(family.gguf)
    stacks: dict[str, list[str]] = {}
    for hf_name, shape in family.tensors(config).items():
        if match := _EXPERT.fullmatch(hf_name):
            name = f"blk.{match['layer']}.{_EXPERT_NAMES[match['name']]}.weight"
            stacks.setdefault(name, []).append(hf_name)
            continue
        if special is not None and (made := special(checkpoint, hf_name, shape)) is not None:
            yield from made
            continue
        found = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if found is None:
            shard = checkpoint.tensors[hf_name][0]
            raise CheckpointRejected.of(f"Tensor {hf_name} has no place in the engine's format.", shard)
        heads = 0
        if family.permutes and ".self_attn.q_proj." in hf_name:
            heads = config["num_attention_heads"]
        elif family.permutes and ".self_attn.k_proj." in hf_name:
            heads = kv_head_count(config)
        yield found, shape, (Part(sources=(hf_name,), heads=heads),)
    for name, sources in stacks.items():
        one = checkpoint.tensors[sources[0]][1].shape
        yield name, (len(sources), *one), tuple(Part(sources=(source,)) for source in sources)


def _starcoder(checkpoint: Checkpoint, hf_name: str, shape: tuple[int, ...]) -> Sequence[_Planned] | None:
    heads = checkpoint.config["num_attention_heads"]
    if ".attn.c_attn." not in hf_name or kv_head_count(checkpoint.config) != heads:
        return None
    layer, end = hf_name.split(".")[2], hf_name.rsplit(".", 1)[1]
    part = Part(sources=(hf_name,), transform=partial(separate_heads, heads=heads))
    return [(f"blk.{layer}.attn_qkv.{end}", shape, (part,))]


def _deepseek(checkpoint: Checkpoint, hf_name: str, shape: tuple[int, ...]) -> Sequence[_Planned] | None:
    config = checkpoint.config
    if hf_name.endswith("e_score_correction_bias"):
        return [(f"blk.{hf_name.split('.')[2]}.exp_probs_b.bias", shape, (Part(sources=(hf_name,)),))]
    if not hf_name.endswith("kv_b_proj.weight"):
        return None
    # The engine absorbs the keys' half into the queries and the values' half into the output.
    heads, nope, value = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    rank, layer = config["kv_lora_rank"], hf_name.split(".")[2]

    def keys(array: Array) -> Array:
        return np.ascontiguousarray(array.reshape(heads, nope + value, rank)[:, :nope].swapaxes(1, 2))

    def values(array: Array) -> Array:
        return np.ascontiguousarray(array.reshape(heads, nope + value, rank)[:, nope:])

    return [
        (f"blk.{layer}.attn_k_b.weight", (heads, rank, nope), (Part(sources=(hf_name,), transform=keys),)),
        (f"blk.{layer}.attn_v_b.weight", (heads, value, rank), (Part(sources=(hf_name,), transform=values),)),
    ]


def _gpt_oss(checkpoint: Checkpoint, hf_name: str, shape: tuple[int, ...]) -> Sequence[_Planned] | None:
    at, _, name = hf_name.rpartition(".")
    if not at.startswith("model.layers."):
        return None
    layer = hf_name.split(".")[2]
    if name == "sinks":
        return [(f"blk.{layer}.attn_sinks.weight", shape, (Part(sources=(hf_name,)),))]
    if not at.endswith(".experts"):
        return None
    blk, experts = f"blk.{layer}.ffn_", range(shape[0])
    hidden, inner = checkpoint.config["hidden_size"], checkpoint.config["intermediate_size"]
    gate, up = partial(every_second, first=0), partial(every_second, first=1)

    def stack(transform: Callable[..., Array], *sources: str) -> tuple[Part, ...]:
        return tuple(Part(sources=sources, index=expert, transform=transform) for expert in experts)

    if name == "gate_up_proj_bias":
        return [
            (f"{blk}gate_exps.bias", (shape[0], inner), stack(lambda row: gate(row)[None], hf_name)),
            (f"{blk}up_exps.bias", (shape[0], inner), stack(lambda row: up(row)[None], hf_name)),
        ]
    if name == "down_proj_bias":
        return [(f"{blk}down_exps.bias", shape, (Part(sources=(hf_name,)),))]
    if name == "gate_up_proj":
        return [
            (f"{blk}gate_exps.weight", (shape[0], inner, hidden), stack(lambda array: gate(array.T), hf_name)),
            (f"{blk}up_exps.weight", (shape[0], inner, hidden), stack(lambda array: up(array.T), hf_name)),
        ]
    if name == "down_proj":
        return [(f"{blk}down_exps.weight", (shape[0], hidden, inner), stack(lambda array: array.T, hf_name))]
    if name.endswith("_scales"):
        return []  # packed together with its blocks
    sources = (hf_name, hf_name.removesuffix("_blocks") + "_scales")
    if name == "gate_up_proj_blocks":
        return [
            (
                f"{blk}gate_exps.weight",
                (shape[0], inner, hidden),
                stack(lambda b, s: mxfp4(gate(b), gate(s)), *sources),
            ),
            (f"{blk}up_exps.weight", (shape[0], inner, hidden), stack(lambda b, s: mxfp4(up(b), up(s)), *sources)),
        ]
    return [(f"{blk}down_exps.weight", (shape[0], hidden, inner), stack(mxfp4, *sources))]


_SPECIAL: Mapping[str, Callable[[Checkpoint, str, tuple[int, ...]], Sequence[_Planned] | None]] = {
    "starcoder": _starcoder,
    "deepseek2": _deepseek,
    "gpt-oss": _gpt_oss,
}
