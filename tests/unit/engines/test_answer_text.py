from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.engines.answer_text import Thoughts, Words


def read(text: str, step: int, *, is_open: bool) -> tuple[str, str]:
    reader = Thoughts(Words(), is_open=is_open)
    pieces = [reader.feed(text[start : start + step]) for start in range(0, len(text), step)] + [reader.finish()]
    return "".join(piece.reasoning for piece in pieces), "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "answer"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, "hm", "yes"),
        ("\n<think>hm</think>yes", False, "hm", "yes"),
        ("hm\n</think>\n\nyes", True, "hm", "yes"),
        ("yes", False, "", "yes"),
        ("\n\n yes", False, "", "\n\n yes"),
        ("<thin ice", False, "", "<thin ice"),
        ("<think>cut", False, "cut", ""),
        ("cut</th", True, "cut</th", ""),
        ("<thi", False, "", "<thi"),
        ("</think>yes", True, "", "yes"),
        ("", True, "", ""),
        ("yes <think> later </think>", False, "", "yes <think> later </think>"),
    ],
)
def test_thoughts_come_apart_from_the_answer_however_the_text_is_cut(
    text: str, is_open: bool, reasoning: str, answer: str
) -> None:
    for step in (1, 2, 3, 5, 100):
        assert read(text, step, is_open=is_open) == (reasoning, answer)


@given(st.text(alphabet="<think>/\n ab", max_size=40), st.integers(1, 9), st.booleans())
def test_where_the_text_is_cut_makes_no_difference(text: str, step: int, is_open: bool) -> None:
    assert read(text, step, is_open=is_open) == read(text, 1000, is_open=is_open)
