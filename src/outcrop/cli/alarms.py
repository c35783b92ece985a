"""``outcrop alarms``: conditions over what endpoints answer, by which an update is rolled back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import typer

from outcrop.cli.client import HOME, JSON, connect, echo_json, show
from outcrop.serving.alarms import Comparison, Metric, Statistic

app = typer.Typer(
    help="Alarms over SageMaker endpoints: an update that names one is rolled back when it fires.",
    no_args_is_help=True,
)

NAME = typer.Argument(help="Name of the alarm, as AutoRollbackConfiguration has it.")


@app.command("list")
def list_alarms(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List the alarms with their state now."""
    rows = connect(home).get("/outcrop/v1/alarms")["alarms"]
    columns = {
        "AlarmName": "ALARM",
        "StateValue": "STATE",
        "EndpointName": "ENDPOINT",
        "VariantName": "VARIANT",
        "StateReason": "REASON",
    }
    show(rows, columns, as_json=as_json)


@app.command("set")
def set_alarm(
    name: str = NAME,
    endpoint: str = typer.Option(..., help="The endpoint whose invocations count."),
    metric: str = typer.Option(..., help=f"One of {', '.join(get_args(Metric))}; latencies are in microseconds."),
    threshold: float = typer.Option(..., help="What the statistic is compared with."),
    variant: str | None = typer.Option(None, help="One variant alone; without it all of the endpoint."),
    statistic: str = typer.Option("Sum", help=f"One of {', '.join(get_args(Statistic))}."),
    comparison: str = typer.Option("GreaterThanThreshold", help=f"One of {', '.join(get_args(Comparison))}."),
    period_s: int = typer.Option(60, "--period", help="Seconds that one value is of, 1 to 3600."),
    periods: int = typer.Option(1, help="How many periods on end must be over the threshold."),
    missing: str = typer.Option(
        "missing",
        help="A period without invocations: missing, breaching or notBreaching. A rollout without traffic "
        "that must not pass takes breaching.",
    ),
    home: Path | None = HOME,
) -> None:
    """Make an alarm, or replace the one of that name."""
    body: dict[str, Any] = {
        "EndpointName": endpoint,
        "MetricName": metric,
        "Threshold": threshold,
        "Statistic": statistic,
        "ComparisonOperator": comparison,
        "Period": period_s,
        "EvaluationPeriods": periods,
        "TreatMissingData": missing,
    }
    if variant is not None:
        body["VariantName"] = variant
    echo_json(connect(home).send("PUT", f"/outcrop/v1/alarms/{quote(name, safe='')}", body))


@app.command("remove")
def remove_alarm(name: str = NAME, home: Path | None = HOME) -> None:
    """Take an alarm away."""
    connect(home).send("DELETE", f"/outcrop/v1/alarms/{quote(name, safe='')}")
    typer.echo(f"Removed {name}.", err=True)
