"""``outcrop migrate``: move a name's traffic to another side, step by step, watched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from outcrop.cli.client import HOME, JSON, Client, connect, echo_json, show
from outcrop.errors import BadSetting

app = typer.Typer(help="Move a name's traffic to another model, endpoint or service, watched.", no_args_is_help=True)

NAME = typer.Argument(help="What applications call: a model's name or ARN, an alias, an endpoint, or a new name.")
_SIDE = "bedrock:MODEL or sagemaker:ENDPOINT; elsewhere KIND:NAME@URL?region=R[&profile=P], openai:M@URL?key_file=F."
# Exit statuses for pipelines, by phase.
STATUS = {"completed": 0, "rolled-back": 6, "aborted": 7}
STILL_OPEN = 8
_GUARDS = (
    "error_rate",
    "p95_ratio",
    "p95_s",
    "agreement_drop",
    "agreement_min",
    "usd_per_hour",
    "window_s",
    "no_data_s",
)


@app.command()
def start(
    name: str = NAME,
    source: str = typer.Option(..., "--from", help=f"The side that answers now: {_SIDE}"),
    target: str = typer.Option(..., "--to", help="The side that is to answer, written likewise."),
    steps: str = typer.Option(
        "shadow:10,1,10,50,100", help="Percentages; shadow:P asks the target beside, listed:P is for listed callers."
    ),
    hold_s: float = typer.Option(600.0, min=0, help="Seconds that a step lasts at least; STEP@SECONDS for one alone."),
    min_requests: int = typer.Option(20, min=1, help="Requests of the target that a step, or a verdict, needs."),
    sticky: str = typer.Option("", help="Who stays with a side: principal, session (SageMaker's) or header:NAME."),
    listed: list[str] = typer.Option([], help="Principal (ARN, * and ? allowed) that goes first. Repeatable."),
    listed_header: list[str] = typer.Option(
        [], help="NAME=VALUE of a header; callers with every one of them go first. Repeatable."
    ),
    error_rate: float | None = typer.Option(None, help="Share of failures above the source's own (0.02)."),
    p95_ratio: float | None = typer.Option(None, help="The target's P95 over the source's (2)."),
    p95_s: float | None = typer.Option(None, help="Most seconds of the target's P95, in any case."),
    agreement_drop: float | None = typer.Option(None, help="Agreement below the source's with itself (0.1)."),
    agreement_min: float | None = typer.Option(None, help="Least agreement, in any case."),
    usd_per_hour: float | None = typer.Option(None, help="Most that the target may cost an hour; see --target-price."),
    window_s: float | None = typer.Option(None, help="Seconds that guards look back (300)."),
    no_data_s: float | None = typer.Option(None, help="Seconds after a step without enough requests (600)."),
    source_price: str = typer.Option("", help="hour=USD,in=USD,out=USD (per 1,000 tokens),window=USD (5 minutes)."),
    target_price: str = typer.Option("", help="The same of the target."),
    fallback: bool = typer.Option(True, help="Ask the source for what the target fails before its first byte."),
    fallback_budget: float = typer.Option(0.1, min=0, max=1, help="Share of such requests that is borne."),
    fallback_after_s: float = typer.Option(10.0, min=0, help="Seconds that a request may wait for a cold target."),
    cold: str = typer.Option("hold", help="While the target is cold: hold, or source (ask that at once, uncounted)."),
    compare: float = typer.Option(5.0, min=0, max=100, help="Percent of live requests asked of the other side too."),
    noise: float = typer.Option(20.0, min=0, max=100, help="Percent of compared requests that the source gets twice."),
    ignore: list[str] = typer.Option([], help="JSON field that comparisons leave out. Repeatable."),
    keep_pairs: bool = typer.Option(True, help="Keep compared answers as SageMaker Data Capture lines in the home."),
    plan: bool = typer.Option(False, "--plan", help="Show what would be done; start nothing."),
    wait: bool = typer.Option(False, "--wait", help="Wait for the end; exit status as of status."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Begin to move the traffic of NAME from one side to another. The target is warmed first.

    Exit status: 0 started (with --wait: completed), 2 wrong use, 6 rolled back, 7 aborted.
    """
    from outcrop.serving.migration.plan import read_steps

    given = locals()
    guards = {key: given[key] for key in _GUARDS if given[key] is not None}
    found = read_steps(steps, hold_s=hold_s, min_requests=min_requests)
    body = {
        "name": name,
        "source": source,
        "target": target,
        "steps": [{key: getattr(step, key) for key in step.__struct_fields__} for step in found],
        "guards": {**guards, "min_requests": min_requests},
        "sticky": sticky,
        "listed_principals": listed,
        "listed_headers": dict(_pair(text, "--listed-header") for text in listed_header),
        "fallback": fallback,
        "fallback_budget": fallback_budget,
        "fallback_after_s": fallback_after_s,
        "cold": cold,
        "compare_percent": compare,
        "noise_percent": noise,
        "keep_pairs": keep_pairs,
        "ignored_fields": ignore,
        "source_price": _price(source_price, "--source-price"),
        "target_price": _price(target_price, "--target-price"),
    }
    client = connect(home)
    if plan:
        lines = client.send("POST", "/outcrop/v1/migration-plans", body)["plan"]
        echo_json(lines) if as_json else typer.echo("\n".join(lines))
        return
    told = client.send("POST", "/outcrop/v1/migrations", body)
    if wait:
        follow(client, name, as_json=as_json)
    elif as_json:
        echo_json(told)
    else:
        typer.echo(f"{name}: {told['phase']}; see outcrop migrate status {name}", err=True)


@app.command()
def status(
    name: str | None = typer.Argument(None, help="A migration; without it all are listed."),
    wait: bool = typer.Option(False, "--wait", help="Wait for its end."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Show how far a migration is, what was measured and what differed.

    Exit status with a name: 0 completed, 6 rolled back, 7 aborted, 8 still under way.
    """
    client = connect(home)
    if name is None:
        rows = client.get("/outcrop/v1/migrations")["migrations"]
        columns = {"name": "NAME", "phase": "PHASE", "step": "STEP", "steps": "OF", "source": "FROM", "target": "TO"}
        show(rows, {**columns, "reason": "REASON"}, as_json=as_json)
        return
    if wait:
        follow(client, name, as_json=as_json)
        return
    told = client.get(_path(name))
    echo_json(told) if as_json else typer.echo("\n".join(lines_of(told)))
    raise typer.Exit(STATUS.get(told["phase"], STILL_OPEN))


@app.command()
def pause(name: str = NAME, home: Path | None = HOME) -> None:
    """Stay at the step; guards are watched on, and take the traffic back if they must."""
    _order(name, "pause", home)


@app.command()
def resume(name: str = NAME, home: Path | None = HOME) -> None:
    """Go on where it was paused."""
    _order(name, "resume", home)


@app.command()
def abort(name: str = NAME, home: Path | None = HOME) -> None:
    """Send all traffic back to the source, for good."""
    _order(name, "abort", home)


@app.command()
def remove(name: str = NAME, home: Path | None = HOME) -> None:
    """Forget a migration that has ended; its name means again what it means without it."""
    connect(home).send("DELETE", _path(name))
    typer.echo(f"Removed {name}.", err=True)


@app.command()
def report(
    name: str = NAME,
    output: Path = typer.Option(Path("migration.html"), "--output", "-o", help="The page to write."),
    home: Path | None = HOME,
) -> None:
    """Write one HTML page with plots: shares, failures, latency, agreement, cost, events, differences."""
    from outcrop.bench.migrations import html_page

    output.write_text(html_page(connect(home).get(_path(name))))
    typer.echo(str(output))


def follow(client: Client, name: str, *, as_json: bool, poll_s: float = 1.0) -> None:
    """Tell of each event until the migration ends; exit with its status."""
    shown = 0
    while True:
        told = client.get(_path(name))
        for event in told["events"][shown:]:
            typer.echo(f"{_clock_time(event['at'])}  {event['what']}", err=True)
        shown = len(told["events"])
        if told["phase"] in STATUS:
            if as_json:
                echo_json(told)
            raise typer.Exit(STATUS[told["phase"]])
        time.sleep(poll_s)


def lines_of(told: dict[str, Any]) -> list[str]:
    """A migration for people."""
    window, comparison = told["window"], told["comparison"]
    lines = [
        f"{told['name']}: {told['phase']}" + (f", {told['reason']}" if told["reason"] else ""),
        f"from {told['source']} to {told['target']}; step {told['step']} of {told['steps']}: {told['now']}",
    ]
    for side in ("source", "target"):
        now, all_of_it = window[side], told["totals"][side]
        p95 = now["p95_s"] if now["p95_s"] is not None else now["first_p95_s"]
        fallbacks = sum(all_of_it["fallbacks"].values())
        lines.append(
            f"{side}: {all_of_it['requests']} requests, {all_of_it['shadows']} shadows, {all_of_it['failed']} failed, "
            f"{all_of_it['not_ready']} not ready"
            + (f", {fallbacks} answered by the source" if fallbacks else "")
            + f"; in this step {now['requests']}"
            + (f", P95 {p95:.3f} s" if p95 is not None else "")
        )
    if comparison["pairs"]:
        noise = f"; the source with itself {comparison['noise']:.3f}" if comparison["noise"] is not None else ""
        lines.append(f"agreement {comparison['agreement']:.3f} over {comparison['pairs']} pairs{noise}")
    lines += [f"evidence: {breach['guard']}: {breach['said']}" for breach in told["evidence"]]
    for found in told["differences"][-3:]:
        lines.append(f"differs ({found['score']:.2f}): " + "; ".join(found["differences"]))
    lines += [f"{_clock_time(event['at'])}  {event['what']}" for event in told["events"][-8:]]
    return lines


def _order(name: str, order: str, home: Path | None) -> None:
    told = connect(home).send("POST", f"{_path(name)}/{order}")
    typer.echo(f"{name}: {told['phase']}", err=True)


def _path(name: str) -> str:
    return f"/outcrop/v1/migrations/{quote(name, safe='')}"


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadSetting(f"{option} {text!r} must be NAME=VALUE")
    return key, value


def _price(text: str, option: str) -> dict[str, float]:
    names = {
        "hour": "usd_per_hour",
        "in": "usd_per_1000_tokens_in",
        "out": "usd_per_1000_tokens_out",
        "window": "usd_per_window",
    }
    found = {}
    for part in filter(None, text.split(",")):
        key, value = _pair(part, option)
        try:
            found[names[key]] = float(value)
        except (KeyError, ValueError):
            raise BadSetting(f"{option} {part!r} must be one of {', '.join(names)} and a number") from None
    return found


def _clock_time(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")
