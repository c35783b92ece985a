"""``vocab.json`` with ``merges.txt`` is read as transformers' own classes read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from tests.parity.test_tokenizers import TEXTS
from tests.support.checkpoints import make_checkpoint
from tests.support.split_tokenizer import split_tokenizer
from tests.support.tokenizers import LONG

from outcrop.engines.gguf_convert import read
from outcrop.engines.gguf_tokenizer import encoder


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "GPT2Tokenizer"])
def test_the_two_files_give_the_ids_of_transformers(tmp_path: Path, name: str) -> None:
    folder = split_tokenizer(make_checkpoint(tmp_path / "whole", "qwen2"), tmp_path / "split")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))
    # By class: AutoTokenizer takes the one of config.json's model_type.
    theirs = getattr(transformers, name).from_pretrained(folder)
    ours = encoder(folder, read(folder))

    wrong = [text for text in [*TEXTS, LONG] if ours(text) != theirs.encode(text, add_special_tokens=False)]

    assert wrong == []
