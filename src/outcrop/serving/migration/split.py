"""Which side answers a request. Pure: the same caller and the same step always give the same side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from outcrop.serving.migration.plan import Plan
from outcrop.serving.traffic import sticky_point

SideName = Literal["source", "target"]
_SESSION = "x-amzn-sagemaker-session-id"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the principal's ARN and the request's headers by lower-case name."""

    principal: str
    headers: Mapping[str, str]


def is_listed(plan: Plan, caller: Caller) -> bool:
    """Whether the caller may go first: by principal (``*`` and ``?`` stand for any), or by every listed header."""
    if any(fnmatchcase(caller.principal, pattern) for pattern in plan.listed_principals):
        return True
    wanted = plan.listed_headers
    return bool(wanted) and all(caller.headers.get(name.lower()) == value for name, value in wanted.items())


def share_of(plan: Plan, step: int, *, listed: bool) -> float:
    """The target's share (0..1) of such a caller's requests in *step*; it never falls from step to step."""
    kinds = ("live", "listed") if listed else ("live",)
    return max((s.percent / 100 for s in plan.steps[: step + 1] if s.kind in kinds), default=0.0)


def side_of(plan: Plan, step: int, caller: Caller, point: Callable[[], float]) -> SideName:
    """*point*: a random number in [0, 1), for callers that are not sticky."""
    share = share_of(plan, step, listed=is_listed(plan, caller))
    if share <= 0:
        return "source"
    key = _key(plan, caller)
    at = point() if key is None else sticky_point(f"migration/{plan.name}", key)
    return "target" if at < share else "source"


def compared_share(plan: Plan, step: int) -> float:
    """The share (0..1) of requests that the other side is asked too."""
    now = plan.steps[step]
    return (now.percent if now.kind == "shadow" else plan.compare_percent) / 100


def _key(plan: Plan, caller: Caller) -> str | None:
    if plan.sticky == "principal":
        return caller.principal
    if plan.sticky == "session":
        return caller.headers.get(_SESSION)
    if plan.sticky.startswith("header:"):
        return caller.headers.get(plan.sticky.removeprefix("header:").lower())
    return None
