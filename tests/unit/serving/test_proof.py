"""What a proof run calls a model that does not work."""

from __future__ import annotations

from typing import Any

import pytest

from outcrop.inference.canonical import Choice, Completion, Usage
from outcrop.serving.proof import MOST_ALIKE, PROMPTS, diagnosis, repeated_token


def answer(*tokens: int, logprob: float | None = -1.0) -> Completion:
    content: list[dict[str, Any]] = [{"id": token, "token": str(token), "logprob": logprob} for token in tokens]
    return Completion([Choice(0, "text", "length", {"content": content})], Usage(3, len(tokens)))


def test_one_token_over_and_over_after_every_prompt_is_no_model() -> None:
    answers = [answer(*[7] * MOST_ALIKE) for _ in PROMPTS]

    assert "every prompt with the token 7 alone" in (diagnosis(answers) or "")


@pytest.mark.parametrize(
    "answers",
    [
        [answer(*[7] * MOST_ALIKE)] * (len(PROMPTS) - 1),  # not asked enough
        [answer(*[token] * MOST_ALIKE) for token in range(len(PROMPTS))],  # an echo of each prompt
        [answer(*[7] * MOST_ALIKE), answer(1, 2, 3, 4), answer(*[7] * MOST_ALIKE)],
        [answer(7)] * len(PROMPTS),  # ended at once
        [Completion([Choice(0, "text", "stop", None)], Usage(1, 1))],  # an engine without log-probabilities
    ],
)
def test_anything_else_may_be_a_model(answers: list[Completion]) -> None:
    assert diagnosis(answers) is None


@pytest.mark.parametrize("logprob", [None, float("nan")])
def test_logits_that_are_no_numbers_are_told(logprob: float | None) -> None:
    assert "not numbers (NaN)" in (diagnosis([answer(1, 2, logprob=logprob)]) or "")


def test_a_short_answer_says_nothing_of_repetition() -> None:
    assert repeated_token(answer(*[7] * (MOST_ALIKE - 1))) is None
    assert repeated_token(answer(*[7] * MOST_ALIKE)) == "7"
