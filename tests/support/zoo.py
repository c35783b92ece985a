"""Tiny variants of every family: what their configs say, and random weights for them, without torch.

``tests/parity/record.py`` writes what transformers computes for them to ``tests/exactness/recorded.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from outcrop.checkpoints.families import FAMILIES
from tests.support.checkpoints import TEMPLATE, VOCAB, tokenizer_json

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GPT2_SMALL = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 40, "num_hidden_layers": 4}
_DEEP_YARN = {
    "rope_type": "yarn",
    "factor": 40.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "rope_theta": 10000.0,
}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}

# name -> model_type, what differs from the small config
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, untied": ("llama", {}),
    "llama, multi-head, biases": ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "llama, tied, llama3 rope": ("llama", {"tie_word_embeddings": True, "rope_parameters": {**_LLAMA3, "rope_theta": 10000.0}}),
    "llama, linear rope, one KV head": ("llama", {"rope_parameters": _LINEAR, "num_key_value_heads": 1}),
    "llama, yarn rope, wide heads": ("llama", {"rope_parameters": _YARN, "head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", _MOE),
    "mixtral, 8 experts, 3 used": ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, untied, yarn rope": ("qwen2", {"rope_parameters": _YARN}),
    "qwen3, wide heads, tied": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "gpt_bigcode, multi-query": ("gpt_bigcode", {"multi_query": True}),
    "gpt_bigcode, multi-head": ("gpt_bigcode", {"multi_query": False}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2, closing windows": ("gemma2", _GEMMA),
    "gemma3, closing windows": ("gemma3_text", {**_GEMMA, "num_hidden_layers": 7}),
    "phi": ("phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3, longrope": ("phi3", {"sliding_window": None, "original_max_position_embeddings": 512, "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + n / 8 for n in range(8)], "long_factor": [2.0 + n for n in range(8)], "original_max_position_embeddings": 512}}),
    "gpt_oss, closing windows": ("gpt_oss", {"head_dim": 16, "sliding_window": 32, "num_hidden_layers": 4, **_MOE, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "qwen2, context of one window": ("qwen2", {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1}),
    "qwen3_moe, yarn rope": ("qwen3_moe", {"head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True, "rope_parameters": _YARN}),
    "gemma3, linear rope": ("gemma3_text", {**_GEMMA, "num_hidden_layers": 7, "rope_parameters": {"full_attention": {**_LINEAR, "rope_theta": 1000000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}),
    "phi3, partly rotated": ("phi3", {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "gpt_oss, yarn rope": ("gpt_oss", {"head_dim": 16, "sliding_window": 32, "num_hidden_layers": 4, **_MOE, "rope_parameters": {**_YARN, "truncate": True}}),
    "deepseek_v2, 27 layers, yarn rope": ("deepseek_v2", {**_DEEPSEEK, "q_lora_rank": None, "num_hidden_layers": 27, "rope_parameters": _DEEP_YARN}),
    "deepseek_v3, yarn rope": ("deepseek_v3", {**_DEEPSEEK, "q_lora_rank": 24, "n_group": 2, "topk_group": 1, "rope_parameters": _DEEP_YARN}),
    "deepseek_v2": ("deepseek_v2", {**_DEEPSEEK, "q_lora_rank": 24, "topk_method": "greedy", "routed_scaling_factor": 1.0}),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, "q_lora_rank": 24, "n_group": 2, "topk_group": 1}),
}  # fmt: skip


def config_values(name: str) -> dict[str, Any]:
    """What is given to the config class of *name*'s family."""
    model_type, changes = ZOO[name]
    return {**(GPT2_SMALL if model_type == "gpt_bigcode" else SMALL), **changes}


def write_weights(folder: Path, config: dict[str, Any], seed: int = 7, shards: int = 3) -> Path:
    """A checkpoint in *folder*: *config* as transformers writes it, random float32 weights, the test tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[config["model_type"]]
    assert family.tensors is not None
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in family.tensors(family.read(config)).items():
        is_norm = "norm" in name or ".ln_" in name
        centre = 1.0 if is_norm and name.endswith("weight") and "gemma" not in family.model_type else 0.0
        tensors[name] = random.normal(centre, 0.2 if is_norm else 0.15, shape).astype(np.float32)
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, shard))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_tokenizer(folder, family.model_type)
    return folder


def write_tokenizer(folder: Path, model_type: str) -> None:
    kind = "qwen2" if model_type.startswith(("qwen", "gpt_oss", "deepseek")) else "llama"
    (folder / "tokenizer.json").write_text(tokenizer_json(kind))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
