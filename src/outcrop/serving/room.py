"""What copies take of a node: memory and cores. Pure.

Weights are mapped from one file, so the copies of a model, and of models that were converted from the same files,
share them; each copy has its own key-value cache and its own interpreter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import structs

from outcrop.engines.base import CopySpec

OVERHEAD_BYTES = 100_000_000  # interpreter, engine code and compute buffers of one copy


def used_bytes(specs: Iterable[CopySpec]) -> int:
    """Memory that copies of *specs* take together."""
    specs = list(specs)
    weights = {spec.mapped: spec.weight_bytes for spec in specs}
    return sum(weights.values()) + sum(own_bytes(spec) for spec in specs)


def own_bytes(spec: CopySpec) -> int:
    """What a copy takes beside the weights that it may share."""
    return spec.kv_bytes + OVERHEAD_BYTES


def with_slots(spec: CopySpec, slots: int | None) -> CopySpec:
    """*spec* with room for *slots* requests at a time; None leaves it."""
    if slots is None or slots == spec.slots:
        return spec
    return structs.replace(spec, slots=slots, kv_bytes=spec.kv_bytes // max(1, spec.slots) * slots)


def needed_bytes(spec: CopySpec, beside: Sequence[CopySpec]) -> int:
    """What one more copy of *spec* takes beside those that are there."""
    return used_bytes([*beside, spec]) - used_bytes(beside)
