"""What is asked: prompts of wanted lengths, answers of wanted lengths, the same for every run with the same seed.

The standard payload is that of the published table as far as it can be told: about 1,000 tokens in and 220 out.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from outcrop.bench.endpoints import Ask
from outcrop.errors import BadSetting

_TEXT = """for each record in the list read its owner and check that the value is not null before it is written so a
query inside the loop runs once more than it should and the limit of the transaction is reached when many rows come"""
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Log-normal lengths in tokens with mean and coefficient of variation; cv 0 is a constant."""

    mean: float
    cv: float = 0.2

    def draw(self, rng: random.Random) -> int:
        spread = math.sqrt(math.log(1 + self.cv**2))
        return max(1, round(self.mean * math.exp(rng.gauss(0, spread) - spread**2 / 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """*words_per_token* and *fixed_tokens* are measured on the endpoint.

    *shared*: share of each prompt that is the same.
    """

    tokens_in: Lengths
    tokens_out: Lengths
    forced: bool = True
    shared: float = 0.0
    words_per_token: float = 1.0
    fixed_tokens: float = 0.0
    prompts: tuple[str, ...] = ()

    def asks(self, seed: int) -> Iterator[Ask]:
        """Requests without end, the same for the same *seed*; without a shared part no two begin alike."""
        rng = random.Random(seed)  # noqa: S311
        common = [rng.choice(_WORDS) for _ in range(int(self.tokens_in.mean * self.words_per_token * self.shared))]
        number = 0
        while True:
            tokens_out = self.tokens_out.draw(rng)
            if self.prompts:
                prompt = self.prompts[number % len(self.prompts)]
            else:
                count = max(1, round((self.tokens_in.draw(rng) - self.fixed_tokens) * self.words_per_token))
                own = [rng.choice(_WORDS) for _ in range(max(1, count - len(common)))]
                head = common[: max(0, count - 1)] if self.shared else [f"{seed}-{number}"]
                prompt = " ".join([*head, *own])
            yield Ask(prompt, tokens_out, self.forced)
            number += 1


def words(count: int) -> str:
    """A prompt of *count* words, to measure how many tokens they are."""
    rng = random.Random(count)  # noqa: S311
    return " ".join(rng.choice(_WORDS) for _ in range(count))


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts of a file: JSON lines with ``prompt`` (or plain strings), else one prompt a line. Raises BadSetting."""
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as exc:
        raise BadSetting(f"the prompts {path} cannot be read: {exc.strerror}.") from exc
    if path.suffix != ".jsonl":
        found = tuple(lines)
    else:
        try:
            found = tuple(row if isinstance(row := json.loads(line), str) else row["prompt"] for line in lines)
        except (ValueError, KeyError, TypeError) as exc:
            raise BadSetting(f"{path}: every line must be a JSON string or an object with prompt: {exc}") from exc
    if not found:
        raise BadSetting(f"{path} holds no prompt.")
    return found
