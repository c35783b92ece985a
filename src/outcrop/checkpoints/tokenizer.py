"""A Hugging Face ``tokenizer.json`` as the facts that an engine's artefact needs.

Byte-level BPE here; what came from SentencePiece in ``sentencepiece``, Mistral's own format in ``tekken``. Whatever the
CPU engine would do differently is refused by name: a model that reads other tokens than it was trained on answers
fluently and wrongly, which nobody notices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from outcrop.checkpoints import sentencepiece
from outcrop.checkpoints.pre_tokenizers import pre_tokenizer
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.vocabulary import Tokenizer, refused, steps

FILE = "tokenizer.json"
_MERGES_AT_A_TIME = 4096

# The characters that byte-level BPE writes bytes as: printable Latin-1 as itself, the rest from U+0100 on.
_ITSELF = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_BYTES = frozenset(map(chr, [*_ITSELF, *range(0x100, 0x100 + 256 - len(_ITSELF))]))


def parse_tokenizer(raw: bytes) -> Tokenizer:
    """Raises EngineCannot for what the CPU engine could not reproduce exactly, CheckpointRejected for a broken file."""
    try:
        return _tokenizer(_decoded(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        message = f"{FILE} is not valid JSON ({exc}). Save the tokenizer again."
        raise CheckpointRejected.of(message, FILE) from exc
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as exc:
        message = f"{FILE} is not a Hugging Face tokenizer file ({type(exc).__name__}: {exc})."
        raise CheckpointRejected.of(message, FILE) from exc


def _decoded(raw: bytes) -> Any:
    """The file's JSON, merges as ``"left right"``.

    Merges first and some at a time: lists of pairs beside the vocabulary, as JSON comes out otherwise, would take
    several times the memory of all else that a check needs.
    """
    document = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    model = msgspec.json.decode(document.pop("model"), type=dict[str, msgspec.Raw])
    merges = None
    if "merges" in model:
        merges = tuple(_merges(model.pop("merges")))
    opened = {name: msgspec.json.decode(value) for name, value in model.items()}
    if merges is not None:
        opened["merges"] = merges
    return {**{name: msgspec.json.decode(value) for name, value in document.items()}, "model": opened}


def _merges(raw: msgspec.Raw) -> Iterator[str]:
    entries = msgspec.json.decode(raw, type=list[msgspec.Raw])
    for begin in range(0, len(entries), _MERGES_AT_A_TIME):
        part = b",".join(map(bytes, entries[begin : begin + _MERGES_AT_A_TIME]))
        yield from map(_merge, msgspec.json.decode(b"[" + part + b"]"))


def parse_plainly(raw: bytes) -> Tokenizer:
    """Ids, texts and which are special, whatever else the file says: enough for an engine that runs it itself."""
    try:
        document = msgspec.json.decode(raw)
        vocab, added = document["model"]["vocab"], document.get("added_tokens") or []
        pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], n) for n, entry in enumerate(vocab))
        tokens = {int(index): str(text) for text, index in pairs}
        tokens.update({int(token["id"]): str(token["content"]) for token in added})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        message = f"{FILE} is not valid JSON ({exc}). Save the tokenizer again."
        raise CheckpointRejected.of(message, FILE) from exc
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as exc:
        message = f"{FILE} is not a Hugging Face tokenizer file ({type(exc).__name__}: {exc})."
        raise CheckpointRejected.of(message, FILE) from exc
    special = frozenset(token["id"] for token in added if token.get("special"))
    return Tokenizer(kind="other", tokens=tokens, special=special, added=frozenset(token["id"] for token in added))


def _tokenizer(document: Any) -> Tokenizer:
    model = document["model"]
    kind = model.get("type", "BPE")
    if sentencepiece.is_kind(document):
        return sentencepiece.from_json(document, _leading_token(document.get("post_processor")))
    if kind != "BPE":
        raise refused(f"is a {kind} tokenizer; BPE and SentencePiece kinds are supported")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise refused(f"sets {option} to {model[option]!r}, which the engine does not do")
    tokens = {int(index): str(text) for text, index in model["vocab"].items()}
    if missing := _BYTES - set(tokens.values()):
        raise refused(f"lacks {len(missing)} of the 256 byte tokens, so some text would have no tokens")
    added = document.get("added_tokens") or []
    tokens.update({int(token["id"]): str(token["content"]) for token in added})
    _check_tokens(tokens, added)
    return Tokenizer(
        kind="bpe",
        tokens=tokens,
        special=frozenset(token["id"] for token in added if token.get("special")),
        added=frozenset(token["id"] for token in added),
        merges=model["merges"],
        pre=pre_tokenizer(document.get("pre_tokenizer"), bool(model.get("ignore_merges"))),
        bos=_leading_token(document.get("post_processor")),
        nfc=_is_nfc(document.get("normalizer")),
    )


def _check_tokens(tokens: Mapping[int, str], added: list[Any]) -> None:
    if (lowest := min(tokens)) < 0:
        raise refused(f"has the token id {lowest}; ids start at 0")
    if len(set(tokens.values())) < len(tokens):
        twice = [text for text, times in Counter(tokens.values()).items() if times > 1]
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


def _leading_token(node: Any) -> str | None:
    """The beginning-of-text token that the tokenizer adds; anything else that it adds is refused."""
    for step in steps(node, "processors"):
        if step["type"] == "ByteLevel":  # offsets only
            continue
        if step["type"] != "TemplateProcessing":
            raise refused(f"adds tokens by {step['type']}, which the engine does not")
        parts = ["" if "Sequence" in part else str(part["SpecialToken"]["id"]) for part in step["single"]]
        if len(parts) > 2 or parts[-1]:
            around = " ".join(part or "text" for part in parts)
            raise refused(f"surrounds text with tokens ({around}); one token before it is supported")
        return parts[0] or None
    return None
