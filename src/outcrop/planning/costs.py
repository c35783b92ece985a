"""What traffic costs in each way of serving it: reserved at the peak, Custom Model Import, hybrid, own hardware. Pure.

Formulas: reserved = peak x price x hours; Custom Model Import = windows x units x price per minute x 5, plus storage
and a proxy's hours; hybrid = n0 copies reserved, windows for what lies above them. A copy that is up for more of the
time than the break-even f* = r / p (r an instance's hour, p a copy's sixty unit-minutes) is cheaper reserved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outcrop.metering.windows import WINDOW_MINUTES
from outcrop.planning.played import Result

MONTH_H = 730


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars. *copy_hour*: a reserved instance that holds one copy; *own_copy_hour*: None until one was entered."""

    unit_minute: float
    unit_month: float
    copy_hour: float
    proxy_hour: float = 0.0
    own_copy_hour: float | None = None
    units: int = 1

    @property
    def serverless_copy_hour(self) -> float:
        """A copy that is billed in every window of an hour."""
        return self.unit_minute * self.units * 60

    @property
    def break_even(self) -> float:
        """Share of the time above which a copy is cheaper reserved than in windows, the proxy paid either way."""
        return self.copy_hour / self.serverless_copy_hour

    @property
    def break_even_with_proxy(self) -> float:
        """The same where only the serverless copy needs the proxy."""
        return (self.copy_hour - self.proxy_hour) / self.serverless_copy_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Dollars for the span of a trace. *reserved_copies*: of the hybrid, the slots above the break-even."""

    reserved: float
    serverless: float
    hybrid: float
    own: float | None
    reserved_copies: int
    peak: int

    @property
    def cheapest(self) -> str:
        named = {"reserved": self.reserved, "serverless": self.serverless, "hybrid": self.hybrid}
        return min(named, key=named.__getitem__)

    @property
    def saving(self) -> float:
        """Share of the reserved cost that serverless saves; negative where it is dearer."""
        return 1 - self.serverless / self.reserved if self.reserved else 0.0


def windows_usd(windows: float, prices: Prices) -> float:
    return windows * prices.units * prices.unit_minute * WINDOW_MINUTES


def load_duration(result: Result) -> list[float]:
    """Share of the trace's time with at least 1, 2, ... copies."""
    hours = max(1e-9, result.span_s / 3600)
    return [min(1.0, each / hours) for each in result.hours_at]


def costs(result: Result, prices: Prices, peak: int | None = None, hours: float | None = None) -> Costs:
    """The four ways for what *result* played. *peak*: copies to reserve; by default those that held the service level.

    *hours*: of the period, where that is longer than the trace.

    Windows above the reserved slots are taken in proportion to the hours of those slots: an estimate.
    """
    hours, shares = hours or result.span_s / 3600, load_duration(result)
    most = peak or result.peak
    fixed = prices.proxy_hour * hours + prices.unit_month * prices.units * hours / MONTH_H
    kept = sum(share > prices.break_even for share in shares)
    above = sum(shares[kept:]) / sum(shares) if sum(shares) else 0.0
    return Costs(
        reserved=most * prices.copy_hour * hours,
        serverless=windows_usd(result.windows, prices) + fixed,
        hybrid=kept * prices.copy_hour * hours
        + (windows_usd(result.windows * above, prices) + fixed if above else 0.0),
        own=None if prices.own_copy_hour is None else result.copy_hours * prices.own_copy_hour,
        reserved_copies=kept,
        peak=most,
    )


def constructed_fleet(prices: Prices, *, peaks: Sequence[float], means: Sequence[float]) -> tuple[float, float]:
    """Dollars per hour of a portfolio reserved at its *peaks*, and serverless at its *means* with a proxy each."""
    return (
        sum(peaks) * prices.copy_hour,
        sum(means) * prices.serverless_copy_hour + len(peaks) * prices.proxy_hour,
    )
