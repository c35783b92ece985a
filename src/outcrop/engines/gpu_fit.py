"""How a model fits GPUs: how many it is split over, what is left for the key-value cache, context and slots. Pure.

Shared by the engines that run on GPUs: they differ in how it is said, not in what fits.
"""

from __future__ import annotations

from msgspec import Struct

from outcrop.engines.base import CopySpec
from outcrop.engines.hardware import Hardware
from outcrop.errors import EngineMissing

WEIGHTS_OVERHEAD = 1.05  # of a rank's weights: what is not split, and alignment
RUNTIME_BYTES = 2_500_000_000  # of a rank: context of the driver, activations of a chunk, captured graphs
LEAST_CONTEXT = 2048  # a GPU that holds less of a model's cache than this is too small for it
TYPICAL_TOKENS = 2048  # of one request, for the number that run at a time
ENOUGH_REQUESTS = 8  # typical ones at a time, for which another GPU is taken
MOST_SLOTS = 256


class Fit(Struct, frozen=True):
    """*tensor_parallel*: GPUs of one copy. *kv_tokens*: what their cache holds. *context_tokens*: at most that."""

    tensor_parallel: int
    kv_tokens: int
    context_tokens: int
    slots: int


def fit(spec: CopySpec, hardware: Hardware, *, memory_share: float) -> Fit:
    """The fewest GPUs that hold *spec* with its whole context and a batch, else all with as much of it as they hold.

    Raises EngineMissing when the weights and the least context do not fit all of them.
    """
    model, best = spec.model, None
    per_token = max(1, model.kv_bytes_per_token)
    for ranks in splits(model.attention_heads, len(hardware.gpus)):
        smallest = min(gpu.memory_bytes for gpu in hardware.gpus)  # a copy may be placed on any of them
        left = memory_share * smallest - WEIGHTS_OVERHEAD * model.weight_bytes / ranks - RUNTIME_BYTES
        # Key-value heads are split too, as far as there are any; beyond that ranks hold copies of them.
        kv_tokens = int(left / (per_token / min(ranks, max(1, model.kv_heads))))
        if kv_tokens < min(LEAST_CONTEXT, spec.context_tokens):
            continue
        best = Fit(ranks, kv_tokens, min(spec.context_tokens, kv_tokens), slots_for(kv_tokens, spec.context_tokens))
        if kv_tokens >= max(spec.context_tokens, ENOUGH_REQUESTS * min(spec.context_tokens, TYPICAL_TOKENS)):
            break
    if best is None:
        have = sum(gpu.memory_bytes for gpu in hardware.gpus)
        raise EngineMissing(
            f"The model's weights are {model.weight_bytes / 1e9:.1f} GB and do not fit the {len(hardware.gpus)} GPU(s) "
            f"of {have / 1e9:.0f} GB here at a share of {memory_share:g}. Use larger or more GPUs, or a quantised "
            "checkpoint."
        )
    return best


def splits(attention_heads: int, gpus: int) -> list[int]:
    """Numbers of GPUs that attention can be split over evenly, the smallest first."""
    return [ranks for ranks in (1, 2, 4, 8, 16) if ranks <= gpus and attention_heads % ranks == 0]


def slots_for(kv_tokens: int, context_tokens: int) -> int:
    """Requests at a time such that typical ones fit the cache; 1 to 256."""
    return max(1, min(MOST_SLOTS, kv_tokens // max(1, min(context_tokens, TYPICAL_TOKENS))))
