"""Answers that a retry of the same invocation is given again."""

from __future__ import annotations

from outcrop.inference.canonical import Choice, Completion, GenerateRequest, Usage
from outcrop.serving.kept_answers import KeptAnswers, key_of

ASKED = GenerateRequest("completion", {"prompt": "x"})
KEY = key_of("p", "1", "model", ASKED)


def answer(text: str) -> Completion:
    return Completion(choices=[Choice(index=0, text=text, finish_reason="stop")], usage=Usage(1, 2))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_kept_answer_is_found_whole_until_its_time_is_over() -> None:
    clock = Clock()
    kept = KeptAnswers(limit_bytes=10_000, keep_s=10, clock=clock)
    kept.keep(KEY, answer("yes"))

    clock.now = 9
    assert kept.find(KEY) == answer("yes")
    clock.now = 11
    assert kept.find(KEY) is None
    assert kept.size_bytes == 0


def test_only_the_same_principal_invocation_model_and_request_finds_it() -> None:
    kept = KeptAnswers(limit_bytes=10_000, keep_s=10, clock=Clock())
    kept.keep(KEY, answer("yes"))

    others = [
        key_of("q", "1", "model", ASKED),
        key_of("p", "2", "model", ASKED),
        key_of("p", "1", "other", ASKED),
        key_of("p", "1", "model", GenerateRequest("completion", {"prompt": "y"})),
        key_of("p", "1", "model", GenerateRequest("chat", {"prompt": "x"})),
    ]
    assert [kept.find(other) for other in others] == [None] * 5


def test_memory_is_bounded_and_the_oldest_answers_go_first() -> None:
    kept = KeptAnswers(limit_bytes=5_000, keep_s=10, clock=Clock())
    keys = [key_of("p", str(number), "model", ASKED) for number in range(50)]
    for key in keys:
        kept.keep(key, answer("a" * 300))
        assert kept.size_bytes <= 5_000
    kept.keep(KEY, answer("b" * 4_000))  # more than a tenth of all

    assert kept.find(keys[0]) is None
    assert kept.find(keys[-1]) == answer("a" * 300)
    assert kept.find(KEY) is None
