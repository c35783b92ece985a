"""``outcrop store``: what the weight store holds, what is shared, and what a collection would free."""

from __future__ import annotations

from pathlib import Path

import typer

from outcrop.cli.client import HOME, JSON, connect, echo_json, show

app = typer.Typer(help="Show and clean the weight store.", invoke_without_command=True)


@app.callback()
def store(context: typer.Context, home: Path | None = HOME, as_json: bool = JSON) -> None:
    """Show what each model costs on disk, which files models share, and what a collection would free."""
    if context.invoked_subcommand is not None:
        return
    found = connect(home).get("/outcrop/v1/store")
    if as_json:
        echo_json(found)
        return
    columns = {
        "model_name": "MODEL",
        "checkpoint": "CHECKPOINT",
        "artifact": "ARTIFACT",
        "shared": "SHARED",
        "linked": "LINKED",
        "own": "FREED BY DELETION",
    }
    rows = [
        {
            "model_name": row["model_name"],
            **{key.removesuffix("_bytes"): _mb(row[key]) for key in row if key[-5:] == "bytes"},
        }
        for row in found["models"]
    ]
    show(rows, columns, as_json=False)
    for entry in found["shared"]:
        name = (entry["sha256"] or "converted")[:16]
        typer.echo(f"{name:16}  {_mb(entry['bytes'])}  {entry['file']}: {', '.join(entry['models'])}")
    for job in found["jobs"]:
        typer.echo(f"import job {job['job_id']} holds {_mb(job['bytes'])}")
    left = found["collectable"]
    typer.echo(
        f"{_mb(found['disk']['free_bytes'])} free on the disk; a collection (outcrop store gc) would free "
        f"{_mb(left['bytes'])} in {left['blobs']} file(s) and {left['folders']} folder(s)"
    )


@app.command()
def gc(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """Remove what no model and no running job uses. Running jobs and copies are left alone."""
    freed = connect(home).post("/outcrop/v1/store/collect")
    echo_json(freed) if as_json else typer.echo(f"Freed {_mb(freed['freed_bytes'])}.")


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
