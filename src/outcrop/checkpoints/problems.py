"""What is wrong with a checkpoint: file, tensor, value, remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 5  # problems spelled out in one message; the rest is counted
SHOWN_CHARS = 2000  # a failureMessage holds 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    file: str
    message: str  # one sentence for people that names file, tensor, found, expected and remedy
    tensor: str | None = None
    found: str | None = None
    expected: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        return self.message


class CheckpointRejected(Exception):
    """A checkpoint cannot be imported; holds every problem that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        text, shown = "", 0
        for problem in self.problems[:SHOWN]:
            if shown and len(text) + len(str(problem)) > SHOWN_CHARS:
                break
            text += f"{' ' if text else ''}{problem}"
            shown += 1
        text = text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
        if left := len(self.problems) - shown:
            text += f" (and {left} more)"
        super().__init__(text)

    @classmethod
    def of(cls, message: str, file: str = "") -> CheckpointRejected:
        return cls([Problem(file=file, message=message)])
