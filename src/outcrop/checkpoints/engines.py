"""Which engines can serve a checkpoint, on which hardware, and why the others cannot.

Two sources: this file for the engines whose limits are known here, and what an installed engine itself says
(``Available.architectures``, asked of it in a process of its own).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from outcrop.checkpoints.config import Config, closing_window, head_size, kv_head_count, layer_windows
from outcrop.checkpoints.families import Family
from outcrop.checkpoints.layouts import is_sparse_layer
from outcrop.checkpoints.quantisation import Quantisation
from outcrop.checkpoints.rope import original_context, rope, rope_kind, rotated_size

LLAMA_CPP = "llama.cpp"
SIMULATED = "simulated"  # takes an engine's time and reads nothing
CUSTOM = "custom"  # a command that the operator configured; it reads the checkpoint as it is
HARDWARE: Mapping[str, str] = {
    LLAMA_CPP: "CPU",
    "vllm": "NVIDIA or AMD GPU, or CPU",
    "sglang": "NVIDIA or AMD GPU",
    "tensorrt-llm": "NVIDIA GPU",
}
# Architectures of llama.cpp that read ``rope_freqs``, where Llama 3's frequency correction is kept.
_LLAMA3_ROPE = frozenset({"llama"})
_YARN = frozenset({"llama", "qwen2", "qwen3", "qwen3moe", "gpt-oss", "deepseek2"})
_LINEAR = frozenset({"llama", "qwen2", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi2"})
_WINDOWS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}  # windows that llama.cpp keeps: all layers but every n-th
_ACTIVATIONS: Mapping[str, tuple[str, frozenset[str]]] = {
    "starcoder": ("activation_function", frozenset({"gelu_pytorch_tanh", "gelu_new", "gelu_fast"})),
    "phi2": ("hidden_act", frozenset({"gelu_new", "gelu_pytorch_tanh"})),
    "gemma": ("hidden_activation", frozenset({"gelu_pytorch_tanh"})),
    "gemma2": ("hidden_activation", frozenset({"gelu_pytorch_tanh"})),
    "gemma3": ("hidden_activation", frozenset({"gelu_pytorch_tanh"})),
}
_GATED = ("hidden_act", frozenset({"silu", "swish"}))


@dataclass(frozen=True, slots=True)
class Available:
    """The engines of this installation. *architectures*: what an engine that was asked says it serves.

    *order*: which to take first where several serve a checkpoint.
    """

    names: frozenset[str] = frozenset({LLAMA_CPP})
    architectures: Mapping[str, frozenset[str]] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    def without(self, name: str) -> Available:
        return Available(self.names - {name}, self.architectures, self.order)

    def supporting(self, architecture: str) -> frozenset[str]:
        return frozenset(name for name in self.names if architecture in self.architectures.get(name, ()))


CPU_ONLY = Available()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineVerdict:
    """Whether *engine* serves the checkpoint. *reason*: why not, as a clause; empty when it does.

    *available*: it is part of this installation. *context_tokens*: the context that it serves exactly.
    """

    engine: str
    hardware: str
    serves: bool
    available: bool
    reason: str
    context_tokens: int


def verdicts(
    family: Family,
    config: Config,
    quantised: Quantisation | None,
    tokenizer_obstacle: str | None,
    available: Available,
) -> tuple[EngineVerdict, ...]:
    """One verdict per engine that is known or available, the one to take first in front (llama.cpp by default)."""
    found = []
    for engine in dict.fromkeys([*available.order, *HARDWARE, *sorted(available.names)]):
        reason = _obstacle(engine, family, config, quantised, tokenizer_obstacle, available)
        found.append(
            EngineVerdict(
                engine=engine,
                hardware=HARDWARE.get(engine, "as configured"),
                serves=reason is None,
                available=engine in available.names,
                reason=reason or "",
                context_tokens=exact_context(config) if engine == LLAMA_CPP else config["max_position_embeddings"],
            )
        )
    return tuple(found)


def _obstacle(
    engine: str,
    family: Family,
    config: Config,
    quantised: Quantisation | None,
    tokenizer_obstacle: str | None,
    available: Available,
) -> str | None:
    if engine == SIMULATED:
        return None
    said = available.architectures.get(engine)
    if said is None and engine == CUSTOM:
        return None  # its command is the operator's word
    if said is not None and family.architecture not in said:
        return f"{engine}, as installed, does not serve {family.architecture}"
    if said is None and engine not in family.engines:
        return f"{engine} does not serve {family.label}"
    if quantised is not None and engine not in (*quantised.engines, CUSTOM):
        return f"{engine} does not read {quantised.method} weights"
    if engine != LLAMA_CPP:
        return None
    return next(llama_cpp_obstacles(family, config), None) or tokenizer_obstacle


def exact_context(config: Config) -> int:
    """Tokens of context in which llama.cpp computes what the checkpoint means.

    It keeps the sliding windows of few architectures; of the others a context no longer than the window is exact.
    """
    own: int = config["max_position_embeddings"]
    window = closing_window(config)
    if window is None or config["model_type"] in ("gemma2", "gemma3_text", "gpt_oss"):
        return own
    return min(own, window)


def llama_cpp_obstacles(family: Family, config: Config) -> Iterator[str]:
    """What of *config* llama.cpp could not follow, each as a clause that names key and value."""
    gguf = family.gguf
    if gguf is None:
        yield f"the CPU engine does not serve {family.label}"
        return
    key, activations = _ACTIVATIONS.get(gguf, _GATED)
    if gguf != "gpt-oss" and (chosen := config.get(key)) is not None and chosen not in activations:
        yield f"{key} {chosen!r} is not supported by the CPU engine"
    yield from _rope_obstacles(gguf, config)
    yield from _bias_obstacles(gguf, config)
    yield from _window_obstacles(gguf, config)
    yield from _OWN.get(gguf, lambda config: iter(()))(config)
    if gguf != "deepseek2" and rotated_size(config) % 2:
        yield f"{rotated_size(config)} rotated values a head cannot be taken in pairs by the CPU engine"


def _rope_obstacles(gguf: str, config: Config) -> Iterator[str]:
    kind, family = rope_kind(config), config["model_type"]
    known = {
        "default": True,
        "dynamic": True,  # changes nothing below max_position_embeddings, which is what is served
        "llama3": gguf in _LLAMA3_ROPE,
        "linear": gguf in _LINEAR,
        "yarn": gguf in _YARN,
        "longrope": gguf == "phi3",
    }
    if not known.get(kind, False):
        yield f"rope type {kind!r} is not supported for {family} by the CPU engine"
    if kind == "yarn":
        yield from _yarn_obstacles(gguf, config)
    if rotated_size(config) != head_size(config) and gguf not in ("phi2", "phi3", "deepseek2"):
        share = rotated_size(config) / head_size(config)
        yield f"partial_rotary_factor {share:g} is not supported for {family} by the CPU engine"


def _yarn_obstacles(gguf: str, config: Config) -> Iterator[str]:
    """The engine multiplies what it rotates by 0.1 ln(factor) + 1, as transformers does unless told otherwise."""
    parameters, family = rope(config), config["model_type"]
    given = parameters.get("attention_factor")
    if given is not None and abs(given - (0.1 * math.log(parameters["factor"]) + 1)) > 1e-3:
        yield f"rope scaling with attention_factor {given!r} is not supported for {family} by the CPU engine"
    shares = (parameters.get("mscale"), parameters.get("mscale_all_dim"))
    if gguf == "deepseek2":
        if shares[0] != shares[1]:
            both = f"mscale {shares[0]!r} and mscale_all_dim {shares[1]!r}"
            yield f"rope scaling with {both} is not supported by the CPU engine"
    elif not set(shares) <= {None, 0, 1}:
        yield f"rope scaling with mscale {shares[0]!r} is not supported for {family} by the CPU engine"


def _bias_obstacles(gguf: str, config: Config) -> Iterator[str]:
    moe = config["model_type"] == "mixtral"
    if config.get("attention_bias") and (gguf not in ("llama", "gpt-oss") or moe or config["model_type"] == "mistral"):
        yield f"attention_bias {config['attention_bias']!r} is not supported by the CPU engine"
    if config.get("mlp_bias") and config["model_type"] != "llama":
        yield f"mlp_bias {config['mlp_bias']!r} is not supported by the CPU engine"


def _window_obstacles(gguf: str, config: Config) -> Iterator[str]:
    pattern = _WINDOWS.get(gguf)
    if pattern is None or closing_window(config) is None:
        return
    found = [window is not None for window in layer_windows(config)]
    if found != [(layer + 1) % pattern != 0 for layer in range(len(found))]:
        yield f"layer_types other than every {pattern}th layer with full attention are not supported by the CPU engine"


def _scale_obstacle(config: Config, large_layers: int) -> Iterator[str]:
    """llama.cpp fixes Gemma's attention scale by the number of layers, not by query_pre_attn_scalar."""
    heads = config["num_attention_heads"]
    wanted = config["hidden_size"] / heads if config["num_hidden_layers"] == large_layers else head_size(config)
    if config["query_pre_attn_scalar"] != wanted:
        yield (
            f"query_pre_attn_scalar {config['query_pre_attn_scalar']!r} is not supported by the CPU engine, which "
            f"takes {wanted:g}"
        )


def _gemma(config: Config) -> Iterator[str]:
    if not config["tie_word_embeddings"]:
        yield "tie_word_embeddings False is not supported by the CPU engine"


def _gemma2(config: Config) -> Iterator[str]:
    yield from _gemma(config)
    yield from _scale_obstacle(config, 46)


def _gemma3(config: Config) -> Iterator[str]:
    yield from _gemma(config)
    yield from _scale_obstacle(config, 62)
    if any(config.get(key) for key in ("attn_logit_softcapping", "final_logit_softcapping")):
        yield "logit softcapping is not supported for gemma3_text by the CPU engine"
    if config.get("use_bidirectional_attention"):
        yield "use_bidirectional_attention is not supported by the CPU engine"


def _qwen3_moe(config: Config) -> Iterator[str]:
    if not config.get("norm_topk_prob"):
        yield "norm_topk_prob False is not supported by the CPU engine"
    if dense := [n for n in range(config["num_hidden_layers"]) if not is_sparse_layer(config, n)]:
        yield f"layers without experts ({dense[0]} and others) are not supported for qwen3_moe by the CPU engine"


def _starcoder(config: Config) -> Iterator[str]:
    if config.get("scale_attn_weights") is False:
        yield "scale_attn_weights False is not supported by the CPU engine"
    if kv_head_count(config) not in (1, config["num_attention_heads"]):
        yield f"{kv_head_count(config)} key-value heads are not supported for gpt_bigcode by the CPU engine"


def _phi2(config: Config) -> Iterator[str]:
    if config.get("qk_layernorm"):
        yield "qk_layernorm True is not supported by the CPU engine"


def _phi3(config: Config) -> Iterator[str]:
    if rope_kind(config) == "longrope" and original_context(config) > config["max_position_embeddings"]:
        yield "original_max_position_embeddings above max_position_embeddings is not supported by the CPU engine"


def _deepseek(config: Config) -> Iterator[str]:
    if config.get("moe_layer_freq", 1) != 1:
        yield f"moe_layer_freq {config['moe_layer_freq']!r} is not supported by the CPU engine"
    method = config.get("topk_method")
    if config["model_type"] == "deepseek_v2" and method == "group_limited_greedy" and (config.get("n_group") or 1) > 1:
        yield "topk_method 'group_limited_greedy' is not supported for deepseek_v2 by the CPU engine"
    # The engine tells the variants without a query rank by their number of layers.
    layers, is_lite = config["num_hidden_layers"], not config.get("q_lora_rank")
    if is_lite != (layers in (26, 27)):
        yield f"q_lora_rank {config.get('q_lora_rank')!r} with {layers} layers is not supported by the CPU engine"
    if config.get("rope_interleave") is False:
        yield "rope_interleave False is not supported by the CPU engine"


_OWN: Mapping[str, Any] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "qwen3moe": _qwen3_moe,
    "starcoder": _starcoder,
    "phi2": _phi2,
    "phi3": _phi3,
    "deepseek2": _deepseek,
}
