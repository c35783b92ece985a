"""The page of a migration: what its status knows, with plots. Pure; the status comes from the server."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from outcrop.bench.plots import Plot, Points, page, svg, table


def html_page(told: Mapping[str, Any]) -> str:
    """One HTML file that needs nothing beside it; *told*: the answer of ``/outcrop/v1/migrations/NAME``."""
    head = f"<p><strong>{html.escape(told['phase'])}</strong> {html.escape(told['reason'])}</p>"
    sides = f"<p>From {html.escape(told['source'])} to {html.escape(told['target'])}.</p>"
    parts = [head, sides, _sides(told)]
    if told["evidence"]:
        rows = [[e["guard"], f"{e['value']:.4g}", f"{e['limit']:.4g}", e["said"]] for e in told["evidence"]]
        parts += ["<h2>Evidence</h2>", table(rows, ("guard", "measured", "limit", "in words"))]
    parts += [svg(plot) for plot in plots(told["rows"])]
    parts += ["<h2>Events</h2>", table([[_moment(e["at"]), e["what"]] for e in told["events"]], ("UTC", "what"))]
    if told["differences"]:
        parts.append("<h2>Differences, the last few</h2>")
        parts += [_difference(found) for found in told["differences"]]
    return page(f"Migration of {told['name']}", parts)


def plots(rows: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Shares, requests and failures, latency, agreement and cost over the minutes since the first row."""
    if not rows:
        return []
    x = "minutes since the migration began"
    costs = _line(rows, "target_usd_per_hour")
    found = [
        Plot("The target's share", x, "percent", [("share", _line(rows, "share", 100))], is_stepped=True),
        Plot(
            "Requests between two points",
            x,
            "count",
            [(key, _line(rows, key)) for key in ("source", "target", "failed")],
        ),
        Plot("P95", x, "s", [(side, _line(rows, f"{side}_p95_s")) for side in ("source", "target")]),
        Plot(
            "Agreement",
            x,
            "0 to 1",
            [("target with source", _line(rows, "agreement")), ("source with itself", _line(rows, "noise"))],
        ),
    ]
    if any(value for _, value in costs):
        found.append(Plot("What the target costs", x, "USD an hour", [("target", costs)]))
    return found


def _line(rows: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0) -> Points:
    begin = rows[0]["at"]
    return [((row["at"] - begin) / 60, row[key] * factor) for row in rows if row[key] is not None]


def _sides(told: Mapping[str, Any]) -> str:
    names = ("requests", "shadows", "failed", "not_ready", "refused", "tokens_in", "tokens_out")
    rows = [
        [side, *(told["totals"][side][name] for name in names), sum(told["totals"][side]["fallbacks"].values())]
        for side in ("source", "target")
    ]
    comparison = told["comparison"]
    said = [
        f"{comparison['pairs']} pairs compared, agreement {_number(comparison['agreement'])}",
        f"{comparison['noise_pairs']} times the source asked twice, agreement {_number(comparison['noise'])}",
        f"{comparison['shadows_dropped']} shadows dropped",
    ]
    heads = ("side", *(name.replace("_", " ") for name in names), "answered by the source")
    return table(rows, heads) + f"<p>{'; '.join(said)}.</p>"


def _difference(found: Mapping[str, Any]) -> str:
    cells = [("asked", found["asked"]), ("source", found["source"]), ("target", found["target"])]
    head = f"<h3>{found['score']:.3f} by {html.escape(found['method'])}, {_moment(found['at'])}</h3>"
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in found["differences"])
    return head + f"<ul>{lines}</ul>" + table(cells, ("side", "what it said"))


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
