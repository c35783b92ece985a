"""A checkpoint's tokenizer in the two files that GPT-2's and Qwen2's classes read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def split_tokenizer(folder: Path, to: Path) -> Path:
    """A copy of *folder* with ``vocab.json`` and ``merges.txt`` in place of its ``tokenizer.json``."""
    shutil.copytree(folder, to)
    document = json.loads((to / "tokenizer.json").read_text())
    (to / "tokenizer.json").unlink()
    vocab = document["model"]["vocab"] | {token["content"]: token["id"] for token in document["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    decoder = {str(token.pop("id")): token for token in document["added_tokens"]}
    config = json.loads((to / "tokenizer_config.json").read_text())
    (to / "vocab.json").write_text(json.dumps(vocab))
    (to / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    config |= {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder}
    (to / "tokenizer_config.json").write_text(json.dumps(config))
    return to
