"""Mistral's ``tekken.json``: a list of byte strings by rank, as tiktoken has them.

There are no merges in it: two neighbours merge when their union has a rank, the lowest first. Each token's last merge
is found by merging its own bytes with the lower ranks only (Karpathy's and Hugging Face's way for tiktoken files).
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping
from typing import Any

import msgspec

from outcrop.checkpoints.pre_tokenizers import PRE_TOKENIZERS
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.vocabulary import Tokenizer, refused

FILE = "tekken.json"
_ITSELF = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_REST = [value for value in range(256) if value not in set(_ITSELF)]
_LETTERS = {value: chr(value) for value in _ITSELF} | {value: chr(0x100 + n) for n, value in enumerate(_REST)}


def parse_tekken(raw: bytes) -> Tokenizer:
    """The vocabulary with ids as mistral-common gives them: special tokens first. Raises CheckpointRejected."""
    try:
        return _tekken(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointRejected.of(f"{FILE} is not valid JSON ({exc}). Upload it again.", FILE) from exc
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as exc:
        message = f"{FILE} is not a tekken file ({type(exc).__name__}: {exc}). Upload it again."
        raise CheckpointRejected.of(message, FILE) from exc


def _tekken(document: Mapping[str, Any]) -> Tokenizer:
    config = document["config"]
    specials = int(config["default_num_special_tokens"])
    pre = PRE_TOKENIZERS.get(((config["pattern"],), True))
    if pre is None:
        raise refused(f"splits text by a pattern that the engine does not know: {config['pattern']}", FILE)
    ranks = {
        base64.b64decode(entry["token_bytes"]): int(entry["rank"])
        for entry in document["vocab"][: int(config["default_vocab_size"]) - specials]
    }
    if missing := 256 - sum(1 for token in ranks if len(token) == 1):
        raise refused(f"lacks {missing} of the 256 single bytes, so some text would have no tokens", FILE)
    tokens = {rank + specials: _letters(token) for token, rank in ranks.items()}
    named = {int(entry["rank"]): str(entry["token_str"]) for entry in document.get("special_tokens") or []}
    if not named:  # mistral-common's older files leave these out; they are always the same
        named = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]"}
    tokens.update({index: named.get(index, f"<SPECIAL_{index}>") for index in range(specials)})
    return Tokenizer(
        kind="bpe",
        tokens=tokens,
        special=frozenset(range(specials)),
        added=frozenset(range(specials)),
        merges=tuple(_merges(ranks)),
        pre=pre,
        bos=named.get(1),
    )


def _letters(token: bytes) -> str:
    return "".join(_LETTERS[value] for value in token)


def _merges(ranks: Mapping[bytes, int]) -> list[str]:
    found = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merged(token, ranks, rank)
            if len(parts) == 2:  # else the token is only found whole, which ignore_merges does
                found.append(f"{_letters(parts[0])} {_letters(parts[1])}")
    return found


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """*token*'s bytes after all merges of a rank *below* its own."""
    parts = [bytes([value]) for value in token]
    while True:
        pairs = [
            (ranks.get(left + right, below), place) for place, (left, right) in enumerate(itertools.pairwise(parts))
        ]
        rank, place = min(pairs, default=(below, 0))
        if rank >= below:
            return parts
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
