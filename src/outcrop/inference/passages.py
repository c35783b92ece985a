"""Questions to a document: its passages, which of them a question is about, and what of an answer comes from which.

The model sees numbered passages and is asked to name them by ``[n]``; the marks are taken out of the answer again and
become citations. A stretch of the answer without a mark cites nothing. Pure.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

DEFAULT_TEMPLATE = (
    "Answer the question from the numbered search results alone. If they do not hold the answer, say so.\n"
    "$output_format_instructions$\n\nSearch results:\n$search_results$\n\nQuestion: $query$"
)
FORMAT_INSTRUCTIONS = (
    "After each statement name the search results that it comes from by their numbers, as in [1] or [2][3]."
)

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n{2,}|\n(?=\S)")
_MARKS = re.compile(r"\s*((?:\[\d+(?:\s*,\s*\d+)*\]\s*)+)")
_WORD = re.compile(r"\w+")


class Citation(Struct, frozen=True):
    """Characters *start* to *end* (exclusive) of the answer, which come from the *passages* (indices)."""

    start: int
    end: int
    passages: tuple[int, ...]


def split(text: str, limit: int) -> list[str]:
    """*text* in passages of about *limit* characters that end where sentences or lines do; nothing is left out."""
    passages: list[str] = []
    current = ""
    begin = 0
    for end in [*(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]:
        sentence, begin = text[begin:end], end
        if current and len(current) + len(sentence) > limit:
            passages.append(current)
            current = ""
        while len(sentence) > limit:  # one without an end
            passages.append(sentence[:limit])
            sentence = sentence[limit:]
        current += sentence
    passages.append(current)
    return [passage for passage in passages if passage.strip()]


def ranked(passages: Sequence[str], question: str) -> list[int]:
    """Indices of *passages*, those that share most of the rarer words with *question* first (BM25)."""
    words = [Counter(_words(passage)) for passage in passages]
    mean = sum(counts.total() for counts in words) / max(1, len(words))
    scores = [0.0] * len(words)
    for word in set(_words(question)):
        within = sum(word in counts for counts in words)
        rarity = math.log(1 + (len(words) - within + 0.5) / (within + 0.5))
        for index, counts in enumerate(words):
            if times := counts[word]:
                scores[index] += rarity * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * counts.total() / mean))
    return sorted(range(len(words)), key=lambda index: -scores[index])


def prompt(template: str, passages: Sequence[str], question: str) -> str:
    """*template* with Bedrock's variables filled in."""
    results = "\n\n".join(f"[{number}] {passage.strip()}" for number, passage in enumerate(passages, 1))
    values = {
        "search_results": results,
        "output_format_instructions": FORMAT_INSTRUCTIONS,
        "query": question,
    }
    # At once, so that a value that holds a variable's name stays as it is.
    return re.sub(rf"\$({'|'.join(values)})\$", lambda found: values[found.group(1)], template)


def cited(answer: str, count: int) -> tuple[str, list[Citation]]:
    """*answer* without its marks, and what each stretch before a mark cites of *count* passages."""
    text = ""
    citations: list[Citation] = []
    begin = 0
    for found in _MARKS.finditer(answer):
        named = dict.fromkeys(int(number) - 1 for number in re.findall(r"\d+", found.group(1)))
        passages = tuple(index for index in named if 0 <= index < count)
        if not passages:
            continue  # a number of something else
        stretch = answer[begin : found.start()]
        start = len(text) + len(stretch) - len(stretch.lstrip())
        text += stretch
        begin = found.end()
        after = answer[begin : begin + 1]
        if after in (".", ",", ";", ":", "!", "?") and after:
            text, begin = text + after, begin + 1
        if text[start:].strip():
            citations.append(Citation(start, len(text), passages))
        if begin < len(answer) and not answer[begin].isspace():
            text += " "
    return text + answer[begin:], citations


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
