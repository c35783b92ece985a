"""Quantised checkpoints, recognised by ``quantization_config``: which method, and which engines read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from outcrop.checkpoints.config import Config
from outcrop.checkpoints.problems import CheckpointRejected

# Method -> engines that load it, by their own documentation (vLLM: quantization/; SGLang: quantization).
METHODS: Mapping[str, frozenset[str]] = {
    "gptq": frozenset({"vllm", "sglang", "tensorrt-llm"}),
    "awq": frozenset({"vllm", "sglang", "tensorrt-llm"}),
    "fp8": frozenset({"vllm", "sglang", "tensorrt-llm"}),
    "fbgemm_fp8": frozenset({"vllm"}),
    "compressed-tensors": frozenset({"vllm", "sglang"}),
    "bitsandbytes": frozenset({"vllm", "sglang"}),
    "mxfp4": frozenset({"vllm", "sglang"}),
}
# (method, model_type) that our converter writes for llama.cpp: the blocks are rearranged, no value changes.
CONVERTED = frozenset({("mxfp4", "gpt_oss")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """*method* as the checkpoint names it; *bits* per weight where it says so."""

    method: str
    bits: int | None
    engines: frozenset[str]


def quantisation(config: Config) -> Quantisation | None:
    """What ``quantization_config`` says; None for a checkpoint in floating point. Raises CheckpointRejected."""
    settings = config.get("quantization_config")
    if not settings:
        return None
    if not isinstance(settings, dict) or not isinstance(settings.get("quant_method"), str):
        raise CheckpointRejected.of(
            f"config.json: quantization_config is {settings!r}, an object with a quant_method is needed.", "config.json"
        )
    method, bits = settings["quant_method"].lower(), settings.get("bits", settings.get("w_bit"))
    engines = METHODS.get(method, frozenset())
    if (method, config.get("model_type")) in CONVERTED:
        engines |= {"llama.cpp"}
    return Quantisation(method=method, bits=bits if isinstance(bits, int) else None, engines=engines)
