"""What a model wrote, taken apart: its thoughts between ``<think>`` tags, and the answer after them. Pure.

llama.cpp's own reading fails (500) on an answer that ends inside a tag, as one does that ``max_tokens`` cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"


class Piece(Struct, frozen=True):
    """Part of an answer: text, thoughts, or deltas of tool calls in OpenAI's form but without their ids."""

    text: str = ""
    calls: Sequence[dict[str, Any]] = ()
    reasoning: str = ""


class Reader(Protocol):
    """Reads one answer as it comes. Not to be shared between answers."""

    def feed(self, text: str) -> Piece: ...

    def finish(self) -> Piece:
        """What was held back for the rest of something that never came."""
        ...


class Words:
    """An answer that is nothing but words."""

    def feed(self, text: str) -> Piece:
        return Piece(text)

    def finish(self) -> Piece:
        return Piece()


class Thoughts:
    """Takes thoughts from the start of an answer and leaves the rest to *answer*.

    *is_open*: the prompt has already begun a thought, as templates do whose models always think.
    """

    def __init__(self, answer: Reader, *, is_open: bool) -> None:
        self._answer = answer
        self._is_thinking = is_open
        self._may_begin = not is_open
        self._is_first = is_open  # of a thought or of what follows one: blank lines before it are the format's
        self._held = ""

    def feed(self, text: str) -> Piece:
        self._held += text
        if self._may_begin:
            begun = self._held.lstrip()
            if OPEN_THOUGHT.startswith(begun[: len(OPEN_THOUGHT)]) and len(begun) < len(OPEN_THOUGHT):
                return Piece()
            self._may_begin = False
            if begun.startswith(OPEN_THOUGHT):
                self._is_thinking = self._is_first = True
                self._held = begun[len(OPEN_THOUGHT) :]
        if not self._is_thinking:
            return self._answered(self._take())
        thought, close, rest = self._held.partition(CLOSE_THOUGHT)
        if not close:
            # Blank lines are held too: they are no thought when the tag follows them.
            said = self._held[: len(self._held) - start_of(CLOSE_THOUGHT, self._held)].rstrip()
            self._held = self._held[len(said) :]
            return Piece(reasoning=self._first(said))
        self._is_thinking = False
        self._held = ""
        reasoning = self._first(thought.rstrip())
        self._is_first = True
        answered = self._answered(rest)
        return Piece(answered.text, answered.calls, reasoning)

    def finish(self) -> Piece:
        held = self._take()
        if self._is_thinking:
            return Piece(reasoning=held)
        pieces = [self._answer.feed(held), self._answer.finish()]
        return Piece("".join(piece.text for piece in pieces), [call for piece in pieces for call in piece.calls])

    def _answered(self, text: str) -> Piece:
        text = self._first(text)
        return self._answer.feed(text) if text else Piece()

    def _first(self, text: str) -> str:
        if self._is_first:
            text = text.lstrip("\n")
            self._is_first = not text
        return text

    def _take(self) -> str:
        held, self._held = self._held, ""
        return held


def start_of(tag: str, text: str) -> int:
    """Length of the longest end of *text* that *tag* begins with."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if tag.startswith(text[-n:])), 0)


def after_a_thought(grammar: str) -> str:
    """*grammar* for an answer whose prompt has begun a thought: the thought first, free, then what it was."""
    thought = f'root ::= thought "{CLOSE_THOUGHT}" [\\n]{{0,2}} answer\nthought ::= ([^<] | "<" [^/])*\n'
    return thought + grammar.replace("root ::=", "answer ::=", 1)
