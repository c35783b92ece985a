"""``outcrop check``: will this checkpoint import, what will it take, and if not, why. No server is needed."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer

from outcrop.checkpoints.engines import Available
from outcrop.cli.client import HOME, JSON, echo_json
from outcrop.engines.hardware import detect
from outcrop.engines.installed import installed
from outcrop.errors import ServiceError
from outcrop.launchers import machine
from outcrop.settings import Settings, load

REJECTED, UNREADABLE = 1, 3


def check(
    source: str = typer.Argument(help="A checkpoint's folder, file:///folder, or s3://bucket/prefix/."),
    role: str | None = typer.Option(None, help="Role to read as, where the object store is set to assume one."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Check a checkpoint without moving its weights: config, tokenizer, index and tensor headers only.

    Exits with 0 when it can be imported, 1 when it cannot (every problem is named), 3 when it cannot be read.
    """
    from outcrop.importing.report import lines

    machine.give_back_large_blocks()
    try:
        told = asyncio.run(_told(source, role, home))
    except ServiceError as exc:
        if as_json:
            echo_json({"source": source, "importable": False, "error": exc.message})
        typer.echo(f"outcrop: {exc.message}", err=True)
        _leave(UNREADABLE)
    if as_json:
        echo_json(told)
    else:
        for line in lines(told):
            typer.echo(line)
    _leave(0 if told["importable"] else REJECTED)


def _leave(status: int) -> NoReturn:
    """End at once. The object store's client has threads of its own, and one that lets go of an answer while the
    interpreter is being taken down aborts the process: a pipeline would see another status than ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _available(settings: Settings) -> Available:
    """The engines that an import on this machine would choose from."""
    hardware = detect(settings.cpu_cores or machine.cores(), machine.memory_bytes(), settings.gpus)
    usable = [engine.engine for engine in installed(settings, hardware) if engine.is_usable and engine.is_choosable]
    return Available(names=frozenset(usable), order=tuple(usable))


async def _told(source: str, role: str | None, home: Path | None) -> dict[str, Any]:
    from outcrop.importing.preflight import preflight
    from outcrop.importing.rates import Rates, import_stages
    from outcrop.importing.report import report
    from outcrop.importing.sources import open_local, open_source

    settings = load(home=home)
    is_remote = source.startswith("s3://")
    opened = open_source(source, settings, role_arn=role) if is_remote else open_local(source)
    try:
        found = await preflight(opened, await asyncio.to_thread(_available, settings))
        return report(found, Rates(settings.store).expected(import_stages(found, settings.store)))
    finally:
        await opened.aclose()
