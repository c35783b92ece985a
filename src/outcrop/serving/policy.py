"""How many copies a model should have: one pure function. No clock, no I/O; the facts carry the time.

The live fleet and the replay of traces call this same function. Offered work (arrivals times work) is the primary
signal, because it leads; waiting requests count only as a backlog that would outlive a cold start; copies that are
starting count as capacity, so that no tick orders a second copy for the same load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_ARRIVALS = 8  # fewer in 15 s say nothing about a change of rate
PAID_WINDOW_SLACK_S = 15.0  # retire this close to the end of a window that is paid anyway
SHORTEST_KEEP_ALIVE_S, LONGEST_KEEP_ALIVE_S = 5.0, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFacts:
    """One ready copy. *served_s*: since its first request; None when it has not served yet."""

    copy_id: str
    in_flight: int
    served_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is true of one model now. Times in seconds.

    *rate_60* and *rate_15* are arrivals per second over those windows, *count_15* the arrivals in the shorter one.
    *work_s*: what one request takes alone on a copy. *idle_s*: since a request last arrived, ran or a copy became
    ready. *peak*: the largest ``Decision.up`` of the last ``scale_in_window_s``.
    """

    ready: int
    starting: int
    in_flight: int
    held: int
    slots: int
    idle_s: float
    rate_60: float = 0.0
    rate_15: float = 0.0
    count_15: int = 0
    work_s: float = 1.0
    cold_start_s: float = 5.0
    peak: int = 0
    is_backing_off: bool = False
    copies: tuple[CopyFacts, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """One model's limits and targets; every one has a default that fits an unknown model."""

    min_copies: int = 0
    max_copies: int = 3
    slowdown: float = 1.3  # how much slower than alone a request may run beside others
    interference: float = 0.0215  # kappa: b requests on a copy each run 1 + kappa (b - 1) slower
    wait_slo_s: float = 2.0  # waiting that is fine beyond a cold start
    window_s: float = 60.0  # least time that a peak holds copies up
    keep_alive_s: float | None = None  # None: by break-even
    waiting_price: float = 10.0  # a request's second of waiting, in seconds of holding a copy
    paid_window_s: float = 0.0  # copies are paid in windows of this length; 0: by the second
    hold_limit_s: float = 55.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """*desired*: copies wanted. *up*: what load alone asks for, a peak to remember. *retire*: to be drained."""

    desired: int
    reason: str
    up: int = 0
    retire: tuple[str, ...] = ()
    hold_limit_s: float = 55.0


def best_batch(facts: Facts, params: Params) -> float:
    """Requests that a copy may run at a time within the slowdown that is allowed; at least 1, at most its slots."""
    if params.interference <= 0:
        return float(facts.slots)
    return max(1.0, min(float(facts.slots), 1 + (params.slowdown - 1) / params.interference))


def scale_in_window_s(facts: Facts, params: Params) -> float:
    """How long a peak holds copies up: stopping one that a cold start would bring back costs more than keeping it."""
    return max(params.window_s, 2 * facts.cold_start_s)


def keep_alive_s(facts: Facts, params: Params) -> float:
    """How long an idle copy is kept: the setting, else the break-even K = C / c_h of renting against buying.

    C is a cold start's price in seconds of holding: the start itself and those who wait through it. Keeping for K is
    never worse than twice what a clairvoyant would pay.
    """
    if params.keep_alive_s is not None:
        return params.keep_alive_s
    hit = max(1.0, facts.rate_60 * facts.cold_start_s)
    cost = facts.cold_start_s * (1 + hit * params.waiting_price)
    return min(LONGEST_KEEP_ALIVE_S, max(SHORTEST_KEEP_ALIVE_S, cost))


def decide(facts: Facts, params: Params) -> Decision:
    """Copies wanted, and which ones to retire."""
    batch = best_batch(facts, params)
    slowdown = 1 + params.interference * (batch - 1)
    work = max(facts.work_s, 1e-3)
    per_copy = batch / (work * slowdown)  # requests per second that one copy serves
    waits = facts.in_flight + facts.held
    current = facts.ready + facts.starting

    # Offered work, forecast to when a copy ordered now would help; a fall of the rate is never extrapolated.
    rate = max(facts.rate_60, facts.rate_15 if facts.count_15 >= LEAST_ARRIVALS else 0.0)
    slope = max(0.0, (facts.rate_15 - facts.rate_60) / 30) if facts.count_15 >= LEAST_ARRIVALS else 0.0
    ahead = rate + min(slope * facts.cold_start_s, rate)
    by_rate = math.ceil(ahead / per_copy - 1e-9)
    by_room = math.ceil(waits / facts.slots)
    by_queue = 0
    if facts.held:
        spare = max(1e-6, current * per_copy - facts.rate_60)
        if facts.held / spare > facts.cold_start_s + params.wait_slo_s:
            by_queue = current + math.ceil(facts.held / (max(facts.cold_start_s, 1.0) * per_copy))
    up, why = max(
        (1 if waits and not current else 0, "requests wait, and there is no copy"),
        (by_rate, f"{ahead:.2f} requests/s of {work:.2f} s, {per_copy:.2f} requests/s a copy"),
        (by_room, f"{waits} requests on {facts.slots} slots a copy"),
        (by_queue, f"a backlog of {facts.held} outlives a cold start of {facts.cold_start_s:.1f} s"),
        key=lambda asked: asked[0],
    )
    ceiling = max(params.min_copies, params.max_copies)
    up = min(up, ceiling)

    # A peak keeps copies that are there; it is no reason to start one.
    wanted = max(up, min(facts.peak, current))
    if wanted > up:
        why = f"a peak of {facts.peak} in the last {scale_in_window_s(facts, params):.0f} s"
    kept = keep_alive_s(facts, params)
    if not waits and (facts.starting or facts.idle_s < kept):
        if wanted < 1:
            wanted, why = 1, f"kept alive for {kept:.0f} s"
    elif not waits and wanted <= 1:
        wanted, why = 0, f"idle for more than {kept:.0f} s" if current else "no requests"
    desired = max(params.min_copies, wanted)
    if desired > wanted:
        why = f"at least {params.min_copies} copies are scheduled"
    if facts.is_backing_off and desired > current:
        desired, why = current, "the last start failed: backing off"
    return Decision(
        desired=desired,
        reason=why,
        up=up,
        retire=_retired(facts, params, max(0, current - desired)),
        hold_limit_s=params.hold_limit_s,
    )


def _retired(facts: Facts, params: Params, surplus: int) -> tuple[str, ...]:
    """Of the ready copies the *surplus* least loaded, and of paid ones only those whose window is about to end."""
    window = params.paid_window_s
    free = [
        copy
        for copy in facts.copies
        if not window or copy.served_s is None or copy.served_s % window >= window - PAID_WINDOW_SLACK_S
    ]
    return tuple(copy.copy_id for copy in sorted(free, key=lambda copy: copy.in_flight)[:surplus])
