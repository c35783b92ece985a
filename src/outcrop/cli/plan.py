"""``outcrop plan``: fit a copy, simulate traffic on the live policy, price it, find limits for a service level."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from outcrop.bench import plots, report
from outcrop.cli.client import JSON, echo_json, show
from outcrop.cli.plan_classes import cost_by_activity
from outcrop.cli.plan_inputs import (
    AS_OF,
    COLD_START_S,
    COPY,
    DAYS,
    FLEET_TICK_S,
    INSTANCE,
    KEEP_ALIVE_S,
    MAX,
    MIN,
    PRICES,
    PROXY,
    TRACE,
    TRACES,
    UNITS,
    check_out,
    copy_of,
    limits,
    live,
    prices_of,
    progress,
    requests_of,
    write_out,
)
from outcrop.cli.plan_validate import validate_plan
from outcrop.errors import BadSetting
from outcrop.planning import advise as advising
from outcrop.planning import classes as activity
from outcrop.planning import costs as pricing
from outcrop.planning.copy_model import CopyModel, Timed, fit
from outcrop.planning.played import Result
from outcrop.planning.rules import TICK_S, KnativeLike, QueueThreshold, Rule
from outcrop.planning.simulator import Fleet, simulate
from outcrop.planning.virtual import Nodes, Tenant
from outcrop.serving.schedule import Scaling

app = typer.Typer(help="Plan copies and cost from traffic, with the live scaling policy.", no_args_is_help=True)
app.command("validate")(validate_plan)
app.command("classes")(cost_by_activity)

OUT = typer.Option(None, help="Write the page with plots (.html) or the numbers (.json).")
RESULTS = typer.Argument(help="Folder of outcrop bench run with --users 1 and others, on one copy.")
BESIDE = typer.Option(
    None, help="Folder of the same on several pinned copies of one machine: how they slow each other."
)
FIT_OUT = typer.Option(None, help="File for the copy, which the other commands take as --copy.")
POLICIES = ("outcrop", "knative", "queue", "all")


@app.command("fit")
def fit_copy(
    results: Path = RESULTS,
    slots: int = typer.Option(..., min=1, help="Requests that a copy takes at a time (outcrop status --json)."),
    beside: Path | None = BESIDE,
    copies: int = typer.Option(2, min=2, help="Copies of the run --beside."),
    out: Path | None = FIT_OUT,
) -> None:
    """Fit a copy to a load test: request, prompt token, answer token, interference, slots, and what copies share."""
    others = {(copies, users): timed for users, timed in _levels(beside).items()} if beside else None
    found = fit(_levels(results), slots, others)
    model = asdict(found.model)
    if out is not None:
        out.write_text(json.dumps(model, indent=1) + "\n")
    echo_json(
        {
            "copy": model,
            "median_error_alone": round(found.error_alone, 4),
            "error_of_mean_by_users": {users: round(error, 4) for users, error in found.error_mean.items()},
            "kappa_by_users": {users: round(kappa, 5) for users, kappa in found.kappas.items()},
            "nu_by_users": {users: round(nu, 5) for (_, users), nu in found.nus.items()},
        }
    )


def _levels(results: Path) -> dict[int, list[Timed]]:
    """The answered requests of a run by users, without those that warmed it up."""
    levels: dict[int, list[Timed]] = {}
    for line in _lines(results / "requests.jsonl"):
        if not line.get("error") and line.get("tokens_in") and line.get("tokens_out"):
            timed = Timed(line["tokens_in"], line["tokens_out"], line["last_s"] - line["sent_s"])
            levels.setdefault(line["users"], []).append(timed)
    return {users: _without_warm_up(users, timed) for users, timed in levels.items()}


@app.command("simulate")
def simulate_traces(
    traces: list[Path] = TRACES,
    policy: str = typer.Option("outcrop", help="outcrop (the live policy), knative, queue, or all."),
    copy: Path | None = COPY,
    cold_start_s: float = COLD_START_S,
    days: float = DAYS,
    least: int = MIN,
    most: int = MAX,
    keep_alive_s: float | None = KEEP_ALIVE_S,
    nodes: int = typer.Option(
        0, min=0, help="Fleet mode: all traces together on so many nodes, under the live policy."
    ),
    node_gb: float = typer.Option(80.0, min=0, help="Memory of a node for copies, GB."),
    copy_gb: float = typer.Option(32.0, min=0, help="Memory of a copy, GB."),
    tick_s: float | None = typer.Option(
        None, min=0.1, help="Seconds between the live policy's decisions; default: the server's 1, in fleet mode 5."
    ),
    out: Path | None = OUT,
    as_json: bool = JSON,
) -> None:
    """Replay traffic in virtual time through the live policy, or through other rules beside it."""
    if policy not in POLICIES:
        raise typer.BadParameter(f"{policy!r} is none of {', '.join(POLICIES)}.", param_hint="--policy")
    if nodes and copy_gb > node_gb:
        raise BadSetting(f"a copy of {copy_gb:g} GB (--copy-gb) fits on no node of {node_gb:g} GB (--node-gb).")
    check_out(out)
    model, found = copy_of(copy), [requests_of(path, days) for path in traces]
    scaling = limits(least, most, keep_alive_s)
    rows: list[tuple[str, Result]] = []
    with progress(f"{sum(map(len, found))} requests") as tell:
        if nodes:
            size = int(copy_gb * 1e9)
            tenants = [
                Tenant(
                    trace=trace,
                    rule=live(model, cold_start_s, scaling, tick_s or FLEET_TICK_S),
                    copy=model,
                    cold_start_s=cold_start_s,
                    copy_bytes=size,
                )
                for trace in found
            ]
            results = Fleet(tenants, Nodes(nodes, int(node_gb * 1e9))).run(tell)
            rows = list(zip([trace.name for trace in found], results, strict=True))
        else:
            for trace in found:
                for rule in _rules(policy, model, cold_start_s, scaling, tick_s or TICK_S):
                    tenant = Tenant(trace=trace, rule=rule, copy=model, cold_start_s=cold_start_s)
                    rows.append((trace.name, simulate(tenant, tell)))
    _give([_row(name, result) for name, result in rows], rows, out, as_json=as_json)


@app.command()
def cost(
    trace: Path = TRACE,
    copy: Path | None = COPY,
    cold_start_s: float = COLD_START_S,
    days: float = DAYS,
    least: int = MIN,
    most: int = MAX,
    keep_alive_s: float | None = KEEP_ALIVE_S,
    reserve: int = typer.Option(0, min=0, help="Copies to reserve; 0: the least that keep as few requests waiting."),
    own_copy_hour: float | None = typer.Option(None, min=0, help="What a copy-hour costs on own hardware, USD."),
    prices: list[Path] = PRICES,
    as_of: str | None = AS_OF,
    instance: str = INSTANCE,
    proxy: str = PROXY,
    units: int = UNITS,
    out: Path | None = OUT,
    as_json: bool = JSON,
) -> None:
    """Compare reserved peak, Custom Model Import, hybrid and own hardware; print load-duration curve and break-even."""
    check_out(out)
    model, found = copy_of(copy), requests_of(trace, days)
    book = prices_of(prices, as_of, instance, proxy, units, own_copy_hour)
    scaling = limits(least, most, keep_alive_s)
    with progress(f"{len(found)} requests") as tell:
        rule = live(model, cold_start_s, scaling)
        result = simulate(Tenant(trace=found, rule=rule, copy=model, cold_start_s=cold_start_s), tell)
        peak = reserve or activity.reserved_for(found, model, result)
    told = pricing.costs(result, book, peak)
    shares = pricing.load_duration(result)
    answer: dict[str, Any] = {
        "hours": round(result.span_s / 3600, 2),
        "reserved_usd": round(told.reserved, 2),
        "reserved_peak_copies": told.peak,
        "serverless_usd": round(told.serverless, 2),
        "hybrid_usd": round(told.hybrid, 2),
        "hybrid_reserved_copies": told.reserved_copies,
        "own_usd": None if told.own is None else round(told.own, 2),
        "cheapest": told.cheapest,
        "saving_of_serverless": round(told.saving, 4),
        "break_even": round(book.break_even, 4),
        "load_duration": [round(share, 4) for share in shares],
        "windows": result.windows,
        "p95_s": round(result.p95_s, 3),
    }
    curve = plots.Plot(
        "Load-duration curve: share of the time with at least so many copies",
        "copies",
        "share",
        [
            ("copies", [(float(n), share) for n, share in enumerate(shares, 1)]),
            ("break-even", [(1.0, book.break_even), (float(max(2, len(shares))), book.break_even)]),
        ],
    )
    if out is not None:
        body = plots.table([[name, str(value)] for name, value in answer.items()], ("", found.name))
        write_out(out, lambda: plots.page(f"Cost of {found.name}", [body, plots.svg(curve)]), answer)
    if as_json:
        echo_json(answer)
    else:
        show(
            [{"what": name, "value": value} for name, value in answer.items()],
            {"what": "", "value": found.name},
            as_json=False,
        )


@app.command("advise")
def advise_limits(
    trace: Path = TRACE,
    slo_s: float = typer.Option(..., min=0.001, help="Latency that a request should not exceed, s."),
    slow_share: float = typer.Option(0.05, min=0, max=1, help="Share of requests that may exceed it."),
    copy: Path | None = COPY,
    cold_start_s: float = COLD_START_S,
    days: float = typer.Option(7.0, min=0.001, help="How much of the trace; every candidate plays all of it."),
    most: int = typer.Option(8, "--max", min=1, help="Most copies to consider."),
    own_copy_hour: float | None = typer.Option(None, min=0, help="Price copy-hours of own hardware, not windows."),
    prices: list[Path] = PRICES,
    as_of: str | None = AS_OF,
    units: int = UNITS,
    as_json: bool = JSON,
) -> None:
    """Search limits, keep-alive and an office-hours schedule for the cheapest that holds a service level."""
    found, model = requests_of(trace, days), copy_of(copy)
    level = advising.Level(slo_s=slo_s, slow_share=slow_share)
    book = prices_of(prices, as_of, "ml.g6e.xlarge", "ml.m5.large", units, own_copy_hour)
    with progress("candidates") as tell:
        choices = advising.advise(
            found,
            model,
            cold_start_s,
            level,
            book,
            most_copies=most,
            on_own=own_copy_hour is not None,
            progress=lambda done, whole: tell(done / whole),
        )
    rows = [
        {
            "limits": _limits(choice.scaling),
            "holds": "yes" if choice.holds else "no",
            "usd": round(choice.usd, 2),
            "slow_percent": round(100 * choice.result.slow_share, 3),
            "margin_percent": round(100 * choice.margin, 3),
            "p95_s": round(choice.result.p95_s, 2),
            "copy_hours": round(choice.result.copy_hours, 1),
            "cold_starts": choice.result.starts,
        }
        for choice in choices
    ]
    show(rows if as_json else rows[:8], {name: name.upper().replace("_", " ") for name in rows[0]}, as_json=as_json)
    if not choices[0].holds:
        typer.echo(
            f"No candidate holds {100 * (1 - slow_share):g} % within {slo_s:g} s; the best misses it by "
            f"{-100 * choices[0].margin:.2f} % of the requests. Plan a faster copy or cold start, or a longer limit.",
            err=True,
        )
        raise typer.Exit(1)


def _rules(policy: str, model: CopyModel, cold_start_s: float, scaling: Scaling, tick_s: float) -> list[Rule]:
    most, kept = scaling.max_copies or 10, scaling.keep_alive_s
    rules: dict[str, Rule] = {
        "outcrop": live(model, cold_start_s, scaling, tick_s),
        "knative": KnativeLike(model.slots, most, 300.0 if kept is None else kept),
        "queue": QueueThreshold(most, 300.0 if kept is None else kept),
    }
    return list(rules.values()) if policy == "all" else [rules[policy]]


def _row(name: str, result: Result) -> dict[str, Any]:
    return {
        "trace": name,
        "rule": result.rule,
        "requests": result.requests,
        "waited_percent": round(100 * result.waited, 3),
        "mean_s": round(result.mean_s, 3),
        "p95_s": round(result.p95_s, 3),
        "p99_s": round(result.p99_s, 3),
        "copy_hours": round(result.copy_hours, 2),
        "busy_hours": round(result.busy_hours, 2),
        "cold_starts": result.starts,
        "evictions": result.evictions,
        "blocked": result.blocked,
        "windows": result.windows,
        "peak": result.peak,
        **({"unanswered": result.unanswered} if result.unanswered else {}),
    }


def _give(rows: list[dict[str, Any]], results: list[tuple[str, Result]], out: Path | None, *, as_json: bool) -> None:
    columns = {name: name.upper().replace("_", " ") for row in rows for name in row}

    def page() -> str:
        lines = [
            (f"{name}, {result.rule}", report.spread_of(sorted(result.latencies or ()))) for name, result in results
        ]
        drawn = plots.Plot("Latency: share of requests answered within", "s", "share", lines)
        curves = [
            (f"{name}, {r.rule}", [(float(n), share) for n, share in enumerate(pricing.load_duration(r), 1)])
            for name, r in results
        ]
        duration = plots.Plot("Share of the time with at least so many copies", "copies", "share", curves)
        body = plots.table([[row.get(name, "") for name in columns] for row in rows], list(columns.values()))
        return plots.page("Simulation", [body, plots.svg(drawn), plots.svg(duration)])

    if out is not None:
        write_out(out, page, rows)
    show(rows, columns, as_json=as_json)


def _limits(scaling: Scaling) -> str:
    kept = "break-even" if scaling.keep_alive_s is None else f"{scaling.keep_alive_s:g} s"
    office = ", 1 copy on workdays 8 to 18" if scaling.floors else ""
    return f"{scaling.min_copies} to {scaling.max_copies} copies, kept {kept}{office}"


def _without_warm_up(users: int, timed: list[Timed]) -> list[Timed]:
    """Requests after the first two of each user: connections, pages and caches are cold before."""
    return timed[2 * users :] if len(timed) > 4 * users else timed


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as exc:
        raise BadSetting(f"{path} holds no records of outcrop bench: {exc}.") from exc
