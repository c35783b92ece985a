"""``outcrop engines``: what this machine can run models on. No server is needed."""

from __future__ import annotations

from pathlib import Path

import typer
from msgspec import to_builtins

from outcrop.cli.client import HOME, JSON, echo_json, show
from outcrop.settings import load


def engines(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List the engines in the order in which they are taken: usable here or why not, version, hardware."""
    from outcrop.engines.hardware import detect
    from outcrop.engines.installed import installed
    from outcrop.launchers import machine

    settings = load(home=home)
    hardware = detect(settings.cpu_cores or machine.cores(), machine.memory_bytes(), settings.gpus)
    found = [to_builtins(engine) for engine in installed(settings, hardware)]
    if as_json:
        gpus = [to_builtins(gpu) for gpu in hardware.gpus]
        cpu = {"cores": hardware.cores, "memory_bytes": hardware.memory_bytes}
        echo_json({"hardware": {**cpu, "gpus": gpus}, "engines": found})
        return
    typer.echo(f"This machine grants {hardware.described()}.\n")
    rows = [{**row, "usable": "yes" if row["is_usable"] else "no", "version": row["version"] or ""} for row in found]
    show(rows, {"engine": "ENGINE", "usable": "USABLE", "version": "VERSION", "reason": "WHY"}, as_json=False)
