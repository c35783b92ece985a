"""Rotary position parameters, wherever the transformers version that wrote the config has put them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.checkpoints.config import Config, head_size, is_positive

_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_LAYER_KINDS = ("full_attention", "sliding_attention")


def rope(config: Config) -> Mapping[str, Any]:
    """Parameters of the layers that see everything, ``rope_theta`` included."""
    parameters = config.get("rope_parameters") or {}
    if any(kind in parameters for kind in _LAYER_KINDS):  # Gemma 3: one set per kind of layer
        parameters = parameters.get("full_attention") or {}
    found = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {}), **parameters}
    if "original_max_position_embeddings" not in found and config.get("original_max_position_embeddings"):
        found["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    return found


def local_rope_theta(config: Config) -> float:
    """The base of the layers with a sliding window, where they have their own (Gemma 3)."""
    parameters = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    return float(parameters.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0)


def rope_kind(config: Config) -> str:
    parameters = rope(config)
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    return "longrope" if kind == "su" else kind


def rotated_size(config: Config) -> int:
    """How many of a head's values are rotated."""
    share = rope(config).get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1
    return int(head_size(config) * float(share))


def original_context(config: Config) -> int:
    """Tokens of context that the model was trained with before its rotary scaling."""
    found = rope(config).get("original_max_position_embeddings")
    return int(found or config["max_position_embeddings"])


def rope_problem(config: Config) -> str | None:
    """What is wrong with the rotary parameters in themselves, as a clause; None when they are sound."""
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key), dict | None):
            return f"{key} is {config[key]!r}, an object is needed"
    parameters = rope(config)
    if not is_positive(parameters["rope_theta"]):
        return f"rope_theta is {parameters['rope_theta']!r}, a positive number is needed"
    share = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1
    if not is_positive(share) or share > 1:
        return f"partial_rotary_factor is {share!r}, a number from 0 to 1 is needed"
    kind = rope_kind(config)
    if kind == "llama3":
        if broken := [key for key in _LLAMA3_KEYS if not is_positive(parameters.get(key))]:
            return f"rope type llama3 needs a positive {', '.join(broken)}"
        if parameters["low_freq_factor"] >= parameters["high_freq_factor"]:
            return "rope type llama3 needs a low_freq_factor below high_freq_factor"
    if kind in ("linear", "yarn", "dynamic") and not is_positive(parameters.get("factor")):
        return f"rope type {kind} needs a positive factor"
    if kind == "longrope":
        return _longrope_problem(parameters, rotated_size(config) // 2)
    return None


def _longrope_problem(parameters: Mapping[str, Any], pairs: int) -> str | None:
    for key in ("short_factor", "long_factor"):
        factors = parameters.get(key)
        if not isinstance(factors, list) or len(factors) != pairs or not all(map(is_positive, factors)):
            return f"rope type longrope needs {key} with {pairs} positive numbers"
    return None
