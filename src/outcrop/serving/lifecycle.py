"""Every legal move of a model copy; nothing else sets a state. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """*evictable*: its keep-alive ended; it still answers, counts and holds memory, and goes when room is needed.

    *asleep*: its process is there and its GPUs are others'; waking it is a short start.
    """

    STARTING = "starting"
    READY = "ready"
    EVICTABLE = "evictable"
    ASLEEP = "asleep"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


NEXT: Mapping[State, frozenset[State]] = {
    State.STARTING: frozenset({State.READY, State.FAILED, State.STOPPED}),
    State.READY: frozenset({State.EVICTABLE, State.DRAINING, State.FAILED}),
    State.EVICTABLE: frozenset({State.READY, State.DRAINING, State.FAILED}),
    State.ASLEEP: frozenset({State.STARTING, State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.ASLEEP, State.STOPPED, State.FAILED}),
    State.STOPPED: frozenset(),
    State.FAILED: frozenset(),
}
SERVING = frozenset({State.READY, State.EVICTABLE})
ENDED = frozenset({State.STOPPED, State.FAILED})


class IllegalTransition(ValueError):
    """A defect of our own: the table has no such move."""


def advance(state: State, to: State) -> State:
    if to not in NEXT[state]:
        raise IllegalTransition(f"{state} -> {to}")
    return to
