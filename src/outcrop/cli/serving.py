"""``outcrop warm``, ``scaling``, ``alias`` and ``logs``: what an operator asks of the copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from outcrop.cli.client import HOME, JSON, connect, echo_json, show

scaling = typer.Typer(help="Set how many copies a model has, and ask why it has them.", no_args_is_help=True)
alias = typer.Typer(help="Names that move from one model to another without a failed request.", no_args_is_help=True)

MODEL = typer.Argument(help="Name, alias or ARN of an imported model.")


def warm(model: str = MODEL, home: Path | None = HOME) -> None:
    """Start a copy when there is none, and wait until it is ready."""
    found = connect(home).send("POST", f"/outcrop/v1/models/{quote(model, safe='')}/warm", timeout_s=600)
    typer.echo(f"{found['model_name']}: {found['copies']} ready", err=True)


def logs(
    model: str = typer.Argument(
        help="Name, alias or ARN of an imported model; endpoint/NAME for an endpoint's proxies."
    ),
    copy: str | None = typer.Option(None, help="Id of a copy; without it the newest. See outcrop status."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Print the log of a copy, an engine or an endpoint's proxy, also of one that has ended."""
    kind, _, name = model.partition("/")
    what = f"endpoints/{quote(name, safe='')}" if kind == "endpoint" and name else f"models/{quote(model, safe='')}"
    path = f"/outcrop/v1/{what}/logs"
    found = connect(home).get(f"{path}/{quote(copy, safe='')}" if copy else path)
    if as_json:
        echo_json(found)
        return
    typer.echo(f"copy {found['copy_id']}; kept: {', '.join(found['copies'])}", err=True)
    typer.echo(found["text"])


@scaling.command()
def explain(
    model: str = MODEL,
    last: int = typer.Option(10, min=1, help="Decisions to show."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Show the last scaling decisions with the facts they saw."""
    found = connect(home).get(f"/outcrop/v1/models/{quote(model, safe='')}/decisions")["decisions"][-last:]
    if as_json:
        echo_json(found)
        return
    rows = [
        {
            "at": _clock_time(row["at"]),
            "copies": f"{row['current']} -> {row['desired']}",
            "reason": row["reason"],
            "times": row["times"],
            "waiting": row["facts"]["held"],
            "running": row["facts"]["in_flight"],
            "rate": round(row["facts"]["rate_60"], 2),
            "work_s": round(row["facts"]["work_s"], 3),
            "cold_start_s": round(row["facts"]["cold_start_s"], 2),
            "idle_s": "" if row["facts"]["idle_s"] > 1e8 else round(row["facts"]["idle_s"], 1),
        }
        for row in found
    ]
    columns = {
        "at": "TIME",
        "copies": "COPIES",
        "reason": "REASON",
        "times": "TIMES",
        "waiting": "WAITING",
        "running": "RUNNING",
        "rate": "REQUESTS/S",
        "work_s": "WORK S",
        "cold_start_s": "COLD START S",
        "idle_s": "IDLE S",
    }
    show(rows, columns, as_json=False)


@scaling.command("show")
def show_scaling(model: str = MODEL, home: Path | None = HOME) -> None:
    """Print what is set for a model; null follows the server's default."""
    echo_json(connect(home).get(f"/outcrop/v1/models/{quote(model, safe='')}/scaling"))


@scaling.command("set")
def set_scaling(
    model: str = MODEL,
    min_copies: int | None = typer.Option(None, "--min", help="Least copies, also without traffic."),
    max_copies: int | None = typer.Option(None, "--max", help="Most copies."),
    keep_alive_s: float | None = typer.Option(None, help="Idle seconds after which a copy may go; 300 is AWS's."),
    slowdown: float | None = typer.Option(None, help="How much slower than alone a request may run (1.3)."),
    interference: float | None = typer.Option(None, help="Share by which each further request slows a copy (0.0215)."),
    paid_window_s: float | None = typer.Option(
        None, help="Copies are paid in windows of this length; 0: by the second."
    ),
    window_s: float | None = typer.Option(None, help="Least seconds that a peak holds copies up (60)."),
    slots: int | None = typer.Option(
        None, help="Requests that one copy runs at a time; running copies are replaced one by one, none is dropped."
    ),
    context_tokens: int | None = typer.Option(
        None, "--context", help="Context of its copies in tokens, at most its own."
    ),
    argument: list[str] = typer.Option(
        [], "--argument", help="A further argument of its engine's command line; it wins. Repeatable."
    ),
    stop_idle: bool | None = typer.Option(
        None, "--stop-idle/--keep-idle", help="Stop a copy as soon as its keep-alive has ended, or keep it evictable."
    ),
    floor: list[str] = typer.Option(
        [], help="'CRON;SECONDS;MIN[;MAX]', UTC: from each time on, so long, so many copies. Repeatable."
    ),
    home: Path | None = HOME,
) -> None:
    """Replace what is set for a model; an option left out follows the server's default."""
    values: dict[str, Any] = {
        "min_copies": min_copies,
        "max_copies": max_copies,
        "keep_alive_s": keep_alive_s,
        "slowdown": slowdown,
        "interference": interference,
        "paid_window_s": paid_window_s,
        "window_s": window_s,
        "slots": slots,
        "context_tokens": context_tokens,
        "arguments": argument,
        "stop_idle": stop_idle,
        "floors": [_floor(text) for text in floor],
    }
    body = {name: value for name, value in values.items() if value is not None}
    echo_json(connect(home).send("PUT", f"/outcrop/v1/models/{quote(model, safe='')}/scaling", body))


@alias.command("set")
def set_alias(name: str = typer.Argument(help="The alias."), model: str = MODEL, home: Path | None = HOME) -> None:
    """Point an alias at a model: it is started first, then takes the requests, and the old one drains."""
    path = f"/outcrop/v1/aliases/{quote(name, safe='')}"
    found = connect(home).send("PUT", path, {"model": model}, timeout_s=1200)
    typer.echo(f"{name} -> {found['model_name']}", err=True)


@alias.command("list")
def list_aliases(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List the aliases."""
    rows = connect(home).get("/outcrop/v1/aliases")["aliases"]
    show(rows, {"alias": "ALIAS", "model_name": "MODEL"}, as_json=as_json)


@alias.command("remove")
def remove_alias(name: str = typer.Argument(help="The alias."), home: Path | None = HOME) -> None:
    """Take an alias away; the model stays."""
    connect(home).send("DELETE", f"/outcrop/v1/aliases/{quote(name, safe='')}")
    typer.echo(f"Removed {name}.", err=True)


def _floor(text: str) -> dict[str, Any]:
    parts = text.split(";")
    try:
        cron, for_s, least, *most = parts
        return {
            "cron": cron.strip(),
            "for_s": float(for_s),
            "min_copies": int(least),
            "max_copies": int(most[0]) if most else None,
        }
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is not 'CRON;SECONDS;MIN[;MAX]', e.g. '0 8 * * 1-5;36000;1'.") from exc


def _clock_time(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")
