"""``outcrop proxy``: run a ``model.py`` in front of an imported model."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(invoke_without_command=True)

MODEL_DIR = typer.Option(
    None, envvar="OUTCROP_PROXY_MODEL_DIR", help="Folder of the bundle with the script (/opt/ml/model)."
)
TARGET = typer.Option(None, envvar="OUTCROP_PROXY_TARGET", help="ARN or name of the imported model.")
ENDPOINT = typer.Option(
    None, envvar="OUTCROP_PROXY_ENDPOINT_URL", help="Base URL of the Bedrock runtime API (default: AWS's own)."
)
REGION = typer.Option(None, envvar="OUTCROP_PROXY_REGION", help="Region that calls are signed for.")
DIALECT = typer.Option(
    None,
    envvar="OUTCROP_PROXY_DIALECT",
    help="auto, sagemaker, huggingface, djl, mms, class, outcrop or none: how the script wants to be run (auto).",
)
FORWARD = typer.Option(
    None,
    envvar="OUTCROP_PROXY_FORWARD",
    help="always or when-absent: replace the script's own load and predict (always).",
)


@app.callback()
def run(
    context: typer.Context,
    model_dir: Path | None = MODEL_DIR,
    target: str | None = TARGET,
    endpoint_url: str | None = ENDPOINT,
    region: str | None = REGION,
    dialect: str | None = DIALECT,
    forward: str | None = FORWARD,
    host: str | None = typer.Option(None, envvar="OUTCROP_PROXY_HOST", help="Address to listen on (0.0.0.0)."),
    port: int | None = typer.Option(None, envvar="OUTCROP_PROXY_PORT", help="Port to listen on (8080); 0: a free one."),
    workers: int | None = typer.Option(None, envvar="OUTCROP_PROXY_WORKERS", help="Processes that run the script."),
) -> None:
    """Run a model.py in front of an imported model, as SageMaker runs a container: /ping and /invocations on port 8080.

    All settings: docs/reference/proxy-settings.md.
    """
    if context.invoked_subcommand is not None:
        return
    from outcrop.proxy import serve
    from outcrop.proxy.settings import load

    settings = load(
        model_dir=model_dir,
        target=target,
        endpoint_url=endpoint_url,
        region=region,
        dialect=dialect,
        forward=forward,
        host=host,
        port=port,
        workers=workers,
    )
    raise typer.Exit(serve.serve(settings))
