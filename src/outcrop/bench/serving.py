"""``make bench-serving``: cold starts through boto3 against the bare engine's, and copies under load."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import typer

from outcrop.bench import scaling
from outcrop.bench.gateway import SAMPLE, SECRET, server
from outcrop.engines.base import CopySpec, Endpoint
from outcrop.engines.llama_cpp import LlamaCpp
from outcrop.inference.canonical import GenerateRequest
from outcrop.launchers.local import LocalLauncher

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)
OUT = typer.Option(None, help="Keep the result as JSON.")
CHECKPOINT = typer.Option(SAMPLE, help="Folder of the model.")


@app.command("cold-start")
def cold_start(
    checkpoint: Path = CHECKPOINT,
    runs: int = typer.Option(20, min=2),
    out: Path | None = OUT,
) -> None:
    """Time from the request to its answer with no copy running, through boto3 and on the bare engine, in turns."""
    found = asyncio.run(_cold_starts(checkpoint, runs))
    for name in ("gateway_s", "bare_s"):
        typer.echo(f"{name}: p50 {_percentile(found[name], 50):.3f}, p95 {_percentile(found[name], 95):.3f}")
    for stage, seconds in found["stages_s"].items():
        typer.echo(f"  {stage}: p50 {_percentile(seconds, 50):.3f}, p95 {_percentile(seconds, 95):.3f}")
    typer.echo(f"gateway / bare: p50 {found['ratio_p50']:.2f}, p95 {found['ratio_p95']:.2f}")
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")


@app.command("scale-out")
def scale_out(
    calibration: str = typer.Option("qwen2.5-14b-a100-40gb", help="Of the simulated copies."),
    speedup: float = typer.Option(10.0, min=1, help="How many times faster the copies run than the calibration says."),
    out: Path | None = OUT,
) -> None:
    """The published table's load (1, 4, 16, 32 users) on simulated copies from one to three."""
    found = asyncio.run(scaling.measure(calibration, speedup))
    for row in [*found["levels"], found["always_warm"]]:
        typer.echo(
            f"{row['users']:>3} users: {row['requests_per_minute']:6.1f} requests/min  P95 {row['p95_s']:5.2f} s  "
            f"{row['copies_at_end']} copies  {row['failures']} failed"
        )
    typer.echo(
        f"from none to {found['always_warm']['users']} users on one copy: ordered after {found['step_reaction_s']} s"
    )
    typer.echo(
        f"three copies after {found['third_copy_after_s']} s; then {found['steady_requests_per_minute']} requests/min, "
        f"{100 * found['steady_share_of_always_warm']:.1f} % of three that were always warm"
    )
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")


async def _cold_starts(checkpoint: Path, runs: int) -> dict[str, Any]:
    import boto3

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = {"OUTCROP_KEEP_ALIVE_S": "0", "OUTCROP_STOP_IDLE": "true"}
        async with server(home, **settings) as (url, credentials, _):
            imported = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "outcrop.cli.main", "import", str(checkpoint), "--name", "sample"),
                env={**os.environ, "OUTCROP_HOME": folder},
            )
            if await imported.wait():
                raise SystemExit("the sample could not be imported")
            runtime = boto3.client(
                "bedrock-runtime",
                endpoint_url=url,
                region_name=credentials.region,
                aws_access_key_id=credentials.access_key_id,
                aws_secret_access_key=credentials.secret_access_key,
            )
            through: list[float] = []
            bare: list[float] = []
            stages: dict[str, list[float]] = {}
            spec: CopySpec | None = None
            for _ in range(runs):
                begun = time.perf_counter()
                await asyncio.to_thread(_ask, runtime)
                through.append(time.perf_counter() - begun)
                status = await asyncio.to_thread(_status, url, credentials.bearer_key)
                for stage, seconds in status["copies"][0]["start_timings"].items() if status["copies"] else ():
                    stages.setdefault(stage, []).append(seconds)
                spec = spec or _spec(home, status)
                await _until_gone(url, credentials.bearer_key)
                bare.append(await _bare_start(spec, home))
    return {
        "runs": runs,
        "gateway_s": through,
        "bare_s": bare,
        "stages_s": stages,
        "ratio_p50": _percentile(through, 50) / _percentile(bare, 50),
        "ratio_p95": _percentile(through, 95) / _percentile(bare, 95),
    }


def _ask(runtime: Any) -> None:
    runtime.invoke_model(modelId="sample", body='{"prompt":"for","max_gen_len":1,"temperature":0}')["body"].read()


async def _bare_start(spec: CopySpec, home: Path) -> float:
    """The same process without any gateway: from its spawn to the first token."""
    engine = LlamaCpp(request_timeout_s=60)
    launcher = LocalLauncher()
    begun = time.perf_counter()
    process = await launcher.start(engine.command(spec), engine.child_config(spec, SECRET), home / "bare.log", 120)
    try:
        endpoint = Endpoint(process.url, SECRET)
        while not await engine.is_ready(endpoint):
            await asyncio.sleep(0.005)
        await engine.complete(endpoint, GenerateRequest("completion", {"prompt": "for", "max_tokens": 1}))
        return time.perf_counter() - begun
    finally:
        await process.stop(5)
        await engine.aclose()
        launcher.close()


def _spec(home: Path, status: dict[str, Any]) -> CopySpec:
    (model,) = status["models"]
    return CopySpec(
        model_id=model["model_id"],
        artifact=home / "store" / "models" / model["model_id"] / "model.gguf",
        context_tokens=model["context_tokens"],
        slots=model["slots"],
        threads=status["copies"][0]["threads"] if status["copies"] else len(os.sched_getaffinity(0)),
        kv_f32=True,  # as the server does for a sample of this size
    )


def _status(url: str, key: str) -> dict[str, Any]:
    import urllib.request

    request = urllib.request.Request(f"{url}/outcrop/v1/status", headers={"Authorization": f"Bearer {key}"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        found: dict[str, Any] = json.load(response)
    return found


async def _until_gone(url: str, key: str) -> None:
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(_status, url, key))["copies"]:
            await asyncio.sleep(0.05)


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    app()
