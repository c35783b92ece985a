"""How copies of an earlier configuration are replaced without a failed request: one at a time, the new one first.

Where no new copy fits beside the old ones, an old one drains first and its room is used. Reads the fleet's records and
answers; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from msgspec import structs

from outcrop.engines.base import CopySpec
from outcrop.serving.copies import Copy
from outcrop.serving.lifecycle import State


class Step(Enum):
    WAIT = auto()  # a start or a drain is under way
    ORDER = auto()  # one more copy, of the new configuration
    DRAIN = auto()  # the least loaded outdated copy


def is_outdated(copy: Copy, spec: CopySpec) -> bool:
    """Whether *copy* runs otherwise than *spec* says; which threads and GPUs it got is the node's matter."""
    return structs.replace(copy.awake or copy.spec, threads=spec.threads, devices=spec.devices) != spec


def next_step(copies: Sequence[Copy], outdated: Sequence[Copy], desired: int) -> Step:
    """What to do about the *outdated* ones of a model's *copies*; *desired*: how many its load asks for."""
    if any(copy.state in (State.STARTING, State.DRAINING) for copy in copies):
        return Step.WAIT
    ready = sum(copy.is_ready for copy in copies)
    return Step.DRAIN if ready > desired or len(outdated) < ready else Step.ORDER


def least_loaded(outdated: Sequence[Copy]) -> Copy:
    return min(outdated, key=lambda copy: (copy.outstanding, copy.in_flight))
