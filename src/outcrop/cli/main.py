"""The ``outcrop`` command."""

from __future__ import annotations

import sys

import typer

from outcrop import __version__
from outcrop.cli import (
    bench,
    check,
    deploy,
    engines,
    imports,
    models,
    plan,
    proxy,
    serve,
    serving,
    status,
    store,
    top,
    trace,
    usage,
)
from outcrop.errors import OutcropError

app = typer.Typer(
    name="outcrop",
    help="Import fine-tuned open-weight models and serve them through the Bedrock and OpenAI APIs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"outcrop {__version__}")
        raise typer.Exit


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it.")) -> None:
    """Import fine-tuned open-weight models and serve them through the Bedrock and OpenAI APIs."""


app.command("serve")(serve.serve)
app.command("check")(check.check)
app.command("engines")(engines.engines)
app.command("import")(imports.import_model)
app.add_typer(imports.jobs_app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(store.app, name="store")
app.command("invoke")(models.invoke)
app.add_typer(proxy.app, name="proxy")
app.add_typer(deploy.app, name="deploy")
app.command("warm")(serving.warm)
app.command("logs")(serving.logs)
app.add_typer(serving.scaling, name="scaling")
app.add_typer(serving.alias, name="alias")
app.command("status")(status.status)
app.command("top")(top.top)
app.command("trace")(trace.trace)
app.command("env")(status.env)
app.add_typer(bench.app, name="bench")
app.add_typer(plan.app, name="plan")
app.command("usage")(usage.usage)
app.command("bill")(usage.bill)


def main() -> None:
    """Run a command; an expected failure is one line on standard error and exit status 2."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        app()
    except (OutcropError, ClientError, BotoCoreError) as exc:
        typer.echo(f"outcrop: {exc}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
