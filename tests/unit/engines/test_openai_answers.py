"""What a streamed answer's events become."""

from __future__ import annotations

import pytest

from outcrop.engines.llama_cpp_request import CHAT, Plan
from outcrop.engines.openai_answers import Answer, AnswerChoice, Reading, Said


def streamed(*pieces: str, finish_reason: str) -> str:
    reading = Reading(Plan(CHAT, {}), 0)
    answers = [Answer(choices=[AnswerChoice(delta=Said(content=piece))]) for piece in pieces]
    answers.append(Answer(choices=[AnswerChoice(delta=Said(), finish_reason=finish_reason)]))
    return "".join(chunk.text for answer in answers for chunk in reading.chunks(answer))


@pytest.mark.parametrize("pieces", [("a", "\ufffd"), ("a\ufffd", "\ufffd")])
def test_half_a_character_at_the_end_is_given_unless_the_length_cut_it(pieces: tuple[str, ...]) -> None:
    assert streamed(*pieces, finish_reason="stop") == "".join(pieces)
    assert streamed(*pieces, finish_reason="length") == "a"


def test_half_a_character_that_something_follows_is_part_of_the_answer() -> None:
    assert streamed("a\ufffd", "b", finish_reason="length") == "a\ufffdb"
