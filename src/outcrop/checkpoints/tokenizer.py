"""A Hugging Face ``tokenizer.json`` as the facts that an engine's artefact needs.

Byte-level BPE here; what came from SentencePiece in ``sentencepiece``, Mistral's own format in ``tekken``. Whatever the
CPU engine would do differently is refused by name: a model that reads other tokens than it was trained on answers
fluently and wrongly, which nobody notices.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import msgspec

from outcrop.checkpoints import sentencepiece
from outcrop.checkpoints.large_json import array_pieces, object_pieces
from outcrop.checkpoints.pre_tokenizers import pre_tokenizer
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.vocabulary import Texts, Tokenizer, Vocabulary, refused, steps

FILE = "tokenizer.json"
_MERGE = re.compile(r"[^ ]+ [^ ]+")

# The characters that byte-level BPE writes bytes as: printable Latin-1 as itself, the rest from U+0100 on.
_ITSELF = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_BYTES = frozenset(map(chr, [*_ITSELF, *range(0x100, 0x100 + 256 - len(_ITSELF))]))


def parse_tokenizer(raw: bytes, *, may_end: bool = False) -> Tokenizer:
    """Raises EngineCannot for what the CPU engine could not reproduce exactly, CheckpointRejected for a broken file."""
    with _named_failures():
        return _tokenizer(_Document.of(raw), may_end=may_end)


@contextmanager
def _named_failures() -> Iterator[None]:
    try:
        yield
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        message = f"{FILE} is not valid JSON ({exc}). Save the tokenizer again."
        raise CheckpointRejected.of(message, FILE) from exc
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as exc:
        message = f"{FILE} is not a Hugging Face tokenizer file ({type(exc).__name__}: {exc})."
        raise CheckpointRejected.of(message, FILE) from exc


@dataclass(frozen=True, slots=True)
class _Document:
    """A ``tokenizer.json`` of which the long lists, *vocab* and *merges* of its *model*, are still JSON."""

    top: Mapping[str, Any]
    model: Mapping[str, Any]
    lists: Mapping[str, msgspec.Raw]

    @classmethod
    def of(cls, raw: bytes) -> _Document:
        document = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(document.pop("model"), type=dict[str, msgspec.Raw])
        lists: dict[str, msgspec.Raw] = {name: model.pop(name) for name in ("vocab", "merges") if name in model}
        top = {name: msgspec.json.decode(value) for name, value in document.items()}
        return cls(top, {name: msgspec.json.decode(value) for name, value in model.items()}, lists)

    @property
    def added(self) -> list[Any]:
        return self.top.get("added_tokens") or []

    def whole(self) -> dict[str, Any]:
        opened = {name: msgspec.json.decode(value) for name, value in self.lists.items()}
        return {**self.top, "model": {**self.model, **opened}}

    def tokens(self) -> Vocabulary:
        return Vocabulary(self._tokens())

    def _tokens(self) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
        """Ids and texts, by id where the vocabulary is; what was added counts for its id."""
        added = {int(token["id"]): str(token["content"]) for token in self.added}
        waiting = sorted(added.items(), reverse=True)
        for piece in object_pieces(memoryview(self.lists["vocab"])):
            if not waiting or waiting[-1][0] > max(piece.values(), default=0):
                yield list(piece.values()), list(piece)
                continue
            own = {index: text for text, index in piece.items() if index not in added}
            last = max(piece.values())
            while waiting and waiting[-1][0] <= last:
                index, text = waiting.pop()
                own[index] = text
            ids = sorted(own)
            yield ids, [own[index] for index in ids]
        waiting.reverse()
        yield [index for index, _ in waiting], [text for _, text in waiting]

    def merges(self) -> Iterator[list[str]]:
        for piece in array_pieces(memoryview(self.lists["merges"])):
            texts = [" ".join(merge) if type(merge) is list else merge for merge in piece]
            yield texts if all(map(_MERGE.fullmatch, texts)) else list(map(_merge, piece))


def parse_plainly(raw: bytes) -> Tokenizer:
    """Ids, texts and which are special, whatever else the file says: enough for an engine that runs it itself."""
    with _named_failures():
        document = _Document.of(raw)
        if bytes(memoryview(document.lists["vocab"])[:1]) == b"{":
            tokens: Mapping[int, str] = document.tokens()
        else:
            entries = msgspec.json.decode(document.lists["vocab"])
            tokens = {index: str(entry[0]) for index, entry in enumerate(entries)}
            tokens |= {int(token["id"]): str(token["content"]) for token in document.added}
        special = frozenset(token["id"] for token in document.added if token.get("special"))
        added = frozenset(token["id"] for token in document.added)
        return Tokenizer(kind="other", tokens=tokens, special=special, added=added)


def _tokenizer(document: _Document, *, may_end: bool) -> Tokenizer:
    top, model = document.top, document.model
    bos, eos = _around(top.get("post_processor"), may_end=may_end)
    kind = model.get("type", "BPE")
    if sentencepiece.is_kind(model):
        return replace(sentencepiece.from_json(document.whole(), bos), eos=eos)
    if kind != "BPE":
        raise refused(f"is a {kind} tokenizer; BPE and SentencePiece kinds are supported")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise refused(f"sets {option} to {model[option]!r}, which the engine does not do")
    tokens = document.tokens()
    added = document.added
    _check_tokens(tokens, added)
    merges = Texts(document.merges())  # last: what the check needed is free again
    return Tokenizer(
        kind="bpe",
        tokens=tokens,
        special=frozenset(token["id"] for token in added if token.get("special")),
        added=frozenset(token["id"] for token in added),
        merges=merges,
        pre=pre_tokenizer(top.get("pre_tokenizer"), bool(model.get("ignore_merges"))),
        bos=bos,
        eos=eos,
        nfc=_is_nfc(top.get("normalizer")),
    )


def _check_tokens(tokens: Vocabulary, added: list[Any]) -> None:
    if (lowest := min(tokens)) < 0:
        raise refused(f"has the token id {lowest}; ids start at 0")
    if missing := _BYTES.difference(tokens.texts):
        raise refused(f"lacks {len(missing)} of the 256 byte tokens, so some text would have no tokens")
    hashes = sorted(map(hash, tokens.texts))  # a set of the texts would take more memory than all else here
    if any(left == right for left, right in pairwise(hashes)) and len(set(tokens.texts)) < len(tokens):
        twice = [text for text, times in Counter(tokens.texts).items() if times > 1]
        ids = [index for index, text in tokens.items() if text == twice[0]]
        raise refused(f"has the token {twice[0]!r} under the ids {ids}; a text may have one id")
    for token in added:
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise refused(f"sets {flag} for the added token {token['content']!r}, which the engine does not do")
        if not token["content"]:
            raise refused(f"has an added token without text (id {token['id']})")


def _merge(merge: Any) -> str:
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    if len(parts) != 2 or not all(isinstance(part, str) and part and " " not in part for part in parts):
        raise refused(f"has the merge {merge!r}; two tokens are needed")
    return " ".join(parts)


def _is_nfc(node: Any) -> bool:
    kinds = [step["type"] for step in steps(node, "normalizers")]
    if other := [kind for kind in kinds if kind != "NFC"]:
        raise refused(f"changes text before splitting it ({', '.join(other)}), which the engine does not")
    return bool(kinds)


def _around(node: Any, *, may_end: bool) -> tuple[str | None, str | None]:
    """The tokens that the tokenizer adds before and, with *may_end*, after a text; all else that it adds is refused."""
    for step in steps(node, "processors"):
        if step["type"] == "ByteLevel":  # offsets only
            continue
        if step["type"] != "TemplateProcessing":
            raise refused(f"adds tokens by {step['type']}, which the engine does not")
        parts = ["" if "Sequence" in part else str(part["SpecialToken"]["id"]) for part in step["single"]]
        at = parts.index("") if "" in parts else 0
        before, after = parts[:at], parts[at + 1 :]
        if len(before) > 1 or len(after) > may_end:
            around = " ".join(part or "text" for part in parts)
            raise refused(f"surrounds text with tokens ({around}); one token before it is supported")
        return before[0] if before else None, after[0] if after else None
    return None, None
