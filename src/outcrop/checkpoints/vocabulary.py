"""What is known of a tokenizer, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outcrop.checkpoints.problems import CheckpointRejected, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """*tokens*: id -> text; *special* and *added* are ids.

    *kind*: ``bpe`` (byte level; *merges* and *pre*, llama.cpp's pre-tokenizer name), ``spm`` (SentencePiece BPE) or
    ``unigram``; the last two have *scores* by id. *bytes_*: ids of the byte tokens ``<0x00>`` to ``<0xFF>``.

    *nfc*: the tokenizer brings text to Unicode's form NFC first. llama.cpp does not; text that is in another form
    (decomposed accents, rare outside of file names) is tokenised as it stands. *swallows_space*: no space is put
    before a text that starts with one, where llama.cpp puts one always.
    """

    kind: str
    tokens: Mapping[int, str]
    special: frozenset[int]
    added: frozenset[int]
    merges: tuple[str, ...] = ()
    pre: str = ""
    bos: str | None = None  # the token that the post-processor puts first
    nfc: bool = False
    scores: Mapping[int, float] | None = None
    bytes_: frozenset[int] = frozenset()
    unknown: int | None = None
    space_prefix: bool = False
    swallows_space: bool = False
    squeezes_spaces: bool = False
    charsmap: bytes = b""

    def id_of(self, text: str) -> int | None:
        return next((index for index, token in self.tokens.items() if token == text), None)


class EngineCannot(CheckpointRejected):
    """A sound tokenizer that the CPU engine could not follow; other engines run the checkpoint's own code."""


def refused(reason: str, file: str = "tokenizer.json") -> EngineCannot:
    return EngineCannot([Problem(file=file, message=f"{file} {reason}.")])


def steps(node: Any, key: str) -> list[dict[str, Any]]:
    """Links of a chain, Sequences inside Sequences opened."""
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for inner in node[key] for step in steps(inner, key)]
    return [node]
