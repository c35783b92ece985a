"""``outcrop trace``: where one request's time went, or the last requests."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outcrop.cli.client import HOME, JSON, connect, echo_json, show
from outcrop.telemetry.timeline import MEANING

_BAR = 40  # characters that stand for the whole request


def trace(
    request_id: str | None = typer.Argument(None, help="Header x-amzn-requestid or x-request-id, or an answer's id."),
    slowest: bool = typer.Option(False, "--slowest", help="List the slowest of the last requests first."),
    model: str | None = typer.Option(None, help="List only requests to this model."),
    last: int = typer.Option(20, min=1, max=1000, help="Requests to list."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Explain a request: where its time went, which copy answered, what it waited for. Without an id, list the last."""
    client = connect(home)
    if request_id is None:
        asked = {"limit": last, "order": "slowest" if slowest else "newest", **({"model": model} if model else {})}
        rows = client.get(f"/outcrop/v1/requests?{urlencode(asked)}")["requests"]
        _list(rows, as_json=as_json)
        return
    found = client.get(f"/outcrop/v1/requests/{quote(request_id, safe='')}")
    if as_json:
        echo_json(found)
        return
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    _explain(found["request"], console)
    console.print(_timeline(found["request"], found["steps"]))
    if found["other_attempts"]:
        console.print("\nOther attempts of the same invocation:")
        _list(found["other_attempts"], as_json=False)


def _explain(record: dict[str, Any], console: Console) -> None:
    rows = {
        "request": f"{record['request_id']}  {record['operation']}  {'stream' if record.get('is_stream') else 'whole'}",
        "at": datetime.fromtimestamp(record["at"]).astimezone().isoformat(sep=" ", timespec="milliseconds"),
        "outcome": f"{record['outcome']}" + (f" (HTTP {record['status']})" if record.get("status") else ""),
        "model": record.get("model") or "none was found",
        "copy": " then ".join(each["copy_id"] for each in record.get("attempts", []) if each.get("copy_id")) or "none",
        "principal": record["principal"],
        "tokens": _tokens(record),
    }
    if record.get("invocation_id"):
        rows["invocation"] = f"{record['invocation_id']}  {record.get('sdk_attempt') or ''}".rstrip()
    if record.get("traceparent"):
        rows["traceparent"] = record["traceparent"]
    start = record.get("cold_start")
    if start is not None:
        rows["cold start"] = f"copy {start['copy_id']}, {start['tier']}, {start['total_s']:.3f} s"
        if start.get("decision"):
            why = start["decision"]
            rows["decided"] = f"{why['current']} -> {why['desired']} copies: {why['reason']}"
    for name, value in rows.items():
        console.print(Text(f"{name:<12}", style="bold") + Text(str(value)))
    console.print()


def _tokens(record: dict[str, Any]) -> str:
    if "output_tokens" in record:
        read, made = record["input_tokens"], record["output_tokens"]
        first_s = record.get("first_token_s")
        decode_s = record.get("decode_s") if first_s is None else record["total_s"] - first_s
        rate = (made - 1) / decode_s if decode_s else None
        return f"{read} read, {made} generated" + (f", {rate:.1f}/s after the first" if rate else "")
    chunks = record.get("chunks", 0)
    return f"about {chunks} generated so far" if chunks else "none generated"


def _timeline(record: dict[str, Any], steps: list[dict[str, Any]]) -> Table:
    total_s = max(record.get("total_s", 0.0), 1e-9)
    table = Table("STEP", "FROM S", "SECONDS", "", "", box=None, header_style="bold", pad_edge=False)
    for step in steps:
        depth = 0 if not step["under"] else 1 if step["under"] == "hold" else 2
        begin = min(_BAR, max(0, round(step["at_s"] / total_s * _BAR)))
        end = min(_BAR, max(begin, round((step["at_s"] + step["for_s"]) / total_s * _BAR)))
        bar = " " * begin + ("━" * (end - begin) or "╵")
        note = MEANING.get(step["name"], "") + ("; the copy broke" if step["is_broken"] else "")
        style = "red" if step["is_broken"] else "dim" if depth else ""
        name = "  " * depth + step["name"]
        table.add_row(name, f"{step['at_s']:.3f}", f"{step['for_s']:.3f}", bar.ljust(_BAR), note, style=style)
    table.add_row("total", "", f"{total_s:.3f}", "", "", style="bold")
    return table


def _list(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        echo_json(rows)
        return
    columns = {
        "at": "TIME",
        "request_id": "REQUEST",
        "operation": "OPERATION",
        "model": "MODEL",
        "outcome": "OUTCOME",
        "held_s": "HELD S",
        "queued_s": "QUEUED S",
        "first_token_s": "FIRST TOKEN S",
        "total_s": "TOTAL S",
        "output_tokens": "TOKENS",
    }
    shown = [
        {
            **{key: f"{value:.3f}" if isinstance(value, float) else value for key, value in row.items()},
            "at": datetime.fromtimestamp(row["at"]).astimezone().strftime("%H:%M:%S"),
        }
        for row in rows
    ]
    show(shown, columns, as_json=False)
