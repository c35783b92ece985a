"""``outcrop models`` and ``outcrop invoke``: what can be asked, and asking it."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from outcrop.cli.client import HOME, JSON, connect, echo_json, show
from outcrop.errors import BadSetting

app = typer.Typer(help="List, change and delete imported models.", invoke_without_command=True)


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
    typer.echo(f"  runs on   {found['engine']['name'] or 'no engine here'}")
    for reason in found["engine"]["reasons"]:
        typer.echo(f"            {reason}")
    plain = {key: value for key, value in facts.items() if not isinstance(value, dict | list | None)}
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


@app.command()
def evict(name: str = typer.Argument(help="Name or ARN."), home: Path | None = HOME, as_json: bool = JSON) -> None:
    """Give up a model's local files; it stays imported, and its next request fetches them from their source."""
    freed = connect(home).send("POST", f"/outcrop/v1/models/{quote(name, safe='')}/evict", timeout_s=1200)
    echo_json(freed) if as_json else typer.echo(
        f"{name} is in its bucket; {freed['freed_bytes']} bytes free.", err=True
    )


class Dialect(StrEnum):
    """What bodies with "prompt" are answered in."""

    AUTO = "auto"
    LLAMA = "llama"
    MISTRAL = "mistral"
    OPENAI = "openai"


DIALECT = typer.Option(
    None, help='Answers to "prompt": llama (generation), mistral (outputs), openai (choices); auto: by the body.'
)
SCHEMA = typer.Option(None, exists=True, dir_okay=False, help="File of a JSON Schema that the answer must fit.")
STOP = typer.Option([], help="End the answer here; may be repeated.")


@app.command("set")
def set_(
    name: str = typer.Argument(help="Name or ARN."),
    dialect: Dialect | None = DIALECT,
    engine: str | None = typer.Option(None, help="Run it on this engine (outcrop engines); auto: the import's choice."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Change how a model answers, or what it runs on. Takes effect at once and lasts."""
    if dialect is None and engine is None:
        raise BadSetting("nothing to set: give --dialect or --engine")
    change: dict[str, Any] = {}
    if dialect is not None:
        change["dialect"] = None if dialect is Dialect.AUTO else dialect.value
    if engine is not None:
        change["engine"] = None if engine == "auto" else engine
    changed = connect(home).patch(f"/outcrop/v1/models/{quote(name, safe='')}", change)
    if as_json:
        echo_json(changed)
        return
    if dialect is not None:
        typer.echo(f"{changed['model_name']} answers in {dialect.value}.", err=True)
    if engine is not None:
        typer.echo(f"{changed['model_name']} runs on {changed['engine']['name']}.", err=True)


def invoke(
    model: str = typer.Argument(help="Name or ARN of an imported model."),
    prompt: str = typer.Argument("-", help="The prompt; - reads standard input."),
    max_tokens: int = typer.Option(512, min=1, help="Longest answer in tokens."),
    temperature: float = typer.Option(0.0, min=0.0, max=2.0, help="0 is greedy."),
    top_p: float | None = typer.Option(None, max=1.0, help="Sample from the likeliest tokens that make up this share."),
    seed: int | None = typer.Option(None, help="Makes a sampled answer repeatable."),
    stop: list[str] = STOP,
    system: str | None = typer.Option(None, help="System message; for models with a chat template."),
    schema: Path | None = SCHEMA,
    is_streamed: bool = typer.Option(True, "--stream/--no-stream", help="Print tokens as they come."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Ask a model: as a chat when it has a chat template, else as plain text."""
    client = connect(home)
    runtime, found = client.aws("bedrock-runtime"), client.aws("bedrock").get_imported_model(modelIdentifier=model)
    text = sys.stdin.read() if prompt == "-" else prompt
    body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    optional = {"top_p": top_p, "seed": seed, "stop": stop or None}
    body |= {key: value for key, value in optional.items() if value is not None}
    if found["instructSupported"]:
        told = [{"role": "system", "content": system}] if system is not None else []
        body["messages"] = [*told, {"role": "user", "content": text}]
    elif system is not None:
        raise BadSetting(f"{model} has no chat template and takes no --system; put it into the prompt")
    else:
        body["prompt"] = text
    if schema is not None:
        wrapped = {"name": schema.stem, "schema": json.loads(schema.read_text())}
        body["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    arn = found["modelArn"]
    if as_json or not is_streamed:
        answer = json.loads(runtime.invoke_model(modelId=arn, body=json.dumps(body))["body"].read())
        echo_json(answer) if as_json else typer.echo(answer_text(answer))
        return
    for event in runtime.invoke_model_with_response_stream(modelId=arn, body=json.dumps(body))["body"]:
        typer.echo(answer_text(json.loads(event["chunk"]["bytes"])), nl=False)
    typer.echo()


def answer_text(answer: dict[str, Any]) -> str:
    """The text of an answer, or of a piece of one, in whatever dialect the model is set to."""
    if "generation" in answer:
        return answer["generation"] or ""
    choices: list[dict[str, Any]] = answer.get("outputs") or answer.get("choices") or [{}]
    choice = choices[0]
    message: dict[str, Any] = choice.get("message") or choice.get("delta") or choice
    return message.get("content") or message.get("text") or ""
