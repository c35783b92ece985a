"""Whether an engine computes, in its own words: counters on its metrics page that move with every step. Pure."""

from __future__ import annotations

import re

# Per engine, counters of which at least one moves in every step, while a long prompt is read as well as while tokens
# are made: llama.cpp's server README ("GET /metrics"), vLLM's and SGLang's "Production metrics".
COUNTERS = frozenset(
    {
        "llamacpp:n_decode_total",
        "vllm:iteration_tokens_total_count",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "sglang:prompt_tokens_total",
        "sglang:generation_tokens_total",
    }
)
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})? ([0-9.eE+-]+)", re.MULTILINE)


def from_prometheus(page: str) -> float | None:
    """The sum of the counters on *page* that we know; None when there is none."""
    found = [float(value) for name, value in _SAMPLE.findall(page) if name in COUNTERS]
    return sum(found) if found else None
