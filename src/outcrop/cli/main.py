"""The ``outcrop`` command."""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from outcrop import __version__
from outcrop.errors import OutcropError

# Command -> module below ``outcrop.cli`` and its function or group, in the order of the help. Only the module of the
# command that is run is imported: the simulator's numpy costs every other one 0.3 s and 20 MB.
COMMANDS = {
    "serve": ("serve", "serve"),
    "check": ("check", "check"),
    "engines": ("engines", "engines"),
    "import": ("imports", "import_model"),
    "jobs": ("imports", "jobs_app"),
    "models": ("models", "app"),
    "store": ("store", "app"),
    "invoke": ("models", "invoke"),
    "proxy": ("proxy", "app"),
    "deploy": ("deploy", "app"),
    "migrate": ("migrate", "app"),
    "warm": ("serving", "warm"),
    "keepwarm": ("keepwarm", "app"),
    "logs": ("serving", "logs"),
    "scaling": ("serving", "scaling"),
    "alias": ("serving", "alias"),
    "alarms": ("alarms", "app"),
    "status": ("status", "status"),
    "top": ("top", "top"),
    "trace": ("trace", "trace"),
    "audit": ("audit", "app"),
    "env": ("status", "env"),
    "bench": ("bench", "app"),
    "plan": ("plan", "app"),
    "access": ("access", "app"),
    "usage": ("usage", "usage"),
    "bill": ("usage", "bill"),
}


def _version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"outcrop {__version__}")
        raise typer.Exit


def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it.")) -> None:
    """Import fine-tuned open-weight models and serve them through the Bedrock and OpenAI APIs."""


def application(only: str | None = None) -> typer.Typer:
    """The command line; with *only* that command alone, and all of them when it is none."""
    made = typer.Typer(
        name="outcrop",
        help="Import fine-tuned open-weight models and serve them through the Bedrock and OpenAI APIs.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    made.callback()(root)
    for name in [only] if only in COMMANDS else COMMANDS:
        module, attribute = COMMANDS[name]
        command = getattr(import_module(f"outcrop.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            made.add_typer(command, name=name)
        else:
            made.command(name)(command)
    return made


def main() -> None:
    """Run a command; an expected failure is one line on standard error and exit status 2."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        application(sys.argv[1] if len(sys.argv) > 1 else None)()
    except (OutcropError, ClientError, BotoCoreError) as exc:
        typer.echo(f"outcrop: {exc}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
