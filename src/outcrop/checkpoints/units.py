"""Custom model units of one copy."""

from __future__ import annotations

import math

UNIT_BYTES = 38e9
OVERHEAD_BYTES = 2e9


def model_units(weight_bytes: int, kv_bytes_per_token: int, context_tokens: int) -> int:
    """Units per copy: the next power of two of (weights + two full contexts of KV + 2 GB) / 38 GB.

    A formula of ours that reproduces the published points: 8B at 128K is 2, 70B at 128K is 8, 14B at 16K is 1.
    """
    need = weight_bytes + 2 * kv_bytes_per_token * context_tokens + OVERHEAD_BYTES
    return int(2 ** math.ceil(math.log2(max(1, math.ceil(need / UNIT_BYTES)))))
