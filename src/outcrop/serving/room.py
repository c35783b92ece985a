"""What copies take of a node: memory and cores. Pure.

Weights are mapped from one file, so the copies of a model, and of models that were converted from the same files,
share them; each copy has its own key-value cache and its own interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import structs

from outcrop.engines.base import CopySpec
from outcrop.serving.schedule import Scaling

OVERHEAD_BYTES = 100_000_000  # interpreter, engine code and compute buffers of one copy


def used_bytes(specs: Iterable[CopySpec]) -> int:
    """Memory that copies of *specs* take together."""
    specs = list(specs)
    weights = {spec.mapped: spec.weight_bytes for spec in specs}
    return sum(weights.values()) + sum(own_bytes(spec) for spec in specs)


def own_bytes(spec: CopySpec) -> int:
    """What a copy takes beside the weights that it may share."""
    return spec.kv_bytes + OVERHEAD_BYTES


def as_set(spec: CopySpec, scaling: Scaling, fitted: Callable[[CopySpec], CopySpec]) -> CopySpec:
    """*spec* with what an operator set of its copies: requests at a time, context, arguments.

    *fitted*: the engine's own account of what that takes of the machine.
    """
    slots = scaling.slots or spec.slots
    context = min(scaling.context_tokens or spec.context_tokens, spec.context_tokens)
    if (slots, context, scaling.arguments) == (spec.slots, spec.context_tokens, spec.arguments):
        return spec
    return fitted(
        structs.replace(
            spec,
            slots=slots,
            slots_limit=scaling.slots or spec.slots_limit,
            context_tokens=context,
            kv_bytes=spec.kv_bytes * slots * context // (max(1, spec.slots) * max(1, spec.context_tokens)),
            arguments=scaling.arguments,
        )
    )


def between(spec: CopySpec, other: CopySpec) -> CopySpec:
    """What a copy of *spec* may take at any moment while it becomes *other*, on the GPUs and cores of *spec*."""
    return structs.replace(
        spec, kv_bytes=max(spec.kv_bytes, other.kv_bytes), weight_bytes=max(spec.weight_bytes, other.weight_bytes)
    )


def needed_bytes(spec: CopySpec, beside: Sequence[CopySpec]) -> int:
    """What one more copy of *spec* takes beside those that are there."""
    return used_bytes([*beside, spec]) - used_bytes(beside)
