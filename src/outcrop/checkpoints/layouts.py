"""Which tensors a checkpoint of a family holds, by Hugging Face name and shape, from its config alone.

Sources: the module classes of transformers (modeling_*.py of each family), read as of version 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from outcrop.checkpoints.config import Config, head_size, kv_head_count

Shape = tuple[int, ...]
_BOTH_NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*_BOTH_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def decoder(
    config: Config,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    norms: tuple[str, ...] = _BOTH_NORMS,
) -> Mapping[str, Shape]:
    """Llama's layout, which most families vary: Mistral, Qwen2, Qwen3, Gemma."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = _ends(config)
    for at in _layers(config):
        shapes.update({f"{at}{norm}.weight": (hidden,) for norm in norms})
        shapes.update(_attention(config, at, qkv_bias=qkv_bias, o_bias=o_bias))
        if qk_norm:
            shapes[at + "self_attn.q_norm.weight"] = shapes[at + "self_attn.k_norm.weight"] = (head_size(config),)
        shapes.update(_gated(at + "mlp.", hidden, inner, bias=mlp_bias))
    return shapes


def llama(config: Config) -> Mapping[str, Shape]:
    biased = bool(config.get("attention_bias"))
    return decoder(config, qkv_bias=biased, o_bias=biased, mlp_bias=bool(config.get("mlp_bias")))


def qwen2(config: Config) -> Mapping[str, Shape]:
    return decoder(config, qkv_bias=True)


def qwen3(config: Config) -> Mapping[str, Shape]:
    biased = bool(config.get("attention_bias"))
    return decoder(config, qk_norm=True, qkv_bias=biased, o_bias=biased)


def gemma2(config: Config) -> Mapping[str, Shape]:
    return decoder(config, norms=FOUR_NORMS)


def gemma3(config: Config) -> Mapping[str, Shape]:
    return decoder(config, norms=FOUR_NORMS, qk_norm=True)


def mixtral(config: Config) -> Mapping[str, Shape]:
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    shapes = _ends(config)
    for at in _layers(config):
        shapes.update({f"{at}{norm}.weight": (hidden,) for norm in _BOTH_NORMS})
        shapes.update(_attention(config, at))
        at += "block_sparse_moe."
        shapes[at + "gate.weight"] = (experts, hidden)
        for expert in range(experts):
            shapes[f"{at}experts.{expert}.w1.weight"] = (inner, hidden)
            shapes[f"{at}experts.{expert}.w2.weight"] = (hidden, inner)
            shapes[f"{at}experts.{expert}.w3.weight"] = (inner, hidden)
    return shapes


def qwen3_moe(config: Config) -> Mapping[str, Shape]:
    hidden = config["hidden_size"]
    shapes = _ends(config)
    biased = bool(config.get("attention_bias"))
    for layer, at in enumerate(_layers(config)):
        shapes.update({f"{at}{norm}.weight": (hidden,) for norm in _BOTH_NORMS})
        shapes.update(_attention(config, at, qkv_bias=biased, o_bias=biased))
        shapes[at + "self_attn.q_norm.weight"] = shapes[at + "self_attn.k_norm.weight"] = (head_size(config),)
        if is_sparse_layer(config, layer):
            shapes.update(_experts(at + "mlp.", hidden, config["moe_intermediate_size"], config["num_experts"]))
        else:
            shapes.update(_gated(at + "mlp.", hidden, config["intermediate_size"]))
    return shapes


def is_sparse_layer(config: Config, layer: int) -> bool:
    """Whether *layer* of a Qwen mixture-of-experts model has experts."""
    step = config.get("decoder_sparse_step") or 1
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % step == 0


def gpt_bigcode(config: Config) -> Mapping[str, Shape]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    qkv = hidden + 2 * kv_head_count(config) * head_size(config)
    shapes: dict[str, Shape] = {
        "transformer.wte.weight": (config["vocab_size"], hidden),
        "transformer.wpe.weight": (config["max_position_embeddings"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            shapes[f"{at}{norm}.weight"] = shapes[f"{at}{norm}.bias"] = (hidden,)
        for name, rows, columns in (
            ("attn.c_attn", qkv, hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", inner, hidden),
            ("mlp.c_proj", hidden, inner),
        ):
            shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = (rows, columns), (rows,)
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def phi(config: Config) -> Mapping[str, Shape]:
    """Phi-1, 1.5 and 2: attention and MLP in parallel, biases everywhere."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head, heads, kv_heads = head_size(config), config["num_attention_heads"], kv_head_count(config)
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden)}
    for at in _layers(config):
        shapes[at + "input_layernorm.weight"] = shapes[at + "input_layernorm.bias"] = (hidden,)
        for name, rows, columns in (
            ("self_attn.q_proj", heads * head, hidden),
            ("self_attn.k_proj", kv_heads * head, hidden),
            ("self_attn.v_proj", kv_heads * head, hidden),
            ("self_attn.dense", hidden, heads * head),
            ("mlp.fc1", inner, hidden),
            ("mlp.fc2", hidden, inner),
        ):
            shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = (rows, columns), (rows,)
    shapes["model.final_layernorm.weight"] = shapes["model.final_layernorm.bias"] = (hidden,)
    shapes["lm_head.weight"], shapes["lm_head.bias"] = (vocab, hidden), (vocab,)
    return shapes


def phi3(config: Config) -> Mapping[str, Shape]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head, heads = head_size(config), config["num_attention_heads"]
    shapes = _ends(config)
    for at in _layers(config):
        shapes.update({f"{at}{norm}.weight": (hidden,) for norm in _BOTH_NORMS})
        shapes[at + "self_attn.qkv_proj.weight"] = ((heads + 2 * kv_head_count(config)) * head, hidden)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, heads * head)
        shapes[at + "mlp.gate_up_proj.weight"] = (2 * inner, hidden)
        shapes[at + "mlp.down_proj.weight"] = (hidden, inner)
    return shapes


def gpt_oss(config: Config) -> Mapping[str, Shape]:
    """GPT-OSS in bfloat16 or float32; the MXFP4 release holds ``*_blocks`` and ``*_scales`` for the experts."""
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    shapes = _ends(config)
    for at in _layers(config):
        shapes.update({f"{at}{norm}.weight": (hidden,) for norm in _BOTH_NORMS})
        biased = bool(config.get("attention_bias", True))
        shapes.update(_attention(config, at, qkv_bias=biased, o_bias=biased))
        shapes[at + "self_attn.sinks"] = (config["num_attention_heads"],)
        shapes[at + "mlp.router.weight"], shapes[at + "mlp.router.bias"] = (experts, hidden), (experts,)
        at += "mlp.experts."
        if config.get("quantization_config"):
            shapes[at + "gate_up_proj_blocks"] = (experts, 2 * inner, hidden // 32, 16)
            shapes[at + "gate_up_proj_scales"] = (experts, 2 * inner, hidden // 32)
            shapes[at + "down_proj_blocks"] = (experts, hidden, inner // 32, 16)
            shapes[at + "down_proj_scales"] = (experts, hidden, inner // 32)
        else:
            shapes[at + "gate_up_proj"] = (experts, hidden, 2 * inner)
            shapes[at + "down_proj"] = (experts, inner, hidden)
        shapes[at + "gate_up_proj_bias"], shapes[at + "down_proj_bias"] = (experts, 2 * inner), (experts, hidden)
    return shapes


def deepseek(config: Config) -> Mapping[str, Shape]:
    """DeepSeek-V2 and V3: latent attention, a few dense layers, then shared and routed experts."""
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rotated, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    shapes = _ends(config)
    for layer, at in enumerate(_layers(config)):
        shapes.update({f"{at}{norm}.weight": (hidden,) for norm in _BOTH_NORMS})
        if q_rank := config.get("q_lora_rank"):
            shapes[at + "self_attn.q_a_proj.weight"] = (q_rank, hidden)
            shapes[at + "self_attn.q_a_layernorm.weight"] = (q_rank,)
            shapes[at + "self_attn.q_b_proj.weight"] = (heads * (nope + rotated), q_rank)
        else:
            shapes[at + "self_attn.q_proj.weight"] = (heads * (nope + rotated), hidden)
        shapes[at + "self_attn.kv_a_proj_with_mqa.weight"] = (rank + rotated, hidden)
        shapes[at + "self_attn.kv_a_layernorm.weight"] = (rank,)
        shapes[at + "self_attn.kv_b_proj.weight"] = (heads * (nope + value), rank)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, heads * value)
        if layer < (config.get("first_k_dense_replace") or 0):
            shapes.update(_gated(at + "mlp.", hidden, config["intermediate_size"]))
            continue
        inner, routed = config["moe_intermediate_size"], config["n_routed_experts"]
        shapes.update(_experts(at + "mlp.", hidden, inner, routed))
        if config["model_type"] == "deepseek_v3":
            shapes[at + "mlp.gate.e_score_correction_bias"] = (routed,)
        if shared := config.get("n_shared_experts"):
            shapes.update(_gated(at + "mlp.shared_experts.", hidden, shared * inner))
    return shapes


def t5(config: Config) -> Mapping[str, Shape]:
    """T5 and Flan-T5: encoder and decoder; the gated variant (1.1, Flan) has two input matrices."""
    hidden, inner, attended = config["hidden_size"], config["intermediate_size"], config["num_heads"] * config["d_kv"]
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    shapes: dict[str, Shape] = {"shared.weight": (config["vocab_size"], hidden)}
    layers = {"encoder": config["num_hidden_layers"], "decoder": config["num_decoder_layers"]}
    for stack, count in layers.items():
        shapes[f"{stack}.final_layer_norm.weight"] = (hidden,)
        kinds = ("SelfAttention",) if stack == "encoder" else ("SelfAttention", "EncDecAttention")
        for block in range(count):
            at = f"{stack}.block.{block}.layer."
            for place, kind in enumerate(kinds):
                shapes.update({f"{at}{place}.{kind}.{name}.weight": (attended, hidden) for name in "qkv"})
                shapes[f"{at}{place}.{kind}.o.weight"] = (hidden, attended)
                shapes[f"{at}{place}.layer_norm.weight"] = (hidden,)
            last = len(kinds)
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                shapes[f"{at}{last}.DenseReluDense.{name}.weight"] = (inner, hidden)
            shapes[f"{at}{last}.DenseReluDense.wo.weight"] = (hidden, inner)
            shapes[f"{at}{last}.layer_norm.weight"] = (hidden,)
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[first] = (config.get("relative_attention_num_buckets", 32), config["num_heads"])
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _layers(config: Config) -> Iterator[str]:
    return (f"model.layers.{layer}." for layer in range(config["num_hidden_layers"]))


def _ends(config: Config) -> dict[str, Shape]:
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _attention(config: Config, at: str, *, qkv_bias: bool = False, o_bias: bool = False) -> dict[str, Shape]:
    hidden, head = config["hidden_size"], head_size(config)
    heads, kv_heads = config["num_attention_heads"], kv_head_count(config)
    shapes: dict[str, Shape] = {}
    for name, rows in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
        shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, hidden)
        if qkv_bias:
            shapes[f"{at}self_attn.{name}_proj.bias"] = (rows,)
    shapes[at + "self_attn.o_proj.weight"] = (hidden, heads * head)
    if o_bias:
        shapes[at + "self_attn.o_proj.bias"] = (hidden,)
    return shapes


def _gated(at: str, hidden: int, inner: int, *, bias: bool = False) -> dict[str, Shape]:
    shapes: dict[str, Any] = {}
    for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
        shapes[f"{at}{name}_proj.weight"] = (rows, columns)
        if bias:
            shapes[f"{at}{name}_proj.bias"] = (rows,)
    return shapes


def _experts(at: str, hidden: int, inner: int, experts: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {at + "gate.weight": (experts, hidden)}
    for expert in range(experts):
        shapes.update(_gated(f"{at}experts.{expert}.", hidden, inner))
    return shapes
