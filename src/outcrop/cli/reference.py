"""The generated pages of ``docs/reference``: commands, settings, compatibility. ``--check`` fails when one is stale."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
from pydantic_core import PydanticUndefined

from outcrop.api import bedrock, bedrock_runtime
from outcrop.awswire.service import Service
from outcrop.cli.main import app
from outcrop.settings import Settings

DOCS = Path(__file__).parents[3] / "docs" / "reference"
IMPLEMENTED = {"bedrock": bedrock.OPERATIONS, "bedrock-runtime": bedrock_runtime.OPERATIONS}


def settings_page() -> str:
    rows = ["# Settings", "", "Flags over `OUTCROP_*` variables over `outcrop.toml` over defaults.", ""]
    rows += ["| setting | variable | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "`~/.outcrop`" if field.default is PydanticUndefined else f"`{field.default}`"
        rows.append(f"| `{name}` | `OUTCROP_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def cli_page() -> str:
    group = typer.main.get_command(app)
    parts = ["# Commands", ""]
    _describe(group, "outcrop", parts)
    return "\n".join(parts) + "\n"


def compatibility_page() -> str:
    parts = [
        "# Compatibility",
        "",
        "Operations of the AWS service models; the others answer UnknownOperationException.",
    ]
    for name, done in IMPLEMENTED.items():
        parts += ["", f"## {name}", "", "| operation | implemented |", "| --- | --- |"]
        parts += [f"| {op} | {'yes' if op in done else 'no'} |" for op in sorted(Service(name).operations)]
    parts += ["", "## OpenAI", "", "`POST /v1/chat/completions`, `POST /v1/completions`, `GET /v1/models[/{model}]`."]
    return "\n".join(parts) + "\n"


def _describe(command: Any, path: str, parts: list[str]) -> None:
    parts += [f"## `{path}`", "", (command.help or "").strip(), ""]
    for parameter in command.params:
        names = ", ".join(f"`{opt}`" for opt in (*parameter.opts, *parameter.secondary_opts))
        variable = f" (`{parameter.envvar}`)" if isinstance(parameter.envvar, str) else ""
        parts.append(f"- {names}{variable}: {getattr(parameter, 'help', None) or ''}")
    parts.append("")
    for name, child in getattr(command, "commands", {}).items():
        _describe(child, f"{path} {name}", parts)


def main() -> int:
    pages = {"settings.md": settings_page(), "cli.md": cli_page(), "compatibility.md": compatibility_page()}
    stale = [name for name, text in pages.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text]
    if "--check" in sys.argv:
        for name in stale:
            typer.echo(f"docs/reference/{name} is stale; run: make docs", err=True)
        return bool(stale)
    DOCS.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (DOCS / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
