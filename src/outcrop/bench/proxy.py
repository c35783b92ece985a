"""What a proxy container adds: ``make bench-proxy``.

The same requests to one upstream that computes nothing: straight (unsigned InvokeModel, which it does not check), and
through a proxy whose ``model.py`` hands everything on. Beside them the server that SageMaker's inference toolkit itself
starts (Multi Model Server, which needs Java), with a script that forwards by urllib3. Per level all take turns, so that
other load on the machine falls on all of them; every number is relative to the straight way of the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import typer

from outcrop.bench.contenders import note, temporary_folder
from outcrop.bench.load import Plan, Result

ARN = "arn:aws:bedrock:us-east-1:000000000000:imported-model/bench0bench0"
LEVELS = (1, 4, 16, 32, 128)
DELAYS_MS = (100.0, 0.0)
STREAM_TOKENS, STREAM_TOKEN_MS = 32, 10.0
PROMPT = "x" * 1000
START_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

# Scripts that hand on what they are given, by the two ways of being called: on the loop, and on a thread.
SCRIPTS = {
    "async preprocess": "async def preprocess(request, ctx):\n    return request\n",
    "toolkit, plain functions": "import json\n\n\ndef input_fn(body, content_type):\n    return json.loads(body)\n\n\n"
    "def output_fn(prediction, accept):\n    return json.dumps(prediction), accept\n",
}
MMS = "toolkit in its own server"
# The same for that server: nobody forwards for it. One connection, kept, and no signature.
MMS_SCRIPT = """
import json
import os

import urllib3

POOL = urllib3.PoolManager(maxsize=4)


def model_fn(model_dir):
    return os.environ["BENCH_UPSTREAM"]


def input_fn(body, content_type):
    return json.loads(body)


def predict_fn(data, model):
    sent = json.dumps(data)
    return json.loads(POOL.request("POST", model, body=sent, headers={"Content-Type": "application/json"}).data)


def output_fn(prediction, accept):
    return json.dumps(prediction), accept
"""
MMS_CONFIG = """\
decode_input_request=false
load_models=ALL
default_service_handler=sagemaker_inference.default_handler_service
default_workers_per_model={workers}
inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{management}
"""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the upstream. *pid*: of the proxy's front, 0 for the straight way."""

    name: str
    port: int
    pid: int = 0

    def request(self, pieces: int) -> bytes:
        body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": pieces or 64}
        if self.pid:
            path = "/invocations"
            if pieces:
                body["stream"] = True
        else:
            path = f"/model/bench/{'invoke-with-response-stream' if pieces else 'invoke'}"
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data

    def processes(self) -> list[int]:
        """The process and all below it: a proxy's front and its workers."""
        found = [self.pid]
        for pid in found:
            for file in Path(f"/proc/{pid}/task").glob("*/children"):  # a thread may have started one
                found += map(int, file.read_text().split())
        return found

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.processes()]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / _TICKS

    def memory_mb(self) -> list[float]:
        """Resident memory of the front and of each worker."""
        sizes = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE for pid in self.processes()]
        return [round(size / 1e6, 1) for size in sizes]


@contextlib.asynccontextmanager
async def _process(command: Sequence[str], log: Path, **environment: str) -> AsyncIterator[int]:
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=file, stderr=file, env={**os.environ, **environment}, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        # The whole group: the toolkit's launcher ends at once and leaves its server and workers behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await process.wait()


@contextlib.asynccontextmanager
async def upstream(folder: Path) -> AsyncIterator[Way]:
    port_file = folder / "upstream.port"
    command = [sys.executable, "-m", "outcrop.bench.upstream", "--port", "0", "--port-file", str(port_file)]
    async with _process(command, folder / "upstream.log"):
        for _ in range(int(START_S / 0.05)):
            if port_file.exists() and port_file.read_text():
                break
            await asyncio.sleep(0.05)
        yield Way("straight", int(port_file.read_text()))


@contextlib.asynccontextmanager
async def proxy(folder: Path, name: str, script: str, to: Way, port: int, workers: int) -> AsyncIterator[Way]:
    """A proxy over *script*, from its ready ping on."""
    bundle = folder / f"bundle-{port}"
    await asyncio.to_thread(bundle.mkdir)
    (bundle / "model.py").write_text(script)
    command = [sys.executable, "-m", "outcrop.cli.main", "proxy", "--model-dir", str(bundle), "--target", ARN]
    command += ["--endpoint-url", f"http://127.0.0.1:{to.port}", "--region", "us-east-1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", str(workers)]
    keys = {"AWS_ACCESS_KEY_ID": "AKIABENCH", "AWS_SECRET_ACCESS_KEY": "bench", "OUTCROP_PROXY_LOG_LEVEL": "warning"}
    log = folder / f"proxy-{port}.log"
    async with _process(command, log, **keys) as pid, aiohttp.ClientSession() as session:
        for _ in range(int(START_S / 0.05)):
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{port}/ping") as response:
                    if response.status == 200:
                        break
            await asyncio.sleep(0.05)
        else:
            raise RuntimeError(f"the proxy did not start; its log is {log}: {log.read_text()[-2000:]}")
        yield Way(name, port, pid)


@contextlib.asynccontextmanager
async def mms(folder: Path, environment: Path, to: Way, port: int, workers: int) -> AsyncIterator[Way]:
    """The toolkit's own server, installed in *environment*, from its first answer on."""
    code = folder / "mms" / "model" / "code"
    await asyncio.to_thread(code.mkdir, parents=True)
    (code / "inference.py").write_text(MMS_SCRIPT)
    config = folder / "mms" / "mms.properties"
    config.write_text(MMS_CONFIG.format(workers=workers, port=port, management=port + 1))
    server = str(environment / "bin" / "multi-model-server")
    command = [server, "--foreground", "--start", "--model-store", "/", "--mms-config", str(config)]
    variables = {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(code),
        "SAGEMAKER_BASE_DIR": str(folder / "mms"),
        "BENCH_UPSTREAM": f"http://127.0.0.1:{to.port}/model/bench/invoke",
        "LOG_LOCATION": str(folder / "mms"),
        "METRICS_LOCATION": str(folder / "mms"),
    }
    log = folder / "mms.log"
    async with (
        _process([*command, "--models", f"model={code.parent}"], log, **variables) as pid,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(int(START_S / 0.2)):
            with contextlib.suppress(aiohttp.ClientError):
                body = {"prompt": PROMPT, "max_tokens": 1}
                async with session.post(f"http://127.0.0.1:{port}/invocations", json=body) as response:
                    if response.status == 200:
                        break
            await asyncio.sleep(0.2)
        else:
            raise RuntimeError(f"the toolkit's server did not start; its log: {log.read_text()[-2000:]}")
        yield Way(MMS, port, pid)


async def measure(way: Way, concurrency: int, pieces: int, spread_s: float, duration_s: float) -> Result:
    """One level one way, by a load generator in a process of its own."""
    plan = Plan("127.0.0.1", way.port, way.request(pieces), concurrency, duration_s, pieces, spread_s)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outcrop.bench.load", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(msgspec.json.encode(plan))
    return msgspec.json.decode(out, type=Result)


async def run(
    levels: Sequence[int], rounds: int, duration_s: float, workers: int, toolkit: Path | None = None
) -> dict[str, Any]:
    """*toolkit*: the environment of its own server; None leaves it out."""
    with temporary_folder() as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            straight = await stack.enter_async_context(upstream(folder))
            ways = [straight]
            for number, (title, script) in enumerate(SCRIPTS.items()):
                ways.append(
                    await stack.enter_async_context(proxy(folder, title, script, straight, 7395 + number, workers))
                )
            if toolkit is not None:
                ways.append(await stack.enter_async_context(mms(folder, toolkit, straight, 7399, workers)))
            rows = []
            for delay_ms, pieces in [*((delay, 0) for delay in DELAYS_MS), (0.0, STREAM_TOKENS)]:
                token_ms = STREAM_TOKEN_MS if pieces else 0.0
                await _pace(straight, delay_ms, token_ms)
                # The toolkit's functions make whole answers.
                measured = ways[:2] if pieces else ways
                for concurrency in levels:
                    found: dict[str, list[Result]] = {way.name: [] for way in measured}
                    spent: dict[str, list[float]] = {way.name: [] for way in measured}
                    for _ in range(rounds):
                        for way in measured:
                            before = way.cpu_s() if way.pid else 0.0
                            result = await measure(way, concurrency, pieces, (delay_ms + token_ms) / 1000, duration_s)
                            found[way.name].append(result)
                            spent[way.name].append((way.cpu_s() if way.pid else 0.0) - before)
                    rows += _rows(delay_ms, pieces, concurrency, found, spent)
                    note(table(rows[-len(measured) :]))
            memory = {way.name: way.memory_mb() for way in ways if way.pid}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "rounds": rounds,
        "duration_s": duration_s,
        "workers": workers,
        "memory_mb": memory,
        "levels": rows,
    }


async def _pace(to: Way, delay_ms: float, token_ms: float) -> None:
    url = f"http://127.0.0.1:{to.port}/pace?delay_ms={delay_ms}&token_ms={token_ms}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        response.raise_for_status()


def _rows(
    delay_ms: float, pieces: int, concurrency: int, found: dict[str, list[Result]], spent: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Medians over the rounds, each beside the straight way of its round."""
    straight = found["straight"]
    rows = []
    for name, results in found.items():
        added = {
            share: round(
                statistics.median(
                    ours.latency_ms[share] - plain.latency_ms[share]
                    for ours, plain in zip(results, straight, strict=True)
                    if ours.latency_ms and plain.latency_ms
                ),
                3,
            )
            for share in ("p50", "p99")
        }
        delays = [result.piece_delay_ms["p50"] for result in results if result.piece_delay_ms]
        rows.append(
            {
                "upstream_ms": delay_ms,
                "pieces": pieces,
                "concurrency": concurrency,
                "way": name,
                "added_ms": added,
                "requests_per_s": round(statistics.median(result.requests_per_s for result in results), 1),
                "requests_per_cpu_s": round(sum(result.requests for result in results) / max(sum(spent[name]), 0.01))
                if name != "straight"
                else None,
                "piece_delay_ms": round(statistics.median(delays), 3) if delays else None,
                "failures": sum(result.failures for result in results),
                "first_failure": next((result.first_failure for result in results if result.failures), ""),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line per level and way."""
    lines = []
    for row in rows:
        kind = f"stream of {row['pieces']}" if row["pieces"] else f"{row['upstream_ms']:g} ms"
        cells = (
            f"{kind}, {row['concurrency']} at a time",
            row["way"],
            row["added_ms"]["p50"],
            row["added_ms"]["p99"],
            row["requests_per_s"],
            row["requests_per_cpu_s"] or "",
            row["piece_delay_ms"] or "",
            row["failures"] or "",
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


HEAD = (
    "| upstream, level | way | added p50 ms | added p99 ms | requests/s | requests per CPU second | piece delay p50 ms "
    "| failed |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a proxy container adds.")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds per level and way")
    parser.add_argument("--duration", type=float, default=3.0, help="seconds of one measurement")
    parser.add_argument("--levels", default=",".join(map(str, LEVELS)), help="callers at a time, comma-separated")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of a proxy")
    parser.add_argument("--out", type=Path, help="write the result as JSON here as well")
    parser.add_argument("--toolkit", type=Path, help="environment of the toolkit's own server (needs Java)")
    arguments = parser.parse_args()
    levels = [int(level) for level in arguments.levels.split(",")]
    toolkit = arguments.toolkit
    if toolkit is not None and shutil.which("java") is None:
        note("there is no Java here: the toolkit's own server is left out")
        toolkit = None
    result = asyncio.run(run(levels, arguments.rounds, arguments.duration, arguments.workers, toolkit))
    typer.echo(f"{HEAD}\n{table(result['levels'])}\n\nresident MB (front, workers): {result['memory_mb']}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
