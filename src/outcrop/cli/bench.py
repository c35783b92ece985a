"""``outcrop bench``: load on any endpoint that speaks Bedrock, SageMaker or OpenAI, and what it gave."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from outcrop.bench import plots, report
from outcrop.bench.drive import Driver, Look, Run, Shape, calibrated
from outcrop.bench.endpoints import Bedrock, Endpoint, Keys, OpenAI, SageMaker
from outcrop.bench.measures import Summary, percentile, ratio, steady, summary
from outcrop.bench.payloads import Lengths, Payload, read_prompts
from outcrop.bench.published import TABLE
from outcrop.cli.client import HOME, JSON, Client, connect, echo_json, show
from outcrop.errors import BadSetting

app = typer.Typer(help="Measure an endpoint under load: ours, Bedrock, SageMaker, OpenAI.", no_args_is_help=True)

TARGET = typer.Argument(
    help="API:MODEL[@URL], API one of bedrock, sagemaker, openai. Without a URL the server of OUTCROP_HOME; with @aws "
    "Amazon's endpoint and the credentials of the AWS chain; a key for another OpenAI endpoint in OPENAI_API_KEY."
)
USERS = typer.Option([], help="Closed loop with so many users. Repeatable: one level each.")
RATE = typer.Option([], help="Open loop with so many requests per s (Poisson). Repeatable.")
REQUESTS = typer.Option(200, min=1, help="Requests of the steady window (200 carry a P95, 1000 a P99).")
WARM_S = typer.Option(30.0, min=0, help="Seconds before the steady window may begin.")
MOST_S = typer.Option(600.0, min=1, help="Longest time in s of one level.")
REPEATS = typer.Option(1, min=1, help="How often each level is run; the table shows each, the range goes below.")
TOKENS_IN = typer.Option(1000.0, min=1, help="Mean tokens of a prompt.")
TOKENS_OUT = typer.Option(220.0, min=1, help="Mean tokens of an answer.")
CV = typer.Option(0.2, min=0, help="Standard deviation over mean of both lengths.")
NATURAL = typer.Option(False, "--natural", help="Let answers end by themselves; else their lengths are forced.")
SHARED = typer.Option(0.0, min=0, max=1, help="Share of each prompt that all have in common; 0: all begin differently.")
PROMPTS = typer.Option(None, help="File of prompts (.jsonl with prompt, or a line each) in place of made ones.")
STREAM = typer.Option(True, help="Streams, which tell the first token, or whole answers.")
SEED = typer.Option(1, help="The same seed sends the same requests.")
OUT = typer.Option(None, help="Folder for requests.jsonl, summary.json and report.html.")
PNG = typer.Option(False, "--png", help="Write the plots as PNG too (needs the plots extra).")


@app.command()
def run(
    target: str = TARGET,
    users: list[int] = USERS,
    rate: list[float] = RATE,
    requests: int = REQUESTS,
    warm_s: float = WARM_S,
    most_s: float = MOST_S,
    repeats: int = REPEATS,
    tokens_in: float = TOKENS_IN,
    tokens_out: float = TOKENS_OUT,
    cv: float = CV,
    natural: bool = NATURAL,
    shared: float = SHARED,
    prompts: Path | None = PROMPTS,
    stream: bool = STREAM,
    seed: int = SEED,
    out: Path | None = OUT,
    png: bool = PNG,
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Run levels of load and print latency with confidence, throughput, first token, errors, the client's own cost."""
    payload = _payload(tokens_in, tokens_out, cv, natural, shared, prompts)
    base = Shape(requests=requests, warm_s=warm_s, most_s=most_s, seed=seed)
    levels = {f"{count} users": replace(base, users=count) for count in users or ([] if rate else [1])}
    levels |= {f"{each:g} requests/s": replace(base, rate=each) for each in rate}
    runs, cost = _run(target, payload, levels, repeats, stream, home)
    _tell(target, runs, cost, out, png=png, as_json=as_json)


@app.command()
def table(
    target: str = TARGET,
    requests: int = typer.Option(0, min=0, help="Requests a level; 0: max(200, 20 x users)."),
    warm_s: float = WARM_S,
    most_s: float = MOST_S,
    repeats: int = REPEATS,
    tokens_in: float = TOKENS_IN,
    tokens_out: float = TOKENS_OUT,
    cv: float = CV,
    stream: bool = STREAM,
    seed: int = SEED,
    out: Path | None = OUT,
    png: bool = PNG,
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Run concurrency 1, 4, 16 and 32 with the standard payload and print the published table beside ours."""
    payload = _payload(tokens_in, tokens_out, cv, False, 0.0, None)
    base = Shape(warm_s=warm_s, most_s=most_s, seed=seed)
    levels = {
        f"{level.users} users": replace(base, users=level.users, requests=requests or max(200, 20 * level.users))
        for level in TABLE
    }
    runs, cost = _run(target, payload, levels, repeats, stream, home)
    rows = report.beside_published([summary(each) for each in runs.values()])
    if not as_json:
        _show(rows, report.PUBLISHED_HEADS)
        typer.echo()
    _tell(target, runs, cost, out, png=png, as_json=as_json, extra=[plots.table(rows, report.PUBLISHED_HEADS)])


@app.command()
def compare(
    one: str = TARGET,
    other: str = TARGET,
    users: int = typer.Option(4, min=1, help="Users of the closed loop on each."),
    rounds: int = typer.Option(3, min=1, help="Times that the two take turns."),
    requests: int = REQUESTS,
    warm_s: float = WARM_S,
    most_s: float = MOST_S,
    tokens_in: float = TOKENS_IN,
    tokens_out: float = TOKENS_OUT,
    cv: float = CV,
    natural: bool = NATURAL,
    stream: bool = STREAM,
    seed: int = SEED,
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Run the same requests on two endpoints in turns and print ratios, with intervals over the requests."""
    found: dict[str, list[float]] = {one: [], other: []}
    rpm: dict[str, list[float]] = {one: [], other: []}
    if one == other:
        raise typer.BadParameter("the two endpoints are the same.")
    for number in range(rounds):
        for target in (one, other) if number % 2 == 0 else (other, one):
            shape = Shape(users=users, requests=requests, warm_s=warm_s, most_s=most_s, seed=seed + number)
            payload = _payload(tokens_in, tokens_out, cv, natural, 0.0, None)
            runs, _ = _run(target, payload, {f"{target}, round {number + 1}": shape}, 1, stream, home)
            for each in runs.values():
                found[target] += [record.latency_s for record in steady(each) if record.error is None]
                rpm[target].append(summary(each).rpm)
    if not all(found.values()):
        raise BadSetting("an endpoint answered nothing in its steady windows; see outcrop bench run.")
    rows: list[dict[str, Any]] = []
    for share in (0.50, 0.95):
        both = ratio(found[other], found[one], share)
        rows.append(
            {
                "measure": f"P{100 * share:g} s",
                "one": round(percentile(sorted(found[one]), share), 4),
                "other": round(percentile(sorted(found[other]), share), 4),
                "ratio": round(both.value, 3),
                "low": round(both.low or 0, 3),
                "high": round(both.high or 0, 3),
            }
        )
    means = {target: sum(values) / len(values) for target, values in rpm.items()}
    ratios = sorted(b / a for a, b in zip(rpm[one], rpm[other], strict=True))
    rows.append(
        {
            "measure": "RPM",
            "one": round(means[one], 2),
            "other": round(means[other], 2),
            "ratio": round(means[other] / means[one], 3),
            "low": round(ratios[0], 3),
            "high": round(ratios[-1], 3),
        }
    )
    heads = {"measure": "", "one": one, "other": other, "ratio": "RATIO", "low": "LOW", "high": "HIGH"}
    show(rows, heads, as_json=as_json)


def _payload(
    tokens_in: float, tokens_out: float, cv: float, natural: bool, shared: float, prompts: Path | None
) -> Payload:
    return Payload(
        tokens_in=Lengths(mean=tokens_in, cv=cv),
        tokens_out=Lengths(mean=tokens_out, cv=cv),
        forced=not natural,
        shared=shared,
        prompts=read_prompts(prompts) if prompts else (),
    )


def _run(
    target: str, payload: Payload, levels: dict[str, Shape], repeats: int, stream: bool, home: Path | None
) -> tuple[dict[str, Run], dict[str, int]]:
    endpoint, client = endpoint_of(target, home, stream=stream)
    before = _windows(client, endpoint.model)
    runs: dict[str, Run] = {}
    with _progress() as tell:
        fitted = asyncio.run(calibrated(endpoint, payload))
        for name, shape in levels.items():
            for number in range(repeats):
                label = name if repeats == 1 else f"{name}, {number + 1} of {repeats}"
                driver = Driver(endpoint, fitted, look=_look(client, endpoint.model), progress=tell(label))
                runs[label] = asyncio.run(driver.run(replace(shape, seed=shape.seed + number)))
    after = _windows(client, endpoint.model)
    return runs, {name: after[name] - before.get(name, 0) for name in after}


def endpoint_of(target: str, home: Path | None, *, stream: bool) -> tuple[Endpoint, Client | None]:
    """What *target* names, and our own server when it is ours. Raises BadSetting."""
    api, _, rest = target.partition(":")
    model, _, url = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if api not in ("bedrock", "sagemaker", "openai") or not model:
        raise BadSetting(f"{target!r} is not API:MODEL[@URL] with bedrock, sagemaker or openai, e.g. bedrock:reviewer.")
    if not url:
        client = connect(home)
        keys = Keys(client.credentials.access_key_id, client.credentials.secret_access_key)
        if api == "openai":
            return OpenAI(f"{client.url}/v1", model, client.credentials.bearer_key, stream=stream), client
        made = Bedrock if api == "bedrock" else SageMaker
        return made(client.url, model, keys, client.credentials.region, stream=stream), client
    if api == "openai":
        return OpenAI(url, model, os.environ.get("OPENAI_API_KEY", ""), stream=stream), None
    import botocore.session

    session = botocore.session.get_session()
    region, found = session.get_config_variable("region") or "us-east-1", session.get_credentials()
    if found is None:
        raise BadSetting("no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    if url == "aws":
        service = "bedrock-runtime" if api == "bedrock" else "runtime.sagemaker"
        url = f"https://{service}.{region}.amazonaws.com"
    keys = Keys(found.access_key, found.secret_key, found.token)
    return (Bedrock if api == "bedrock" else SageMaker)(url, model, keys, region, stream=stream), None


def _look(client: Client | None, model: str) -> Look | None:
    """Asks our own server how many copies the model has; None for another's."""
    if client is None:
        return None

    def look() -> tuple[int, int, int, int] | None:
        try:
            status = client.get("/outcrop/v1/status")
        except BadSetting:
            return None
        mine = [each for each in status["models"] if model in (each["model_name"], each["model_arn"])]
        copies = [each for each in status["copies"] if model in (each["model_name"], each["model_arn"])]
        ready = sum(each["state"] in ("ready", "evictable") for each in copies)
        starting = sum(each["state"] == "starting" for each in copies)
        return ready, starting, sum(each["held"] for each in mine), sum(each["in_flight"] for each in copies)

    return look


def _windows(client: Client | None, model: str) -> dict[str, int]:
    """Billed windows times units, and cold starts, of the model so far; nothing for another's server."""
    if client is None:
        return {}
    now = int(time.time() * 1000)
    found = client.get(f"/outcrop/v1/usage/{now - 7_200_000}/{now + 1}")
    ids = [model_id for model_id, note in found["models"].items() if model in (note["name"], model_id)]
    ids += [model.rpartition("/")[2]]
    names = ("window_units", "cold_starts")
    return {name: sum(row[name] for row in found["rows"] if row["model_id"] in ids) for name in names}


def _tell(
    target: str,
    runs: dict[str, Run],
    cost: dict[str, int],
    out: Path | None,
    *,
    png: bool,
    as_json: bool,
    extra: Sequence[str] = (),
) -> None:
    summaries = {name: summary(each) for name, each in runs.items()}
    notes = {"endpoint": target} | _priced(cost, runs)
    if out is not None:
        report.write(out, runs, summaries, notes, extra=extra, with_png=png)
    if as_json:
        echo_json({"notes": notes, "levels": {name: msgspec.to_builtins(each) for name, each in summaries.items()}})
    else:
        _show([report.row(each) for each in summaries.values()], report.NAMED)
        for key, value in [*notes.items(), *_ranges(summaries)]:
            typer.echo(f"{key}: {value}", err=True)
    for name, each in summaries.items():
        if each.void:
            typer.echo(f"{name} is void: {each.void}.", err=True)
    if any(each.void for each in summaries.values()):
        raise typer.Exit(1)


def _priced(cost: dict[str, int], runs: dict[str, Run]) -> dict[str, str]:
    """What Custom Model Import would have billed for the run, by the newest price of the book."""
    answered = sum(record.error is None for each in runs.values() for record in each.records)
    if not cost or not answered:
        return {}
    from datetime import UTC, datetime

    from outcrop.metering.price_book import CMU_V1, PriceBook
    from outcrop.metering.windows import WINDOW_MINUTES

    price = PriceBook.load().need(CMU_V1, region="us-east-1", as_of=datetime.now(UTC).date())
    usd = float(price.usd) * WINDOW_MINUTES * cost["window_units"]
    return {
        "cold starts": str(cost["cold_starts"]),
        "billed windows x units, as Custom Model Import": str(cost["window_units"]),
        "USD per 1000 requests at that price": f"{1000 * usd / answered:.4f} ({price.usd} a unit-minute, {price.date})",
    }


def _ranges(summaries: dict[str, Summary]) -> list[tuple[str, str]]:
    """Least to most P95 and RPM over the repeats of each level."""
    groups: dict[str, list[Summary]] = {}
    for name, each in summaries.items():
        groups.setdefault(name.partition(",")[0], []).append(each)
    found = []
    for name, repeats in groups.items():
        p95s, rpms = [each.p95.value for each in repeats], [each.rpm for each in repeats]
        said = f"P95 {min(p95s):.3f} to {max(p95s):.3f} s, RPM {min(rpms):.1f} to {max(rpms):.1f}"
        if len(repeats) > 1:
            found.append((f"{name}, over {len(repeats)} repeats", said))
    return found


def _show(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> None:
    show(
        [dict(zip(map(str, range(len(heads))), each, strict=True)) for each in rows],
        {str(n): name for n, name in enumerate(heads)},
        as_json=False,
    )


@contextmanager
def _progress() -> Any:
    """A live line per second on standard error; nothing where that is no terminal."""
    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=2, transient=True) as live:

        def tell(name: str) -> Callable[[Run, int], None]:
            def heard(run: Run, counted: int) -> None:
                if not console.is_terminal:
                    return
                done, errors = len(run.records), sum(record.error is not None for record in run.records)
                last = sorted(record.latency_s for record in run.records[-50:])
                seen = run.samples[-1] if run.samples else None
                line = Table.grid(padding=(0, 2))
                line.add_row(
                    name,
                    f"{counted}/{run.shape.requests} counted" if counted else f"warming up, {done} answered",
                    f"P50 {percentile(last, 0.5):.2f} s" if last else "",
                    f"{errors} errors" if errors else "",
                    f"{seen.copies} copies, {seen.held} held" if seen else "",
                )
                live.update(line)

            return heard

        yield tell
