"""``make bench-crosscheck``: the same closed loop by our benchmark and by autocannon (npm), in turns, over one route.

Both send one and the same OpenAI request with so many connections to a server of this run's own. Whatever differs is
what one of the two generators adds or leaves out.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import typer

from outcrop.bench.drive import Driver, Shape
from outcrop.bench.endpoints import Ask, OpenAI
from outcrop.bench.gateway import SAMPLE, import_with_cli, server
from outcrop.bench.measures import percentile
from outcrop.bench.payloads import Lengths, Payload

MODEL = "bench"
AUTOCANNON = Path(__file__).parents[3] / ".foreign" / "autocannon" / "node_modules" / ".bin" / "autocannon"
MEASURES = ("mean_s", "p50_s", "p90_s", "rpm")


@dataclass(frozen=True, slots=True)
class Load:
    """*users* connections for *seconds*, each request of *tokens_out* tokens after the same prompt."""

    users: int
    tokens_out: int
    seconds: float = 20.0
    prompt: str = "for each record in the list check the owner " * 12

    @property
    def payload(self) -> Payload:
        return Payload(
            tokens_in=Lengths(mean=1), tokens_out=Lengths(mean=self.tokens_out, cv=0), prompts=(self.prompt,)
        )


def engines(speedup: float) -> dict[str, tuple[dict[str, str], Load]]:
    """Settings of the server and the load, for simulated copies and for the CPU engine."""
    simulated = {"calibration": "qwen2.5-14b-a100-40gb", "speedup": speedup, "seed": 1}
    settings = {"OUTCROP_ENGINE_BY_MODEL": json.dumps({MODEL: "simulated"}), "OUTCROP_SIMULATED": json.dumps(simulated)}
    return {"simulated": (settings, Load(8, 220)), "llama.cpp": ({"OUTCROP_SLOTS": "4"}, Load(4, 80))}


async def ours(endpoint: OpenAI, load: Load) -> dict[str, float]:
    shape = Shape(users=load.users, requests=10**9, warm_s=0, most_s=load.seconds)
    run = await Driver(endpoint, load.payload).run(shape)
    # As the other one does it: what was not answered when the time was up counts for nothing.
    taken = sorted(record.latency_s for record in run.records if record.last_s <= load.seconds)
    failed = [record.error for record in run.records if record.error]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    return {
        "mean_s": statistics.mean(taken),
        "p50_s": percentile(taken, 0.5),
        "p90_s": percentile(taken, 0.9),
        "rpm": 60 * len(taken) / load.seconds,
        "client_cpu_ms": 1000 * run.client_cpu_s / len(run.records),
    }


async def theirs(endpoint: OpenAI, load: Load, autocannon: Path) -> dict[str, float]:
    url, headers, body = endpoint.request(Ask(load.prompt, load.tokens_out, forced=True))
    options = ["-c", str(load.users), "-d", f"{load.seconds:g}", "-t", "120", "-m", "POST", "-j", "-b", body.decode()]
    options += [word for name, value in headers.items() for word in ("-H", f"{name}={value}")]
    process = await asyncio.create_subprocess_exec(
        str(autocannon), *options, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complaint = await process.communicate()
    if process.returncode:
        raise SystemExit(f"autocannon failed: {complaint.decode()[-500:]}")
    return read(json.loads(said))


def read(told: Mapping[str, Any]) -> dict[str, float]:
    """What autocannon's JSON says, in our units. Raises SystemExit when a request failed."""
    bad = told["errors"] + told["timeouts"] + told["non2xx"]
    if bad:
        raise SystemExit(f"{bad} requests of autocannon failed")
    latency = told["latency"]
    return {
        "mean_s": latency["average"] / 1000,
        "p50_s": latency["p50"] / 1000,
        "p90_s": latency["p90"] / 1000,
        "rpm": 60 * told["2xx"] / told["duration"],
    }


async def measure(engine: str, rounds: int, speedup: float, autocannon: Path) -> dict[str, Any]:
    """Medians over the rounds of both, and ours over theirs."""
    settings, load = engines(speedup)[engine]
    found: dict[str, list[dict[str, float]]] = {"ours": [], "autocannon": []}
    with tempfile.TemporaryDirectory() as folder:
        async with server(Path(folder), **settings) as (url, keys, _):
            await asyncio.to_thread(import_with_cli, Path(folder), SAMPLE)
            headers = {"Authorization": f"Bearer {keys.bearer_key}"}
            async with aiohttp.ClientSession(url, headers=headers, raise_for_status=True) as session:
                await session.put(f"/outcrop/v1/models/{MODEL}/scaling", json={"min_copies": 1, "max_copies": 1})
            endpoint = OpenAI(f"{url}/v1", MODEL, keys.bearer_key, stream=False)
            warm_up = Shape(users=load.users, requests=2 * load.users, warm_s=0, most_s=120)
            await Driver(endpoint, load.payload).run(warm_up)  # the copy starts, caches fill
            for number in range(rounds):
                for name in ("ours", "autocannon") if number % 2 else ("autocannon", "ours"):
                    once = ours(endpoint, load) if name == "ours" else theirs(endpoint, load, autocannon)
                    found[name].append(await once)
    medians = {
        name: {each: statistics.median(run[each] for run in runs) for each in runs[0]} for name, runs in found.items()
    }
    ratios = {each: round(medians["ours"][each] / medians["autocannon"][each], 4) for each in MEASURES}
    rounded = {name: {each: round(value, 4) for each, value in values.items()} for name, values in medians.items()}
    return {
        "engine": engine,
        "users": load.users,
        "seconds": load.seconds,
        "rounds": rounds,
        **rounded,
        "ratio": ratios,
    }


def markdown(results: Sequence[Mapping[str, Any]], speedup: float) -> str:
    """A row of each measure of each engine."""
    names = {"mean_s": "mean", "p50_s": "P50", "p90_s": "P90", "rpm": "requests/min"}
    what = {
        "simulated": f"a simulated A100 copy, {speedup:g} times faster",
        "llama.cpp": "the sample on llama.cpp",
    }
    rows = ["| what answers | | ours | autocannon | ratio (goal: within 5 %) |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        for number, (measure_name, name) in enumerate(names.items()):
            place = f"{what[result['engine']]}, {result['users']} users" if not number else ""
            ours, theirs = result["ours"][measure_name], result["autocannon"][measure_name]
            shown = (f"{ours:.1f}", f"{theirs:.1f}") if name == "requests/min" else (f"{ours:.3f} s", f"{theirs:.3f} s")
            rows.append(f"| {place} | {name} | {shown[0]} | {shown[1]} | {result['ratio'][measure_name]:.3f} |")
    return "\n".join(rows)


def main(
    engine: list[str] = typer.Option(["simulated", "llama.cpp"], help="What answers."),
    rounds: int = typer.Option(3, min=1, help="Turns of both."),
    speedup: float = typer.Option(10.0, min=1, help="Of the simulated copy."),
    autocannon: Path = typer.Option(AUTOCANNON, help="The other load generator."),
    out: Path | None = typer.Option(None, help="Keep the result as JSON."),
) -> None:
    """Compare our benchmark with an independent load generator; exit status 1 when they differ by over 5 %.

    Prints the rows of docs/benchmarks/published-table.md. Two engines and three rounds take four minutes and a half.
    """
    before, results = os.getloadavg()[0], [asyncio.run(measure(each, rounds, speedup, autocannon)) for each in engine]
    typer.echo(markdown(results, speedup))
    busy = "" if before < 0.3 else f" The machine was not idle before it: load average {before:.1f}."
    typer.echo(f"\nMeasured {datetime.now(UTC):%Y-%m-%d} on {len(os.sched_getaffinity(0))} cores.{busy}")
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
    if any(abs(ratio - 1) > 0.05 for result in results for ratio in result["ratio"].values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
