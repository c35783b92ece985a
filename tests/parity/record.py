"""Write ``tests/exactness/recorded.json``: what transformers computes for the tiny variants of every family.

``python -m tests.parity.record`` in an environment with torch and transformers (``make record-parity``). The file lets
every run of the tests compare the CPU engine with transformers without installing them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.support.checkpoints import PROMPTS, VOCAB
from tests.support.embedders import EMBEDDERS, TEXTS, make_embedder
from tests.support.zoo import ZOO, config_values, write_weights
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

RECORDED = Path(__file__).parents[1] / "exactness" / "recorded.json"
EMBEDDED = RECORDED.with_name("embeddings.json")
POSITIONS = (0, 1, 7, 23, 47, 63)
IDS = tuple(range(0, VOCAB, 61))


def record(name: str, folder: Path) -> dict[str, Any]:
    """Config, prompt and log-probabilities of *name*: at POSITIONS, of IDS and of the likeliest token."""
    config = json.loads(AutoConfig.for_model(ZOO[name][0], **config_values(name)).to_json_string(use_diff=False))
    config["architectures"] = [AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).__class__.__name__]
    config.pop("transformers_version", None)
    write_weights(folder, config)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = [index for text in PROMPTS[3:7] for index in tokenizer.encode(text, add_special_tokens=False).ids[:16]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found = torch.log_softmax(model(torch.tensor([prompt])).logits[0].float(), dim=-1).numpy()
    rows = [
        {
            "position": position,
            "best": int(found[position].argmax()),
            "logprobs": np.round(found[position, IDS], 5).tolist(),
        }
        for position in POSITIONS
    ]
    return {"config": config, "prompt": prompt, "ids": list(IDS), "rows": rows}


def record_embedder(name: str, folder: Path) -> list[list[float]]:
    """The vector of each of TEXTS, pooled and normalised as sentence-transformers does."""
    _, pooling, _, normalizes, _ = EMBEDDERS[name]
    make_embedder(folder, name)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    vectors = []
    for text in TEXTS:
        with torch.no_grad():
            states = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0].numpy()
        vector = {"last": states[-1], "mean": states.mean(axis=0), "cls": states[0]}[pooling]
        vectors.append(np.round(vector / np.linalg.norm(vector) if normalizes else vector, 6).tolist())
    return vectors


def main() -> None:
    embedded = {}
    for name in EMBEDDERS:
        with tempfile.TemporaryDirectory() as folder:
            embedded[name] = record_embedder(name, Path(folder) / "model")
    EMBEDDED.write_text(json.dumps(embedded, separators=(",", ":")).replace('],"', '],\n"') + "\n")
    recorded = {}
    for name in ZOO:
        with tempfile.TemporaryDirectory() as folder:
            recorded[name] = record(name, Path(folder))
    RECORDED.write_text(json.dumps(recorded, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
