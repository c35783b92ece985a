"""How many copies a model should have: one pure function. No clock, no I/O; the facts carry the time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is true of one model now. *idle_s*: since the last request ended or a copy became ready."""

    ready: int
    starting: int
    in_flight: int
    held: int
    idle_s: float
    slots: int
    is_backing_off: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    max_copies: int
    keep_alive_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    desired: int
    reason: str


def decide(facts: Facts, params: Params) -> Decision:
    """Copies wanted. Starting copies count as capacity, so a tick during a start orders no second one."""
    current = facts.ready + facts.starting
    load = facts.in_flight + facts.held
    if load:
        if facts.is_backing_off:
            return Decision(desired=current, reason="the last start failed: backing off")
        wanted = min(params.max_copies, max(1, math.ceil(load / facts.slots)))
        if wanted > current:
            return Decision(desired=wanted, reason=f"{load} requests on {facts.slots} slots a copy")
        return Decision(desired=current, reason="in use")
    if current and facts.idle_s >= params.keep_alive_s and not facts.starting:
        return Decision(desired=0, reason=f"idle for {params.keep_alive_s:g} s")
    return Decision(desired=current, reason="keep-alive" if current else "no requests")
