"""Units per copy, against the points that AWS and the seed article published."""

from __future__ import annotations

import pytest

from outcrop.checkpoints.units import model_units


@pytest.mark.parametrize(
    ("parameters", "kv_bytes_per_token", "context_tokens", "units"),
    [
        (8.03e9, 2 * 32 * 8 * 128 * 2, 131072, 2),  # Llama 3.1 8B at 128K
        (70.6e9, 2 * 80 * 8 * 128 * 2, 131072, 8),  # Llama 3.1 70B at 128K
        (14.77e9, 2 * 48 * 8 * 128 * 2, 16384, 1),  # Qwen2.5 14B at 16K
        (1000, 1024, 512, 1),
    ],
)
def test_published_models_take_the_published_units(
    parameters: float, kv_bytes_per_token: int, context_tokens: int, units: int
) -> None:
    assert model_units(int(parameters * 2), kv_bytes_per_token, context_tokens) == units
