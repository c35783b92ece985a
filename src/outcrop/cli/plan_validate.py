"""``outcrop plan validate``: hold the simulator to a recorded run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer

from outcrop.bench.measures import with_interval
from outcrop.cli.client import JSON, echo_json, show
from outcrop.planning.validation import GOAL, TRUSTED_LOAD, Recording, Validation, read, validate

RECORDINGS = typer.Argument(help="Recordings of python -m outcrop.bench.recording.")


MARKDOWN = typer.Option(False, "--markdown", help="Print the rows of docs/benchmarks/planning.md.")


def validate_plan(recordings: list[Path] = RECORDINGS, markdown: bool = MARKDOWN, as_json: bool = JSON) -> None:
    """Replay recorded runs in the simulator and print how far it is off: mean, P95, copy-seconds, cold starts.

    Exit status 1 when the P95 of a run below four fifths of saturation is off by more than 10 %.
    """
    read_in = {path: read(path) for path in recordings}
    found = {path: validate(recording) for path, recording in read_in.items()}
    if markdown:
        typer.echo(_markdown([(read_in[path], each) for path, each in found.items()]))
    elif as_json:
        echo_json(
            {
                str(path): {
                    "copy": asdict(each.fitted.model),
                    "kappa_by_users": each.fitted.kappas,
                    "nu": each.fitted.model.nu,
                    "load": round(each.load, 3),
                    "load_of_the_fullest_10_s": round(each.busiest, 3),
                    "rows": [asdict(row) | {"error": round(row.error, 4)} for row in each.rows],
                }
                for path, each in found.items()
            }
        )
    else:
        rows = [
            {
                "run": path.stem,
                "load": f"{100 * each.load:.0f} % ({100 * each.busiest:.0f} %)",
                "measure": row.measure,
                "measured": round(row.measured, 3),
                "simulated": round(row.simulated, 3),
                "error": f"{100 * row.error:+.1f} %",
            }
            for path, each in found.items()
            for row in each.rows
        ]
        heads = ("run", "load", "measure", "measured", "simulated", "error")
        show(rows, {name: name.upper() for name in heads}, as_json=False)
    for path, each in found.items():
        if each.holds is None:
            typer.echo(f"{path}: beyond {100 * TRUSTED_LOAD:g} % of saturation the model is not trusted.", err=True)
    if any(each.holds is False for each in found.values()):
        typer.echo(f"The P95 is off by more than {100 * GOAL:g} %.", err=True)
        raise typer.Exit(1)


def _markdown(runs: Sequence[tuple[Recording, Validation]]) -> str:
    """The table, and of each run what must be said with it."""
    rows = ["| run | load | | measured | simulated | error |", "| --- | --- | --- | --- | --- | --- |"]
    said = []
    for recording, found in runs:
        latencies = sorted(each.latency_s for each in recording.open)
        most, span = recording.scaling["max_copies"], recording.open[-1].due_s
        who = recording.engine if "simulated" in recording.engine else f"the sample on {recording.engine}"
        name = f"{who}, up to {most} copies: {len(latencies)} requests in {span:.0f} s"
        for number, row in enumerate(found.rows):
            place = f"{name} | {100 * found.load:.0f} % ({100 * found.busiest:.0f} %)" if not number else " | "
            form = {"mean s": "{:.3f} s", "P95 s": "{:.3f} s", "copy-seconds": "{:.1f}"}.get(row.measure, "{:.0f}")
            error = (
                f"{row.simulated - row.measured:+.0f}" if row.measure == "cold starts" else f"{100 * row.error:+.1f} %"
            )
            shown = f"{form.format(row.measured)} | {form.format(row.simulated)} | {error}"
            rows.append(f"| {place} | {row.measure.removesuffix(' s')} | {shown} |")
        p95, model = with_interval(latencies, 0.95), found.fitted.model
        between = "too few requests to say" if p95.low is None else f"between {p95.low:.2f} and {p95.high:.2f} s"
        said.append(
            f"- {who}: measured P95 {between} (95 %, order statistics); the client sent late by "
            f"{1000 * recording.slip_p99_s:.0f} ms at P99; kappa {model.kappa:.3g}, nu {model.nu:.2g}, "
            f"{recording.cores} cores."
        )
    return "\n".join([*rows, "", *said])
