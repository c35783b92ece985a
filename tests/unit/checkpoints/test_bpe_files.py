"""``vocab.json`` with ``merges.txt`` amounts to the ``tokenizer.json`` that its tokenizer's class would save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import PROMPTS
from tests.support.split_tokenizer import split_tokenizer
from tokenizers import Tokenizer

from outcrop.checkpoints.bpe_files import tokenizer_json
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.tokenizer_files import read_tokenizer


@pytest.fixture
def texts(tiny: Path, tmp_path: Path) -> dict[str, bytes]:
    folder = split_tokenizer(tiny, tmp_path / "split")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".txt")}


def with_config(texts: dict[str, bytes], **values: Any) -> dict[str, bytes]:
    config = json.loads(texts["tokenizer_config.json"]) | values
    return texts | {"tokenizer_config.json": json.dumps(config).encode()}


def test_the_files_say_what_tokenizer_json_says(tiny: Path, texts: dict[str, bytes]) -> None:
    whole, _ = read_tokenizer({"tokenizer.json": (tiny / "tokenizer.json").read_bytes()})

    found, obstacle = read_tokenizer(texts)

    assert obstacle is None
    assert dict(found.tokens) == dict(whole.tokens)
    assert list(found.merges) == list(whole.merges)
    assert (found.pre, found.special, found.added) == ("qwen2", whole.special, whole.added)
    assert found.nfc  # Qwen2Tokenizer's code does, whatever the tokenizer.json here says


@pytest.mark.parametrize("text", PROMPTS[:2] + PROMPTS[4:])
def test_texts_become_the_same_tokens(tiny: Path, texts: dict[str, bytes], text: str) -> None:
    whole = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    ours = Tokenizer.from_str(tokenizer_json(texts).decode())

    assert ours.encode(text).ids == whole.encode(text).ids


def test_gpt2_splits_by_its_own_pattern_and_begins_with_a_token_when_told(texts: dict[str, bytes]) -> None:
    plain, _ = read_tokenizer(with_config(texts, tokenizer_class="GPT2TokenizerFast"))
    begun, _ = read_tokenizer(with_config(texts, tokenizer_class="GPT2Tokenizer", add_bos_token=True))

    assert (plain.pre, plain.bos, plain.nfc) == ("gpt-2", None, False)
    assert begun.bos == "<|endoftext|>"


def test_the_class_follows_from_the_model_where_none_is_named(texts: dict[str, bytes]) -> None:
    found, _ = read_tokenizer(with_config(texts, tokenizer_class=None) | {"config.json": b'{"model_type": "phi"}'})

    assert found.pre == "gpt-2"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokenizer_class": "BartTokenizer"}, "tokenizer_class 'BartTokenizer' splits text by code of its own"),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, "add_prefix_space"),
    ],
)
def test_what_the_cpu_engine_cannot_follow_is_named_and_left_to_others(
    tiny: Path, texts: dict[str, bytes], change: dict[str, Any], told: str
) -> None:
    whole, _ = read_tokenizer({"tokenizer.json": (tiny / "tokenizer.json").read_bytes()})

    found, obstacle = read_tokenizer(with_config(texts, **change))

    assert told in str(obstacle)
    assert dict(found.tokens) == dict(whole.tokens)
    assert (found.kind, found.special) == ("other", whole.special)


def test_a_token_with_a_role_but_without_an_id_is_refused_by_name(texts: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointRejected) as refused:
        read_tokenizer(with_config(texts, eos_token="</s>"))

    assert "eos_token is '</s>', which has no id in vocab.json" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("merges.txt", None, "merges.txt is not"),
        ("merges.txt", b"#version: 0.2\na b\na b c\n", "'a b c' in line 3"),
        ("merges.txt", b"\xff\n", "not UTF-8"),
        ("vocab.json", b"[1]", "not a JSON object of texts and their ids"),
        ("vocab.json", b"{", "not valid JSON"),
    ],
)
def test_broken_files_are_named(texts: dict[str, bytes], name: str, body: bytes | None, told: str) -> None:
    broken = {key: value for key, value in texts.items() if key != name} | ({name: body} if body else {})

    with pytest.raises(CheckpointRejected) as refused:
        read_tokenizer(broken)

    assert told in str(refused.value)
