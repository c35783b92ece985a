"""What a streamed answer's events become."""

from __future__ import annotations

import pytest

from outcrop.engines.llama_cpp import _Answer, _Choice, _Message, _Reading
from outcrop.engines.llama_cpp_request import CHAT, Plan


def streamed(*pieces: str, finish_reason: str) -> str:
    reading = _Reading(Plan(CHAT, {}), 0)
    answers = [_Answer(choices=[_Choice(delta=_Message(content=piece))]) for piece in pieces]
    answers.append(_Answer(choices=[_Choice(delta=_Message(), finish_reason=finish_reason)]))
    return "".join(chunk.text for answer in answers for chunk in reading.chunks(answer))


@pytest.mark.parametrize("pieces", [("a", "\ufffd"), ("a\ufffd", "\ufffd")])
def test_half_a_character_at_the_end_is_given_unless_the_length_cut_it(pieces: tuple[str, ...]) -> None:
    assert streamed(*pieces, finish_reason="stop") == "".join(pieces)
    assert streamed(*pieces, finish_reason="length") == "a"


def test_half_a_character_that_something_follows_is_part_of_the_answer() -> None:
    assert streamed("a\ufffd", "b", finish_reason="length") == "a\ufffdb"
