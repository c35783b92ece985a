"""Checkpoints as large as real ones, made on the spot: whole, or sparse files of which only the headers are written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outcrop.checkpoints.families import FAMILIES

SAMPLE = Path(__file__).parents[3] / "examples" / "apexguru" / "checkpoint"
# 30 GB in bf16 with the vocabulary of Llama 3.
BIG = {"hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 44, "vocab_size": 128_256}
_WIDTHS = {"hidden_size": 2048, "intermediate_size": 8192}


def of_size(size_gb: float) -> dict[str, int]:
    """A shape whose weights take about so much."""
    per_layer = 2 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 8192)
    return {**_WIDTHS, "num_hidden_layers": max(1, round(size_gb * 1e9 / per_layer))}


def make_checkpoint(folder: Path, shape: Mapping[str, int], shards: int, *, sparse: bool) -> int:
    """A Qwen2 checkpoint in bf16 with the sample's tokenizer; its bytes. *sparse*: no weights, only their place."""
    folder.mkdir(parents=True)
    config = json.loads((SAMPLE / "config.json").read_text()) | dict(shape)
    heads = config["hidden_size"] // 128
    config |= {"num_attention_heads": heads, "num_key_value_heads": heads // 8, "tie_word_embeddings": True}
    config |= {"torch_dtype": "bfloat16", "max_position_embeddings": 8192}
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(SAMPLE / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(_tokenizer(config["vocab_size"]))
    layout = FAMILIES["qwen2"].tensors
    assert layout is not None
    tensors = list(layout(config).items())
    block = _block()
    weight_map: dict[str, str] = {}
    total = 0
    per_shard = -(-len(tensors) // shards)
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = tensors[number * per_shard : (number + 1) * per_shard]
        weight_map |= {tensor: name for tensor, _ in part}
        total += _write_shard(folder / name, dict(part), None if sparse else block)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in folder.iterdir())


def _tokenizer(vocab_size: int) -> str:
    """The sample's tokenizer, filled up with tokens and merges to the size of a large vocabulary.

    Llama 3's has 280,147 merges to 128,256 tokens: several ways lead to one token.
    """
    document = json.loads((SAMPLE / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    taken = max([*vocab.values(), *(token["id"] for token in document["added_tokens"])]) + 1
    texts = [text for text in vocab if len(text) > 1]
    for index in range(taken, vocab_size):
        text = f"{'Ġ' if index % 2 else ''}qz{index:x}"  # as long as words of large vocabularies are, half with a space
        vocab[text] = index
        document["model"]["merges"].append([texts[index % len(texts)], text] if index % 2 else ["Ġ", text])
        document["model"]["merges"] += [[text, texts[(index + way) % len(texts)]] for way in range(1 + index % 5 // 4)]
    return json.dumps(document, ensure_ascii=False, indent=2)  # as the tokenizers library saves it


def _block() -> bytes:
    values = np.random.default_rng(0).normal(0, 0.02, 4 << 20).astype("<f4")
    return (values.view("<u4") >> 16).astype("<u2").tobytes()


def _write_shard(path: Path, tensors: Mapping[str, tuple[int, ...]], block: bytes | None) -> int:
    header: dict[str, Any] = {}
    at = 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        if block is None:
            file.truncate(8 + len(raw) + at)
        else:
            for begin in range(0, at, len(block)):
                file.write(block[: min(len(block), at - begin)])
    return at
