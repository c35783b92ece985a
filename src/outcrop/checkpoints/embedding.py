"""Whether a checkpoint gives embeddings, and how: sentence-transformers' ``modules.json`` and what it names.

A decoder that was trained to embed looks like any other; these files, or the importer's word, tell it apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from outcrop.checkpoints.files import MODULES, POOLING, CheckpointFiles, optional_json
from outcrop.checkpoints.problems import CheckpointRejected

POOLINGS = ("last", "mean", "cls")
# sentence-transformers: keys of 1_Pooling/config.json, and the values of the newer "pooling_mode"
_MODES: Mapping[str, str] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
_NAMES: Mapping[str, str] = {"lasttoken": "last", "mean": "mean", "cls": "cls"}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """*pooling*: which tokens' last states make the vector. *normalize*: it is brought to unit length."""

    pooling: str
    normalize: bool


def read_embedding(files: CheckpointFiles) -> Embedding | None:
    """How the checkpoint embeds; None when it generates. Raises CheckpointRejected for what no engine here follows."""
    kinds = _module_kinds(files)
    if kinds is None and files.pooling is None:
        return None
    if other := [kind for kind in kinds or () if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise CheckpointRejected.of(
            f"{MODULES} has a {other[0]} module, which no engine here computes. Import a model whose modules are "
            "Transformer, Pooling and Normalize.",
            MODULES,
        )
    config = optional_json(files, "config.json")
    if config.get("is_causal") is False:
        raise CheckpointRejected.of(
            "config.json has is_causal false: the engines here run this family's decoders with causal attention.",
            "config.json",
        )
    pooling = files.pooling or _pooling(files)
    return Embedding(pooling=pooling, normalize=kinds is None or "Normalize" in kinds)


def with_prefix(tensors: Mapping[str, _T]) -> dict[str, _T]:
    """*tensors* under the names that they have in a model with a head: the bare model is saved without "model."."""
    if "embed_tokens.weight" not in tensors:
        return dict(tensors)
    return {name if name.startswith("lm_head.") else f"model.{name}": value for name, value in tensors.items()}


def _module_kinds(files: CheckpointFiles) -> list[str] | None:
    """The last names of the modules' types; None when there is no such file."""
    if MODULES not in files.texts:
        return None
    try:
        modules = msgspec.json.decode(files.texts[MODULES], type=list[dict[str, Any]])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointRejected.of(f"{MODULES} is no list of modules: {exc}. Save the model again.", MODULES) from exc
    return [str(module.get("type", "")).rpartition(".")[2] for module in modules]


def _pooling(files: CheckpointFiles) -> str:
    config = optional_json(files, POOLING)
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else [key for key, value in config.items() if value is True]
    found = [_NAMES.get(mode) or _MODES.get(mode) for mode in modes if mode.startswith("pooling_mode") or named]
    if len(found) != 1 or found[0] is None:
        said = ", ".join(modes) or "nothing"
        raise CheckpointRejected.of(
            f"{POOLING} says {said} of how tokens are pooled; one of {', '.join(_MODES)} is needed. Upload the file, "
            f"or say how with the job tag outcrop:embedding={'|'.join(POOLINGS)}.",
            POOLING,
        )
    return found[0]
