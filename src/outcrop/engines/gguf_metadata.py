"""What the artefact says of the model beside its tensors: sizes, rotary scaling, experts, windows."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np

from outcrop.checkpoints.config import closing_window, head_size, kv_head_count
from outcrop.checkpoints.inspect import Checkpoint
from outcrop.checkpoints.rope import local_rope_theta, original_context, rope, rope_kind, rotated_size
from outcrop.engines.gguf_arrays import Array

_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}


def describe(writer: Any, checkpoint: Checkpoint, kind: str) -> None:
    """Write every key that llama.cpp asks for of this architecture."""
    config, architecture = checkpoint.config, checkpoint.family.gguf
    head = head_size(config)
    writer.add_name("imported")
    writer.add_context_length(checkpoint.context_tokens)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(_FILE_TYPES[kind])
    if architecture == "deepseek2":
        _describe_latent(writer, config)
    else:
        writer.add_head_count_kv(kv_head_count(config))
        writer.add_key_length(head)
        writer.add_value_length(head)
    if architecture == "starcoder":
        writer.add_layer_norm_eps(float(config["layer_norm_epsilon"]))
        return
    if architecture == "phi2":
        writer.add_layer_norm_eps(float(config["layer_norm_eps"]))
    else:
        writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    if architecture != "deepseek2":
        writer.add_rope_dimension_count(rotated_size(config))
    writer.add_rope_freq_base(float(rope(config)["rope_theta"]))
    _describe_scaling(writer, checkpoint)
    _describe_experts(writer, config)
    _describe_attention(writer, checkpoint)


def _describe_scaling(writer: Any, checkpoint: Checkpoint) -> None:
    config, parameters = checkpoint.config, rope(checkpoint.config)
    kind = rope_kind(config)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(parameters["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(parameters["factor"]))
        writer.add_rope_scaling_orig_ctx_len(original_context(config))
        writer.add_rope_scaling_yarn_beta_fast(float(parameters.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(parameters.get("beta_slow") or 1))
        if checkpoint.family.gguf == "deepseek2" and (share := parameters.get("mscale_all_dim")):
            writer.add_rope_scaling_yarn_log_mul(0.1 * float(share))
    elif kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original_context(config))
        writer.add_rope_scaling_attn_factors(longrope_attention_factor(checkpoint))


def longrope_attention_factor(checkpoint: Checkpoint) -> float:
    """By what the rotated values are multiplied (transformers: _compute_longrope_parameters)."""
    parameters, config = rope(checkpoint.config), checkpoint.config
    if given := parameters.get("attention_factor"):
        return float(given)
    factor = parameters.get("factor") or config["max_position_embeddings"] / original_context(config)
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_context(config)))


def _describe_experts(writer: Any, config: Any) -> None:
    experts = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts")
    if not experts:
        return
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if inner := config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(inner)
    elif config["model_type"] == "gpt_oss":
        writer.add_expert_feed_forward_length(config["intermediate_size"])


def _describe_attention(writer: Any, checkpoint: Checkpoint) -> None:
    config, architecture = checkpoint.config, checkpoint.family.gguf
    if architecture in ("gemma2", "gemma3", "gpt-oss"):
        # Without a window that closes, one as long as the context says the same.
        window = config.get("sliding_window")
        is_closing = closing_window(config) is not None
        writer.add_sliding_window(window if is_closing else config["max_position_embeddings"])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(float(config.get("attn_logit_softcapping") or 0))
        writer.add_final_logit_softcapping(float(config.get("final_logit_softcapping") or 0))
    if architecture == "gemma3":
        writer.add_float32(gguf.Keys.Rope.FREQ_BASE_SWA.format(arch=architecture), local_rope_theta(config))


def _describe_latent(writer: Any, config: Any) -> None:
    """DeepSeek's attention as the engine runs it: one key-value head of the latent size."""
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_head_count_kv(1)
    writer.add_key_length(rank + rotated)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotated)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_kv_lora_rank(rank)
    if q_rank := config.get("q_lora_rank"):
        writer.add_q_lora_rank(q_rank)
    writer.add_rope_dimension_count(rotated)
    writer.add_leading_dense_block_count(config.get("first_k_dense_replace") or 0)
    writer.add_expert_shared_count(config.get("n_shared_experts") or 0)
    writer.add_expert_weights_scale(float(config["routed_scaling_factor"]))
    is_v3 = config["model_type"] == "deepseek_v3"
    writer.add_expert_weights_norm(bool(config["norm_topk_prob"]) and is_v3)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if is_v3 else gguf.ExpertGatingFuncType.SOFTMAX)
    if is_v3 and (config.get("n_group") or 1) > 1:
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])


def extra_tensors(checkpoint: Checkpoint) -> dict[str, Array]:
    """Small tensors that the checkpoint does not hold but its config implies."""
    kind = rope_kind(checkpoint.config)
    if kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(checkpoint)}
    if kind == "longrope":
        parameters = rope(checkpoint.config)
        return {
            f"rope_factors_{length}.weight": np.array(parameters[f"{length}_factor"], dtype=np.float32)
            for length in ("long", "short")
        }
    return {}


def llama3_factors(checkpoint: Checkpoint) -> Array:
    """Llama 3's frequency correction, one factor per pair of dimensions (transformers: modeling_rope_utils)."""
    parameters = rope(checkpoint.config)
    head = head_size(checkpoint.config)
    original = parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    factors = []
    for exponent in range(0, head, 2):
        wavelength = 2 * math.pi * parameters["rope_theta"] ** (exponent / head)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / parameters["factor"] + smooth))
    return np.array(factors, dtype=np.float32)
