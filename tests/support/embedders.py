"""Tiny random checkpoints that give embeddings, as sentence-transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import load_file, save_file

from tests.support.checkpoints import make_checkpoint

MODES = {"last": "pooling_mode_lasttoken", "mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
TEXTS = ("for each record in the list", "naïve 🙂 日本", "def f(x):\n    return x", "a")
# Family, pooling, whether the bare model was saved, whether vectors have unit length, whether a text gets an end.
EMBEDDERS: dict[str, tuple[str, str, bool, bool, bool]] = {
    "qwen3, last token, ended, bare": ("qwen3", "last", True, True, True),
    "llama, mean": ("llama", "mean", False, True, False),
    "mistral, last token, bare, as computed": ("mistral", "last", True, False, False),
    "qwen2, first token": ("qwen2", "cls", False, True, False),
}


def make_embedder(folder: Path, name: str, seed: int = 3) -> Path:
    """The checkpoint *name* of ``EMBEDDERS``; the same for the same arguments."""
    family, pooling, is_bare, normalizes, is_ended = EMBEDDERS[name]
    make_checkpoint(folder, family, seed=seed, shards=1)
    (folder / "model.safetensors.index.json").unlink()
    (shard,) = folder.glob("*.safetensors")
    tensors = load_file(shard)
    shard.unlink()
    if is_bare:
        tensors = {n.removeprefix("model."): value for n, value in tensors.items() if n != "lm_head.weight"}
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = [config["architectures"][0].replace("ForCausalLM", "Model")]
        (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if is_ended:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        end = {"id": "<|endoftext|>", "type_id": 0}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": end}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": end}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [2], "tokens": ["<|endoftext|>"]}},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {mode: mode == MODES[pooling] for mode in MODES.values()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **modes}))
    return folder
