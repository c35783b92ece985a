"""The CPU engine computes what transformers computes, from the artefact that the converter made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.parity.engine import convert, serving
from tests.support.checkpoints import VOCAB, make_checkpoint
from transformers import AutoModelForCausalLM

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2, tied": ("qwen2", {}),
    "qwen2, untied, large rope base": ("qwen2", {"tie_word_embeddings": False, "rope_theta": 1000000.0}),
    "llama, untied": ("llama", {}),
    "llama, tied, llama3 rope": ("llama", {"tie_word_embeddings": True, "rope_scaling": LLAMA3_ROPE}),
    "llama, head_dim apart from hidden_size": ("llama", {"head_dim": 32, "num_key_value_heads": 1}),
    "mistral": ("mistral", {}),
    "qwen3, head_dim apart from hidden_size": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
}
PROMPTS = 2
POSITIONS = 96


@pytest.mark.parametrize("name", MODELS)
def test_every_position_has_the_log_probabilities_of_transformers(
    name: str, tmp_path: Path, record_property: Any
) -> None:
    family, config = MODELS[name]
    folder = make_checkpoint(tmp_path / "model", family, seed=7, layers=3, **config)
    convert(folder, tmp_path / "model.gguf")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = np.random.default_rng(11).integers(3, VOCAB - 12, (PROMPTS, POSITIONS))
    with torch.no_grad():
        wanted = torch.log_softmax(reference(torch.from_numpy(prompts)).logits, dim=-1).numpy()

    largest, agreed = 0.0, 0
    with serving(tmp_path / "model.gguf", 512) as engine:
        for row in range(PROMPTS):
            for position in range(POSITIONS):
                found = engine.log_probabilities(prompts[row, : position + 1].tolist(), VOCAB)
                assert len(found) == VOCAB
                given = np.array([found[index] for index in range(VOCAB)])
                largest = max(largest, float(np.abs(given - wanted[row, position]).max()))
                agreed += int(given.argmax() == wanted[row, position].argmax())

    record_property("largest_difference", largest)
    print(f"{name}: max |Δ log p| {largest:.2e}, top-1 {agreed}/{PROMPTS * POSITIONS}")  # noqa: T201
    assert largest <= 1e-2
    assert agreed >= 0.99 * PROMPTS * POSITIONS
