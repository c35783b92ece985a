"""SentencePiece and tekken files: what is read of them, and what broken or foreign ones are told."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import make_checkpoint
from tests.support.tokenizers import merged_by_rank, tekken_json, tekken_ranks

from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.sentencepiece import SPACE, merges_follow_scores, parse_model
from outcrop.checkpoints.tekken import parse_tekken
from outcrop.checkpoints.tokenizer import parse_tokenizer
from outcrop.checkpoints.tokenizer_files import read_tokenizer
from outcrop.checkpoints.vocabulary import EngineCannot

PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<0x0A>", 0.0, 6), (SPACE, -1.0, 1), ("a", -2.0, 1),
          (f"{SPACE}a", -0.5, 1), ("<mark>", 0.0, 4)]  # fmt: skip


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | float | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def model(*, kind: int = 2, prefix: int = 1, squeeze: int = 0, charsmap: bytes = b"", suffix: int = 0) -> bytes:
    """A ``tokenizer.model`` of PIECES. *kind*: 1 Unigram, 2 BPE."""
    pieces = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, type_)) for text, score, type_ in PIECES
    )
    trainer = field(2, field(3, kind) + field(24, suffix) + field(41, 1) + field(42, 2))
    normalizer = field(3, field(1, b"identity") + field(2, charsmap) + field(3, prefix) + field(4, squeeze))
    return pieces + trainer + normalizer


def test_a_sentencepiece_model_is_read_piece_by_piece() -> None:
    found = parse_model(model(), {8: ("<added>", True)}, bos=True)

    assert found.kind == "spm"
    assert found.tokens == {n: text for n, (text, _, _) in enumerate(PIECES)} | {8: "<added>"}
    assert found.scores is not None
    assert found.scores[6] == -0.5
    assert (found.bos, found.unknown, found.bytes_) == ("<s>", 0, {3})
    assert found.special == {1, 2, 8}
    assert found.added == {1, 2, 7, 8}
    assert found.space_prefix


def test_a_model_without_a_prefix_or_a_beginning_says_so() -> None:
    found = parse_model(model(prefix=0), {}, bos=False)

    assert not found.space_prefix
    assert found.bos is None


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (model(squeeze=1), "changes text before splitting it (normalization_rule_name or remove_extra_whitespaces)"),
        (model(charsmap=b"map"), "changes text before splitting it"),
        (model(kind=4), "is neither a BPE nor a Unigram model"),
        (model(suffix=1), "treats white space as a suffix"),
        (model(kind=1), "is a Unigram model with byte fallback"),
    ],
)
def test_a_model_that_the_cpu_engine_lacks_is_named_and_left_to_others(raw: bytes, told: str) -> None:
    with pytest.raises(EngineCannot) as refused:
        parse_model(raw, {}, bos=True)
    assert told in str(refused.value)

    found, cannot = read_tokenizer({"tokenizer.model": raw})
    assert found.tokens[6] == f"{SPACE}a"
    assert cannot is not None


@pytest.mark.parametrize("raw", [b"", b"\x0a", b"\x0a\xff", b"{}", model()[:-3], b"\xff" * 12, b"\x0b"])
def test_a_file_that_is_no_sentencepiece_model_is_refused(raw: bytes) -> None:
    with pytest.raises(CheckpointRejected, match=r"tokenizer\.model (is not a SentencePiece model|holds no pieces)"):
        parse_model(raw, {}, bos=True)


@pytest.fixture
def document() -> dict[str, Any]:
    """A ``tokenizer.json`` as transformers makes it of a SentencePiece BPE."""
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", SPACE, "a", "b", f"{SPACE}a", "ab", f"{SPACE}ab"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    merges = [[SPACE, "a"], ["a", "b"], [SPACE, "ab"], [f"{SPACE}a", "b"]]
    return {
        "added_tokens": [{"id": n, "content": pieces[n], "special": True} for n in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "model": {"type": "BPE", "vocab": {text: n for n, text in enumerate(pieces)}, "merges": merges,
                  "unk_token": "<unk>", "byte_fallback": True},
    }  # fmt: skip


def raw(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def test_scores_follow_the_order_of_merges(document: dict[str, Any]) -> None:
    found = parse_tokenizer(raw(document))

    assert found.kind == "spm"
    assert found.scores is not None
    assert found.scores[7] > found.scores[8] > found.scores[9] > found.scores[5]
    assert found.space_prefix
    assert merges_follow_scores(found) is None


def test_merges_that_scores_cannot_say_are_found(document: dict[str, Any]) -> None:
    document["model"]["merges"] = document["model"]["merges"][:3]  # one way to build the last piece is missing

    assert merges_follow_scores(parse_tokenizer(raw(document))) == f"{SPACE}ab"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda it: it.update(normalizer={"type": "Lowercase"}), "changes text before splitting it (Lowercase)"),
        (
            lambda it: it.update(pre_tokenizer={"type": "Metaspace", "prepend_scheme": "first", "split": False}),
            "puts a space before the first word only",
        ),
        (
            lambda it: it.update(pre_tokenizer={"type": "Metaspace", "prepend_scheme": "always", "split": True}),
            "splits text at spaces (Metaspace split)",
        ),
        (lambda it: it.update(pre_tokenizer={"type": "Punctuation"}), "does not know: Punctuation"),
        (lambda it: it["added_tokens"].append({"id": 10, "content": "<x>", "rstrip": True}), "sets rstrip"),
    ],
)
def test_text_handling_that_the_cpu_engine_lacks_is_named(
    document: dict[str, Any], change: Callable[[dict[str, Any]], object], told: str
) -> None:
    change(document)

    with pytest.raises(EngineCannot) as refused:
        parse_tokenizer(raw(document))
    assert told in str(refused.value)


def test_tekken_ranks_become_merges_that_lead_to_the_same_tokens() -> None:
    ranks = tekken_ranks("low lower lowest slow slower new newer newest " * 3, 270)

    found = parse_tekken(json.dumps(tekken_json(ranks)).encode())

    assert found.pre == "tekken"
    assert found.bos == "<s>"
    assert found.tokens[20 + ranks[b"lo"]] == "lo"
    assert len(found.merges) == len(ranks) - 256
    assert merged_by_rank(b"slowest", ranks) == [ranks[part] for part in merged(b"slowest", found.merges)]


def merged(word: bytes, merges: tuple[str, ...]) -> list[bytes]:
    """*word* merged in the order of *merges*; letters only, which byte-level BPE writes as themselves."""
    order = {merge: place for place, merge in enumerate(merges)}
    parts = [chr(value) for value in word]
    while found := [(order[f"{a} {b}"], n) for n, (a, b) in enumerate(pairwise(parts)) if f"{a} {b}" in order]:
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [part.encode() for part in parts]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda it: it["config"].update(pattern=r"\d+"), r"a pattern that the engine does not know: \d+"),
        (lambda it: it["vocab"].pop(7), "lacks 1 of the 256 single bytes"),
        (lambda it: it.pop("config"), "is not a tekken file"),
        (lambda it: it["vocab"][3].update(token_bytes=7), "is not a tekken file"),
    ],
)
def test_a_tekken_file_that_cannot_be_followed_is_told_why(
    change: Callable[[dict[str, Any]], object], told: str
) -> None:
    document = tekken_json({base64.b64decode(base64.b64encode(bytes([n]))): n for n in range(256)})
    change(document)

    with pytest.raises(CheckpointRejected) as refused:
        parse_tekken(json.dumps(document).encode())
    assert told in str(refused.value)


def test_tokenizer_json_goes_before_the_other_files(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    texts = {"tokenizer.json": (folder / "tokenizer.json").read_bytes(), "tokenizer.model": model()}

    assert read_tokenizer(texts)[0].kind == "bpe"
    assert read_tokenizer({"tokenizer.model": model()})[0].kind == "spm"
    with pytest.raises(CheckpointRejected, match=r"so are tokenizer\.model, tekken\.json and vocab\.json"):
        read_tokenizer({})
