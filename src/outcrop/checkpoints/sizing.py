"""What a copy takes, from the config alone: bytes of keys and values per token of context and for a full one."""

from __future__ import annotations

from outcrop.checkpoints.config import Config, head_size, kv_head_count, layer_windows

KV_ITEM_BYTES = 2  # float16 or bfloat16


def kv_bytes_per_token(config: Config) -> int:
    """Bytes that one more token takes while no sliding window has closed."""
    return sum(_layer_bytes(config, layer) for layer in range(config["num_hidden_layers"]))


def kv_bytes_of(config: Config, context_tokens: int) -> int:
    """Bytes that *context_tokens* take; a layer with a window keeps no more than the window."""
    return sum(
        _layer_bytes(config, layer) * (context_tokens if window is None else min(window, context_tokens))
        for layer, window in enumerate(layer_windows(config))
    )


def _layer_bytes(config: Config, layer: int) -> int:
    if latent := config.get("kv_lora_rank"):  # DeepSeek keeps the latent vector and one rotated key for all heads
        return int(latent + config["qk_rope_head_dim"]) * KV_ITEM_BYTES
    own = 2 * kv_head_count(config) * head_size(config) * KV_ITEM_BYTES
    if layer in (config.get("cross_attention_layers") or ()):
        return 0  # Mllama: these layers look at the image, not at the text before
    return own
