"""Tenants by how much of the time they are active, and what serverless copies save in each class. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from outcrop.planning.copy_model import CopyModel
from outcrop.planning.costs import Costs, Prices, costs
from outcrop.planning.played import Result
from outcrop.planning.rules import Always
from outcrop.planning.simulator import simulate
from outcrop.planning.traces import Trace
from outcrop.planning.virtual import Tenant

WINDOW_S = 600.0
CLASSES = ((0.10, "under 10 %"), (0.50, "10 to 50 %"), (0.90, "50 to 90 %"), (1.01, "over 90 %"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One tenant under scaling. *reserved*: copies, always on, that keep no more requests waiting."""

    name: str
    active: float
    result: Result
    reserved: int

    @property
    def activity(self) -> str:
        return next(name for limit, name in CLASSES if self.active < limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Tenants of one class together; US dollars over the traces' span. *dearer*: tenants that one copy serves cheaper.

    *one_copy*: one instance a tenant; *reserved*: as many as keep as few requests waiting.
    """

    activity: str
    tenants: int
    requests: int
    copy_share: float  # median share of the time with a copy
    one_copy: float
    reserved: float
    serverless: Mapping[str, float]  # by the day of the prices
    dearer: Mapping[str, int]

    def saving(self, day: str, against: float) -> float:
        return 1 - self.serverless[day] / against if against else 0.0


def active_share(trace: Trace, span_s: float) -> float:
    """Share of the ten-minute windows of *span_s* in which a request came."""
    return len(np.unique((trace.at_s // WINDOW_S).astype(int))) / max(1, math.ceil(span_s / WINDOW_S))


def reserved_for(trace: Trace, model: CopyModel, scaled: Result) -> int:
    """The least copies, always on, that keep no more requests waiting than scaling does."""
    for copies in range(1, scaled.peak):
        tenant = Tenant(trace=trace, rule=Always(copies), copy=model, cold_start_s=0.0)
        if simulate(tenant).waited <= scaled.waited:
            return copies
    return max(1, scaled.peak)


def rows(played: Sequence[Played], prices: Mapping[str, Prices], span_s: float) -> list[Row]:
    """One row a class that has tenants, the rarest first, and one of all. *prices*: by the day they were known."""
    found = []
    for name in [*(name for _, name in CLASSES), "all"]:
        mine = [each for each in played if name in (each.activity, "all")]
        if mine:
            found.append(_row(name, mine, prices, span_s / 3600))
    return found


def _row(name: str, mine: Sequence[Played], prices: Mapping[str, Prices], hours: float) -> Row:
    # An instance is there for the whole span, also where the trace begins late or ends early.
    spent: dict[str, list[Costs]] = {
        day: [costs(p.result, each, p.reserved, hours) for p in mine] for day, each in prices.items()
    }
    copy_hour = next(iter(prices.values())).copy_hour
    one = copy_hour * hours
    return Row(
        activity=name,
        tenants=len(mine),
        requests=sum(each.result.requests for each in mine),
        copy_share=float(
            np.median([each.result.hours_at[0] / hours if each.result.hours_at else 0.0 for each in mine])
        ),
        one_copy=one * len(mine),
        reserved=sum(one * each.reserved for each in mine),
        serverless={day: sum(each.serverless for each in values) for day, values in spent.items()},
        dearer={day: sum(each.serverless > one for each in values) for day, values in spent.items()},
    )
