"""The CPU engine computes what transformers computes, for every family that the converter writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.parity.engine import convert, serving
from tests.parity.zoo import make
from tests.support.checkpoints import PROMPTS, VOCAB
from tests.support.zoo import ZOO
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

POSITIONS = 64


@pytest.mark.parametrize("name", ZOO)
def test_every_position_has_the_log_probabilities_of_transformers(
    name: str, tmp_path: Path, record_property: Any
) -> None:
    folder = make(tmp_path / "model", name)
    convert(folder, tmp_path / "model.gguf")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    prompts = np.array([row[:POSITIONS] for row in rows])
    assert prompts.shape == (len(PROMPTS), POSITIONS)
    with torch.no_grad():
        wanted = torch.log_softmax(reference(torch.from_numpy(prompts)).logits.float(), dim=-1).numpy()

    largest, agreed = 0.0, 0
    with serving(tmp_path / "model.gguf", 512) as engine:
        for row in range(len(PROMPTS)):
            for position in range(POSITIONS):
                found = engine.log_probabilities(prompts[row, : position + 1].tolist(), VOCAB)
                given = np.array([found[index] for index in range(VOCAB)])
                largest = max(largest, float(np.abs(given - wanted[row, position]).max()))
                agreed += int(given.argmax() == wanted[row, position].argmax())

    record_property("largest_difference", largest)
    total = len(PROMPTS) * POSITIONS
    print(f"{name}: max |Δ log p| {largest:.2e}, top-1 {agreed}/{total}")  # noqa: T201
    assert largest <= 1e-2
    assert agreed >= 0.99 * total
