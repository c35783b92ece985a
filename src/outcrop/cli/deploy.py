"""``outcrop deploy``: the one step that a pipeline adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from outcrop.cli.client import HOME, JSON, connect, echo_json

app = typer.Typer(invoke_without_command=True)
_SMOKE = typer.Option(None, help="File of prompts with expectations, a JSON object a line; all must hold.")
_GATE = typer.Option(None, help="File of cases like these, for a quality gate: old and new model are asked.")
_REPORT = typer.Option(None, help="Write what happened as JSON here as well.")


@app.callback()
def deploy(
    context: typer.Context,
    source: str | None = typer.Option(None, "--checkpoint", help="A checkpoint's folder, or s3://bucket/prefix/."),
    name: str | None = typer.Option(None, "--name", help="Name; the model's is it and the checkpoint's digest."),
    alias: str = typer.Option("", help="What applications know the model by: an alias; on AWS a parameter's name."),
    target: str = typer.Option("outcrop", help="outcrop (the server of this home), or aws."),
    bucket: str = typer.Option("", help="On AWS: s3://bucket/prefix that a folder is uploaded to."),
    role: str = typer.Option("", help="On AWS: ARN of the role that import jobs read the bucket with."),
    smoke: Path | None = _SMOKE,
    gate: Path | None = _GATE,
    pass_rate: float = typer.Option(1.0, min=0, max=1, help="Least share of the gate's cases that must pass."),
    gradual: str = typer.Option(
        "", help="Move the alias in these steps (outcrop migrate), e.g. shadow:10,1,10,50,100."
    ),
    hold_s: float = typer.Option(600.0, min=0, help="Seconds that each of these steps lasts at least."),
    min_requests: int = typer.Option(20, min=1, help="Requests that each of these steps needs at least."),
    report: Path | None = _REPORT,
    plan: bool = typer.Option(False, "--plan", help="Show what would be done; change nothing."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Take a checkpoint into service: preflight, upload, import, smoke prompts, quality gate, switch, or back again.

    Run again it goes on where it ended. Exit status: 0 deployed, 2 wrong use, 3 the checkpoint cannot be imported, 4
    the import failed, 5 the model is not good enough (nothing was switched), 6 switched and rolled back.
    """
    if context.invoked_subcommand is not None:
        return
    from outcrop.delivery.deploy import Deployment, Ended, Wish
    from outcrop.delivery.expectations import read_cases
    from outcrop.errors import BadSetting
    from outcrop.serving.migration.plan import read_steps
    from outcrop.settings import load

    if not source or not name:
        raise BadSetting("give --checkpoint and --name (outcrop deploy --help)")
    if gradual and (not alias or target == "aws"):
        raise BadSetting("--gradual moves an alias of a server of this project: give --alias, and no --target aws")
    wish = Wish(
        name=name,
        source=source,
        alias=alias,
        smoke=read_cases(smoke.read_text(), str(smoke)) if smoke else [],
        gate=read_cases(gate.read_text(), str(gate)) if gate else [],
        pass_rate=pass_rate,
        gradual=read_steps(gradual, hold_s=hold_s, min_requests=min_requests) if gradual else (),
    )
    folder = load(home=home).home / "deployments"
    tell = lambda text: typer.echo(text, err=True)  # noqa: E731
    deployment = Deployment(wish, _place(target, home, bucket, role), folder, tell)
    if plan:
        try:
            lines = deployment.plan()
        except Ended as exc:
            typer.echo(f"outcrop: {exc}", err=True)
            raise typer.Exit(exc.status) from None
        echo_json(lines) if as_json else typer.echo("\n".join(lines))
        return
    status = deployment.run()
    if report is not None:
        import json

        report.write_text(json.dumps(deployment.report, indent=2) + "\n")
    if as_json:
        echo_json(deployment.report)
    elif status == 0:
        typer.echo(deployment.report["model_arn"])
    raise typer.Exit(status)


def _place(target: str, home: Path | None, bucket: str, role: str) -> Any:
    from outcrop.delivery.places import AwsPlace, OutcropPlace
    from outcrop.errors import BadSetting

    if target == "outcrop":
        client = connect(home)
        return OutcropPlace(
            role_arn=role or client.credentials.import_role_arn,
            buckets=client.settings.buckets,
            clients=client.aws,
            send=lambda method, path, body: client.send(method, path, body, timeout_s=900),
        )
    if target != "aws":
        raise BadSetting(f"--target {target}: must be outcrop or aws")
    if not role:
        raise BadSetting("--target aws needs --role: the ARN of the role that import jobs read the bucket with")
    import boto3

    return AwsPlace(role_arn=role, bucket=bucket, session=boto3.session.Session())


@app.command("iam")
def iam(
    account: str = typer.Option(..., help="Account id, 12 digits."),
    region: str = typer.Option("us-east-1", help="Region of the models."),
    bucket: str = typer.Option(..., help="s3://bucket/prefix of the checkpoints."),
    name: str = typer.Option("outcrop", help="What roles are named after."),
    parameter: str = typer.Option("", help="Name of the parameter that a deployment switches."),
) -> None:
    """Print least-privilege policies for AWS: pipeline, import role, its trust, proxy, another account's bucket."""
    from outcrop.delivery.iam import documents

    where, _, prefix = bucket.removeprefix("s3://").partition("/")
    echo_json(documents(region=region, account=account, bucket=where, prefix=prefix, name=name, parameter=parameter))
