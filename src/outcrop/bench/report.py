"""What a run leaves: JSON lines of every request, a summary, a page with plots."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import msgspec

from outcrop.bench.drive import Record, Run
from outcrop.bench.measures import Percentile, Summary, over_time, percentile, steady
from outcrop.bench.plots import Plot, page, png, svg, table
from outcrop.bench.published import TABLE
from outcrop.errors import BadSetting

_LEGEND = (
    "<p>P95 and P99 with 95 % intervals of order statistics. Latency of an open loop counts from the intended "
    "time. Little: (users − throughput × latency) / users; far from 0, requests were lost or miscounted.</p>"
)
HEADS = ("users", "requests", "mean s", "P50 s", "P95 s", "P99 s", "first token s", "ITL ms", "RPM", "tokens/s")
NAMED = (*HEADS, "errors", "Little", "copies", "client CPU ms/request")


def row(summary: Summary) -> list[str]:
    """One level as a person reads it."""
    first, gap = summary.ttft_p50_s, summary.itl_s
    return [
        str(summary.users) if summary.users else f"{summary.offered_rate:.3g}/s",
        str(summary.requests),
        f"{summary.mean_s:.3f}",
        f"{summary.p50.value:.3f}",
        said(summary.p95),
        said(summary.p99),
        "" if first is None else f"{first:.3f}",
        "" if gap is None else f"{1000 * gap:.2f}",
        f"{summary.rpm:.1f}",
        f"{summary.tokens_per_s:.1f}",
        ", ".join(f"{count} {name}" for name, count in sorted(summary.errors.items())) or "none",
        "" if summary.little is None else f"{100 * summary.little:+.1f} %",
        "" if summary.copies_most is None else str(summary.copies_most),
        f"{summary.client_cpu_ms:.2f}",
    ]


def said(value: Percentile) -> str:
    return f"{value.value:.3f}" + (f" ({value.low:.3f}–{value.high:.3f})" if value.low is not None else "")


def beside_published(summaries: Sequence[Summary]) -> list[list[str]]:
    """Rows of the published table with ours."""
    ours = {summary.users: summary for summary in summaries}
    return [
        [
            str(published.users),
            f"{published.p95_s:.2f}",
            f"{published.rpm:g}",
            f"{published.mean_s:.2f}",
            f"{mine.p95.value:.2f}",
            f"{mine.rpm:.0f}",
            f"{mine.mean_s:.2f}",
            f"{mine.rpm / published.rpm:.2f}",
        ]
        for published in TABLE
        if (mine := ours.get(published.users)) is not None
    ]


PUBLISHED_HEADS = ("users", "published P95 s", "RPM", "mean s", "ours P95 s", "RPM", "mean s", "RPM ours/published")


def plots(runs: Mapping[str, Run]) -> list[Plot]:
    found = [
        Plot(
            "Latency: share of requests answered within",
            "s",
            "share",
            [(name, spread_of(_latencies(run))) for name, run in runs.items()],
        )
    ]
    for name, run in runs.items():
        rows = over_time(run)
        found.append(
            Plot(
                f"{name}: latency over time",
                "s since the run began",
                "s",
                [
                    (key, [(r["at_s"], r[f"{key}_s"]) for r in rows if r[f"{key}_s"] is not None])
                    for key in ("p50", "p95")
                ],
            )
        )
        found.append(
            Plot(
                f"{name}: throughput", "s since the run began", "RPM", [("RPM", [(r["at_s"], r["rpm"]) for r in rows])]
            )
        )
        if run.samples:
            lines = [(what, [(s.at_s, float(getattr(s, what))) for s in run.samples]) for what in ("copies", "held")]
            found.append(Plot(f"{name}: copies and queue", "s since the run began", "count", lines, is_stepped=True))
    return found


def prepare(folder: Path) -> None:
    """Make *folder*. Raises BadSetting where it cannot be written or holds a run: measurements are not overwritten."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise BadSetting(f"the folder {folder} cannot be made: {exc.strerror}.") from exc
    if (folder / "requests.jsonl").exists():
        raise BadSetting(f"{folder} holds the results of an earlier run. Give another folder, or delete it.")
    if not os.access(folder, os.W_OK):
        raise BadSetting(f"the folder {folder} cannot be written.")


def write(
    folder: Path,
    runs: Mapping[str, Run],
    summaries: Mapping[str, Summary],
    notes: Mapping[str, str],
    *,
    extra: Sequence[str] = (),
    with_png: bool = False,
) -> None:
    """Write ``requests.jsonl``, ``summary.json``, ``report.html`` and, *with_png*, ``plot-N.png``."""
    prepare(folder)
    encoder = msgspec.json.Encoder()
    with (folder / "requests.jsonl").open("wb") as file:
        for name, run in runs.items():
            for record in run.records:
                file.write(
                    encoder.encode({"level": name, "users": run.shape.users, **msgspec.to_builtins(record)}) + b"\n"
                )
    kept = {
        "notes": dict(notes),
        "levels": {name: msgspec.to_builtins(summary) for name, summary in summaries.items()},
        "steady": {name: run.steady for name, run in runs.items()},
        "time_line": {name: over_time(run) for name, run in runs.items()},
        "samples": {name: msgspec.to_builtins(run.samples) for name, run in runs.items()},
    }
    (folder / "summary.json").write_bytes(msgspec.json.format(encoder.encode(kept), indent=1) + b"\n")
    drawn = plots(runs)
    parts = [
        "".join(f"<p>{escape(key)}: {escape(value)}</p>" for key, value in notes.items()),
        table([row(summary) for summary in summaries.values()], NAMED),
        *(
            f"<p><strong>{escape(name)} is void: {escape(s.void)}.</strong></p>"
            for name, s in summaries.items()
            if s.void
        ),
        _LEGEND,
        *extra,
        *(svg(plot) for plot in drawn),
    ]
    (folder / "report.html").write_text(page("Load benchmark", parts))
    if with_png:
        for number, plot in enumerate(drawn, 1):
            png(plot, folder / f"plot-{number}.png")


def read(folder: Path) -> dict[str, list[Record]]:
    """The steady requests of a kept run, by level. Raises BadSetting."""
    try:
        bounds = msgspec.json.decode((folder / "summary.json").read_bytes())["steady"]
        lines = (folder / "requests.jsonl").read_bytes().splitlines()
    except (OSError, KeyError, msgspec.DecodeError) as exc:
        raise BadSetting(f"{folder} holds no result of outcrop bench: {exc}.") from exc
    found: dict[str, list[Record]] = {name: [] for name in bounds}
    for line in lines:
        level = msgspec.json.decode(line)["level"]
        record = msgspec.json.decode(line, type=Record)
        begin, end = bounds[level]
        if record.due_s >= begin and record.last_s <= end:
            found[level].append(record)
    return found


def spread_of(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """The share of *ordered* latencies at or below each of a hundred values, as points of a plot."""
    shares = [number / 100 for number in range(1, 101)]
    return [(percentile(ordered, share), share) for share in shares] if ordered else []


def _latencies(run: Run) -> list[float]:
    return sorted(record.latency_s for record in steady(run) if record.error is None)
