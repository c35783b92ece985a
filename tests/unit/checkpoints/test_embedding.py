from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.embedders import EMBEDDERS, make_embedder

from outcrop.checkpoints.embedding import Embedding
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.tokenizer import parse_tokenizer
from outcrop.engines.gguf_convert import read


@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_sentence_transformers_checkpoint_says_how_it_embeds(name: str, tmp_path: Path) -> None:
    _, pooling, _, normalizes, is_ended = EMBEDDERS[name]
    found = read(make_embedder(tmp_path / "model", name))

    assert found.embedding == Embedding(pooling=pooling, normalize=normalizes)
    assert found.tokenizer.eos == ("<|endoftext|>" if is_ended else None)
    assert "model.embed_tokens.weight" in found.tensors


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modules.json", "{", "no list of modules"),
        ("modules.json", '[{"type": "sentence_transformers.models.Dense"}]', "Dense module"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "says pooling_mode_max_tokens"),
        ("1_Pooling/config.json", "{}", "outcrop:embedding=last|mean|cls"),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}', "says "),
    ],
)
def test_what_no_engine_here_follows_is_refused_by_name(file: str, content: str, said: str, tmp_path: Path) -> None:
    folder = make_embedder(tmp_path / "model", "llama, mean")
    (folder / file).write_text(content)

    with pytest.raises(CheckpointRejected) as rejected:
        read(folder)
    assert said in str(rejected.value)


def test_a_decoder_without_causal_attention_is_refused(tmp_path: Path) -> None:
    folder = make_embedder(tmp_path / "model", "llama, mean")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}))

    with pytest.raises(CheckpointRejected, match="is_causal false"):
        read(folder)


def test_the_importer_s_word_wins_over_the_files(tmp_path: Path) -> None:
    folder = make_embedder(tmp_path / "model", "llama, mean")

    assert read(folder, "last").embedding == Embedding(pooling="last", normalize=True)


def test_the_newer_name_of_a_pooling_mode_is_read(tmp_path: Path) -> None:
    folder = make_embedder(tmp_path / "model", "llama, mean")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken", "include_prompt": true}')

    found = read(folder).embedding
    assert found is not None
    assert found.pooling == "last"


def test_a_text_s_end_is_followed_by_models_that_embed_only(tmp_path: Path) -> None:
    folder = make_embedder(tmp_path / "model", "qwen3, last token, ended, bare")
    raw = (folder / "tokenizer.json").read_bytes()

    assert parse_tokenizer(raw, may_end=True).eos == "<|endoftext|>"
    with pytest.raises(CheckpointRejected, match="surrounds text with tokens"):
        parse_tokenizer(raw)
