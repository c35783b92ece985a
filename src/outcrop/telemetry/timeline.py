"""A request as steps in time: what ``outcrop trace`` prints and what becomes spans. Pure."""

from __future__ import annotations

from msgspec import Struct

from outcrop.telemetry.requests import Attempt, ColdStart, RequestRecord

RECEIVE, HOLD, QUEUE, GENERATE, PREFILL, DECODE, ANSWER, START = (
    "receive",
    "hold",
    "queue",
    "generate",
    "prefill",
    "decode",
    "answer",
    "cold start",
)
MEANING = {
    RECEIVE: "read, authenticate, parse",
    HOLD: "no copy was ready",
    QUEUE: "copies were ready, their slots taken",
    GENERATE: "the engine's whole answer",
    PREFILL: "the engine reads the prompt, to the first token",
    DECODE: "first token to last",
    ANSWER: "encode and send",
    START: "the copy that it waited for starts",
}
_SHORTEST_S = 0.0005  # a wait below this is the price of asking, not a step


class Step(Struct, frozen=True):
    """One step. *at_s*: since the request began, negative for a start that others had ordered. *under*: the step that
    it is part of, by name."""

    name: str
    at_s: float
    for_s: float
    copy_id: str = ""
    under: str = ""
    is_broken: bool = False


def steps(record: RequestRecord) -> list[Step]:
    """The steps of *record* in order; the stages of a cold start follow the hold that waited for it."""
    attempts = record.attempts
    first_asked_s = attempts[0].asked_s if attempts else record.total_s
    found = [Step(RECEIVE, 0.0, first_asked_s)]
    for number, attempt in enumerate(attempts):
        is_last = number == len(attempts) - 1
        found += _waiting(record, attempt, record.cold_start if attempt.held_s else None)
        found += _generating(record, attempt, is_last=is_last)
    if attempts and attempts[-1].ended_s is not None and record.total_s - attempts[-1].ended_s >= _SHORTEST_S:
        found.append(Step(ANSWER, attempts[-1].ended_s, record.total_s - attempts[-1].ended_s))
    return found


def _waiting(record: RequestRecord, attempt: Attempt, start: ColdStart | None) -> list[Step]:
    ended_s = record.total_s if attempt.ended_s is None else attempt.ended_s
    until_s = ended_s if attempt.placed_s is None else attempt.placed_s
    wait_s = until_s - attempt.asked_s
    held_s = attempt.held_s
    if attempt.placed_s is None and attempt.is_cold:
        held_s = wait_s
    found = []
    if held_s:
        found.append(Step(HOLD, attempt.asked_s, held_s, attempt.copy_id))
        if start is not None:
            found += _starting(record, start)
    if wait_s - held_s >= _SHORTEST_S:
        found.append(Step(QUEUE, attempt.asked_s + held_s, wait_s - held_s, attempt.copy_id))
    return found


def _starting(record: RequestRecord, start: ColdStart) -> list[Step]:
    at_s = start.at - record.at
    found = [Step(START, at_s, start.total_s, start.copy_id, HOLD)]
    for stage, seconds in start.stages.items():
        found.append(Step(stage, at_s, seconds, start.copy_id, START))
        at_s += seconds
    return found


def _generating(record: RequestRecord, attempt: Attempt, *, is_last: bool) -> list[Step]:
    if attempt.placed_s is None:
        return []
    ended_s = record.total_s if attempt.ended_s is None else attempt.ended_s
    first_s = record.first_token_s
    if first_s is None and record.decode_s is not None:
        first_s = max(attempt.placed_s, ended_s - record.decode_s)
    if not is_last or first_s is None:
        is_broken = not is_last or record.blame == "server"
        return [Step(GENERATE, attempt.placed_s, ended_s - attempt.placed_s, attempt.copy_id, is_broken=is_broken)]
    return [
        Step(PREFILL, attempt.placed_s, first_s - attempt.placed_s, attempt.copy_id),
        Step(DECODE, first_s, ended_s - first_s, attempt.copy_id, is_broken=record.blame == "server"),
    ]
