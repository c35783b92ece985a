"""``outcrop proxy``: run a ``model.py`` in front of an imported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

app = typer.Typer(invoke_without_command=True)

FOLDER = typer.Argument(Path(), help="Where to write; files that exist are never replaced.")
PAYLOADS = typer.Option(None, help="Folder of the payloads (default: payloads/ in the bundle).")
MODEL_DIR = typer.Option(
    None, envvar="OUTCROP_PROXY_MODEL_DIR", help="Folder of the bundle with the script (/opt/ml/model)."
)
TARGET = typer.Option(None, envvar="OUTCROP_PROXY_TARGET", help="ARN or name of the imported model.")
ENDPOINT = typer.Option(
    None, envvar="OUTCROP_PROXY_ENDPOINT_URL", help="Base URL of the Bedrock runtime API (default: AWS's own)."
)
REGION = typer.Option(None, envvar="OUTCROP_PROXY_REGION", help="Region that calls are signed for.")
DIALECT = typer.Option(
    None,
    envvar="OUTCROP_PROXY_DIALECT",
    help="auto, sagemaker, huggingface, djl, mms, class, outcrop or none: how the script wants to be run (auto).",
)
FORWARD = typer.Option(
    None,
    envvar="OUTCROP_PROXY_FORWARD",
    help="always or when-absent: replace the script's own load and predict (always).",
)


@app.callback()
def run(
    context: typer.Context,
    model_dir: Path | None = MODEL_DIR,
    target: str | None = TARGET,
    endpoint_url: str | None = ENDPOINT,
    region: str | None = REGION,
    dialect: str | None = DIALECT,
    forward: str | None = FORWARD,
    host: str | None = typer.Option(None, envvar="OUTCROP_PROXY_HOST", help="Address to listen on (0.0.0.0)."),
    port: int | None = typer.Option(None, envvar="OUTCROP_PROXY_PORT", help="Port to listen on (8080); 0: a free one."),
    workers: int | None = typer.Option(None, envvar="OUTCROP_PROXY_WORKERS", help="Processes that run the script."),
) -> None:
    """Run a model.py in front of an imported model, as SageMaker runs a container: /ping and /invocations on port 8080.

    All settings: docs/reference/proxy-settings.md.
    """
    given = {
        "model_dir": model_dir,
        "target": target,
        "endpoint_url": endpoint_url,
        "region": region,
        "dialect": dialect,
        "forward": forward,
        "host": host,
        "port": port,
        "workers": workers,
    }
    if context.invoked_subcommand is not None:
        context.obj = given
        return
    _serve(given, reload=False)


def _serve(given: dict[str, Any], *, reload: bool) -> None:
    from outcrop.proxy import serve as serving
    from outcrop.proxy.settings import load

    raise typer.Exit(serving.serve(load(**given), reload=reload))


@app.command("serve")
def serve(
    context: typer.Context,
    reload: bool = typer.Option(False, "--reload", help="For development: load the script anew when it changes."),
) -> None:
    """As without a command; options stand before it. SageMaker starts a container with this word.

    With --reload it listens on 127.0.0.1 unless told otherwise, runs one worker, shows tracebacks, logs for people.
    """
    given = dict(context.obj)
    if reload:
        development = {"host": "127.0.0.1", "workers": 1, "tracebacks": True, "log_json": False}
        given = {**development, **{name: value for name, value in given.items() if value is not None}}
    _serve(given, reload=reload)


@app.command("init")
def init(folder: Path = FOLDER) -> None:
    """Write a commented model.py, tests for it, a payload and a container file."""
    from outcrop.proxy import starter

    for path in starter.write(folder):
        typer.echo(path)


@app.command("test")
def rehearse(
    context: typer.Context,
    payloads: Path | None = PAYLOADS,
    live: bool = typer.Option(False, "--live", help="Ask the target; answers may differ, their status may not."),
    record: bool = typer.Option(False, "--record", help="Ask the target, and keep what it answers in the payloads."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for machines."),
) -> None:
    """Run the script against recorded payloads; inference comes from the recording unless --live or --record.

    The exit status is 1 when a payload fails. Options of the proxy stand before the command.
    """
    import asyncio
    import dataclasses
    import json

    from outcrop.errors import BadSetting
    from outcrop.proxy import rehearsal
    from outcrop.proxy.settings import load
    from outcrop.telemetry import logs

    logs.configure("error", as_json=False)
    given = {name: value for name, value in context.obj.items() if value is not None}
    fixed = {"host": "127.0.0.1", "port": 0, "workers": 1}
    if not (live or record):
        given.setdefault("target", "recorded")
    settings = load(**{"model_dir": Path(), **given, **fixed})
    folder = payloads or settings.model_dir / "payloads"
    files = sorted(folder.glob("*.json"))
    if not files:
        raise BadSetting(f"there are no payloads (*.json) in {folder}")
    found = [rehearsal.Payload.read(path) for path in files]
    verdicts = asyncio.run(rehearsal.rehearse(settings, found, live=live, record=record))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(verdict) for verdict in verdicts], indent=2))
    else:
        for verdict in verdicts:
            typer.echo(
                f"{'FAILED' if verdict.problem else 'ok':<7} {verdict.name} ({verdict.ms:.0f} ms) {verdict.problem}"
            )
    raise typer.Exit(1 if any(verdict.problem for verdict in verdicts) else 0)
