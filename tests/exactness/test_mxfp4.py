"""GPT-OSS as it is released: experts in MXFP4, which llama.cpp reads without a change of value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.exactness.test_recorded import RECORDED
from tests.parity.engine import serving
from tests.support.checkpoints import VOCAB
from tests.support.zoo import write_weights

from outcrop.engines.gguf_convert import convert

# The sixteen values of FP4 (E2M1), by code (OCP Microscaling Formats specification 1.0).
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
PLACES = (1, 8, 20, 40, 64)


def packed(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint in *folder* with random blocks; its tensors."""
    quantised = {**config, "quantization_config": {"quant_method": "mxfp4"}}
    (shard,) = write_weights(folder, quantised, shards=1).glob("*.safetensors")
    random, tensors = np.random.default_rng(3), load_file(shard)
    for name, value in tensors.items():
        if name.endswith("_blocks"):
            tensors[name] = random.integers(0, 256, value.shape, dtype=np.uint8)
        elif name.endswith("_scales"):
            tensors[name] = random.integers(121, 125, value.shape, dtype=np.uint8)
    save_file(tensors, shard)
    return tensors


def unpacked(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same values in float32, laid out as an unquantised checkpoint has them."""
    plain = {}
    for name, value in tensors.items():
        if name.endswith("_blocks"):
            scales = np.exp2(tensors[name.replace("_blocks", "_scales")].astype(np.float32) - 127)
            pairs = np.stack([FP4[value & 15], FP4[value >> 4]], axis=-1).reshape(*value.shape[:-1], 32)
            rows = (pairs * scales[..., None]).reshape(*value.shape[:2], -1)
            plain[name.removesuffix("_blocks")] = np.ascontiguousarray(rows.swapaxes(1, 2))
        elif not name.endswith("_scales"):
            plain[name] = value
    return plain


def log_probabilities(folder: Path, artifact: Path, prompt: list[int]) -> Any:
    convert(folder, artifact, "auto")
    with serving(artifact, 512) as engine:
        found = [engine.log_probabilities(prompt[:place], VOCAB) for place in PLACES]
    return np.array([[row[index] for index in range(VOCAB)] for row in found])


def test_packed_experts_answer_as_the_same_values_unpacked(tmp_path: Path) -> None:
    recorded = RECORDED["gpt_oss, closing windows"]
    config = {**recorded["config"], "intermediate_size": 64}
    tensors = packed(tmp_path / "packed", config)
    (shard,) = write_weights(tmp_path / "plain", config, shards=1).glob("*.safetensors")
    save_file(unpacked(tensors), shard)

    of_packed = log_probabilities(tmp_path / "packed", tmp_path / "packed.gguf", recorded["prompt"])
    of_plain = log_probabilities(tmp_path / "plain", tmp_path / "plain.gguf", recorded["prompt"])

    # llama.cpp rounds what it multiplies with packed weights to eight bits; the plain ones it multiplies as they are.
    assert of_packed == pytest.approx(of_plain, abs=0.3)
    assert np.array_equal(of_packed.argmax(axis=1), of_plain.argmax(axis=1))
