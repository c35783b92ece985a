"""``outcrop top``: what the server does now, again every moment."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from outcrop.cli.client import HOME, JSON, Client, connect, echo_json
from outcrop.cli.status import ENDPOINT_COLUMNS, ENDPOINTS, state_of
from outcrop.errors import BadSetting

_PATH = "/outcrop/v1/top"


def top(
    once: bool = typer.Option(False, "--once", help="Look for one interval, print, end."),
    interval_s: float = typer.Option(1.0, "--interval", min=0.1, max=60, help="Seconds between looks."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Show models, copies, queues, slots and tokens per second, live. With --json one look a line."""
    looks = follow(home, interval_s)
    if once or as_json:
        for found, missing in looks:
            if missing and once:
                raise BadSetting(missing)
            if missing:
                typer.echo(missing, err=True)
            elif not as_json:
                Console(width=None if sys.stdout.isatty() else 200).print(_page(found))
            elif once:
                echo_json(found)
            else:
                typer.echo(json.dumps(found))
            if once:
                return
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        try:
            for found, missing in looks:
                page = _page(found)
                live.update(Group(Text(missing, style="bold red"), page) if missing else page, refresh=True)
        except KeyboardInterrupt:
            return


def follow(home: Path | None, interval_s: float) -> Iterator[tuple[dict[str, Any], str]]:
    """One look after the other: what was seen last, and why nothing newer was; empty where it was.

    A server that ends is waited for, so that a restart does not end the view. Raises BadSetting when none is there at
    the beginning.
    """
    client = connect(home)
    before = _seen(client)
    found = with_rates(before, before)
    while True:
        time.sleep(interval_s)
        try:
            after = _seen(client)
        except (BadSetting, OSError) as exc:
            yield found, str(exc)
            with contextlib.suppress(BadSetting):
                client = connect(home)  # the next one may listen elsewhere
            continue
        before, found = after, with_rates(before, after)
        yield found, ""


def with_rates(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """*after* with what changed per second since *before*: ``tokens_per_s``, ``requests_per_s``."""
    passed_s = after["at"] - before["at"]
    earlier = {model["model_name"]: model for model in before["models"]}
    models = []
    for model in after["models"]:
        past = earlier.get(model["model_name"], model)
        tokens = model["generated_tokens"] - past["generated_tokens"]
        answered = model["answered"] - past["answered"]
        models.append(
            {
                **model,
                # The engine's count, which replaces the chunks of a stream at its end, may be a little lower.
                "tokens_per_s": round(max(0, tokens) / passed_s, 2) if passed_s > 0 else 0.0,
                "requests_per_s": round(max(0, answered) / passed_s, 2) if passed_s > 0 else 0.0,
            }
        )
    return {**after, "models": models}


def _seen(client: Client) -> dict[str, Any]:
    return {**client.get(_PATH), "endpoints": client.get(ENDPOINTS)["copies"]}


def _page(found: dict[str, Any]) -> Group:
    clock = time.strftime("%H:%M:%S", time.localtime(found["at"]))
    tokens = sum(model["tokens_per_s"] for model in found["models"])
    live = sum(model["live"] for model in found["models"])
    waiting = sum(model["waiting"] for model in found["models"])
    head = Text(f"{clock}   {live} requests, {waiting} waiting   {len(found['copies'])} copies   {tokens:.0f} tokens/s")
    parts: list[Any] = [head, Text(), _models(found["models"]), Text(), _copies(found["copies"])]
    if found.get("endpoints"):
        parts += [Text(), _endpoints(found["endpoints"])]
    return Group(*parts)


def _endpoints(copies: list[dict[str, Any]]) -> Table:
    table = _table(*ENDPOINT_COLUMNS.values())
    for copy in copies:
        shown = {**copy, "age_s": _seconds(copy["age_s"])}
        table.add_row(*("" if shown[key] is None else str(shown[key]) for key in ENDPOINT_COLUMNS))
    return table


def _models(models: list[dict[str, Any]]) -> Table:
    table = _table(
        "MODEL", "STATE", "COPIES", "SLOTS", "WAIT", "REQ/S", "TOKENS/S", "FIRST P50", "P95", "TOTAL P50", "P95", "KV",
        "ANSWERED", "FAILED",
    )  # fmt: skip
    for model in sorted(models, key=lambda model: (-model["live"], -model["tokens_per_s"], model["model_name"])):
        table.add_row(
            model["model_name"],
            model["state"],
            f"{model['ready']}/{model['copies']}",
            f"{model['busy']}/{model['slots']}",
            str(model["waiting"]),
            f"{model['requests_per_s']:.1f}",
            f"{model['tokens_per_s']:.0f}",
            *(_seconds(model[key]) for key in ("first_token_p50_s", "first_token_p95_s", "total_p50_s", "total_p95_s")),
            "" if model["kv_use"] is None else f"{model['kv_use']:.0%}",
            str(model["answered"]),
            str(model["failed"]),
        )
    return table


def _copies(copies: list[dict[str, Any]]) -> Table:
    table = _table("COPY", "MODEL", "STATE", "AGE", "RUNNING", "THREADS", "REQUESTS", "IDLE", "PID")
    for copy in copies:
        table.add_row(
            copy["copy_id"],
            copy["model_name"],
            state_of(copy),
            _seconds(copy["age_s"]),
            f"{copy['in_flight']}/{copy['slots']}",
            str(copy["threads"]),
            str(copy["requests"]),
            _seconds(copy["idle_s"]),
            str(copy["pid"] or ""),
        )
    return table


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="bold", pad_edge=False)


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min"
