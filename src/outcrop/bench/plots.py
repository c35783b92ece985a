"""Plots without a library: one function from series to SVG. PNG is drawn by matplotlib, where that is installed."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from outcrop.errors import BadSetting

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 260, 58, 38, 30, 14
LEGEND = 15  # height of one line's name below the plot
COLOURS = ("#0b6e99", "#c4541a", "#4b7f3a", "#7a4b94", "#8a6d1c", "#555555")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Plot:
    """Named lines over a common axis; *is_stepped* for what stays until it changes."""

    title: str
    x: str
    y: str
    lines: Sequence[tuple[str, Points]]
    is_stepped: bool = False


def svg(plot: Plot) -> str:
    points = [point for _, line in plot.lines for point in line]
    x_low = min((x for x, _ in points), default=0.0)
    x_high = max((x for x, _ in points), default=1.0)
    y_high = max((y for _, y in points), default=1.0) * 1.05 or 1.0
    x_high = x_high if x_high > x_low else x_low + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - y / y_high * (HEIGHT - BOTTOM - TOP), 1)

    begin = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + LEGEND * len(plot.lines)}" width="{WIDTH}" role="img" '
        f'aria-label="{html.escape(plot.title)}">'
    )
    parts = [
        begin,
        f'<text x="{LEFT}" y="16" class="t">{html.escape(plot.title)}</text>',
    ]
    for value in _ticks(0, y_high):
        _, at = place(x_low, value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" class="g"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 4}" text-anchor="end">{value:g}</text>')
    for value in _ticks(x_low, x_high):
        at, _ = place(value, 0)
        parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(plot.x)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="16" text-anchor="end">{html.escape(plot.y)}</text>')
    for number, (name, line) in enumerate(plot.lines):
        colour = COLOURS[number % len(COLOURS)]
        drawn = _stepped(line) if plot.is_stepped else line
        if len(line) == 1:
            x, y = place(*line[0])
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>')
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in drawn))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        # Below the plot, where no line can cross it and a long name has room.
        at = HEIGHT + LEGEND * number + 10
        parts.append(f'<rect x="{LEFT}" y="{at - 5}" width="16" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 22}" y="{at}">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def need_matplotlib() -> None:
    """Raises BadSetting where it is not installed."""
    if find_spec("matplotlib") is None:
        raise BadSetting("PNG plots need matplotlib: pip install 'outcrop[plots]'; the HTML report has them.")


def png(plot: Plot, path: Path) -> None:
    """Write *plot* to *path*. Raises BadSetting where matplotlib is not installed."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, line) in enumerate(plot.lines):
        xs, ys = [x for x, _ in line], [y for _, y in line]
        axes.plot(
            xs,
            ys,
            label=name,
            color=COLOURS[number % len(COLOURS)],
            marker="o" if len(line) == 1 else None,
            markersize=3,
            drawstyle="steps-post" if plot.is_stepped else "default",
        )
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y, ylim=(0, None))
    axes.grid(alpha=0.3)
    if len(plot.lines) > 1:
        figure.legend(loc="outside lower left", frameon=False, ncols=3)
    figure.savefig(path, dpi=130)


def page(title: str, parts: Sequence[str]) -> str:
    """One HTML file that needs nothing beside it."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1c1c1c}"
        "table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.25rem .7rem;text-align:right;"
        "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
        "svg text{font:11px system-ui,sans-serif;fill:#444}svg .t{font-size:13px;font-weight:600}svg .g{stroke:#e4e4e4}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style><h1>{html.escape(title)}</h1>'
        + "\n".join(parts)
        + "</html>\n"
    )


def table(rows: Sequence[Sequence[object]], heads: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _stepped(line: Points) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for x, y in line:
        if found:
            found.append((x, found[-1][1]))
        found.append((x, y))
    return found


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]
