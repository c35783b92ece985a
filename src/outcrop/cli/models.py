"""``outcrop models`` and ``outcrop invoke``: what can be asked, and asking it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from outcrop.cli.client import HOME, JSON, connect, echo_json, show

app = typer.Typer(help="List and delete imported models.", invoke_without_command=True)


@app.callback()
def models(context: typer.Context, home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List imported models, the newest first."""
    if context.invoked_subcommand is not None:
        return
    pages = connect(home).aws("bedrock").get_paginator("list_imported_models").paginate()
    rows = [row for page in pages for row in page["modelSummaries"]]
    columns = {
        "modelName": "MODEL",
        "modelArchitecture": "ARCHITECTURE",
        "instructSupported": "CHAT",
        "creationTime": "CREATED",
        "modelArn": "ARN",
    }
    show(rows, columns, as_json=as_json)


@app.command("show")
def show_model(name: str = typer.Argument(help="Name or ARN."), home: Path | None = HOME, as_json: bool = JSON) -> None:
    """Show what is known of a model: sizes, engine, what the scan of its values and the proof run found, files."""
    found = connect(home).get(f"/outcrop/v1/models/{quote(name, safe='')}")
    if as_json:
        echo_json(found)
        return
    facts = found["facts"]
    typer.echo(f"{found['model_name']}  {found['model_arn']}")
    typer.echo(f"  from      {found['source']}, {found['architecture']}, {found['model_units']} unit(s) per copy")
    plain = {key: value for key, value in facts.items() if not isinstance(value, dict | list)}
    for key, value in plain.items():
        typer.echo(f"  {key:<22} {value}")
    for key, seconds in {**found["timings"], **facts.get("proof", {})}.items():
        typer.echo(f"  {key:<22} {seconds} s" if isinstance(seconds, float) else f"  {key:<22} {seconds}")
    scan = facts.get("scan")
    if scan:
        typer.echo(
            f"  scan                   {scan['values']} values in {scan['tensors']} tensors: all finite, "
            f"{scan['all_zero_count']} tensor(s) of zeros, {scan['over_fp16_count']} beyond fp16"
        )
    for note in facts.get("notes", []):
        typer.echo(f"  note: {note}")
    for file in found["files"]:
        typer.echo(f"  {file['sha256'][:16]}  {file['size_bytes']:>14}  {file['name']} ({file['how']})")


@app.command()
def delete(name: str = typer.Argument(help="Name or ARN."), home: Path | None = HOME, as_json: bool = JSON) -> None:
    """Delete an imported model; its copies drain first."""
    connect(home).aws("bedrock").delete_imported_model(modelIdentifier=name)
    echo_json({"deleted": name}) if as_json else typer.echo(f"Deleted {name}.", err=True)


def invoke(
    model: str = typer.Argument(help="Name or ARN of an imported model."),
    prompt: str = typer.Argument("-", help="The prompt; - reads standard input."),
    max_tokens: int = typer.Option(512, min=1, help="Longest answer in tokens."),
    temperature: float = typer.Option(0.0, min=0.0, max=2.0, help="0 is greedy."),
    is_streamed: bool = typer.Option(True, "--stream/--no-stream", help="Print tokens as they come."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Ask a model: as a chat when it has a chat template, else as plain text."""
    client = connect(home)
    found = client.aws("bedrock").get_imported_model(modelIdentifier=model)
    text = sys.stdin.read() if prompt == "-" else prompt
    body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    body |= {"messages": [{"role": "user", "content": text}]} if found["instructSupported"] else {"prompt": text}
    runtime = client.aws("bedrock-runtime")
    if as_json or not is_streamed:
        answer = json.loads(runtime.invoke_model(modelId=found["modelArn"], body=json.dumps(body))["body"].read())
        choice = answer["choices"][0]
        echo_json(answer) if as_json else typer.echo(
            choice["message"]["content"] if "message" in choice else choice["text"]
        )
        return
    stream = runtime.invoke_model_with_response_stream(modelId=found["modelArn"], body=json.dumps(body))["body"]
    for event in stream:
        for choice in json.loads(event["chunk"]["bytes"]).get("choices", ()):
            typer.echo(choice.get("delta", {}).get("content") or choice.get("text") or "", nl=False)
    typer.echo()
