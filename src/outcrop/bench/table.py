"""``make bench-table``: the published table on a server of this run's own, printed as docs/benchmarks has it.

Runs ``outcrop bench table`` as a person would, over the OpenAI route, while the live policy scales from one copy to as
many as fit; what comes out on standard output is Markdown to paste.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import typer

from outcrop.bench.gateway import SAMPLE, import_with_cli, server
from outcrop.bench.published import TABLE

MODEL = "bench"
MOST_COPIES = 3  # of Custom Model Import's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What answers. *words*: options of ``outcrop bench table``; ``most_s`` bounds a level, so that four of them and
    their last answers take less than ten minutes."""

    name: str
    settings: Mapping[str, str]
    scaling: Mapping[str, Any]
    words: tuple[str, ...]


def on_cpu(cores: int) -> Served:
    """Copies of one thread each, as many as there are cores."""
    most = max(1, min(MOST_COPIES, cores))
    return Served(
        name=f"the sample on llama.cpp, {cores} cores",
        settings={"OUTCROP_CPU_THREADS": "1"},
        scaling={"min_copies": 1, "max_copies": most, "slots": 4},
        words=("--requests", "120", "--warm-s", "5", "--most-s", "120", "--timeout-s", "90"),
    )


def simulated(calibration: str, speedup: float) -> Served:
    return Served(
        name=f"simulated {calibration}",
        settings={
            "OUTCROP_ENGINE_BY_MODEL": json.dumps({MODEL: "simulated"}),
            "OUTCROP_SIMULATED": json.dumps({"calibration": calibration, "speedup": speedup, "seed": 1}),
        },
        scaling={"min_copies": 1, "max_copies": MOST_COPIES, "slots": 24 if "40gb" in calibration else None},
        words=("--speedup", f"{speedup:g}", "--warm-s", "10", "--most-s", "110"),
    )


async def measure(served: Served, out: Path | None) -> dict[str, Any]:
    """What ``outcrop bench table --json`` says."""
    with tempfile.TemporaryDirectory() as folder:
        async with server(Path(folder), **served.settings) as (url, keys, _):
            await asyncio.to_thread(import_with_cli, Path(folder), SAMPLE)
            headers = {"Authorization": f"Bearer {keys.bearer_key}"}
            async with aiohttp.ClientSession(url, headers=headers, raise_for_status=True) as session:
                wanted = {name: value for name, value in served.scaling.items() if value is not None}
                await session.put(f"/outcrop/v1/models/{MODEL}/scaling", json=wanted)
            kept = ("--out", str(out), "--png") if out is not None else ()
            command = [sys.executable, "-m", "outcrop.cli.main", "bench", "table", f"openai:{MODEL}", *served.words]
            environment = {**os.environ, "OUTCROP_HOME": folder}
            done = await asyncio.to_thread(
                subprocess.run, [*command, "--json", *kept], env=environment, stdout=subprocess.PIPE, check=False
            )
    if not done.stdout:
        raise SystemExit(f"outcrop bench table ended with {done.returncode} and no result")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def markdown(served: Served, found: Mapping[str, Any]) -> str:
    """Rows beside the published ones, and what must be said with them."""
    levels = {level["users"]: level for level in found["levels"].values()}
    ours_are = f"{served.name}: P95 s, RPM, mean s, copies"
    rows = [
        f"| users | published: P95 s, RPM, mean s | {ours_are} | requests | RPM ours/published |",
        "| --- | --- | --- | --- | --- |",
    ]
    for published in TABLE:
        ours = levels.get(published.users)
        if ours is not None:
            rows.append(
                f"| {published.users} | {published.p95_s:.2f}, {published.rpm:g}, {published.mean_s:.2f} "
                f"| {_numbers(ours)} "
                f"| {ours['requests']} | {ours['rpm'] / published.rpm:.2f} |"
            )
    all_levels = list(levels.values())
    failed = sum(sum(level["errors"].values()) for level in all_levels)
    little = max(abs(level["little"] or 0.0) for level in all_levels)
    spans = ", ".join(
        f"{level['p95']['low']:.2f}–{level['p95']['high']:.2f}" if level["p95"]["low"] is not None else "too few to say"
        for level in all_levels
    )
    firsts = ", ".join("–" if level["ttft_p50_s"] is None else f"{level['ttft_p50_s']:.2f}" for level in all_levels)
    client = max(level["client_cpu_share"] for level in all_levels)
    void = [level["void"] for level in all_levels if level["void"]]
    said = (
        f"{failed or 'No'} requests failed; (users − throughput × latency) / "
        f"users is at most {100 * little:.1f} %. P95 within (95 %): {spans} s; first token (median) {firsts} s. "
        f"{found['notes'].get('cold starts', '?')} copies started during the run; the client took at most "
        f"{100 * client:.0f} % of a core."
    )
    return "\n".join([*rows, "", said, *(f"**Void: {why}.**" for why in dict.fromkeys(void))])


def _numbers(level: Mapping[str, Any]) -> str:
    if not level["requests"]:
        return "–"  # a level that is void has no latency to tell
    return f"{level['p95']['value']:.2f}, {level['rpm']:.3g}, {level['mean_s']:.2f}, {level['copies_most'] or '–'}"


def main(
    calibration: str = typer.Option("", help="Simulated copies of this calibration in place of the CPU engine."),
    speedup: float = typer.Option(5.0, min=1, help="How many times faster than that they run."),
    out: Path | None = typer.Option(None, help="Folder for requests.jsonl, summary.json, report.html and PNGs."),
) -> None:
    """Measure the published table here and print the rows of docs/benchmarks/published-table.md."""
    served = simulated(calibration, speedup) if calibration else on_cpu(len(os.sched_getaffinity(0)))
    before = os.getloadavg()[0]
    found = asyncio.run(measure(served, out))
    typer.echo(markdown(served, found))
    busy = "" if before < 0.3 else f" The machine was not idle before it: load average {before:.1f}."
    typer.echo(f"\nMeasured {datetime.now(UTC):%Y-%m-%d} on {len(os.sched_getaffinity(0))} cores.{busy}")
    if any(level["void"] for level in found["levels"].values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
