"""``outcrop plan classes``: what serverless copies save, or cost more, by how much of the time tenants are active."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from outcrop.cli.client import JSON, show
from outcrop.cli.plan_inputs import (
    COLD_START_S,
    COPY,
    FLEET_TICK_S,
    INSTANCE,
    MAX,
    PRICES,
    PROXY,
    TRACES,
    UNITS,
    copy_of,
    live,
    prices_of,
    progress,
)
from outcrop.planning import classes as activity
from outcrop.planning.simulator import simulate
from outcrop.planning.traces import Trace, read_trace
from outcrop.planning.virtual import Tenant
from outcrop.planning.window_trace import has_windows, read_windows
from outcrop.serving.schedule import Scaling


def cost_by_activity(
    traces: list[Path] = TRACES,
    copy: Path | None = COPY,
    cold_start_s: float = COLD_START_S,
    days: float = typer.Option(7.0, min=0.001, help="The period; each trace is cut to it."),
    most: int = MAX,
    prices: list[Path] = PRICES,
    as_of: list[str] = typer.Option([], help="Prices known on this day. Repeatable; default: the newest."),
    instance: str = INSTANCE,
    proxy: str = PROXY,
    units: int = UNITS,
    tenants: bool = typer.Option(False, "--tenants", help="Print a line of every tenant too."),
    as_json: bool = JSON,
) -> None:
    """Print what serverless copies save, or cost more, by how much of the time tenants are active.

    Takes traces of one tenant each, and .csv files of windows of many (docs/how-to/measure-and-plan.md).
    """
    model, limits = copy_of(copy), Scaling(min_copies=0, max_copies=most)
    found = [each.first(days) for path in traces for each in _tenants(path)]
    books = {day or "newest": prices_of(prices, day, instance, proxy, units, None) for day in as_of or [""]}
    played = []
    with progress(f"{len(found)} tenants") as tell:
        for number, trace in enumerate(found):
            tell(number / len(found))
            rule = live(model, cold_start_s, limits, FLEET_TICK_S)
            result = simulate(Tenant(trace=trace, rule=rule, copy=model, cold_start_s=cold_start_s))
            reserved = activity.reserved_for(trace, model, result)
            share = activity.active_share(trace, 86400 * days)
            played.append(activity.Played(name=trace.name, active=share, result=result, reserved=reserved))
    groups = [(each.name, [each]) for each in played] if tenants else []
    rows = [_class_row(name, activity.rows(mine, books, 86400 * days)[-1]) for name, mine in groups]
    rows += [_class_row("", row) for row in activity.rows(played, books, 86400 * days)]
    show(rows, {name: name.upper().replace("_", " ") for name in rows[-1]}, as_json=as_json)


def _tenants(path: Path) -> list[Trace]:
    return read_windows(path) if has_windows(path) else [read_trace(path)]


def _class_row(name: str, row: activity.Row) -> dict[str, Any]:
    told: dict[str, Any] = {
        "active": name or row.activity,
        "tenants": row.tenants,
        "requests": row.requests,
        "with_a_copy": f"{100 * row.copy_share:.0f} %",
        "one_copy_usd": round(row.one_copy),
        "reserved_usd": round(row.reserved),
    }
    for day, usd in row.serverless.items():
        told |= {
            f"serverless_usd_{day}": round(usd),
            f"saves_{day}": f"{100 * row.saving(day, row.one_copy):.0f} %, {100 * row.saving(day, row.reserved):.0f} %",
            f"dearer_{day}": row.dearer[day],
        }
    return told
