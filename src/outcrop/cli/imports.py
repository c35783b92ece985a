"""``outcrop import`` and ``outcrop jobs``: start an import, follow it, cancel it, list them."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from outcrop.checkpoints.embedding import POOLINGS
from outcrop.checkpoints.files import IN_FOLDERS
from outcrop.cli.client import HOME, JSON, Client, connect, echo_json, show
from outcrop.errors import BadSetting
from outcrop.ids import random_id
from outcrop.importing.choices import QUANTISATIONS, tags

BUCKET = "outcrop-imports"
LINE_EVERY_S = 5.0
jobs_app = typer.Typer(help="List, follow and cancel import jobs.", invoke_without_command=True)


def import_model(
    source: str = typer.Argument(help="A checkpoint's folder on this machine, or s3://bucket/prefix/."),
    name: str = typer.Option(..., "--name", help="Name of the imported model."),
    job_name: str | None = typer.Option(None, help="Name of the import job (default: made from the model's)."),
    quantize: str | None = typer.Option(
        None, help=f"Pack the CPU engine's matrices ({', '.join(QUANTISATIONS)}); the default keeps every bit."
    ),
    accept_broken: bool = typer.Option(
        False, "--accept-broken", help="Import even what the proof run calls broken (NaN, one token for ever)."
    ),
    embedding: str | None = typer.Option(
        None,
        help=f"The model gives embeddings, its tokens pooled so ({', '.join(POOLINGS)}); the default is what a "
        "sentence-transformers checkpoint says.",
    ),
    engine: str | None = typer.Option(
        None, help="Put the model on this engine (outcrop engines); the default is the first that serves it."
    ),
    wait: bool = typer.Option(True, "--wait/--no-wait", help="Follow the job to its end."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Import a checkpoint (Hugging Face safetensors). Exits with 1 and the reason when the import fails."""
    client = connect(home)
    chosen = tags(quantize, accepts_any_proof=accept_broken, pooling=embedding, engine=engine)
    uri = source if source.startswith("s3://") else _upload(client, Path(source), name)
    bedrock = client.aws("bedrock")
    arn = bedrock.create_model_import_job(
        jobName=job_name or f"{name[:50]}-{random_id(8)}",
        importedModelName=name,
        roleArn=client.credentials.import_role_arn,
        modelDataSource={"s3DataSource": {"s3Uri": uri}},
        **({"jobTags": chosen} if chosen else {}),
    )["jobArn"]
    if not wait:
        echo_json({"jobArn": arn}) if as_json else typer.echo(arn)
        return
    try:
        job = _follow(client, bedrock, arn, is_shown=not as_json)
    except KeyboardInterrupt:
        typer.echo(f"The import goes on. Follow it with: outcrop jobs watch\n{arn}", err=True)
        raise typer.Exit(130) from None
    _end(client, job, as_json=as_json)


def _end(client: Client, job: dict[str, Any], *, as_json: bool) -> None:
    """Say how a job ended; exit with 1 when it failed."""
    found = client.get(f"/outcrop/v1/import-jobs/{_quoted(job['jobArn'])}")
    if as_json:
        answer = {k: v for k, v in job.items() if k != "ResponseMetadata"}
        echo_json({**answer, "timings": found["timings"], "detail": found["detail"]})
    if job["status"] == "Failed":
        if not as_json:
            typer.echo(f"Import failed: {job.get('failureMessage')}", err=True)
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"{job['importedModelArn']}")
        spent = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in found["timings"].items())
        typer.echo(f"Imported as {job['importedModelName']}: {spent}", err=True)


@jobs_app.callback()
def jobs(context: typer.Context, home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List import jobs, the newest first."""
    if context.invoked_subcommand is not None:
        return
    pages = connect(home).aws("bedrock").get_paginator("list_model_import_jobs").paginate()
    rows = [row for page in pages for row in page["modelImportJobSummaries"]]
    columns = {
        "jobName": "JOB",
        "status": "STATUS",
        "importedModelName": "MODEL",
        "creationTime": "CREATED",
        "jobArn": "ARN",
    }
    show(rows, columns, as_json=as_json)


@jobs_app.command()
def watch(
    job: str = typer.Argument(help="Name or ARN of an import job."), home: Path | None = HOME, as_json: bool = JSON
) -> None:
    """Follow a job to its end: stage, bytes, rate, time left. Exits with 1 and the reason when it fails."""
    client = connect(home)
    bedrock = client.aws("bedrock")
    arn = bedrock.get_model_import_job(jobIdentifier=job)["jobArn"]
    _end(client, _follow(client, bedrock, arn, is_shown=not as_json), as_json=as_json)


@jobs_app.command()
def cancel(
    job: str = typer.Argument(help="Name or ARN of an import job."), home: Path | None = HOME, as_json: bool = JSON
) -> None:
    """End a running job; it becomes Failed, and what it brought is removed."""
    ended = connect(home).post(f"/outcrop/v1/import-jobs/{_quoted(job)}/cancel")
    echo_json(ended) if as_json else typer.echo(ended["failure"] or ended["phase"], err=True)


def _upload(client: Client, folder: Path, name: str) -> str:
    """Link (or copy) the folder's files into the server's own bucket; the URI of the prefix."""
    if not (folder / "config.json").is_file():
        raise BadSetting(f"{folder} holds no config.json; give the folder of a Hugging Face checkpoint.")
    prefix = f"{name}-{random_id(8)}"
    target = client.settings.buckets / BUCKET / prefix
    target.mkdir(parents=True)
    for path in [*folder.iterdir(), *(folder / inner for inner in IN_FOLDERS)]:
        if path.is_file():
            place = target / path.relative_to(folder)
            place.parent.mkdir(exist_ok=True)
            try:
                place.hardlink_to(path.resolve())
            except OSError:
                shutil.copyfile(path, place)
    return f"s3://{BUCKET}/{prefix}/"


def _follow(client: Client, bedrock: Any, arn: str, *, is_shown: bool) -> Any:
    """The job once it has ended. A terminal gets a bar; a log a line whenever the stage changes or 5 s have passed."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    told, told_at = "", 0.0
    is_terminal = sys.stderr.isatty()
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not is_terminal) as progress:
        task = progress.add_task("queued", total=1.0, visible=is_shown)
        pause_s = 0.05
        while True:
            job = bedrock.get_model_import_job(jobIdentifier=arn)
            if job["status"] != "InProgress":
                return job
            if is_shown:
                now = client.get(f"/outcrop/v1/import-jobs/{_quoted(arn)}")
                progress.update(task, description=_stage(now), completed=now["progress"])
                if not is_terminal and (now["phase"] != told or time.monotonic() - told_at > LINE_EVERY_S):
                    typer.echo(_stage(now), err=True)
                    told, told_at = now["phase"], time.monotonic()
            time.sleep(pause_s)
            pause_s = min(1.0, pause_s * 1.2)


def _stage(now: dict[str, Any]) -> str:
    """``transferring 1.20 of 16.1 GB, 212 MB/s, 70 s left``"""
    stage = str(now["phase"]).lower()
    moved = now["detail"].get("transfer")
    if now["phase"] != "TRANSFERRING" or not moved:
        return stage
    left = f", {moved['eta_s']:.0f} s left" if moved["eta_s"] is not None else ""
    done, total = moved["done_bytes"] / 1e9, moved["total_bytes"] / 1e9
    return f"{stage} {done:.2f} of {total:.2f} GB, {moved['bytes_per_s'] / 1e6:.0f} MB/s{left}"


def _quoted(arn: str) -> str:
    from urllib.parse import quote

    return quote(arn, safe="")
