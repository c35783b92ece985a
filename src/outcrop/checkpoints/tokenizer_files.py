"""The tokenizer of a checkpoint from whichever of its files holds it: ``tokenizer.json``, SentencePiece, tekken,
``vocab.json`` with ``merges.txt``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from outcrop.checkpoints import bpe_files, sentencepiece, tekken, tokenizer
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.vocabulary import EngineCannot, Tokenizer

# The first that is there is used, as transformers does.
FILES = (tokenizer.FILE, sentencepiece.FILE, tekken.FILE, bpe_files.FILE)
_NO_BOS = ("T5", "Qwen2")  # tokenizer classes that put no token before a text unless told to


def read_tokenizer(texts: Mapping[str, bytes], *, may_end: bool = False) -> tuple[Tokenizer, EngineCannot | None]:
    """The tokenizer, and why the CPU engine cannot follow it (None when it can). Raises CheckpointRejected.

    *may_end*: a token after each text is followed too, as models that embed have one.
    """
    name = next((name for name in FILES if name in texts), None)
    if name is None:
        raise CheckpointRejected.of(
            "tokenizer.json is missing, and so are tokenizer.model, tekken.json and vocab.json. Save the tokenizer "
            "with the model (tokenizer.save_pretrained) and upload it.",
            tokenizer.FILE,
        )
    raw = texts[name]
    if name == bpe_files.FILE:
        try:
            name, raw = tokenizer.FILE, bpe_files.tokenizer_json(texts)
        except EngineCannot as exc:
            return bpe_files.parse_plainly(texts), exc
    try:
        if name == tokenizer.FILE:
            return tokenizer.parse_tokenizer(raw, may_end=may_end), None
        if name == sentencepiece.FILE:
            return sentencepiece.parse_model(raw, _added(texts), _adds_bos(texts)), None
        return tekken.parse_tekken(raw), None
    except EngineCannot as exc:
        if name == tokenizer.FILE:
            return tokenizer.parse_plainly(raw), exc
        if name == sentencepiece.FILE:
            return sentencepiece.parse_plainly(raw), exc
        raise  # a tekken file that we cannot read says nothing that another engine could use


def _added(texts: Mapping[str, bytes]) -> dict[int, tuple[str, bool]]:
    """Tokens that were added to a SentencePiece model: id -> text, whether it is special."""
    found: dict[int, tuple[str, bool]] = {}
    for text, index in _json(texts, "added_tokens.json").items():
        if isinstance(index, int):
            found[index] = (str(text), False)
    decoder = _json(texts, "tokenizer_config.json").get("added_tokens_decoder")
    for index, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if str(index).isdigit() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found[int(index)] = (entry["content"], bool(entry.get("special")))
    return found


def _adds_bos(texts: Mapping[str, bytes]) -> bool:
    config = _json(texts, "tokenizer_config.json")
    said = config.get("add_bos_token")
    if isinstance(said, bool):
        return said
    return not str(config.get("tokenizer_class", "Llama")).startswith(_NO_BOS)


def _json(texts: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(texts.get(name, b"{}"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}  # inspect says so for the files that it reads
    return document if isinstance(document, dict) else {}
