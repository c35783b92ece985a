"""The reviewer's ``model.py``: what an application sends to the endpoint and gets back, around the imported model.

``outcrop proxy --model-dir examples/apexguru --target apexguru`` serves it. An application posts ``{"code": "..."}`` or
the class itself as ``text/plain``; it gets ``{"findings": [{"rule", "line"}, ...]}``, lines counted in its own file.

The model was trained on files of up to 42 lines, so longer ones are reviewed in pieces, all at once. A piece repeats
the headers of the blocks that are open around it and closes them again, so that a line in a loop is seen in its loop.
What the model finds is put back on the lines that the piece was cut from.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from outcrop.proxy import Refuse

MOST_LINES = 42
MAX_ANSWER_TOKENS = 96
RULES = (
    "SoqlInLoop",
    "DmlInLoop",
    "UnboundedQuery",
    "HardcodedId",
    "StringConcatInLoop",
    "NestedLoop",
    "TriggerNotBulkified",
    "DebugInLoop",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some lines of a file. *origins*: the number of each in the file, None for what was added around them."""

    lines: tuple[str, ...]
    origins: tuple[int | None, ...]

    @property
    def prompt(self) -> str:
        """The piece as the model reads it: each line's number in a comment at its end."""
        numbered = enumerate(self.lines, 1)
        return "\n".join(f"{line} //{number}" if line else f"//{number}" for number, line in numbered)


def preprocess(request, ctx):
    """The pieces of the class to review."""
    if request.content_type.startswith("application/json"):
        body = request.json()
        code = body.get("code") if isinstance(body, dict) else None
    else:
        code = request.text()
    if not isinstance(code, str) or not code.strip():
        raise Refuse('Send the class to review as {"code": "..."} or as text/plain.')
    return pieces(code.splitlines())


async def predict(cut, ctx):
    """The findings in all pieces, which are reviewed at the same time."""
    answers = await asyncio.gather(*(_reviewed(piece, ctx) for piece in cut))
    return {"findings": merged(cut, answers)}


async def _reviewed(piece, ctx):
    messages = [{"role": "user", "content": piece.prompt}]
    answer = await ctx.invoke({"messages": messages, "max_tokens": MAX_ANSWER_TOKENS, "temperature": 0})
    return answer["choices"][0]["message"]["content"]


def merged(cut, answers):
    """The findings of all pieces on the file's own lines, each once, in the file's order."""
    found = {
        (piece.origins[finding["line"] - 1], finding["rule"])
        for piece, answer in zip(cut, answers, strict=True)
        for finding in _findings(answer)
        if 0 < finding["line"] <= len(piece.origins) and piece.origins[finding["line"] - 1] is not None
    }
    ordered = sorted(found, key=lambda entry: (entry[0], RULES.index(entry[1])))
    return [{"rule": rule, "line": line} for line, rule in ordered]


def _findings(answer):
    """The entries of one answer. Raises ValueError for what is not a list of findings."""
    found = json.loads(answer)
    if not isinstance(found, list):
        raise ValueError(f"the model answered no list: {answer[:80]!r}")
    for entry in found:
        if not isinstance(entry, dict) or entry.get("rule") not in RULES or type(entry.get("line")) is not int:
            raise ValueError(f"the model answered no finding: {entry!r}")
    return found


def pieces(lines: list[str], most: int = MOST_LINES) -> list[Piece]:
    """*lines* in pieces of at most *most* lines, cut where the fewest blocks are open."""
    if len(lines) <= most:
        return [Piece(tuple(lines), tuple(range(1, len(lines) + 1)))]
    around = _open_blocks(lines)
    found, start = [], 0
    while start < len(lines):
        heads = around[start]
        room = most - len(heads)
        if room < 2:
            raise Refuse(f"Line {start + 1} lies in {len(heads)} blocks; a review sees at most {most} lines at once.")
        ends = [
            end
            for end in range(start + 1, min(len(lines), start + room) + 1)
            if len(heads) + end - start + len(around[end]) <= most
        ]
        # The latest cut of the least depth; a first line that opens a block is cut all the same.
        end = min(ends, key=lambda at: (len(around[at]), -at)) if ends else start + 1
        if end == start:
            end = start + 1
        still_open = around[end]
        text = [lines[at] for at in heads] + lines[start:end] + ["}" for _ in still_open]
        origins = [None] * len(heads) + list(range(start + 1, end + 1)) + [None] * len(still_open)
        found.append(Piece(tuple(text), tuple(origins)))
        start = end
    return found


def _open_blocks(lines: list[str]) -> list[tuple[int, ...]]:
    """For each place between two lines, the lines that opened the blocks around it."""
    stack: list[int] = []
    around = [()]
    for at, line in enumerate(lines):
        code = line.strip()
        if not code.startswith("//"):
            if code.startswith("}") and stack:
                stack.pop()
            if code.endswith("{"):
                stack.append(at)
        around.append(tuple(stack))
    return around
