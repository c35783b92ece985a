"""How text is split into words before BPE, and llama.cpp's name for each way that it knows.

llama.cpp knows a pre-tokenizer by the name of a model that uses it. Here it is recognised by what ``tokenizer.json``
does, so that a tokenizer that someone trained has a name as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.checkpoints.vocabulary import refused, steps

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_MARKED_TAIL = r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_TAIL}"
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
_GPT2 = "ByteLevel with its own pattern"
_DIGITS = "single Digits"

# What splits text, in order -> llama.cpp's name of the pre-tokenizer that does the same, as tests/parity compares; the
# second value of the key is ignore_merges ("look the whole word up first"), which llama.cpp ties to the name.
# Known to differ: what LOOSE says, and an apostrophe before U+017F (long s), which ignoring case makes an 's in Hugging
# Face's regex only.
PRE_TOKENIZERS: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}",), True): "llama-bpe",
    ((rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}",), False): "dbrx",
    ((QWEN2_PATTERN,), False): "qwen2",
    ((rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|{_MARKED_TAIL}",), False): "qwen35",
    ((rf"{_LOWER}{_CONTRACTIONS}?|{_UPPER}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SLASHED_TAIL}",), False): "gpt-4o",
    ((rf"{_LOWER}|{_UPPER}|\p{{N}}|{_SLASHED_TAIL}",), True): "tekken",
    ((r"\p{N}{1,3}", _CJK, _DEEPSEEK_WORDS), False): "deepseek-v3",
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "starcoder",
}

# llama.cpp writes the upper- and lower-case letters of these two without combining marks: a mark begins a new word
# there (Devanagari vowel signs, Hebrew points, decomposed accents), where the checkpoint keeps it in its word. Nor does
# it see the change from a lower-case letter outside of ASCII to an upper-case one ("éZ").
LOOSE = frozenset({"gpt-4o", "tekken"})


def pre_tokenizer(node: Any, ignore_merges: bool) -> str:
    """llama.cpp's name for the ``pre_tokenizer`` *node*. Raises EngineCannot for one that it does not know."""
    chain = steps(node, "pretokenizers")
    kinds = [step["type"] for step in chain]
    if not kinds or kinds[-1] != "ByteLevel" or set(kinds[:-1]) - {"Split", "Digits"}:
        raise refused(f"splits text in steps that the engine does not know: {' then '.join(kinds) or 'none'}")
    if chain[-1].get("add_prefix_space", True):
        raise refused("adds a space before the text (add_prefix_space), which the engine does not")
    rules = tuple(map(_rule, chain[:-1]))
    if chain[-1].get("use_regex", True):
        rules += (_GPT2,)
    if not rules:
        raise refused("does not split text into words, which the engine always does")
    if (rules, ignore_merges) not in PRE_TOKENIZERS:
        raise refused(
            f"splits text by a pattern that the engine does not know: {' then '.join(rules)}"
            + (" with ignore_merges" if ignore_merges else "")
        )
    return PRE_TOKENIZERS[rules, ignore_merges]


def _rule(step: dict[str, Any]) -> str:
    if step["type"] == "Digits":
        if not step.get("individual_digits"):
            raise refused("splits off whole numbers (Digits), which the engine does not")
        return _DIGITS
    pattern = str(step["pattern"].get("Regex") or repr(step["pattern"].get("String")))
    if step.get("behavior") != "Isolated" or step.get("invert"):
        raise refused(f"splits text by {pattern} in a way that the engine does not know")
    return pattern
