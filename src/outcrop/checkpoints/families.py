"""The families that can be imported: one row each, with the tensors a config must come with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model_type. *gguf*: llama.cpp's architecture name; *permute_qk*: its rotary layout differs.

    *llama3_rope*: the engine applies Llama 3's frequency correction to this architecture. *explicit*: keys that may
    not be left out, since transformers then takes a default that is not the common one.
    """

    model_type: str
    architecture: str
    gguf: str
    permute_qk: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    llama3_rope: bool = False
    explicit: tuple[str, ...] = ()
    engines: frozenset[str] = frozenset({"llama.cpp"})

    def tensors(self, config: Mapping[str, Any]) -> Mapping[str, Shape]:
        """Every tensor that a checkpoint with *config* holds, by HF name; ``lm_head.weight`` unless tied."""
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        heads = config["num_attention_heads"]
        kv_heads, head = kv_head_count(config), head_size(config)
        shapes: dict[str, Shape] = {
            "model.embed_tokens.weight": (config["vocab_size"], hidden),
            "model.norm.weight": (hidden,),
        }
        if not config.get("tie_word_embeddings", False):
            shapes["lm_head.weight"] = (config["vocab_size"], hidden)
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            shapes[at + "input_layernorm.weight"] = (hidden,)
            shapes[at + "post_attention_layernorm.weight"] = (hidden,)
            for name, rows in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
                shapes[at + f"self_attn.{name}_proj.weight"] = (rows, hidden)
                if self.qkv_bias:
                    shapes[at + f"self_attn.{name}_proj.bias"] = (rows,)
            shapes[at + "self_attn.o_proj.weight"] = (hidden, heads * head)
            if self.qk_norm:
                shapes[at + "self_attn.q_norm.weight"] = (head,)
                shapes[at + "self_attn.k_norm.weight"] = (head,)
            shapes[at + "mlp.gate_proj.weight"] = (inner, hidden)
            shapes[at + "mlp.up_proj.weight"] = (inner, hidden)
            shapes[at + "mlp.down_proj.weight"] = (hidden, inner)
        return shapes


# Largest value that is believed: above it a config is damaged, and checking it would take for ever.
REQUIRED_KEYS: Mapping[str, int] = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_attention_heads": 1 << 12,
    "num_hidden_layers": 1 << 10,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 26,
}
OPTIONAL_KEYS: Mapping[str, int] = {"num_key_value_heads": 1 << 12, "head_dim": 1 << 12}

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        # Llama 2, 3, 3.x
        Family(model_type="llama", architecture="LlamaForCausalLM", gguf="llama", permute_qk=True, llama3_rope=True),
        Family(
            model_type="mistral",
            architecture="MistralForCausalLM",
            gguf="llama",
            permute_qk=True,
            explicit=("num_key_value_heads", "sliding_window"),
        ),
        # Qwen2 and Qwen2.5
        Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            gguf="qwen2",
            qkv_bias=True,
            explicit=("num_key_value_heads",),
        ),
        Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            gguf="qwen3",
            qk_norm=True,
            explicit=("num_key_value_heads", "head_dim"),
        ),
    )
}

# Keys whose value changes the arithmetic in a way that the engine's artefact cannot say.
REFUSED_VALUES: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "attention_bias": lambda config: bool(config["attention_bias"]),
    "mlp_bias": lambda config: bool(config["mlp_bias"]),
    "hidden_act": lambda config: config["hidden_act"] not in ("silu", "swish"),
    "partial_rotary_factor": lambda config: config["partial_rotary_factor"] not in (None, 1),
    "layer_types": lambda config: bool(set(map(str, config["layer_types"] or ())) - {"full_attention"}),
    "use_sliding_window": lambda config: bool(config["use_sliding_window"]),
    # A window that never closes is none; only Mistral has one without use_sliding_window.
    "sliding_window": lambda config: (
        config["model_type"] == "mistral"
        and isinstance(config["sliding_window"], int)
        and config["sliding_window"] < config["max_position_embeddings"]
    ),
}

_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def rope_problem(family: Family, config: Mapping[str, Any]) -> str | None:
    """What of the rotary parameters the engine could not follow, as a clause; None when it can."""
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key), dict | None):
            return f"{key} is {config[key]!r}, an object is needed"
    parameters = rope(config)
    if not _is_positive(parameters["rope_theta"]):
        return f"rope_theta is {parameters['rope_theta']!r}, a positive number is needed"
    if parameters.get("partial_rotary_factor", 1) != 1:
        return f"partial_rotary_factor {parameters['partial_rotary_factor']!r} is not supported by the CPU engine"
    kind = rope_kind(config)
    if kind == "default":
        return None
    if kind != "llama3" or not family.llama3_rope:
        return f"rope type {kind!r} is not supported for {family.model_type} by the CPU engine"
    if broken := [key for key in _LLAMA3_KEYS if not _is_positive(parameters.get(key))]:
        return f"rope type llama3 needs a positive {', '.join(broken)}"
    if parameters["low_freq_factor"] >= parameters["high_freq_factor"]:
        return "rope type llama3 needs a low_freq_factor below high_freq_factor"
    return None


def rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary parameters wherever the transformers version that wrote the config has put them."""
    return {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }


def rope_kind(config: Mapping[str, Any]) -> str:
    parameters = rope(config)
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def kv_head_count(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
