"""The families that can be imported: one row each. What a row says is checked against every checkpoint of it.

*engines* are the engines that can serve the family as a whole; ``engines.py`` says for one checkpoint whether they can
follow its config too. A row without ``gguf`` is imported, sized and kept, and served by the engines that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from outcrop.checkpoints import layouts
from outcrop.checkpoints.config import Config

Shape = layouts.Shape
GPU = frozenset({"vllm", "sglang"})
ALL = GPU | {"llama.cpp"}

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
_EXPERTS = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model_type. *gguf*: llama.cpp's architecture name; None where our converter does not write it.

    *tensors*: HF names and shapes for a config; None where the layout varies too much to be checked. *modality*: text
    or vision-language. *also*: ends of names of tensors that some checkpoints carry beside those and nobody reads.

    How its config is read: *names*: our key -> the family's own for the same fact. *defaults*: what transformers takes
    for a key that is left out. *derived*: keys that follow from others, whatever the config says of them. *explicit*:
    keys that may not be left out, since transformers then takes a default that is not the common one.
    """

    model_type: str
    architecture: str
    label: str
    tensors: Callable[[Config], Mapping[str, Shape]] | None
    gguf: str | None = None
    engines: frozenset[str] = ALL
    modality: str = "text"
    names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, int] = field(default_factory=dict)
    derived: Callable[[Config], Mapping[str, Any]] | None = None
    explicit: tuple[str, ...] = ()
    also: tuple[str, ...] = ("rotary_emb.inv_freq",)
    other_architectures: tuple[str, ...] = ()
    aws: bool = True

    @property
    def architectures(self) -> tuple[str, ...]:
        return (self.architecture, *self.other_architectures)

    @property
    def permutes(self) -> bool:
        """Whether llama.cpp rotates neighbouring values where Hugging Face rotates halves."""
        return self.gguf == "llama"

    def read(self, raw: Config) -> dict[str, Any]:
        """*raw* in our spelling: nested text config opened, keys renamed, defaults filled in."""
        nested = raw.get("text_config")
        config = {**raw, **nested} if isinstance(nested, dict) else dict(raw)
        config["model_type"] = self.model_type
        for ours, theirs in self.names.items():
            if theirs in config:
                config[ours] = config[theirs]
        for key, value in {"tie_word_embeddings": False, **self.defaults}.items():
            if config.get(key) is None:
                config[key] = value(config) if callable(value) else value
        if self.derived is not None:
            config.update(self.derived(config))
        return config


def _bigcode_inner(config: Config) -> Any:
    hidden = config.get("hidden_size")
    return 4 * hidden if isinstance(hidden, int) else None


_GEMMA: Mapping[str, Any] = {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"}
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}
_T5_NAMES = {
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
    "max_position_embeddings": "n_positions",
}
_LATENT: Mapping[str, int] = {
    "kv_lora_rank": 1 << 20,
    "qk_nope_head_dim": 1 << 12,
    "qk_rope_head_dim": 1 << 12,
    "v_head_dim": 1 << 12,
    "moe_intermediate_size": 1 << 22,
    "n_routed_experts": _EXPERTS,
    "num_experts_per_tok": _EXPERTS,
}

_ROWS = (
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        label="Llama 2, 3, 3.1, 3.2, 3.3",
        gguf="llama",
        tensors=layouts.llama,
    ),
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        label="Mistral",
        gguf="llama",
        tensors=layouts.decoder,
        explicit=("num_key_value_heads", "sliding_window"),
    ),
    Family(
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        label="Mixtral",
        gguf="llama",
        tensors=layouts.mixtral,
        required={"num_local_experts": _EXPERTS, "num_experts_per_tok": _EXPERTS},
        explicit=("num_key_value_heads",),
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        label="Qwen2, Qwen2.5",
        gguf="qwen2",
        tensors=layouts.qwen2,
        explicit=("num_key_value_heads",),
        defaults={"use_sliding_window": False},
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        label="Qwen3",
        gguf="qwen3",
        tensors=layouts.qwen3,
        explicit=("num_key_value_heads", "head_dim"),
        defaults={"use_sliding_window": False},
    ),
    Family(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        label="Qwen3-MoE",
        names={"num_experts": "num_local_experts"},
        gguf="qwen3moe",
        tensors=layouts.qwen3_moe,
        required={
            "num_experts": _EXPERTS,
            "num_experts_per_tok": _EXPERTS,
            "moe_intermediate_size": 1 << 22,
        },
        explicit=("num_key_value_heads", "head_dim"),
        defaults={"use_sliding_window": False, "norm_topk_prob": False},
    ),
    Family(
        model_type="gpt_bigcode",
        architecture="GPTBigCodeForCausalLM",
        label="GPTBigCode (StarCoder 1, SantaCoder)",
        gguf="starcoder",
        tensors=layouts.gpt_bigcode,
        engines=frozenset({"llama.cpp", "vllm"}),
        names=_GPT2_NAMES,
        defaults={
            "tie_word_embeddings": True,
            "multi_query": True,
            "intermediate_size": _bigcode_inner,
            "activation_function": "gelu_pytorch_tanh",
            "layer_norm_epsilon": 1e-5,
        },
        derived=lambda config: {
            "num_key_value_heads": 1 if config["multi_query"] else config.get("num_attention_heads")
        },
        also=("attn.bias", "attn.masked_bias"),
    ),
    Family(
        model_type="t5",
        architecture="T5ForConditionalGeneration",
        label="T5, Flan-T5 (encoder and decoder)",
        tensors=layouts.t5,
        engines=frozenset({"tensorrt-llm"}),
        names=_T5_NAMES,
        defaults={
            "tie_word_embeddings": True,
            "max_position_embeddings": 512,
            "num_decoder_layers": lambda config: config.get("num_hidden_layers"),
        },
        required={"num_heads": 1 << 12, "d_kv": 1 << 12},
        also=("embed_tokens.weight", "EncDecAttention.relative_attention_bias.weight"),
    ),
    Family(
        model_type="gpt_oss",
        architecture="GptOssForCausalLM",
        label="GPT-OSS",
        gguf="gpt-oss",
        tensors=layouts.gpt_oss,
        required={"num_local_experts": _EXPERTS, "num_experts_per_tok": _EXPERTS},
        names={"num_experts_per_tok": "experts_per_token"},
        explicit=("num_key_value_heads", "head_dim", "sliding_window"),
        defaults={"rms_norm_eps": 1e-5},
    ),
    Family(
        model_type="qwen2_vl",
        architecture="Qwen2VLForConditionalGeneration",
        label="Qwen2-VL",
        tensors=None,
        engines=GPU,
        modality="vision-language",
        defaults={"use_sliding_window": False},
    ),
    Family(
        model_type="qwen2_5_vl",
        architecture="Qwen2_5_VLForConditionalGeneration",
        label="Qwen2.5-VL",
        tensors=None,
        engines=GPU,
        modality="vision-language",
        defaults={"use_sliding_window": False},
    ),
    Family(
        model_type="mllama",
        architecture="MllamaForConditionalGeneration",
        label="Mllama (Llama 3.2 Vision)",
        tensors=None,
        engines=GPU,
        modality="vision-language",
    ),
    Family(
        model_type="gemma",
        architecture="GemmaForCausalLM",
        label="Gemma 1",
        gguf="gemma",
        tensors=layouts.decoder,
        explicit=("head_dim",),
        defaults=_GEMMA,
        aws=False,
    ),
    Family(
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        label="Gemma 2",
        gguf="gemma2",
        tensors=layouts.gemma2,
        explicit=("head_dim", "sliding_window", "query_pre_attn_scalar"),
        defaults={**_GEMMA, "sliding_window_pattern": 2},
        aws=False,
    ),
    Family(
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        label="Gemma 3 (text)",
        gguf="gemma3",
        tensors=layouts.gemma3,
        explicit=("head_dim", "sliding_window", "query_pre_attn_scalar"),
        defaults={**_GEMMA, "sliding_window_pattern": 6, "rope_theta": 1_000_000.0},
        aws=False,
    ),
    Family(
        model_type="phi",
        architecture="PhiForCausalLM",
        label="Phi-1, 1.5, 2",
        gguf="phi2",
        tensors=layouts.phi,
        defaults={"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
        aws=False,
    ),
    Family(
        model_type="phi3",
        architecture="Phi3ForCausalLM",
        label="Phi-3, Phi-3.5, Phi-4 (text)",
        gguf="phi3",
        tensors=layouts.phi3,
        aws=False,
    ),
    Family(
        model_type="deepseek_v2",
        architecture="DeepseekV2ForCausalLM",
        label="DeepSeek-V2",
        gguf="deepseek2",
        tensors=layouts.deepseek,
        required=_LATENT,
        defaults={"routed_scaling_factor": 1.0, "norm_topk_prob": False, "topk_method": "greedy"},
        aws=False,
    ),
    Family(
        model_type="deepseek_v3",
        architecture="DeepseekV3ForCausalLM",
        label="DeepSeek-V3, R1",
        gguf="deepseek2",
        tensors=layouts.deepseek,
        required=_LATENT,
        defaults={"routed_scaling_factor": 2.5, "norm_topk_prob": True, "n_group": 8, "topk_group": 4},
        aws=False,
    ),
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _ROWS}


def unlisted(model_type: str, architecture: str, engines: frozenset[str]) -> Family:
    """A row for what the table does not cover but *engines* said they serve: sized from its headers alone."""
    return Family(
        model_type=model_type, architecture=architecture, label=architecture, tensors=None, engines=engines, aws=False
    )
