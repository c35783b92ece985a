"""A Llama of about 100 million random parameters, made on the spot: as slow per token as a small real model.

Its tokenizer and chat template are the sample's, so that the same prompts cost the same tokens.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 768, 2048, 16, 12, 4
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_DTYPE = np.dtype("<f4")


def write(folder: Path, sample: Path, *, layers: int = LAYERS) -> int:
    """Write the checkpoint to *folder*, which must not exist; its number of parameters."""
    folder.mkdir(parents=True)
    of_sample = json.loads((sample / "config.json").read_text())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": of_sample["vocab_size"],
        "max_position_embeddings": of_sample["max_position_embeddings"],
        "eos_token_id": of_sample["eos_token_id"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in _TOKENIZER_FILES:
        shutil.copy(sample / name, folder / name)
    shapes = _shapes(config["vocab_size"], layers)
    _write_safetensors(folder / "model.safetensors", shapes)
    return sum(int(np.prod(shape)) for shape in shapes.values())


def _shapes(vocabulary: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Transformers' names and shapes of a Llama."""
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (kv, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (kv, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}


def _write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """One file: header length u64, header, tensors back to back; written tensor by tensor."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + int(np.prod(shape)) * _DTYPE.itemsize
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = np.ones(shape) if "norm" in name else random.standard_normal(shape, dtype=np.float32) * 0.02
            file.write(values.astype(_DTYPE).tobytes())
