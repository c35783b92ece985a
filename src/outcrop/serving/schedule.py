"""Scheduled limits: between which copies a model stays at certain hours. Pure: the time comes as an argument."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec
from cronsim import CronSim, CronSimError

from outcrop.errors import InvalidRequest
from outcrop.serving.policy import Params

LONGEST_FLOOR_S = 7 * 86400.0


class Floor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From each time that *cron* (five fields, UTC) names, for *for_s* seconds: at least and at most so many copies."""

    cron: str
    for_s: float
    min_copies: int
    max_copies: int | None = None


class Scaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator set for one model; None leaves the server's default.

    *slots*, *context_tokens* (at most the model's own) and *arguments* (of the engine's command line) are how one copy
    runs: a change of them replaces the copies that run, one by one. *stop_idle*: whether a copy whose keep-alive has
    ended goes at once.
    """

    min_copies: int | None = None
    max_copies: int | None = None
    keep_alive_s: float | None = None
    slowdown: float | None = None
    interference: float | None = None
    wait_slo_s: float | None = None
    paid_window_s: float | None = None
    window_s: float | None = None
    slots: int | None = None
    context_tokens: int | None = None
    arguments: tuple[str, ...] = ()
    stop_idle: bool | None = None
    floors: tuple[Floor, ...] = ()


DEFAULTS = Scaling()
LEAST_CONTEXT = 16
_NOT_OF_THE_POLICY = frozenset({"floors", "slots", "context_tokens", "arguments", "stop_idle"})


def check(scaling: Scaling) -> None:
    """Raises InvalidRequest with the field, its value and what it may be."""
    for name in ("min_copies", "max_copies"):
        value = getattr(scaling, name)
        if value is not None and not 0 <= value <= 1000:
            raise InvalidRequest(f"{name}={value} is outside 0..1000.")
    if scaling.max_copies == 0:
        raise InvalidRequest("max_copies=0 would never serve; delete the model instead. Choose 1 or more.")
    if scaling.min_copies is not None and scaling.max_copies is not None and scaling.min_copies > scaling.max_copies:
        raise InvalidRequest(f"min_copies={scaling.min_copies} is more than max_copies={scaling.max_copies}.")
    for name in ("keep_alive_s", "interference", "wait_slo_s", "paid_window_s", "window_s"):
        value = getattr(scaling, name)
        if value is not None and value < 0:
            raise InvalidRequest(f"{name}={value} is negative. Choose 0 or more.")
    if scaling.slots is not None and not 1 <= scaling.slots <= 256:
        raise InvalidRequest(f"slots={scaling.slots} is outside 1..256.")
    if scaling.context_tokens is not None and scaling.context_tokens < LEAST_CONTEXT:
        raise InvalidRequest(f"context_tokens={scaling.context_tokens} is too few. Choose {LEAST_CONTEXT} or more.")
    if scaling.slowdown is not None and scaling.slowdown < 1:
        raise InvalidRequest(f"slowdown={scaling.slowdown} is less than 1: no request runs faster beside others.")
    for floor in scaling.floors:
        try:
            CronSim(floor.cron, datetime(2000, 1, 1))  # noqa: DTZ001  (only parsed)
        except CronSimError as exc:
            raise InvalidRequest(
                f"cron={floor.cron!r} cannot be read: {exc}. Five fields, e.g. '0 8 * * 1-5'."
            ) from exc
        if not 0 < floor.for_s <= LONGEST_FLOOR_S:
            raise InvalidRequest(f"for_s={floor.for_s} is outside 1..{LONGEST_FLOOR_S:.0f} seconds.")
        if floor.min_copies < 0 or (floor.max_copies is not None and floor.max_copies < max(1, floor.min_copies)):
            raise InvalidRequest(f"the floor {floor.cron!r} wants {floor.min_copies} to {floor.max_copies} copies.")


def is_active(floor: Floor, now: datetime) -> bool:
    """Whether one of the floor's times is at most ``for_s`` before *now* (UTC)."""
    begin = now - timedelta(seconds=floor.for_s)
    return next(CronSim(floor.cron, begin)) <= now


def params_at(base: Params, scaling: Scaling, active: Iterable[Floor]) -> Params:
    """*base* with the operator's values, then with the floors that are *active* now; a later one wins."""
    given = {name: getattr(scaling, name) for name in scaling.__struct_fields__ if name not in _NOT_OF_THE_POLICY}
    values = {name: getattr(base, name) for name in base.__dataclass_fields__}
    values |= {name: value for name, value in given.items() if value is not None}
    for floor in active:
        values["min_copies"] = floor.min_copies
        if floor.max_copies is not None:
            values["max_copies"] = floor.max_copies
    values["max_copies"] = max(values["max_copies"], values["min_copies"])
    return Params(**values)
