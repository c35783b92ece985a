"""Every legal move of an import job; nothing else sets a phase. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Phase(StrEnum):
    QUEUED = "QUEUED"
    CHECKING = "CHECKING"  # config, tokenizer and headers only
    TRANSFERRING = "TRANSFERRING"  # files into the weight store
    CONVERTING = "CONVERTING"  # the engine's artefact
    PROVING = "PROVING"  # one copy starts, tokenises and generates
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


NEXT: Mapping[Phase, Phase] = {
    Phase.QUEUED: Phase.CHECKING,
    Phase.CHECKING: Phase.TRANSFERRING,
    Phase.TRANSFERRING: Phase.CONVERTING,
    Phase.CONVERTING: Phase.PROVING,
    Phase.PROVING: Phase.COMPLETED,
}

# An engine that reads the checkpoint itself needs no artefact; what no engine here serves is kept, unproven.
SKIPS: frozenset[tuple[Phase, Phase]] = frozenset(
    {(Phase.TRANSFERRING, Phase.PROVING), (Phase.TRANSFERRING, Phase.COMPLETED)}
)

# Share of the whole job that is done when a phase begins; for a progress bar, not for a promise.
BEGINS_AT: Mapping[Phase, float] = {
    Phase.QUEUED: 0.0,
    Phase.CHECKING: 0.0,
    Phase.TRANSFERRING: 0.05,
    Phase.CONVERTING: 0.45,
    Phase.PROVING: 0.85,
    Phase.COMPLETED: 1.0,
}


class IllegalTransition(ValueError):
    """A defect of our own: the table has no such move."""


def advance(phase: Phase, to: Phase) -> Phase:
    """*to*, when the table allows the move; an unfinished job may always fail or begin again at CHECKING."""
    unfinished = phase not in (Phase.COMPLETED, Phase.FAILED)
    if NEXT.get(phase) == to or (phase, to) in SKIPS or (unfinished and to in (Phase.FAILED, Phase.CHECKING)):
        return to
    raise IllegalTransition(f"{phase} -> {to}")


def wire_status(phase: str) -> str:
    """The job status that the Bedrock API knows: InProgress, Completed or Failed."""
    return {Phase.COMPLETED: "Completed", Phase.FAILED: "Failed"}.get(Phase(phase), "InProgress")


def overall_progress(phase: Phase, share: float) -> float:
    """Progress 0..1 of the job when *share* (0..1) of *phase* is done."""
    begin = BEGINS_AT.get(phase, 0.0)
    end = BEGINS_AT.get(NEXT.get(phase, phase), begin)
    return begin + (end - begin) * min(1.0, max(0.0, share))
