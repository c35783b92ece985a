"""Which tokenizers are taken, and what the others are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.tokenizer import parse_tokenizer


@pytest.fixture
def document(tiny: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny / "tokenizer.json").read_text())
    return found


def raw(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def step(document: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = document["pre_tokenizer"]["pretokenizers"][index]
    return found


def added(content: str, **flags: Any) -> dict[str, Any]:
    return {"id": 600, "content": content, "special": False, **flags}


def test_tokens_flags_and_merges_are_read(document: dict[str, Any]) -> None:
    tokenizer = parse_tokenizer(raw(document))

    assert tokenizer.pre == "qwen2"
    assert tokenizer.tokens[1] == "<|im_end|>"
    assert tokenizer.special == {0, 1, 2}
    assert tokenizer.bos is None
    assert not tokenizer.nfc
    assert tokenizer.id_of("<|endoftext|>") == 2


def test_merges_are_read_in_both_spellings(document: dict[str, Any]) -> None:
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in document["model"]["merges"]]
    document["model"]["merges"] = pairs
    listed = list(parse_tokenizer(raw(document)).merges)
    document["model"]["merges"] = [" ".join(pair) for pair in pairs]

    assert list(parse_tokenizer(raw(document)).merges) == listed
    assert listed[0].count(" ") == 1


def test_a_token_that_was_added_for_an_id_of_the_vocabulary_counts(document: dict[str, Any]) -> None:
    document["added_tokens"].append(added("<|mine|>", special=True) | {"id": 300})
    plain = {index: text for text, index in document["model"]["vocab"].items()}

    tokenizer = parse_tokenizer(raw(document))

    assert tokenizer.tokens[300] == "<|mine|>"
    assert tokenizer.id_of("<|mine|>") == 300
    assert dict(tokenizer.tokens) == plain | {token["id"]: token["content"] for token in document["added_tokens"]}


def test_a_post_processor_that_puts_a_token_first_is_read(document: dict[str, Any]) -> None:
    single = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single}
    document["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}

    assert parse_tokenizer(raw(document)).bos == "<|endoftext|>"


def test_nfc_is_taken_and_said(document: dict[str, Any]) -> None:
    document["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}

    assert parse_tokenizer(raw(document)).nfc


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda it: it["model"].update(type="WordPiece"), "WordPiece tokenizer; BPE and SentencePiece kinds"),
        (lambda it: it["model"].update(dropout=0.1), "dropout to 0.1"),
        (lambda it: it["model"].update(ignore_merges=True), "with ignore_merges"),
        (lambda it: it["model"]["vocab"].pop("Ġ"), "lacks 1 of the 256 byte tokens"),
        (lambda it: it["model"]["merges"].append(["a"]), "two tokens are needed"),
        (lambda it: it.update(normalizer={"type": "Lowercase"}), "changes text before splitting it (Lowercase)"),
        (lambda it: step(it, 0)["pattern"].update(Regex=r"\d+"), r"does not know: \d+"),
        (lambda it: step(it, 0).update(behavior="Removed"), "in a way that the engine does not know"),
        (lambda it: step(it, 1).update(add_prefix_space=True), "add_prefix_space"),
        (lambda it: it.update(pre_tokenizer={"type": "Whitespace"}), "steps that the engine does not know: Whitespace"),
        (lambda it: it.update(pre_tokenizer=None), "steps that the engine does not know: none"),
        (lambda it: it["added_tokens"].append(added("<x>", lstrip=True)), "sets lstrip for the added token '<x>'"),
        (lambda it: it["added_tokens"].append(added("a")), "has the token 'a' under the ids"),
        (lambda it: it["added_tokens"].append(added("")), "without text"),
        (lambda it: it.update(post_processor={"type": "BertProcessing"}), "adds tokens by BertProcessing"),
        (
            lambda it: it.update(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}],
                }
            ),
            "surrounds text with tokens (text </s>)",
        ),
        (lambda it: it.pop("model"), "not a Hugging Face tokenizer file"),
        (lambda it: it["model"].update(vocab=[]), "not a Hugging Face tokenizer file"),
        (lambda it: it.update(added_tokens=7), "not a Hugging Face tokenizer file"),
    ],
)
def test_what_the_engine_would_do_differently_is_refused_by_name(
    document: dict[str, Any], change: Callable[[dict[str, Any]], object], told: str
) -> None:
    change(document)

    with pytest.raises(CheckpointRejected) as refused:
        parse_tokenizer(raw(document))
    assert told in str(refused.value)
    assert str(refused.value).startswith("tokenizer.json ")


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[]", b"\xff\xfe{}"])
def test_a_file_that_is_no_tokenizer_is_refused(text: bytes) -> None:
    with pytest.raises(CheckpointRejected, match=r"tokenizer\.json is not"):
        parse_tokenizer(text)
