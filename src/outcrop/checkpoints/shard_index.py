"""Whether the index and the shards tell the same story: every tensor where the index says it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from outcrop.checkpoints.problems import Problem
from outcrop.checkpoints.safetensors_header import TensorInfo


def index_problems(
    name: str, raw: bytes | None, shards: Mapping[str, Mapping[str, TensorInfo]]
) -> tuple[list[Problem], list[str]]:
    """Problems and warnings of the index *raw* (file *name*) against the tensors of each shard; none without one.

    transformers reads a tensor only from the shard that the index names, so one that lies elsewhere would be left
    at random values there.
    """
    document: Any = None
    if raw is not None:
        try:
            document = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return [], []  # inspect has said so
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        return [], []
    where = {tensor: shard for shard, tensors in shards.items() for tensor in tensors}
    problems = []
    for tensor, shard in weight_map.items():
        if shard in shards and tensor not in shards[shard]:
            found = where.get(tensor)
            message = (
                f"{name} says that tensor {tensor} is in {shard}, it is in {found or 'no shard'}. Write the checkpoint "
                "again."
            )
            problems.append(
                Problem(file=name, tensor=tensor, found=found or "nowhere", expected=str(shard), message=message)
            )
    warnings = []
    if unknown := [tensor for tensor, shard in where.items() if tensor not in weight_map]:
        shown = ", ".join(sorted(unknown)[:3])
        warnings.append(f"{name} does not list {len(unknown)} tensor(s) of the shards, for example {shown}.")
    metadata = document.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    held = sum(info.end - info.start for tensors in shards.values() for info in tensors.values())
    if isinstance(said, int) and said != held:
        warnings.append(f"{name} says total_size {said}, the shards hold {held} bytes of tensors.")
    return problems, warnings
