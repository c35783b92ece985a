"""A config as the rest of the room reads it: one spelling per fact, whichever transformers version wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]


def kv_head_count(config: Config) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def head_size(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def layer_windows(config: Config) -> tuple[int | None, ...]:
    """The attention window of each layer in tokens; None for a layer that sees everything."""
    layers, window = int(config["num_hidden_layers"]), config.get("sliding_window")
    if not isinstance(window, int) or window <= 0 or config.get("use_sliding_window") is False:
        return (None,) * layers
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, int) and pattern > 1:
        return tuple(None if (layer + 1) % pattern == 0 else window for layer in range(layers))
    first = config.get("max_window_layers") if config.get("use_sliding_window") else 0
    return tuple(window if layer >= (first or 0) else None for layer in range(layers))


def closing_window(config: Config) -> int | None:
    """The smallest window in tokens that is shorter than the context; None when every layer sees the whole of it."""
    closing = [w for w in layer_windows(config) if w is not None and w < config["max_position_embeddings"]]
    return min(closing, default=None)


def is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
