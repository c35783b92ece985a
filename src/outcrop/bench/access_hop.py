"""What access checks and the audit log cost in requests/s: ``make bench-gateway-access``.

Two servers of the same code, each in front of an upstream that answers at once: one as it is delivered, one whose
policies are not asked (a patch of this benchmark; there is no such setting) and whose audit log is off. They take turns
within every round, so that other load on the machine falls on both; a round gives one ratio. Both verify signatures and
keys, which a third server leaves out too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import typer

from outcrop.bench.contenders import Contender, note, outcrop, pace, temporary_folder
from outcrop.bench.hop import Level, Measured, measure

AT_A_TIME = (16, 64)
_SERVE = "import sys; sys.argv = ['outcrop', 'serve']; from outcrop.cli.main import main; main()"
_NO_POLICIES = "from outcrop.access.authorizer import Authorizer; Authorizer.check = lambda *_, **__: None; "
_NO_SIGNATURES = (
    "from outcrop.access.authenticate import Authenticator as A; A.verify = lambda _, claim, *__: claim.principal; "
)
SERVERS = {
    "as delivered": ("", {}),
    "no policies, no audit": (_NO_POLICIES, {"OUTCROP_AUDIT": "0"}),
    "no signatures either": (_NO_POLICIES + _NO_SIGNATURES, {"OUTCROP_AUDIT": "0"}),
}


async def run(rounds: int, duration_s: float) -> dict[str, Any]:
    with temporary_folder() as name:
        async with contextlib.AsyncExitStack() as stack:
            servers: dict[str, list[Contender]] = {}
            for number, (title, (patch, settings)) in enumerate(SERVERS.items()):
                command = [sys.executable, "-c", patch + _SERVE]
                servers[title] = await stack.enter_async_context(
                    outcrop(Path(name) / str(number), command=command, settings=settings)
                )
                await pace(servers[title][0], 0, 0)
                note(f"{title}: answers")
            rows = []
            for door in (1, 2):  # signed InvokeModel, OpenAI with a bearer key
                for at in AT_A_TIME:
                    level = Level(0, "1 kB", 0, at)
                    found: dict[str, list[Measured]] = {title: [] for title in servers}
                    for number in range(rounds + 1):
                        turns = list(servers) if number % 2 else list(servers)[::-1]
                        for title in turns:
                            measured = await measure(servers[title][door], level, duration_s)
                            if measured.result.failures:
                                raise RuntimeError(f"{title}: {measured.result.first_failure}")
                            if number:  # the first round warms up
                                found[title].append(measured)
                    rows.append(row(servers["as delivered"][door].name, at, found))
                    note(table(rows[-1:]))
    return {"cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()[0], "rounds": rounds, "rows": rows}


def row(door: str, at: int, found: dict[str, list[Measured]]) -> dict[str, Any]:
    """Medians over the rounds, and of the ratios of each round: as delivered to the others."""
    rates = {title: [each.result.requests_per_s for each in rounds] for title, rounds in found.items()}
    whole, *others = rates
    return {
        "door": door,
        "at_a_time": at,
        "requests_per_s": {title: round(statistics.median(each)) for title, each in rates.items()},
        "cpu_us": {
            title: round(statistics.median(each.server_cpu_us or 0.0 for each in rounds))
            for title, rounds in found.items()
        },
        "ratio": {
            title: round(statistics.median(a / b for a, b in zip(rates[whole], rates[title], strict=True)), 3)
            for title in others
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per door and level."""
    lines = []
    for found in rows:
        cells = [
            *found["requests_per_s"].values(),
            *found["ratio"].values(),
            *(f"{cpu} µs" for cpu in found["cpu_us"].values()),
        ]
        lines.append(f"| {found['door']}, {found['at_a_time']} at a time | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what access checks and the audit log cost in requests/s.")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds; each gives one ratio")
    parser.add_argument("--duration", type=float, default=1.5, help="seconds of one measurement")
    parser.add_argument("--out", type=Path, help="write the result as JSON here as well")
    arguments = parser.parse_args()
    result = asyncio.run(run(arguments.rounds, arguments.duration))
    titles = list(SERVERS)
    heads = [*(f"{title}, requests/s" for title in titles), *(f"kept of {title}" for title in titles[1:])]
    heads += [f"{title}, CPU" for title in titles]
    typer.echo(f"| | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}\n{table(result['rows'])}")
    typer.echo(f"{result['cores']} cores, load average {result['load_average']:.1f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
