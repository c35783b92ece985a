"""``outcrop bench``: load on any endpoint that speaks Bedrock, SageMaker or OpenAI, and what it gave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from outcrop.bench import plots, report
from outcrop.bench.drive import Driver, Run, Shape, calibrated
from outcrop.bench.measures import Summary, percentile, ratio, steady, summary
from outcrop.bench.payloads import Lengths, Payload, read_prompts
from outcrop.bench.published import TABLE
from outcrop.cli.bench_targets import endpoint_of, look_of, windows_of
from outcrop.cli.client import Client, echo_json, show
from outcrop.cli.options import expanded
from outcrop.errors import BadSetting

app = typer.Typer(help="Measure an endpoint under load: ours, Bedrock, SageMaker, OpenAI.", no_args_is_help=True)

Target = Annotated[
    str,
    typer.Argument(
        help="API:MODEL or API:MODEL@URL, API one of bedrock, sagemaker, openai. Without a URL the server of "
        "OUTCROP_HOME; with @aws Amazon's endpoint and the credentials of the AWS chain; a key for another OpenAI "
        "endpoint in OPENAI_API_KEY."
    ),
]
Repeats = Annotated[int, typer.Option(min=1, help="How often each level is run; the range goes below the table.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent and for how long; options of every command here."""

    requests: Annotated[
        int,
        typer.Option(
            min=0,
            help="Requests of the steady window (200 carry a P95, 1000 a P99); 0: max(200, 20 x users).",
        ),
    ] = 0
    warm_s: Annotated[float, typer.Option(min=0, help="Seconds before the steady window may begin.")] = 30.0
    most_s: Annotated[float, typer.Option(min=1, help="Longest time in s of one level.")] = 600.0
    timeout_s: Annotated[
        float, typer.Option(min=0.1, help="Longest wait in s for one answer; then it is an error.")
    ] = 120.0
    tokens_in: Annotated[float, typer.Option(min=1, help="Mean tokens of a prompt.")] = 1000.0
    tokens_out: Annotated[float, typer.Option(min=1, help="Mean tokens of an answer.")] = 220.0
    cv: Annotated[float, typer.Option(min=0, help="Standard deviation over mean of both lengths.")] = 0.2
    natural: Annotated[
        bool, typer.Option("--natural", help="Let answers end by themselves; else their lengths are forced.")
    ] = False
    shared: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of each prompt that all have in common; 0: all begin differently."),
    ] = 0.0
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts (.jsonl with prompt, or a line each) in place of made ones."),
    ] = None
    stream: Annotated[bool, typer.Option(help="Streams, which tell the first token, or whole answers.")] = True
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests.")] = 1
    speedup: Annotated[
        float,
        typer.Option(
            min=1,
            help="How many times faster than their calibration the simulated copies run (OUTCROP_SIMULATED); times "
            "are told at the calibration's pace. Refused for real answers.",
        ),
    ] = 1.0
    home: Annotated[
        Path | None, typer.Option(envvar="OUTCROP_HOME", help="Folder of the installation (default ~/.outcrop).")
    ] = None

    def shape(self, *, users: int = 1, rate: float = 0.0, seed: int = 0) -> Shape:
        """A level as it is sent; *rate* at the calibration's pace."""
        return Shape(
            users=users,
            rate=rate * self.speedup,
            requests=self.requests or max(200, 0 if rate else 20 * users),
            warm_s=self.warm_s,
            most_s=self.most_s,
            timeout_s=self.timeout_s,
            seed=self.seed + seed,
        )

    def payload(self) -> Payload:
        return Payload(
            tokens_in=Lengths(mean=self.tokens_in, cv=self.cv),
            tokens_out=Lengths(mean=self.tokens_out, cv=self.cv),
            forced=not self.natural,
            shared=self.shared,
            prompts=read_prompts(self.prompts) if self.prompts else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Where results go."""

    out: Annotated[Path | None, typer.Option(help="Folder for requests.jsonl, summary.json and report.html.")] = None
    png: Annotated[bool, typer.Option("--png", help="Write the plots as PNG too (needs the plots extra).")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False


@app.command()
@expanded
def run(
    target: Target,
    load: Load,
    told: Told,
    users: Annotated[
        list[int] | None, typer.Option(min=1, help="Closed loop with so many users. Repeatable: one level each.")
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(min=0.0001, help="Open loop with so many requests per s (Poisson). Repeatable."),
    ] = None,
    repeats: Repeats = 1,
) -> None:
    """Run levels of load and print latency with confidence, throughput, first token, errors, the client's own cost."""
    _check(told)
    levels = {_level(count): load.shape(users=count) for count in users or ([] if rate else [1])}
    levels |= {f"{each:g} requests/s": load.shape(rate=each) for each in rate or ()}
    _tell(target, *_run(target, load, levels, repeats), told)


@app.command()
@expanded
def table(target: Target, load: Load, told: Told, repeats: Repeats = 1) -> None:
    """Run concurrency 1, 4, 16 and 32 with the standard payload and print the published table beside ours."""
    _check(told)
    levels = {_level(row.users): load.shape(users=row.users) for row in TABLE}
    runs, cost = _run(target, load, levels, repeats)
    rows = report.beside_published([summary(each) for each in runs.values()])
    if not told.as_json:
        _show(rows, report.PUBLISHED_HEADS)
        typer.echo()
    _tell(target, runs, cost, told, extra=[plots.table(rows, report.PUBLISHED_HEADS)])


@app.command()
@expanded
def compare(
    one: Target,
    other: Target,
    load: Load,
    users: Annotated[int, typer.Option(min=1, help="Users of the closed loop on each.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Times that the two take turns.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Run the same requests on two endpoints in turns and print ratios, with intervals over the requests."""
    found: dict[str, list[float]] = {one: [], other: []}
    rpm: dict[str, list[float]] = {one: [], other: []}
    if one == other:
        raise typer.BadParameter("the two endpoints are the same.")
    for number in range(rounds):
        for target in (one, other) if number % 2 == 0 else (other, one):
            shape = load.shape(users=users, seed=number)
            runs, _ = _run(target, load, {f"{target}, round {number + 1}": shape}, 1)
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


def _level(users: int) -> str:
    return "1 user" if users == 1 else f"{users} users"


def _check(told: Told) -> None:
    """Raises BadSetting where the results could not be written: before the load, not after it."""
    if told.png:
        plots.need_matplotlib()
    if told.out is not None:
        report.prepare(told.out)


def _run(target: str, load: Load, levels: dict[str, Shape], repeats: int) -> tuple[dict[str, Run], dict[str, int]]:
    endpoint, client = endpoint_of(target, load.home, stream=load.stream)
    before = windows_of(client, endpoint.model)
    runs: dict[str, Run] = {}
    with _progress() as tell:
        payload = asyncio.run(calibrated(endpoint, load.payload()))
        for name, shape in levels.items():
            for number in range(repeats):
                label = name if repeats == 1 else f"{name}, {number + 1} of {repeats}"
                driver = Driver(endpoint, payload, look=look_of(client, endpoint.model), progress=tell(label))
                try:
                    done = asyncio.run(driver.run(replace(shape, seed=shape.seed + number)))
                except KeyboardInterrupt:
                    if not runs:
                        raise
                    typer.echo(f"{label} was stopped and is left out, as is what would have followed.", err=True)
                    return runs, _cost(client, endpoint.model, before)
                runs[label] = done.stretched(load.speedup)
    return runs, _cost(client, endpoint.model, before)


def _cost(client: Client | None, model: str, before: dict[str, int]) -> dict[str, int]:
    after = windows_of(client, model)
    return {name: after[name] - before.get(name, 0) for name in after}


def _tell(target: str, runs: dict[str, Run], cost: dict[str, int], told: Told, *, extra: Sequence[str] = ()) -> None:
    summaries = {name: summary(each) for name, each in runs.items()}
    notes = {"endpoint": target} | _made_up(runs) | _priced(cost, runs)
    if told.out is not None:
        report.write(told.out, runs, summaries, notes, extra=extra, with_png=told.png)
    if told.as_json:
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


def _made_up(runs: dict[str, Run]) -> dict[str, str]:
    """Says it when the answers were no model's."""
    engines = {each.engine for each in runs.values() if each.engine}
    speedup = max((each.speedup for each in runs.values()), default=1.0)
    paced = f", {speedup:g} times faster than its calibration; times are told at the calibration's pace"
    return {"engine": ", ".join(sorted(engines)) + (paced if speedup != 1 else "")} if engines else {}


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
