"""``outcrop serve``: the server itself."""

from __future__ import annotations

from pathlib import Path

import typer

from outcrop.api.claims import claimed
from outcrop.cli.client import HOME
from outcrop.settings import load


def serve(
    home: Path | None = HOME,
    host: str | None = typer.Option(None, envvar="OUTCROP_HOST", help="Address to listen on (127.0.0.1)."),
    port: int | None = typer.Option(None, envvar="OUTCROP_PORT", help="Port to listen on (7070); 0 takes a free one."),
    tls: bool | None = typer.Option(None, "--tls/--no-tls", envvar="OUTCROP_TLS", help="Serve HTTPS."),
    keep_alive_s: float | None = typer.Option(
        None, envvar="OUTCROP_KEEP_ALIVE_S", help="Idle seconds after which a copy stops (300)."
    ),
    log_level: str | None = typer.Option(None, envvar="OUTCROP_LOG_LEVEL", help="debug, info, warning or error."),
) -> None:
    """Start the server: Bedrock, Bedrock runtime and OpenAI APIs on one port."""
    settings = load(home=home, host=host, port=port, tls=tls, keep_alive_s=keep_alive_s, log_level=log_level)
    with claimed(settings) as listener:
        from outcrop.app import server  # takes seconds, in which callers already wait

        raise typer.Exit(server.serve(settings, listener))
