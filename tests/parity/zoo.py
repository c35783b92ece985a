"""The tiny variants of every family, written by transformers' own classes."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.support.zoo import ZOO, config_values, write_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM


def make(folder: Path, name: str, seed: int = 7) -> Path:
    """Write the checkpoint *name* of the zoo, float32, with the tokenizer and template of the test checkpoints."""
    model_type = ZOO[name][0]
    config = AutoConfig.for_model(model_type, **config_values(name))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            is_norm = "norm" in key or ".ln_" in key
            centre = 1.0 if is_norm and key.endswith("weight") and "gemma" not in model_type else 0.0
            value.normal_(centre, 0.2 if is_norm else 0.15)
        for key, value in model.named_buffers():
            if "e_score_correction_bias" in key:
                value.normal_(0, 0.1)
    model.save_pretrained(folder, max_shard_size="200KB")
    write_tokenizer(folder, model_type)
    return folder
