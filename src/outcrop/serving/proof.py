"""What a proof run found, and whether the model that it ran is one. The verdict is pure; ``Fleet.prove`` runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from outcrop.inference.canonical import Completion, GenerateRequest
from outcrop.inference.embeddings import Embeddings, EmbedRequest

PROOF_TOKENS = 16
MOST_ALIKE = 8  # that many times one token and nothing else, and the model is asked again
# The first is always asked, the others when its answer is one token over and over. They end differently, so a model
# that merely echoes its last token (random weights do) answers them differently.
PROMPTS = ("The capital of France is", "def add(a, b):\n    return", "1, 2, 3, 4,")


TEXTS = EmbedRequest(inputs=list(PROMPTS))  # of a model that embeds


class ProofReport(Struct, frozen=True):
    """What a proof run saw. Times in seconds; *mismatches* is empty when the engine tokenises as it should.

    *tokens_per_s*: of one sequence after a prompt of a few tokens; None when it ended at once.
    *memory_bytes*: what the copy held at its end (resident, its shared file pages included); None where the system
    does not say. *diagnosis*: why this is no working model; None when it is one.
    """

    spawn_s: float
    load_s: float
    first_token_s: float
    text: str
    mismatches: list[str]
    tokens_per_s: float | None
    memory_bytes: int | None
    diagnosis: str | None

    def measurements(self) -> dict[str, Any]:
        """What is kept of it as the model's first measurements."""
        return {
            "spawn_s": self.spawn_s,
            "load_s": self.load_s,
            "first_token_s": self.first_token_s,
            "tokens_per_s": self.tokens_per_s,
            "memory_bytes": self.memory_bytes,
            "diagnosis": self.diagnosis,
        }


def question(prompt: str) -> GenerateRequest:
    """Greedy, with log-probabilities."""
    body = {"prompt": prompt, "max_tokens": PROOF_TOKENS, "temperature": 0, "logprobs": 1}
    return GenerateRequest("completion", body)


def is_not_finite(answer: Completion) -> bool:
    """Whether any log-probability of *answer* is no number: the arithmetic broke down."""
    return any(value is None or math.isnan(value) for value in _log_probabilities(answer))


def repeated_token(answer: Completion) -> str | None:
    """Id of the token that *answer* consists of from its first to its last, when it is long enough to say so."""
    texts = _tokens(answer)
    return texts[0] if len(texts) >= MOST_ALIKE and len(set(texts)) == 1 else None


def diagnosis(answers: Sequence[Completion]) -> str | None:
    """Why the model that gave *answers* (to different prompts) is no working one; None when it may be one."""
    if any(map(is_not_finite, answers)):
        return "its logits are not numbers (NaN): the weights overflow in the engine's arithmetic, or are damaged"
    repeated = {repeated_token(answer) for answer in answers}
    if len(answers) == len(PROMPTS) and len(repeated) == 1 and None not in repeated:
        return f"it answers every prompt with the token {repeated.pop()} alone, from the first step on"
    return None


def vectors_diagnosis(found: Embeddings) -> str | None:
    """Why a model that gave these vectors to different texts does not work; an engine refuses what is no number."""
    return "it gives different texts one and the same vector" if len(set(found.vectors)) == 1 else None


def _entries(answer: Completion) -> Iterator[Mapping[str, Any]]:
    for choice in answer.choices:
        logprobs = choice.logprobs
        if isinstance(logprobs, Mapping):
            yield from (entry for entry in logprobs.get("content") or () if isinstance(entry, Mapping))


def _log_probabilities(answer: Completion) -> list[float | None]:
    found: list[float | None] = []
    for entry in _entries(answer):
        value = entry.get("logprob")
        found.append(float(value) if isinstance(value, int | float) else None)
    return found


def _tokens(answer: Completion) -> list[str]:
    return [str(entry.get("id", entry.get("token"))) for entry in _entries(answer)]
