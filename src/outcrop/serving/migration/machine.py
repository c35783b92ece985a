"""The life of a migration as a function: state, what was seen, what time it is -> the next state. Pure.

::

    warming -> running -> completing -> completed
       |         |  ^
       |         v  |  (an operator's pause and resume)
       |       paused
       v         v
      rolled-back, aborted          all traffic is the source's again
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, structs

from outcrop.errors import InvalidRequest
from outcrop.serving.migration.guards import Breach
from outcrop.serving.migration.plan import Plan

Phase = Literal["warming", "running", "paused", "completing", "completed", "rolled-back", "aborted"]
OPEN: frozenset[str] = frozenset({"warming", "running", "paused", "completing"})
MOST_EVENTS = 200


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened; *at*: seconds since the epoch."""

    at: float
    what: str


class State(Struct, frozen=True, kw_only=True):
    """*since*: when the step (or the warming) began, moved on by pauses; *seen*: the target's requests in the step.

    *paused_at*: 0 unless paused. Times are seconds since the epoch, so that they outlive a restart.
    """

    phase: Phase
    since: float
    step: int = 0
    seen: int = 0
    paused_at: float = 0.0
    reason: str = ""
    evidence: list[Breach] = []
    events: list[Event] = []


def begun(now: float) -> State:
    return State(phase="warming", since=now, events=[Event(at=now, what="started: the target is being warmed")])


def advance(plan: Plan, state: State, *, now: float, is_warm: bool, found: list[Breach]) -> State:
    """The state at *now*; the same object when nothing changes.

    *found*: guards that do not hold. A clock that was set back changes nothing.
    """
    match state.phase:
        case "warming":
            if is_warm:
                return _to(state, now, f"step 1 of {len(plan.steps)}: {words(plan, 0)}", phase="running", since=now)
            if now - state.since > plan.warm_limit_s:
                return rolled_back(state, now, f"the target did not answer within {plan.warm_limit_s:g} s", [])
        case "running" | "paused" if found:
            return rolled_back(state, now, found[0].said, found)
        case "running":
            return _stepped(plan, state, now)
    return state


def _stepped(plan: Plan, state: State, now: float) -> State:
    step, elapsed = plan.steps[state.step], now - state.since
    if elapsed < step.hold_s:
        return state
    if state.seen < step.min_requests:
        if elapsed < step.hold_s + plan.guards.no_data_s:
            return state
        said = f"no data: {state.seen} requests in {elapsed:.0f} s of step {state.step + 1}, {step.min_requests} needed"
        return rolled_back(state, now, said, [])
    number = state.step + 1
    if number == len(plan.steps):
        return _to(state, now, "every step held: the target takes over", phase="completing", since=now, seen=0)
    said = f"step {number + 1} of {len(plan.steps)}: {words(plan, number)}"
    return _to(state, now, said, step=number, since=now, seen=0)


def rolled_back(state: State, now: float, reason: str, evidence: list[Breach]) -> State:
    return _to(state, now, f"rolled back: {reason}", phase="rolled-back", reason=reason, evidence=evidence, since=now)


def completed(state: State, now: float, what: str) -> State:
    return _to(state, now, what, phase="completed", since=now)


def paused(state: State, now: float) -> State:
    """Raises InvalidRequest unless it runs."""
    if state.phase != "running":
        raise InvalidRequest(f"The migration is {state.phase}; only a running one can be paused.")
    return _to(state, now, "paused by an operator", phase="paused", paused_at=now)


def resumed(state: State, now: float) -> State:
    """The step goes on where it stood: what passed in the pause is not time of the step."""
    if state.phase != "paused":
        raise InvalidRequest(f"The migration is {state.phase}; only a paused one can be resumed.")
    since = state.since + max(0.0, now - state.paused_at)
    return _to(state, now, "resumed by an operator", phase="running", since=since, paused_at=0.0)


def aborted(state: State, now: float) -> State:
    """All traffic goes back to the source, for good. Raises InvalidRequest when there is nothing left to abort."""
    if state.phase not in OPEN or state.phase == "completing":
        raise InvalidRequest(f"The migration is {state.phase} and cannot be aborted.")
    return _to(state, now, "aborted by an operator", phase="aborted", reason="aborted by an operator", since=now)


def words(plan: Plan, step: int) -> str:
    """A step for people."""
    found = plan.steps[step]
    match found.kind:
        case "shadow":
            return f"{found.percent:g} % of the requests are also asked of the target"
        case "listed":
            return f"the target answers {found.percent:g} % of the listed callers' requests"
    return f"the target answers {found.percent:g} %"


def _to(state: State, now: float, what: str, **changes: Any) -> State:
    events = [*state.events, Event(at=now, what=what)][-MOST_EVENTS:]
    return structs.replace(state, events=events, **changes)
