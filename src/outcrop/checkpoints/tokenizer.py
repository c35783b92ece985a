"""A Hugging Face ``tokenizer.json`` as the facts that an engine's artefact needs. Byte-level BPE.

Whatever the engine would do differently is refused here by name: a model that reads other tokens than it was trained
on answers fluently and wrongly, which nobody notices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from outcrop.checkpoints.problems import CheckpointRejected

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTE_LEVEL = "ByteLevel with its own pattern"

# (Split regex, ignore_merges) -> llama.cpp's name of the pre-tokenizer that does the same, as tests/parity compares.
# Known to differ: an apostrophe before U+017F (long s), which ignoring case makes an 's in Hugging Face's regex only.
# llama.cpp ties "look the whole word up first" (ignore_merges) to the name: only its llama-bpe does it.
PRE_TOKENIZERS: Mapping[tuple[str, bool], str] = {
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}", True): "llama-bpe",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}", False): "dbrx",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}", False): "qwen2",
    (_BYTE_LEVEL, False): "gpt-2",
}

# The characters that byte-level BPE writes bytes as: printable Latin-1 as itself, the rest from U+0100 on.
_ITSELF = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_BYTES = frozenset(map(chr, [*_ITSELF, *range(0x100, 0x100 + 256 - len(_ITSELF))]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """*tokens*: id -> text; *special* and *added* are ids; *pre* is llama.cpp's pre-tokenizer name.

    *nfc*: the tokenizer brings text to Unicode's form NFC first. llama.cpp does not; text that is in another form
    (decomposed accents, rare outside of file names) is tokenised as it stands.
    """

    tokens: Mapping[int, str]
    special: frozenset[int]
    added: frozenset[int]
    merges: tuple[str, ...]
    pre: str
    bos: str | None  # the token that the post-processor puts first
    nfc: bool = False

    def id_of(self, text: str) -> int | None:
        return next((index for index, token in self.tokens.items() if token == text), None)


def parse_tokenizer(raw: bytes) -> Tokenizer:
    """Raises CheckpointRejected for what the engine could not reproduce exactly."""
    try:
        return _tokenizer(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _refused(f"is not valid JSON ({exc}). Save the tokenizer again") from exc
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as exc:
        raise _refused(f"is not a Hugging Face tokenizer file ({type(exc).__name__}: {exc})") from exc


def _tokenizer(document: Any) -> Tokenizer:
    model = document["model"]
    kind = model.get("type", "BPE")
    if kind != "BPE" or model.get("byte_fallback"):
        label = f"{kind} with byte fallback" if kind == "BPE" else kind
        raise _refused(f"is a {label} tokenizer; byte-level BPE is supported")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise _refused(f"sets {option} to {model[option]!r}, which the engine does not do")
    tokens = {int(index): str(text) for text, index in model["vocab"].items()}
    if missing := _BYTES - set(tokens.values()):
        raise _refused(f"lacks {len(missing)} of the 256 byte tokens, so some text would have no tokens")
    added = document.get("added_tokens") or []
    tokens.update({int(token["id"]): str(token["content"]) for token in added})
    _check_tokens(tokens, added)
    return Tokenizer(
        tokens=tokens,
        special=frozenset(token["id"] for token in added if token.get("special")),
        added=frozenset(token["id"] for token in added),
        merges=tuple(map(_merge, model["merges"])),
        pre=_pre_tokenizer(document.get("pre_tokenizer"), bool(model.get("ignore_merges"))),
        bos=_leading_token(document.get("post_processor")),
        nfc=_is_nfc(document.get("normalizer")),
    )


def _check_tokens(tokens: Mapping[int, str], added: list[Any]) -> None:
    if (lowest := min(tokens)) < 0:
        raise _refused(f"has the token id {lowest}; ids start at 0")
    texts = Counter(tokens.values())
    if twice := [text for text, times in texts.items() if times > 1]:
        ids = [index for index, text in tokens.items() if text == twice[0]]
        raise _refused(f"has the token {twice[0]!r} under the ids {ids}; a text may have one id")
    for token in added:
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise _refused(f"sets {flag} for the added token {token['content']!r}, which the engine does not do")
        if not token["content"]:
            raise _refused(f"has an added token without text (id {token['id']})")


def _merge(merge: Any) -> str:
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    if len(parts) != 2 or not all(isinstance(part, str) and part and " " not in part for part in parts):
        raise _refused(f"has the merge {merge!r}; two tokens are needed")
    return " ".join(parts)


def _steps(node: Any, key: str) -> list[dict[str, Any]]:
    """Links of a chain, Sequences inside Sequences opened."""
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for inner in node[key] for step in _steps(inner, key)]
    return [node]


def _is_nfc(node: Any) -> bool:
    kinds = [step["type"] for step in _steps(node, "normalizers")]
    if other := [kind for kind in kinds if kind != "NFC"]:
        raise _refused(f"changes text before splitting it ({', '.join(other)}), which the engine does not")
    return bool(kinds)


def _pre_tokenizer(node: Any, ignore_merges: bool) -> str:
    steps = _steps(node, "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise _refused(f"splits text in steps that the engine does not know: {' then '.join(kinds) or 'none'}")
    if steps[-1].get("add_prefix_space", True):
        raise _refused("adds a space before the text (add_prefix_space), which the engine does not")
    own = bool(steps[-1].get("use_regex", True))
    pattern = _BYTE_LEVEL
    if len(steps) == 2:
        split = steps[0]
        pattern = split["pattern"].get("Regex") or repr(split["pattern"].get("String"))
        if own or split.get("behavior") != "Isolated" or split.get("invert"):
            raise _refused(f"splits text by {pattern} in a way that the engine does not know")
    elif not own:
        raise _refused("does not split text into words, which the engine always does")
    if (pattern, ignore_merges) not in PRE_TOKENIZERS:
        raise _refused(
            f"splits text by a pattern that the engine does not know: {pattern}"
            + (" with ignore_merges" if ignore_merges else "")
        )
    return PRE_TOKENIZERS[pattern, ignore_merges]


def _leading_token(node: Any) -> str | None:
    """The beginning-of-text token that the tokenizer adds; anything else that it adds is refused."""
    for step in _steps(node, "processors"):
        if step["type"] == "ByteLevel":  # offsets only
            continue
        if step["type"] != "TemplateProcessing":
            raise _refused(f"adds tokens by {step['type']}, which the engine does not")
        parts = ["" if "Sequence" in part else str(part["SpecialToken"]["id"]) for part in step["single"]]
        if len(parts) > 2 or parts[-1]:
            around = " ".join(part or "text" for part in parts)
            raise _refused(f"surrounds text with tokens ({around}); one token before it is supported")
        return parts[0] or None
    return None


def _refused(reason: str) -> CheckpointRejected:
    return CheckpointRejected.of(f"tokenizer.json {reason}.", "tokenizer.json")
