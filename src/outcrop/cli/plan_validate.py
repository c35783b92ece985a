"""``outcrop plan validate``: hold the simulator to a recorded run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from outcrop.cli.client import JSON, echo_json, show
from outcrop.planning.validation import GOAL, TRUSTED_LOAD, read, validate

RECORDINGS = typer.Argument(help="Recordings of python -m outcrop.bench.recording.")


def validate_plan(recordings: list[Path] = RECORDINGS, as_json: bool = JSON) -> None:
    """Replay recorded runs in the simulator and print how far it is off: mean, P95, copy-seconds, cold starts.

    Exit status 1 when the P95 of a run below four fifths of saturation is off by more than 10 %.
    """
    found = {path: validate(read(path)) for path in recordings}
    if as_json:
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
