"""The cheapest limits that keep a service level on a trace: a search over the simulator. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from outcrop.planning.copy_model import CopyModel
from outcrop.planning.costs import Prices, windows_usd
from outcrop.planning.played import Result
from outcrop.planning.rules import Ours
from outcrop.planning.simulator import simulate
from outcrop.planning.traces import Trace
from outcrop.planning.virtual import Tenant
from outcrop.serving.policy import Params
from outcrop.serving.schedule import Floor, Scaling

OFFICE_HOURS = Floor(cron="0 8 * * 1-5", for_s=10 * 3600.0, min_copies=1)
KEEP_ALIVES: tuple[float | None, ...] = (None, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A service level: at most *slow_share* of the requests take longer than *slo_s*."""

    slo_s: float
    slow_share: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Limits that were tried. *usd* over the trace; *margin*: the allowed share of slow requests minus theirs."""

    scaling: Scaling
    result: Result
    usd: float
    margin: float

    @property
    def holds(self) -> bool:
        return self.margin >= 0


def advise(
    trace: Trace,
    copy: CopyModel,
    cold_start_s: float,
    level: Level,
    prices: Prices,
    *,
    most_copies: int = 8,
    on_own: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Choice]:
    """Everything that was tried, those that hold the level first, the cheapest of them first.

    *on_own*: price copy-hours of own hardware in place of billed windows.
    """
    grid, found = list(_grid(most_copies)), []
    for number, scaling in enumerate(grid):
        progress(number, len(grid))
        rule = Ours("outcrop", Params(interference=copy.kappa), copy, cold_start_s, scaling)
        tenant = Tenant(trace=trace, rule=rule, copy=copy, cold_start_s=cold_start_s, slo_s=level.slo_s)
        result = simulate(tenant)
        usd = result.copy_hours * (prices.own_copy_hour or 0.0) if on_own else windows_usd(result.windows, prices)
        found.append(Choice(scaling=scaling, result=result, usd=usd, margin=level.slow_share - result.slow_share))
    progress(len(grid), len(grid))
    return sorted(found, key=lambda choice: (not choice.holds, choice.usd if choice.holds else -choice.margin))


def _grid(most_copies: int) -> Iterator[Scaling]:
    sizes = sorted({1, 2, 3, 5, most_copies} & set(range(1, most_copies + 1)))
    for most in sizes:
        for kept in KEEP_ALIVES:
            yield Scaling(min_copies=0, max_copies=most, keep_alive_s=kept)
        yield Scaling(min_copies=0, max_copies=most, keep_alive_s=60.0, floors=(OFFICE_HOURS,))
        yield Scaling(min_copies=1, max_copies=most, keep_alive_s=60.0)
