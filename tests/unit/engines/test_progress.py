"""What an engine's metrics page says of its progress."""

from __future__ import annotations

import pytest

from outcrop.engines.progress import from_prometheus


@pytest.mark.parametrize(
    ("page", "value"),
    [
        ("# TYPE llamacpp:n_decode_total counter\nllamacpp:n_decode_total 47\nllamacpp:other 3\n", 47),
        ('vllm:prompt_tokens_total{engine="0"} 5.0\nvllm:generation_tokens_total{engine="0"} 2.0\n', 7),
        ("process_cpu_seconds_total 12\n", None),
    ],
)
def test_only_counters_that_move_with_every_step_count(page: str, value: float | None) -> None:
    assert from_prometheus(page) == value
