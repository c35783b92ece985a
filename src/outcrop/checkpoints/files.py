"""What the check reads of a checkpoint: small texts whole, of each shard the header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from outcrop.checkpoints.problems import CheckpointRejected

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
MODULES, POOLING = "modules.json", "1_Pooling/config.json"  # of sentence-transformers
IN_FOLDERS = (POOLING,)  # all else lies directly in the checkpoint's folder
TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "adapter_config.json",
    MODULES,
    POOLING,
    INDEX,
)
_BPE_FILES = ("vocab.json", "merges.txt")  # often lie beside a file that says all that they do and more
_INSTEAD = frozenset({"tokenizer.json", "tokenizer.model", "tekken.json"})


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """What the check reads: *sizes* of all files, *texts* by name, *headers* (length field and JSON) by shard.

    *pooling*: what the importer says of a model that is to give embeddings; None leaves it to the files.
    """

    sizes: Mapping[str, int]
    texts: Mapping[str, bytes]
    headers: Mapping[str, bytes]
    pooling: str | None = None


def wanted_texts(names: Iterable[str]) -> list[str]:
    """Which of a prefix's files the check reads whole."""
    present = set(names)
    return [name for name in TEXTS + (() if present & _INSTEAD else _BPE_FILES) if name in present]


def read_json(files: CheckpointFiles, name: str, remedy: str) -> dict[str, Any]:
    if name not in files.texts:
        raise CheckpointRejected.of(f"{name} is missing. {remedy}", name)
    try:
        document = msgspec.json.decode(files.texts[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointRejected.of(f"{name} is not valid JSON: {exc}. {remedy}", name) from exc
    if not isinstance(document, dict):
        raise CheckpointRejected.of(f"{name} must hold a JSON object. {remedy}", name)
    return document


def optional_json(files: CheckpointFiles, name: str) -> dict[str, Any]:
    return read_json(files, name, "Save it again or leave it out.") if name in files.texts else {}
