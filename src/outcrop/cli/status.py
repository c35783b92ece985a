"""``outcrop status`` and ``outcrop env``: what runs, and how clients reach it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from outcrop.cli.client import HOME, JSON, connect, echo_json, show

# Where clients look for an authority: AWS's, Python's (httpx and requests), Node's, curl's.
TRUST = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE")
ENDPOINTS = "/outcrop/v1/endpoints"
ENDPOINT_COLUMNS = {
    "endpoint": "ENDPOINT",
    "status": "STATUS",
    "variant": "VARIANT",
    "weight": "WEIGHT",
    "copy_id": "COPY",
    "state": "STATE",
    "age_s": "AGE S",
    "in_flight": "IN FLIGHT",
    "requests": "REQUESTS",
    "restarts": "RESTARTS",
    "pid": "PID",
}


def status(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """Show the models with how soon each could answer, and the copies: state, age, requests."""
    client = connect(home)
    found = client.get("/outcrop/v1/status")
    found["endpoints"] = client.get(ENDPOINTS)["copies"]
    if as_json:
        echo_json(found)
        return
    models = [
        {
            "model_name": model["model_name"],
            "state": model["state"],
            "held": model["held"],
            "memory": f"{model['memory_bytes'] / 1e9:.2f}",
            **{tier: "not measured" if wake is None else f"{wake:.2f}" for tier, wake in model["wake_s"].items()},
        }
        for model in found["models"]
    ]
    # Only engines on GPUs sleep: elsewhere the two columns would say nothing.
    asleep = {"asleep": "ASLEEP", "asleep-empty": "ASLEEP WITHOUT WEIGHTS"}
    measured = {tier for model in found["models"] for tier, wake in model["wake_s"].items() if wake is not None}
    wake = {"cached": "WAKE S, CACHED", "disk": "FROM DISK", "bucket": "FROM BUCKET"}
    wake |= {tier: title for tier, title in asleep.items() if tier in measured}
    show(
        models,
        {"model_name": "MODEL", "state": "STATE", "held": "HELD", "memory": "COPY GB", **wake},
        as_json=False,
    )
    typer.echo()
    columns = {
        "model_name": "MODEL",
        "copy_id": "COPY",
        "state": "STATE",
        "threads": "THREADS",
        "age_s": "AGE S",
        "in_flight": "IN FLIGHT",
        "requests": "REQUESTS",
        "idle_s": "IDLE S",
        "pid": "PID",
    }
    show([{**copy, "state": state_of(copy)} for copy in found["copies"]], columns, as_json=False)
    if found["endpoints"]:
        typer.echo()
        show(found["endpoints"], ENDPOINT_COLUMNS, as_json=False)


def state_of(copy: Mapping[str, Any]) -> str:
    """A copy's state; of one that starts how far it is, and for how much longer if earlier starts are a measure."""
    if copy["stage"] is None:
        return str(copy["state"])
    if copy["remaining_s"] is None:
        return f"{copy['stage']} (no start was measured yet)"
    if copy["remaining_s"] == 0:
        return f"{copy['stage']}, longer than usual"
    return f"{copy['stage']} {copy['share']:.0%}, {copy['remaining_s']:.1f} s left"


def env(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """Print the exports with which unmodified clients reach this server: eval "$(outcrop env)"."""
    client = connect(home)
    keys = client.credentials
    values = {
        "AWS_ENDPOINT_URL_BEDROCK": client.url,
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": client.url,
        "AWS_ENDPOINT_URL_IAM": client.url,
        "AWS_ENDPOINT_URL_STS": client.url,
        "AWS_ENDPOINT_URL_SAGEMAKER": client.url,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": client.url,
        "AWS_REGION": keys.region,
        "AWS_DEFAULT_REGION": keys.region,
        "AWS_ACCESS_KEY_ID": keys.access_key_id,
        "AWS_SECRET_ACCESS_KEY": keys.secret_access_key,
        "OPENAI_BASE_URL": f"{client.url}/v1",
        "OPENAI_API_KEY": keys.bearer_key,
    }
    if client.url.startswith("https"):
        values["AWS_BEARER_TOKEN_BEDROCK"] = keys.bearer_key
        if client.settings.authority is not None:
            values |= dict.fromkeys(TRUST, str(client.settings.authority))
    if as_json:
        echo_json(values)
        return
    for name, value in values.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
